"""The only code that touches the outside world: one file per sink, one registration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ValidationError

from worker.core import loading
from worker.core.errors import Misconfigured, nearest
from worker.core.models import Delivery, Receipt
from worker.core.settings import Settings
from worker.core.specs import EffectSpec

Policy = Literal["idempotent", "never_twice", "never_lost"]
BOXED = ("jsonl", "webhook", "telegram", "github_issue")


class Sink(Protocol):
    """Sends one delivery at a time. `send` says what is known afterwards and raises only for what it did not foresee."""

    timeout: float

    async def send(self, delivery: Delivery) -> Receipt: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A registered sink. `policy` of its options: `idempotent` where the receiver honours the key."""

    options: type[BaseModel]
    make: Callable[[str, Any], Sink]
    policy: Callable[[Any], Policy]
    edits: bool = False  # it can change what it has sent


_kinds: dict[str, Kind] = {}


def sink(name: str, options: type[BaseModel], policy: Callable[[Any], Policy], *, edits: bool = False) -> Callable[[Any], Any]:
    """Registers a class `(kind, options) -> Sink` under `name`."""

    def register(make: Any) -> Any:
        _kinds[name] = Kind(options, make, policy, edits)
        return make

    return register


def _kind(effect: str, spec: EffectSpec) -> tuple[Kind, Any]:
    if spec.sink not in BOXED and ":" not in spec.sink:
        raise Misconfigured(f"effects.{effect}: unknown sink {spec.sink!r}", nearest(spec.sink, BOXED))
    module, _, name = spec.sink.partition(":")
    try:
        loading.module(module if name else f"worker.sinks.{spec.sink}")
        found = _kinds[name or spec.sink]
    except (ImportError, KeyError) as error:
        raise Misconfigured(f"effects.{effect}: cannot load sink {spec.sink!r}: {error}", "`module:name` loads a sink from outside") from error
    if spec.on_change == "edit" and not found.edits:
        raise Misconfigured(f"effects.{effect}: the sink {spec.sink} cannot change what it has sent", 'leave on_change at "report"')
    try:
        return found, found.options.model_validate(spec.model_extra or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(p) for p in problem["loc"])
        hint = nearest(where, found.options.model_fields) if problem["type"] == "extra_forbidden" else f"see [effects.{effect}]"
        raise Misconfigured(f"effects.{effect}: {where}: {problem['msg']}", hint) from error


def policy_of(effect: str, spec: EffectSpec) -> Policy:
    """Who decides when an outcome cannot be known: what the configuration says, else what the sink can."""
    found, options = _kind(effect, spec)
    return spec.policy or found.policy(options)


def build(effect: str, spec: EffectSpec) -> Sink:
    """Makes the sink of an open gate; only here are its credentials read."""
    found, options = _kind(effect, spec)
    return found.make(effect, options)


def gates(settings: Settings) -> dict[str, dict[str, Any]]:
    """The open gates as tailrace.settle takes them. A kind that is not in it is suppressed."""
    return {
        kind: {"policy": policy_of(kind, spec), "max_age": spec.max_age, "hold": spec.hold, "on_change": spec.on_change}
        for kind, spec in settings.open_gates.items()
    }
