"""What a source missed, read beside its news in the lane of catch-up: after the start, after a gap, and now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import asyncpg

from collector.breaker import LOOK, Breaker, Breakers, Patiently
from collector.positions import positions, within
from collector.raw import Appender
from collector.sources import Healing, Page, ahead
from collector.turns import Turns
from worker.core import service
from worker.core.crashpoint import crashpoint
from worker.core.events import emit
from worker.core.settings import CollectorSettings

LANE = 1
HELD_BACK = 30.0  # seconds after which a page is stored although the lane is full
KEY = "heal"  # of the lane's position, which a backfill shares


@dataclass(frozen=True, slots=True)
class Means:
    """What the readers of one process share."""

    pool: asyncpg.Pool
    appender: Appender
    patiently: Patiently
    breakers: Breakers
    turns: Turns
    settings: CollectorSettings


class KnownKeys:
    """What raw holds of one source."""

    def __init__(self, pool: asyncpg.Pool, source_id: int, patiently: Patiently) -> None:
        self._pool, self._id, self._patiently = pool, source_id, patiently

    async def among(self, keys: Sequence[str]) -> set[str]:
        return {r[0] for r in await self._patiently(self._pool.fetch, "select tailrace.known_among($1, $2)", self._id, list(keys))}

    async def between(self, first: str, last: str) -> list[str]:
        return [r[0] for r in await self._patiently(self._pool.fetch, "select tailrace.known_between($1, $2, $3)", self._id, first, last)]


class CatchUp:
    """Of one source. Held back while its own lane is full, never for ever."""

    def __init__(self, source: Healing, source_id: int, means: Means, stop: asyncio.Event) -> None:
        self._source = source
        self._name = source.name
        self._id = source_id
        self._means = means
        self._patiently = means.patiently
        self._stop = stop
        self._known = KnownKeys(means.pool, source_id, means.patiently)

    async def run(self) -> None:
        """At the start, when the source says that something is missing, and every `heal_seconds`."""
        breaker = Breaker(self._means.breakers, self._source, "catch-up")
        while await breaker.opened(self._patiently, self._stop):
            self._source.gap.clear()
            try:
                await self._alone(breaker)
                await service.rest_or_wake(self._means.settings.heal_seconds, self._source.gap, self._stop)
            except Exception as error:  # noqa: BLE001  as for the tail
                if self._stop.is_set():
                    return
                await service.rest_or_wake(min(await self._patiently(breaker.failed, error), LOOK * 12), self._stop)

    async def _alone(self, breaker: Breaker) -> None:
        """With the leases that history needs; a backfill of another process may hold one: then it is its turn."""
        taken: list[str] = []
        try:
            while not self._stop.is_set() and len(taken) < len(self._source.exclusive_history):
                name = self._source.exclusive_history[len(taken)]
                if await self._patiently(self._means.turns.take, name) is None:
                    taken.append(name)
                else:
                    await service.rest_or_wake(LOOK, self._stop)
            if not self._stop.is_set():
                await self._once(breaker)
        finally:
            for name in taken:
                await self._means.turns.drop(name)

    async def _once(self, breaker: Breaker) -> None:
        begun, appended, seen = time.monotonic(), 0, 0
        at, tail = await self._patiently(positions, self._means.pool, self._id, LANE)
        async with aclosing(ahead(self._source.heal(within(at, KEY), tail, self._known))) as pages:
            async for page in pages:
                left = await self._patiently(breaker.worked, page)
                await self._room()
                row = await self._patiently(
                    self._means.appender.append, self._id, self._name, replace(page, position={KEY: page.position}), lane=LANE
                )
                crashpoint("after-heal-before-next")
                appended, seen = appended + row["appended"], seen + len(page.records)
                if not left or self._stop.is_set():
                    return
        await self._patiently(breaker.worked, Page([]))  # a pass that found nothing may have been the one probe
        if appended:
            emit("source.healed", source=self._name, appended=appended, seen=seen, seconds=round(time.monotonic() - begun, 2))

    async def _room(self) -> None:
        until = time.monotonic() + HELD_BACK
        while time.monotonic() < until and not self._stop.is_set():
            waiting = await self._patiently(self._means.pool.fetchval, "select tailrace.lane_backlog($1, $2)", self._id, LANE)
            if waiting <= self._means.settings.low_watermark:
                return
            await service.rest_or_wake(0.5, self._stop)
