"""May this source be called? Answers of the service, and failures, kept in the database for all processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import orjson

from collector.sources import Page, Source
from collector.sources.answers import Denied, Limited
from worker.core.crashpoint import crashpoint
from worker.core.events import emit
from worker.core.service import rest_or_wake
from worker.core.texts import said

PROBE = 60.0  # seconds that one probe of a half-open breaker may take
FAILURES = 5  # in a row, until the breaker opens
LOOK = 5.0  # seconds between two looks at a source that is held
FRESH = 2.0  # seconds for which a look at the breakers is believed
_HELD = (
    "select extract(epoch from open_until - tailrace.clock())::float8 as seconds from tailrace.quotas "
    "where name = any ($1) and breaker = 'open' and (open_until > tailrace.clock()) is not false"
)
Patiently = Callable[..., Awaitable[Any]]  # calls the database, waiting while it is away


class Breakers:
    """Which breakers are not closed and clean, as the database knows it: one look for all sources of this process."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self._noted: set[str] = set()
        self._looked = -FRESH
        self._looking = asyncio.Lock()

    async def noted(self) -> set[str]:
        """Names that are open, half open, or have failed lately; at most `FRESH` seconds old."""
        async with self._looking:
            if time.monotonic() - self._looked >= FRESH:
                rows = await self.pool.fetch("select name from tailrace.quotas where breaker <> 'closed' or failures > 0")
                self._noted, self._looked = {row["name"] for row in rows}, time.monotonic()
        return self._noted

    def note(self, *names: str) -> None:
        """These have changed just now."""
        self._noted |= set(names)


class Breaker:
    """One source in this process, with the limits that it shares with others. Nothing is asked or written while all goes well."""

    def __init__(self, breakers: Breakers, source: Source, lane: str = "") -> None:
        """What holds one lane of a source, its catch-up, does not hold its news: `lane` goes into the breaker's name. What holds the news
        holds that lane, too, and is not ended by it.
        """
        self._all = breakers
        self._pool = breakers.pool
        self._source = source.name
        self._name = f"source:{source.name}{lane and ' ' + lane}"
        self._above = {f"source:{source.name}"} - {self._name}
        self.names = {self._name, *source.limits}

    async def wait(self) -> float | None:
        """Seconds until it may be called; None: a person has to act."""
        noted = await self._all.noted()
        if self._above & noted and (held := await self._pool.fetchrow(_HELD, sorted(self._above))):
            return None if held["seconds"] is None else float(held["seconds"])
        if not self.names & noted:
            return 0.0
        seconds = await self._pool.fetchval("select tailrace.may_call($1, $2)", sorted(self.names), PROBE)
        return None if seconds is None else max(0.0, float(seconds))

    async def opened(self, patiently: Patiently, stop: asyncio.Event) -> bool:
        """Waits until it may be called; False when asked to stop."""
        while not stop.is_set():
            seconds = await patiently(self.wait)
            if seconds == 0:
                return True
            await rest_or_wake(LOOK if seconds is None else min(seconds, LOOK), stop)
        return False

    async def worked(self, page: Page) -> bool:
        """An answer came. False where a budget is spent now: whoever goes on reading spends more than there is; the next `wait` says how long."""
        if page.quotas:
            self.names |= {q.name for q in page.quotas}
            told = [{"name": q.name, "remaining": q.remaining, "limit_n": q.limit, "resets_at": q.resets_at} for q in page.quotas]
            await self._pool.execute("select tailrace.note_quotas($1)", orjson.dumps(told).decode())
        if met := self.names & await self._all.noted():
            await self._pool.execute("select tailrace.call_worked($1)", sorted(met))
        left = True
        for cost in page.spent:
            self.names.add(cost.name)
            if not await self._pool.fetchval("select tailrace.spend($1, $2, $3, $4)", cost.name, cost.amount, cost.most, cost.resets_at):
                self._all.note(cost.name)
                left = False
        return left

    async def failed(self, error: Exception) -> float:
        """Writes down what happened; returns seconds until it makes sense to ask again."""
        if isinstance(error, Limited):
            self.names.add(error.name)
            await self._hold([self._name, error.name], error.seconds, error)
            crashpoint("after-limit-before-wait")
            emit("source.limited", source=self._source, limit=error.name, seconds=error.seconds, reason=error.args[0])
            return error.seconds
        if isinstance(error, Denied):
            await self._hold([self._name], None, error)
            emit("source.denied", source=self._source, reason=error.args[0], hint=f"{error.hint}; then `tailrace sources retry {self._source}`")
            return 5.0
        self._all.note(self._name)
        pause = float(await self._pool.fetchval("select tailrace.call_failed($1, $2, $3)", self._name, said(error), FAILURES))
        emit("source.failed", source=self._source, error=repr(error), hint=f"tried again in {pause:g} s; the other sources go on")
        return pause

    async def _hold(self, names: list[str], seconds: float | None, error: Exception) -> None:
        self._all.note(*names)
        await self._pool.execute("select tailrace.hold_calls($1, $2, $3)", names, seconds, said(error))
