"""effect -> delivery: what the gate released goes out, at the rate of its kind, and what came of it is written down."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import deque

import asyncpg

from worker.core.db import AWAY
from worker.core.errors import ClaimLost
from worker.core.events import emit
from worker.core.models import Delivery, Receipt
from worker.core.settings import EffectSpec, Settings
from worker.effects import Effects
from worker.sinks import Sink, build, policy_of

POLL = 5.0
AT_ONCE = 8
AHEAD = 8  # claims per place, where a repeat does no harm
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
        self.waiting: deque[tuple[uuid.UUID, Delivery]] = deque()
        self.running: set[asyncio.Task[None]] = set()
        self._ahead = 1 if policy_of(kind, spec) == "never_twice" else AHEAD

    @property
    def at_once(self) -> int:
        """While the breaker is half open a single probe goes out."""
        return 1 if self.failures >= TRIPS else AT_ONCE

    @property
    def wants(self) -> int:
        """How many to claim now. What is claimed and not sent when we die is uncertain under never_twice, so there nothing is claimed ahead."""
        room = self.at_once - len(self.running) if self._ahead == 1 else self.at_once * self._ahead - len(self.waiting)
        return room if self._ahead == 1 or room * 2 >= self.at_once * self._ahead else 0

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
    """Only kinds with an open gate in this process are ever claimed. Deliveries of a kind go out side by side; a slow one holds up none."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings, worker: str, wake: asyncio.Event) -> None:
        self._effects = Effects(pool, worker)
        self._outlets = {kind: Outlet(kind, spec) for kind, spec in settings.open_gates.items()}
        self._wake = wake

    async def step(self) -> float:
        """Starts what is due of every kind. Returns seconds until there may be more to do; a delivery that ends wakes sooner."""
        now = time.monotonic()
        resting = {k: o.rests_until - now for k, o in self._outlets.items() if o.rests_until > now}
        free = [k for k, o in self._outlets.items() if k not in resting and o.wants]
        due = await self._effects.due(free) if free else {}
        claimed = [await self._claim(self._outlets[k]) for k, seconds in due.items() if seconds <= 0]
        if any(claimed):
            return 0.0
        return min([POLL, *resting.values(), *(max(seconds, 0.05) for seconds in due.values())])

    async def _claim(self, outlet: Outlet) -> int:
        lease = outlet.sink.timeout * 2 + 30
        token, deliveries = await self._effects.claim(outlet.kind, outlet.wants, outlet.spec.rate, lease)
        outlet.waiting.extend((token, d) for d in deliveries)
        while outlet.waiting and len(outlet.running) < outlet.at_once:
            task = asyncio.create_task(self._work(outlet))
            outlet.running.add(task)
            task.add_done_callback(outlet.running.discard)
        return len(deliveries)

    async def _work(self, outlet: Outlet) -> None:
        """One of the places at which a kind sends: takes what waits until nothing does."""
        while outlet.waiting:
            token, delivery = outlet.waiting.popleft()
            await self._send(outlet, token, delivery)
            if outlet.wants:
                self._wake.set()

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
        except (ClaimLost, *AWAY) as error:
            receipt = Receipt("uncertain", detail=f"it could not be written down, its policy decides: {error}")
        emit(
            _EVENTS[receipt.outcome], kind=delivery.kind, key=delivery.key, target=delivery.target, attempt=delivery.attempt,
            seconds=round(time.monotonic() - begun, 4), remote_id=receipt.remote_id, detail=receipt.detail,
        )  # fmt: skip

    async def close(self, grace: float = 20.0) -> None:
        """Lets what is being sent come to its end, for at most `grace` seconds."""
        for outlet in self._outlets.values():
            outlet.waiting.clear()
        running = [task for o in self._outlets.values() for task in o.running]
        if running:
            _, late = await asyncio.wait(running, timeout=grace)
            for task in late:
                task.cancel()
        for outlet in self._outlets.values():
            await outlet.sink.close()
