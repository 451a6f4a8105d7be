"""effect -> delivery: what the gate released goes out, at the rate of its kind, and what came of it is written down."""

from __future__ import annotations

import asyncio
import random
import time
import uuid

import asyncpg

from worker.core.errors import ClaimLost
from worker.core.events import emit
from worker.core.models import Delivery, Receipt
from worker.core.settings import EffectSpec, Settings
from worker.effects import Effects
from worker.sinks import Sink, build

POLL = 5.0
AT_ONCE = 8
TRIPS = 5  # failures in a row that rest a kind
LONGEST_REST = 300.0
_EVENTS = {"sent": "delivery.sent", "retry": "delivery.retried", "failed": "delivery.failed", "uncertain": "delivery.uncertain"}


class Outlet:
    """One open kind: its sink, and its breaker."""

    def __init__(self, kind: str, spec: EffectSpec) -> None:
        self.kind = kind
        self.spec = spec
        self.sink: Sink = build(kind, spec)
        self.failures = 0
        self.rests_until = 0.0

    @property
    def at_once(self) -> int:
        """While the breaker is half open a single probe goes out."""
        return 1 if self.failures >= TRIPS else AT_ONCE

    def note(self, receipt: Receipt) -> None:
        if receipt.outcome in ("sent", "failed"):
            self.failures, self.rests_until = 0, 0.0
            return
        self.failures += 1
        if receipt.after or self.failures >= TRIPS:
            pause = receipt.after or min(2.0 ** (self.failures - TRIPS + 1), LONGEST_REST)
            self.rests_until = max(self.rests_until, time.monotonic() + pause)

    def judged(self, receipt: Receipt, attempt: int) -> Receipt:
        """The receipt with its pause, or as failed when the tries are used up."""
        if receipt.outcome != "retry":
            return receipt
        if attempt >= self.spec.max_attempts:
            return Receipt("failed", detail=f"given up after {attempt} attempts: {receipt.detail}")
        pause = receipt.after if receipt.after is not None else min(2.0**attempt, 3600.0) * random.uniform(0.5, 1.0)  # noqa: S311  jitter
        return Receipt("retry", detail=receipt.detail, after=pause)


class Dispatcher:
    """Only kinds with an open gate in this process are ever claimed."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings, worker: str) -> None:
        self._effects = Effects(pool, worker)
        self._outlets = {kind: Outlet(kind, spec) for kind, spec in settings.open_gates.items()}

    async def step(self) -> float:
        """Sends what is due of every kind. Returns seconds until there is more to do."""
        due = await self._effects.due(list(self._outlets))
        now = time.monotonic()
        ready = [o for k, o in self._outlets.items() if due.get(k, 1.0) <= 0 and o.rests_until <= now]
        claimed = await asyncio.gather(*(self._dispatch(o) for o in ready))
        if any(claimed):
            return 0.0
        soon = [max(seconds, self._outlets[k].rests_until - now, 0.05) for k, seconds in due.items()]
        return min([POLL, *soon])

    async def _dispatch(self, outlet: Outlet) -> int:
        lease = outlet.sink.timeout * 2 + 30
        token, deliveries = await self._effects.claim(outlet.kind, outlet.at_once, outlet.spec.rate, lease)
        await asyncio.gather(*(self._send(outlet, token, d) for d in deliveries))
        return len(deliveries)

    async def _send(self, outlet: Outlet, token: uuid.UUID, delivery: Delivery) -> None:
        begun = time.monotonic()
        try:
            receipt = await outlet.sink.send(delivery)
        except Exception as error:  # noqa: BLE001  whatever a sink did not foresee is an unknown outcome
            receipt = Receipt("uncertain" if delivery.policy == "never_twice" else "retry", detail=f"{type(error).__name__}: {error}")
        outlet.note(receipt)
        receipt = outlet.judged(receipt, delivery.attempt)
        try:
            await self._effects.finish(delivery.key, token, receipt)
        except ClaimLost:
            receipt = Receipt("uncertain", detail="the lease ran out while it was being sent; its policy decides")
        emit(
            _EVENTS[receipt.outcome], kind=delivery.kind, key=delivery.key, target=delivery.target, attempt=delivery.attempt,
            seconds=round(time.monotonic() - begun, 4), remote_id=receipt.remote_id, detail=receipt.detail,
        )  # fmt: skip

    async def close(self) -> None:
        for outlet in self._outlets.values():
            await outlet.sink.close()
