"""What a source is, and which there are: one file per source, one registration."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute

from collector.sources.answers import Quota
from worker.core.errors import Misconfigured, nearest
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings, Settings, SourceSpec


@dataclass(frozen=True, slots=True)
class Page:
    """Records in the order of the source, and the position that is reached when they are stored."""

    records: list[RawRecord]
    position: dict[str, Any] = field(default_factory=dict)
    times: tuple[dt.datetime, dt.datetime] | None = None  # what of the source's time it covers, [from, until)
    ids: tuple[int, int] | None = None  # the same for a source whose ids are dense
    quotas: tuple[Quota, ...] = ()  # limits as the answer told them


class Source(Protocol):
    """One configured source. A page is asked for only when the one before is stored.

    Raises Limited or Denied where the service says so; any other exception is a failure that is tried again.
    """

    name: str
    caught_up: bool
    exclusive: tuple[str, ...]  # what only one process may use at a time, e.g. a session: the collector holds a lease on each

    @property
    def unread(self) -> list[str]:
        """Parts of the source that could not be read; they are tried again by themselves."""
        ...

    def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        """Pages from `position` on, for ever; waits for news by itself. Sets `caught_up` while there is nothing more."""
        ...

    def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """One bounded pass from `position` to the present end."""
        ...

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Where to go on in one lane, when the other one has come to `other`; `position` where that tells nothing."""
        ...

    def describe(self) -> str:
        """What it reads, for people; never a secret."""
        ...


@runtime_checkable
class Healing(Protocol):
    """A source whose tail does not bring what was missed: it is fetched beside the tail, in the lane of catch-up."""

    gap: asyncio.Event  # set by the source when it knows that something was missed; the collector clears it

    def heal(self, position: dict[str, Any], tail: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """Pages of what was missed, edits and deletions too, oldest first; `position` is this lane's, `tail` that of the live one."""
        ...


@runtime_checkable
class Served(Protocol):
    """A source that is called from outside instead: it adds routes to the collector's server and writes by `step`."""

    name: str

    def routes(self, append: Callable[[Page], Awaitable[Any]]) -> list[BaseRoute]:
        """Routes of the collector's server; `append` stores a page."""
        ...

    async def step(self) -> float:
        """Stores what waits and answers it; seconds to rest."""
        ...

    def close(self) -> None:
        """Calls that come from now on are told to come back."""
        ...


async def ahead(pages: AsyncGenerator[Page, None]) -> AsyncGenerator[Page, None]:
    """The same pages; the next one is made while the one before is being stored."""
    async with aclosing(pages):
        coming = asyncio.ensure_future(anext(pages, None))
        try:
            while (page := await coming) is not None:
                coming = asyncio.ensure_future(anext(pages, None))
                yield page
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await coming


@dataclass(frozen=True, slots=True)
class Kind:
    """A registered kind of source."""

    name: str
    options: type[BaseModel]
    make: Callable[[str, Any, CollectorSettings], Source]


_kinds: dict[str, Kind] = {}
BOXED = ("bluesky", "files", "github", "rss", "telegram", "webhook", "x")


def source(name: str, options: type[BaseModel]) -> Callable[[Any], Any]:
    """Registers a class or function `(name, options, settings) -> Source` as the kind `name`."""

    def register(make: Any) -> Any:
        _kinds[name] = Kind(name, options, make)
        return make

    return register


def kind_of(spec: SourceSpec, name: str) -> Kind:
    """The kind of a source; `module:name` loads a kind from outside the tree."""
    module, _, inner = spec.kind.partition(":")
    try:
        if spec.kind in BOXED:
            importlib.import_module(f"collector.sources.{spec.kind}")
        elif inner:
            importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'tailrace[{spec.kind}]'" if spec.kind in BOXED else "is its package installed?"
        raise Misconfigured(f"sources.{name}: cannot load {module!r}: {error}", hint) from error
    found = _kinds.get(inner or spec.kind)
    if found is None:
        raise Misconfigured(f"sources.{name}: unknown kind {spec.kind!r}", nearest(spec.kind, BOXED))
    return found


def build(settings: Settings, only: list[str] | None = None) -> dict[str, Source]:
    """The active sources of the configuration, or those named in `only`. Raises Misconfigured with the nearest known name."""
    for name in only or []:
        if name not in settings.sources:
            raise Misconfigured(f"there is no source {name!r} in the configuration", nearest(name, settings.sources))
    chosen = only or [name for name, spec in settings.sources.items() if spec.active]
    return {name: _build(name, settings.sources[name], settings.collector) for name in chosen}


def _build(name: str, spec: SourceSpec, settings: CollectorSettings) -> Source:
    kind = kind_of(spec, name)
    try:
        options = kind.options.model_validate(spec.model_extra or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(p) for p in problem["loc"])
        hint = (
            nearest(str(problem["loc"][0]), kind.options.model_fields)
            if problem["type"] == "extra_forbidden" and problem["loc"]
            else f"see [sources.{name}]"
        )
        raise Misconfigured(f"sources.{name}: {where}: {problem['msg']}", hint) from error
    return kind.make(name, options, settings)
