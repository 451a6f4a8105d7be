"""From the configuration to sources: kinds found in the box, by entry point or as `module:name`, their options checked."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from pydantic import ValidationError

from collector.sources import Kind, Polled, Source, kinds
from worker.core import loading
from worker.core.errors import Misconfigured, nearest
from worker.core.settings import CollectorSettings, Settings
from worker.core.specs import SourceSpec

BOXED = ("bluesky", "files", "github", "rss", "telegram", "webhook", "x")
GROUP = "tailrace.sources"  # entry points of packages that bring kinds of their own


def kind_of(spec: SourceSpec, name: str) -> Kind:
    """The kind of a source. `module:name` loads a kind from outside the tree, as an entry point of the group `tailrace.sources` does."""
    module, _, inner = spec.kind.partition(":")
    try:
        if spec.kind in BOXED:
            importlib.import_module(f"collector.sources.{spec.kind}")
        elif inner:
            loading.module(module)
        elif found := entry_points(group=GROUP, name=spec.kind):
            next(iter(found)).load()
    except ImportError as error:
        hint = f"pip install 'tailrace[{spec.kind}]'" if spec.kind in BOXED else "is its package installed?"
        raise Misconfigured(f"sources.{name}: cannot load {module!r}: {error}", hint) from error
    kind = kinds.get(inner or spec.kind)
    if kind is None:
        others = {e.name for e in entry_points(group=GROUP)}
        raise Misconfigured(f"sources.{name}: unknown kind {spec.kind!r}", nearest(spec.kind, [*BOXED, *others]))
    return kind


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
    made = kind.make(name, options, settings)
    if spec.every is not None:
        if not isinstance(made, Polled):
            raise Misconfigured(f"sources.{name}: {spec.kind} is not polled, so `every` says nothing", "leave it out: news come by themselves")
        made.every = spec.every
    return made
