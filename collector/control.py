"""How large the next chunk is: chosen anew before each one, from what is left of the limits, the last durations and the errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

START = 100
RESERVE = 0.1  # of a limit that is left to the tail
GROW, CREEP, CUT = 2.0, 1.25, 0.5
HOPELESS = 6.0  # times as long as it should take: the size is cut at once


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the configuration says."""

    floor: int
    ceiling: int
    seconds: float  # how long a chunk should take: what a restart may lose


@dataclass(frozen=True, slots=True)
class Decision:
    """`size` records, and why; or a pause: `wait` seconds until the limit begins anew."""

    size: int
    because: str
    limit: str | None = None  # the tightest one: what `remaining` and `units_per_record` are of
    remaining: float | None = None
    units_per_record: float | None = None
    last_seconds: float | None = None
    errors: int = 0
    wait: float = 0.0

    def facts(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def decide(recent: Sequence[dict[str, Any]], quotas: Sequence[dict[str, Any]], bounds: Bounds, sharers: int = 1) -> Decision:
    """`recent`: the last chunks, oldest first {size, records, seconds, error, decision}. `quotas`: {name, remaining, limit, resets_in}, from
    which `sharers` backfills spend at present.
    """
    errors = sum(1 for c in recent if c["error"])
    size, because = _by_history(recent, bounds)
    last = recent[-1] if recent else None
    seconds = last["seconds"] if last else None
    tightest = min((q for q in quotas if q["limit"]), key=lambda q: q["remaining"] / q["limit"], default=None)
    if tightest is None:
        return Decision(_clamped(size, bounds), because, None, None, None, seconds, errors)
    cost = _cost(recent, tightest)
    left = tightest["remaining"] - RESERVE * tightest["limit"]
    if left < cost * bounds.floor and (tightest["resets_in"] or 0) > 0:
        why = f"{tightest['name']}: {tightest['remaining']:g} of {tightest['limit']:g} left, the rest is for the tail"
        return Decision(bounds.floor, why, tightest["name"], tightest["remaining"], cost, seconds, errors, tightest["resets_in"])
    affordable = int(left / cost / max(sharers, 1)) if cost else size
    if affordable < size:
        size, because = affordable, f"what {tightest['name']} allows until it begins anew"
    return Decision(_clamped(size, bounds), because, tightest["name"], tightest["remaining"], cost, seconds, errors)


def _by_history(recent: Sequence[dict[str, Any]], bounds: Bounds) -> tuple[int, str]:
    if not recent:
        return START, "the first one"
    last = recent[-1]
    if last["error"]:
        return int(last["size"] * CUT), "the last one failed"
    if last["seconds"] > bounds.seconds:
        return int(last["size"] * max(CUT, bounds.seconds / last["seconds"])), "the last one took too long"
    grow = GROW if not any(c["error"] for c in recent) and last["seconds"] * GROW <= bounds.seconds else CREEP
    if last["records"] < last["size"]:
        return int(last["size"]), "the last one was not full"
    return int(last["size"] * grow + 1), "the last one went well"


def _cost(recent: Sequence[dict[str, Any]], quota: dict[str, Any]) -> float:
    """Units of the limit for one record, as the last chunks spent it; others may have spent from it too, which errs on the safe side."""
    seen = [c["decision"].get("remaining") if c["decision"].get("limit") == quota["name"] else None for c in recent] + [quota["remaining"]]
    costs = [
        (before - after) / chunk["records"]
        for chunk, before, after in zip(recent, seen, seen[1:], strict=False)
        if before is not None and after is not None and before > after and chunk["records"]
    ]
    return max(costs[-3:], default=0.0)


def _clamped(size: int, bounds: Bounds) -> int:
    return max(bounds.floor, min(size, bounds.ceiling))
