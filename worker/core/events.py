"""What happened, said once. Code emits; log.py and metrics.py subscribe. Names are noun.verb_past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Subscriber = Callable[[str, dict[str, Any]], None]

NAMES = frozenset({
    "program.started", "program.stopped", "step.failed", "database.lost", "database.found",
    "raw.appended", "raw.defective", "line.awaited", "source.failed", "source.recovered", "webhook.refused",
    "source.limited", "source.denied", "source.refused", "source.healed", "source.backfilled", "config.reloaded", "config.refused",
    "version.registered", "run.advanced", "job.claimed", "job.settled", "claim.lost", "claim.given_back", "lease.rescued",
    "processor.failed", "processor.overdue", "version.paused", "jobs.vacuumed",
    "delivery.sent", "delivery.failed", "delivery.retried", "delivery.uncertain",
})  # fmt: skip

_subscribers: list[Subscriber] = []


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Calls `subscriber(name, fields)` for every event from now on; the answer unsubscribes."""
    _subscribers.append(subscriber)
    return lambda: _subscribers.remove(subscriber)


def emit(name: str, **fields: Any) -> None:
    """One event; at most one per claim, page, delivery or failure, never one per record."""
    if name not in NAMES:
        raise KeyError(f"event {name!r} is not declared in worker/core/events.py")
    for subscriber in _subscribers:
        subscriber(name, fields)
