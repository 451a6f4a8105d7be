"""What a source is: one file per source, one registration. How it can be read is said by the protocols that it has the members of."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel
from starlette.routing import BaseRoute

from collector.sources.answers import Quota, Spent
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings


@dataclass(frozen=True, slots=True)
class Page:
    """Records in the order of the source, and the position that is reached when they are stored."""

    records: list[RawRecord]
    position: dict[str, Any] = field(default_factory=dict)
    times: tuple[dt.datetime, dt.datetime] | None = None  # what of the source's time it covers, [from, until)
    ids: tuple[int, int] | None = None  # the same for a source whose ids are dense, [from, to)
    quotas: tuple[Quota, ...] = ()  # limits as the answer told them
    spent: tuple[Spent, ...] = ()  # what it cost of a budget of our own
    more: bool = True  # of a chunk: whether history goes on after it
    total: int | None = None  # records of the whole history, where the service tells


class Source(Protocol):
    """One configured source. It also has the members of one or more of the protocols below: how it is read.

    A page is asked for only when the one before is stored. Raises Limited or Denied where the service says so; any other exception is
    a failure that is tried again. A partial answer is a failure, never a page.
    """

    name: str
    caught_up: bool  # nothing more at present; a Tailed source sets it itself
    exclusive: tuple[str, ...]  # what only one process may use for news at a time, e.g. a session: the collector holds a lease on each
    exclusive_history: tuple[str, ...]  # the same for history: catch-up and backfill
    limits: tuple[str, ...]  # names of the limits that it shares with others, e.g. `github:graphql`: none of them is called while one is held

    def describe(self) -> str:
        """What it reads, for people; never a secret."""
        ...


@runtime_checkable
class Tailed(Protocol):
    """It waits for news by itself."""

    def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        """Pages from `position` on, for ever."""
        ...


@runtime_checkable
class Polled(Protocol):
    """It has to be asked for news, at the times that the collector chooses."""

    every: float  # seconds

    def poll(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """One bounded pass over what is new or changed since `position`; the position moves with each page, so that it can end anywhere."""
        ...


@runtime_checkable
class Fetched(Protocol):
    """Its history is read in one pass, in pages of its own making."""

    def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        """One bounded pass from `position` to the present end."""
        ...

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Where to go on in one lane, when the other one has come to `other`; `position` where that tells nothing."""
        ...

    @property
    def unread(self) -> list[str]:
        """Parts of the source that could not be read; they are tried again by themselves."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """`since` inclusive, `until` exclusive, by the time at which a record happened; None: open."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None

    def holds(self, when: dt.datetime | None) -> bool:
        """A record without a time of its own is in no closed window."""
        if when is None:
            return self.since is None and self.until is None
        return not (self.since and when < self.since) and not (self.until and when >= self.until)


@runtime_checkable
class Chunked(Protocol):
    """Its history is read in chunks, whose size the collector chooses by quota, time and errors."""

    async def chunk(self, position: dict[str, Any], size: int, window: Window) -> Page:
        """The next `size` records, or fewer where the service gives fewer, after `position` ({} at the beginning), newest or oldest first,
        only those of the window. `more` is false on the last one.
        """
        ...


class Known(Protocol):
    """What raw holds of a source, deletions left out."""

    async def among(self, keys: Sequence[str]) -> set[str]:
        """Those of `keys` that are there."""
        ...

    async def between(self, first: str, last: str) -> list[str]:
        """The keys from `first` to `last`, both included, in the order of text."""
        ...


@runtime_checkable
class Healing(Source, Protocol):
    """A source whose tail does not bring what was missed: it is fetched beside the tail, in the lane of catch-up."""

    gap: asyncio.Event  # set by the source when it knows that something was missed; the collector clears it

    def heal(self, position: dict[str, Any], tail: dict[str, Any], known: Known) -> AsyncGenerator[Page, None]:
        """Pages of what was missed, edits and deletions too, oldest first; `position` is this lane's, `tail` that of the live one."""
        ...


@runtime_checkable
class Closing(Protocol):
    """It holds connections."""

    async def aclose(self) -> None:
        """Called once, when nothing of it runs any more."""
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
    """The same pages; the next one is made while the one before is being stored. What costs is not asked for before the last cost is booked."""
    coming: asyncio.Future[Page | None] | None = None
    async with aclosing(pages):
        try:
            while (page := await (coming or anext(pages, None))) is not None:
                coming = None if page.spent else asyncio.ensure_future(anext(pages, None))
                yield page
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """A registered kind of source."""

    name: str
    options: type[BaseModel]
    make: Callable[[str, Any, CollectorSettings], Source]


kinds: dict[str, Kind] = {}


def source(name: str, options: type[BaseModel]) -> Callable[[Any], Any]:
    """Registers a class or function `(name, options, settings) -> Source` as the kind `name`."""

    def register(make: Any) -> Any:
        kinds[name] = Kind(name, options, make)
        return make

    return register
