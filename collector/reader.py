"""One source, read for ever: its news, what it missed (beside them), and the leases on what only one process may use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from collector.breaker import LOOK, Breaker
from collector.catchup import CatchUp, Means
from collector.positions import positions
from collector.sources import Closing, Fetched, Healing, Page, Polled, Source, Tailed, ahead
from collector.turns import LEASE
from worker.core import service
from worker.core.crashpoint import crashpoint
from worker.core.errors import PositionMoved
from worker.core.events import emit

IN_HAND = 3.0  # seconds for the page in hand when asked to stop; what is not stored by then is read again
LONGEST = 60.0  # seconds after which a failing source, or the turn of a poll, is looked at again


class Reader:
    """Lives until `stop`; whatever fails is tried again from the position in the database."""

    def __init__(self, source: Source, source_id: int, means: Means) -> None:
        self.source = source
        self.source_id = source_id
        self.stop = asyncio.Event()
        self.refused = ""  # who holds what we need
        self._means = means
        self._patiently = means.patiently
        self._polled = source if isinstance(source, Polled) else None
        self._tailed = source if isinstance(source, Tailed) else None
        self._at: dict[str, Any] | None = None  # where a polled source stands, as far as we know
        self._busy = self._looked = self._failing = False

    def caught_up(self) -> tuple[int, bool] | None:
        """(id, whether it was watched all the time since the last look) of a source that has nothing more at present."""
        if self._polled:
            looked, self._looked = self._looked, False
            return (self.source_id, False) if looked else None
        return (self.source_id, True) if self.source.caught_up and not self._busy else None

    async def run(self) -> None:
        """Until it is stopped, or a lease is another's."""
        taken: list[str] = []
        try:
            if not await self._alone(taken):
                return
            if taken:
                crashpoint("after-lease-before-read")
            work = [self._read() if self._polled or self._tailed else service.until(self.stop)]
            if isinstance(self.source, Healing):
                work.append(CatchUp(self.source, self.source_id, self._means, self.stop).run())
            await service.run_all(self.stop, *work, patience=IN_HAND)
        finally:
            if isinstance(self.source, Closing):
                await self.source.aclose()
            for name in taken:
                await self._means.turns.drop(name)

    async def _alone(self, taken: list[str]) -> bool:
        """Waits for the leases; a dead holder's ends by itself, a living one's is renewed: that one is named."""
        since = time.monotonic()
        while not self.stop.is_set():
            held = await self._take(taken)
            if not held:
                self.refused = ""
                return True
            if not self.refused and time.monotonic() - since > LEASE + 1:
                self.refused = held
                emit("source.refused", source=self.source.name, error=held, hint="stop that collector, or give this one a session of its own")
            await service.rest_or_wake(LOOK / 5, self.stop)
        return False

    async def _take(self, taken: list[str]) -> str:
        """Who holds one of the leases that we need; empty when all are ours."""
        for name in self.source.exclusive:
            if name not in taken:
                if holder := await self._patiently(self._means.turns.take, name):
                    return f"{name} is in use by {holder}"
                taken.append(name)
        return ""

    async def _read(self) -> None:
        breaker = Breaker(self._means.breakers, self.source)
        while await breaker.opened(self._patiently, self.stop) and await self._turn():
            begun, pause = time.monotonic(), 0.0
            try:
                await self._pass(breaker)
                pause = self._polled.every - (time.monotonic() - begun) if self._polled else 0.0
            except PositionMoved as moved:
                self._at = None
                emit(
                    "source.failed", source=self.source.name, error=str(moved), hint="another collector reads it too; going on from the new position"
                )
            except Exception as error:  # noqa: BLE001  one source's failure is its own
                if self.stop.is_set():
                    return
                self._failing, self._at = True, None
                pause = min(await self._patiently(breaker.failed, error), LONGEST)
            if self._polled:
                self._means.turns.over(f"poll:{self.source.name}", pause)
            elif pause:
                await service.rest_or_wake(pause, self.stop)

    async def _pass(self, breaker: Breaker) -> None:
        """A tail until it is stopped, or one poll to its end; either to where its budget is spent."""
        async with aclosing(self._pages()) as pages:
            async for page in pages:
                if not await self._worked(breaker, page):
                    self._at = None
                    return
        if self._polled and not self.stop.is_set():
            await self._worked(breaker, Page([]))
            self._looked = self.source.caught_up = True

    async def _worked(self, breaker: Breaker, page: Page) -> bool:
        left: bool = await self._patiently(breaker.worked, page)
        if self._failing:
            emit("source.recovered", source=self.source.name)
        self._failing = False
        return left

    async def _turn(self) -> bool:
        """Waits until it is time for a poll, and ours; False when asked to stop."""
        while self._polled and not self.stop.is_set():
            seconds = await self._means.turns.begin(f"poll:{self.source.name}", self.stop)
            if seconds == 0:
                return True
            await service.rest_or_wake(min(seconds, LONGEST), self.stop)
        return not self.stop.is_set()

    async def _pages(self) -> AsyncGenerator[Page, None]:
        """Stores page after page; one is made while the one before is stored, a third waits."""
        at, begin = (self._at, self._at) if self._at is not None else await self._position()
        made = self._polled.poll(begin) if self._polled else self._tailed.tail(begin, self.stop) if self._tailed else _nothing()
        async with aclosing(ahead(made)) as pages:
            async for page in pages:
                if page.records or page.position != at:
                    await self._store(page, at)
                    at = page.position
                yield page
                if self.stop.is_set():
                    return
        self._at = at

    async def _position(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where the database says that we are, and where to go on: the other lane may have come further."""
        at, other = await self._patiently(positions, self._means.pool, self.source_id)
        return at, self.source.joined(at, other) if isinstance(self.source, Fetched) else at

    async def _store(self, page: Page, at: dict[str, Any]) -> None:
        self._busy, self.source.caught_up = True, self.source.caught_up and not self._polled
        try:
            await self._patiently(self._means.appender.append, self.source_id, self.source.name, page, expect=at)
        finally:
            self._busy = False


async def _nothing() -> AsyncGenerator[Page, None]:
    nothing: tuple[Page, ...] = ()
    for page in nothing:
        yield page
