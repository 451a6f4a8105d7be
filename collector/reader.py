"""One source, read for ever: its tail, what it missed (beside the tail), and the leases on what only one process may use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import asyncpg

from collector.breaker import LEASE, Breaker, lease, release
from collector.raw import Appender, positions
from collector.sources import Healing, Page, Source, ahead
from worker.core import service
from worker.core.crashpoint import crashpoint
from worker.core.errors import Misconfigured, PositionMoved
from worker.core.events import emit
from worker.core.settings import CollectorSettings

CATCH_UP = 1
IN_HAND = 3.0  # seconds for the page in hand when asked to stop; what is not stored by then is read again
HELD_BACK = 30.0  # seconds after which a catch-up stores a page although its lane is full
LOOK = 5.0  # seconds between two looks at a denied source, or at a lease that somebody else holds
Patiently = Callable[..., Awaitable[Any]]  # calls the database, waiting while it is away


class Reader:
    """Lives until `stop`; whatever fails is tried again from the position in the database."""

    def __init__(
        self, source: Source, source_id: int, pool: asyncpg.Pool, appender: Appender, patiently: Patiently, settings: CollectorSettings
    ) -> None:
        self.source = source
        self.source_id = source_id
        self.stop = asyncio.Event()
        self.busy = False
        self.refused = ""  # who holds what we need
        self._pool = pool
        self._appender = appender
        self._patiently = patiently
        self._settings = settings
        self._exclusive: tuple[str, ...] = getattr(source, "exclusive", ())

    async def run(self) -> None:
        """Raises Misconfigured when another process took what only one may use."""
        try:
            if not await self._alone():
                return
            if self._exclusive:
                crashpoint("after-lease-before-read")
            work = [self._tail()]
            if isinstance(self.source, Healing):
                work.append(self._heal(self.source))
            if self._exclusive:
                work.append(service.run(f"lease {self.source.name}", self._renew, self.stop))
            await service.run_all(self.stop, *work, patience=IN_HAND)
        finally:
            for name in self._exclusive:
                await release(self._pool, name)

    async def _alone(self) -> bool:
        """Waits for the leases; a dead holder's ends by itself, a living one's is renewed: that one is named."""
        since = time.monotonic()
        while not self.stop.is_set():
            held = [(name, holder) for name in self._exclusive if (holder := await self._patiently(lease, self._pool, name))]
            if not held:
                self.refused = ""
                return True
            name, holder = held[0]
            if not self.refused and time.monotonic() - since > LEASE + 1:
                self.refused = f"{name} is in use by {holder}"
                emit("source.refused", source=self.source.name, error=self.refused, hint="stop that collector, or give this one a session of its own")
            await service.rest_or_wake(LOOK / 5, self.stop)
        return False

    async def _renew(self) -> float:
        for name in self._exclusive:
            if holder := await self._patiently(lease, self._pool, name):
                raise Misconfigured(f"{self.source.name}: {name} is now in use by {holder}", "two collectors share a session: give each its own")
        return LEASE / 3

    async def _tail(self) -> None:
        breaker = Breaker(self._pool, self.source)
        failing = False
        while await self._open(breaker):
            try:
                async with aclosing(self._pages()) as pages:
                    async for page in pages:
                        await self._patiently(breaker.worked, page)
                        if failing:
                            emit("source.recovered", source=self.source.name)
                        failing = False
            except PositionMoved as moved:
                emit(
                    "source.failed", source=self.source.name, error=str(moved), hint="another collector reads it too; going on from the new position"
                )
            except Exception as error:  # noqa: BLE001  one source's failure is its own
                if self.stop.is_set():
                    return
                failing = True
                await service.rest_or_wake(min(await self._patiently(breaker.failed, error), LOOK * 12), self.stop)

    async def _open(self, breaker: Breaker) -> bool:
        """Waits until the source may be called; False when asked to stop."""
        while not self.stop.is_set():
            seconds = await self._patiently(breaker.wait)
            if seconds == 0:
                return True
            await service.rest_or_wake(LOOK if seconds is None else min(seconds, LOOK), self.stop)
        return False

    async def _pages(self) -> AsyncGenerator[Page, None]:
        """Stores page after page; one is made while the one before is stored, a third waits."""
        at, other = await self._patiently(positions, self._pool, self.source_id)
        async with aclosing(ahead(self.source.tail(self.source.joined(at, other), self.stop))) as pages:
            async for page in pages:
                self.busy = True
                try:
                    await self._patiently(self._appender.append, self.source_id, self.source.name, page, expect=at)
                finally:
                    self.busy = False
                at = page.position
                yield page
                if self.stop.is_set():
                    return

    async def _heal(self, source: Healing) -> None:
        """What was missed, in the lane of catch-up: at the start, when the source says so, and every `heal_seconds`."""
        breaker = Breaker(self._pool, self.source)
        while await self._open(breaker):
            source.gap.clear()
            begun, appended, seen = time.monotonic(), 0, 0
            try:
                at, tail = await self._patiently(positions, self._pool, self.source_id, CATCH_UP)
                async with aclosing(ahead(source.heal(at, tail))) as pages:
                    async for page in pages:
                        await self._room()
                        row = await self._patiently(self._appender.append, self.source_id, self.source.name, page, lane=CATCH_UP)
                        crashpoint("after-heal-before-next")
                        appended, seen = appended + row["appended"], seen + len(page.records)
                        await self._patiently(breaker.worked, page)
                        if self.stop.is_set():
                            return
                if appended:
                    emit("source.healed", source=self.source.name, appended=appended, seen=seen, seconds=round(time.monotonic() - begun, 2))
                await service.rest_or_wake(self._settings.heal_seconds, source.gap, self.stop)
            except Exception as error:  # noqa: BLE001  as for the tail
                if self.stop.is_set():
                    return
                await service.rest_or_wake(min(await self._patiently(breaker.failed, error), LOOK * 12), self.stop)

    async def _room(self) -> None:
        """Holds the catch-up back while its own lane is full; never for ever."""
        until = time.monotonic() + HELD_BACK
        while time.monotonic() < until and not self.stop.is_set():
            waiting = await self._patiently(self._pool.fetchval, "select tailrace.lane_backlog($1, $2)", self.source_id, CATCH_UP)
            if waiting <= self._settings.low_watermark:
                return
            await service.rest_or_wake(0.5, self.stop)
