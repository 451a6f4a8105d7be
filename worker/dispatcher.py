"""effect -> delivery: what the gate released goes out, at the rate of its kind, and what came of it is written down."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import Any

import asyncpg
import tenacity

from worker.core.crashpoint import crashpoint
from worker.core.db import AWAY
from worker.core.events import emit
from worker.core.models import Receipt
from worker.core.settings import Settings
from worker.core.specs import EffectSpec
from worker.core.texts import fit
from worker.effects import Claimed, Effects
from worker.sinks import Sink, build, policy_of

POLL = 5.0
AT_ONCE = 8
AHEAD = 8  # claims per place, where a repeat does no harm
TRIPS = 5  # failures in a row that rest a kind
LONGEST_REST = 300.0
MARGIN = 30.0  # what is claimed has to start within so many seconds
EMPTY = 0.25  # others took what was due
_EVENTS = {"sent": "delivery.sent", "retry": "delivery.retried", "failed": "delivery.failed", "uncertain": "delivery.uncertain"}


class Outlet:
    """One open kind: its sink, its breaker, what is claimed for it."""

    def __init__(self, kind: str, spec: EffectSpec) -> None:
        self.kind = kind
        self.spec = spec
        self.sink: Sink = build(kind, spec)
        self.longest = self.sink.timeout * 2  # seconds that one sending may take in all
        self.lease = self.longest + MARGIN
        self.failures = 0
        self.trips = 0
        self.rests_until = 0.0
        self.claims_at = 0.0  # not before: the rate is used up, or there was nothing
        self.waiting: deque[Claimed] = deque()
        self.running: set[asyncio.Task[None]] = set()
        self._ahead = 1 if policy_of(kind, spec) == "never_twice" else AHEAD

    @property
    def resting(self) -> bool:
        return self.rests_until > time.monotonic()

    def pause(self) -> float:
        """Seconds until something may be claimed again."""
        return max(0.0, self.rests_until - time.monotonic(), self.claims_at - time.monotonic())

    @property
    def wants(self) -> int:
        """How many to claim now. What is claimed and not sent when we die is uncertain under never_twice, so there nothing is claimed ahead.
        While the breaker is half open it is a single probe.
        """
        if self.pause():
            return 0
        places = 1 if self.failures >= TRIPS else AT_ONCE
        if places == 1 or self._ahead == 1:
            return max(0, places - len(self.running) - len(self.waiting))
        most = places * self._ahead
        return most - len(self.waiting) if len(self.waiting) * 2 <= most else 0

    def note(self, receipt: Receipt) -> None:
        """Any answer about the delivery itself shows that the receiver is there; the kind rests after failures in a row, or as it was told."""
        if receipt.outcome in ("sent", "failed"):
            self.failures = self.trips = 0
        elif receipt.after != 0:
            self.failures += 1
            rest = receipt.after or 0.0
            if self.failures >= TRIPS and not self.resting:
                self.trips += 1
                rest = max(rest, 2.0 ** min(self.trips, 9))
            self.rests_until = max(self.rests_until, time.monotonic() + min(rest, LONGEST_REST))

    def judged(self, receipt: Receipt, attempt: int) -> Receipt:
        """The receipt with its pause, or as failed when the tries are used up. Whoever lets a failed one go again gives it as many once more."""
        if receipt.outcome != "retry":
            return receipt
        if attempt % self.spec.max_attempts == 0:
            return Receipt("failed", detail=f"given up after {attempt} attempts: {receipt.detail}")
        pause = receipt.after if receipt.after is not None else min(2.0 ** min(attempt, 12), 3600.0) * random.uniform(0.5, 1.0)  # noqa: S311  jitter
        return Receipt("retry", detail=receipt.detail, after=pause)


class Dispatcher:
    """Only kinds with an open gate in this process are ever claimed. Deliveries of a kind go out side by side; a slow one holds up none."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings, worker: str, wake: asyncio.Event) -> None:
        self._effects = Effects(pool, worker)
        self._outlets = {kind: Outlet(kind, spec) for kind, spec in settings.open_gates.items()}
        self._wake = wake
        self._grace = settings.worker.grace_seconds

    async def step(self) -> float:
        """Starts what is due of every kind. Returns seconds until there may be more to do; a delivery that ends wakes sooner."""
        free = [k for k, o in self._outlets.items() if o.wants]
        due = await self._effects.due(free) if free else {}
        claimed = [await self._claim(self._outlets[k]) for k, seconds in due.items() if seconds <= 0]
        if any(claimed) and any(o.wants for o in self._outlets.values()):
            return 0.0
        return min([POLL, *(o.pause() or POLL for o in self._outlets.values()), *(seconds for seconds in due.values() if seconds > 0)])

    async def _claim(self, outlet: Outlet) -> int:
        limit, rate = outlet.wants, outlet.spec.rate
        claimed = await self._effects.claim(outlet.kind, limit, rate, outlet.lease)
        if claimed:
            crashpoint("after-claim-before-send")
        if len(claimed) < limit and (rate or not claimed):
            outlet.claims_at = time.monotonic() + max(EMPTY, 1 / rate if rate else 0.0)
        outlet.waiting.extend(claimed)
        for _ in range(min(len(outlet.waiting), AT_ONCE - len(outlet.running))):
            task = asyncio.create_task(self._work(outlet))
            outlet.running.add(task)
            task.add_done_callback(outlet.running.discard)
            task.add_done_callback(lambda _task: self._wake.set())
        return len(claimed)

    async def _work(self, outlet: Outlet) -> None:
        """One of the places at which a kind sends: takes what waits until nothing does or the kind rests."""
        while outlet.waiting:
            claimed = outlet.waiting.popleft()
            if claimed.age() > MARGIN or outlet.resting:
                given = [claimed, *outlet.waiting]
                outlet.waiting.clear()
                await self._effects.give_back(given)
                return
            await self._send(outlet, claimed)
            if outlet.wants:
                self._wake.set()

    async def _send(self, outlet: Outlet, claimed: Claimed) -> None:
        begun, delivery = time.monotonic(), claimed.delivery
        try:
            async with asyncio.timeout(outlet.longest):
                receipt = _known(await outlet.sink.send(delivery))
        except Exception as error:  # noqa: BLE001  whatever a sink did not foresee is an unknown outcome
            receipt = Receipt("uncertain" if delivery.policy == "never_twice" else "retry", detail=fit(f"{type(error).__name__}: {error}", 2000))
        crashpoint("after-send-before-mark")
        outlet.note(receipt)
        receipt = await self._written(claimed, outlet.judged(receipt, delivery.attempt), outlet.lease)
        crashpoint("after-mark-before-next")
        emit(
            _EVENTS[receipt.outcome], kind=delivery.kind, key=delivery.key, target=delivery.target, attempt=delivery.attempt,
            seconds=round(time.monotonic() - begun, 4), remote_id=receipt.remote_id, detail=receipt.detail,
        )  # fmt: skip

    async def _written(self, claimed: Claimed, receipt: Receipt, lease: float) -> Receipt:
        """What is known is written down, also when the database is away for a while: until the lease is over."""
        stop = tenacity.stop_after_delay(max(0.0, lease - claimed.age()))
        wait = tenacity.wait_random_exponential(0.2, max=5)
        try:
            async for attempt in tenacity.AsyncRetrying(retry=tenacity.retry_if_exception_type(AWAY), wait=wait, stop=stop, reraise=True):
                with attempt:
                    await self._effects.finish(claimed, receipt)
        except Exception as error:  # noqa: BLE001  ClaimLost above all; whatever it is, the watchdog decides by the policy
            detail = f"{receipt.outcome}, but it could not be written down, so its policy decides: {error}"
            return Receipt("uncertain", remote_id=receipt.remote_id, detail=detail)
        return receipt

    async def close(self, grace: float | None = None) -> None:
        """Gives back what is not being sent and lets the rest come to its end, for at most `grace` seconds (default: worker.grace_seconds)."""
        waiting = [claimed for o in self._outlets.values() for claimed in o.waiting]
        running = [task for o in self._outlets.values() for task in o.running]
        for outlet in self._outlets.values():
            outlet.waiting.clear()
        if waiting:
            crashpoint("after-stop-before-unclaim")
            running.append(asyncio.create_task(self._effects.give_back(waiting)))
        try:
            if running:
                await asyncio.wait(running, timeout=self._grace if grace is None else grace)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for outlet in self._outlets.values():
                await outlet.sink.close()


def _known(receipt: Any) -> Receipt:
    """Raises TypeError for what is no receipt: a sink may be anybody's."""
    if not isinstance(receipt, Receipt) or receipt.outcome not in _EVENTS:
        raise TypeError(f"the sink returned {type(receipt).__name__} {str(getattr(receipt, 'outcome', ''))[:40]!r}, which is no receipt")
    return receipt
