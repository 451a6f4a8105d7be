"""`collector live`: every source read by a task of its own; a dead source never blocks the others."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from collector.raw import ROLE, Appender
from collector.readers import Readers
from collector.sources import Page, Served, Source
from collector.sources.building import build
from worker.core import db, service
from worker.core.events import emit
from worker.core.http import serving
from worker.core.metrics import Metrics
from worker.core.pace import Pace
from worker.core.settings import Settings, read

WATCH = 10.0  # seconds that a slow round of the watchdog lets the next one wait
_TOUCH = "select tailrace.touch_sources($1, $2)"


class Live:
    """The running collector."""

    def __init__(self, settings: Settings, sources: dict[str, Source], again: Callable[[], Settings] | None = None) -> None:
        """`again` reads the configuration anew, for `reload`."""
        self.settings = settings
        self.stop = asyncio.Event()
        self._sources = sources
        self._served = [s for s in sources.values() if isinstance(s, Served)]
        self._ids: dict[str, int] = {}
        self._pool: asyncpg.Pool | None = None
        self._appender: Appender | None = None
        self._readers = Readers(settings, self._patiently, again)
        self._away = False
        self._touched = time.monotonic()
        self._pace = Pace(WATCH)

    async def run(self, url: str) -> None:
        """Serves health at once, then waits for the database, then collects until stopped."""
        c, routes = self.settings.collector, [r for s in self._served for r in s.routes(self._storing(s.name))]
        async with serving(c.host, c.port, routes, Metrics("collector"), lambda: self._pool, self._unready, "TAILRACE_COLLECTOR__PORT") as port:
            print(f"  serves /healthz /readyz /metrics on {c.host}:{port}", file=sys.stderr, flush=True)
            pool = await self._open(url)
            if pool is None:
                return
            async with pool:
                self._pool, self._appender = pool, Appender(pool, enqueue=self.settings.enqueue, bells=c.bells_per_second)
                self._ids = await self._readers.begin(pool, self._appender, self._sources)
                emit("program.started", mode="live", sources=sorted(self._sources), enqueue=self.settings.enqueue)
                try:
                    await service.run_all(self.stop, *self._services())
                finally:
                    await self._readers.end()
                await self._appender.close()

    def _services(self) -> list[Any]:
        return [
            self._readers.supervised(self.stop),
            *(service.run(f"serve {s.name}", s.step, self.stop) for s in self._served),
            service.run("adopt", self._readers.adopt, self.stop, jitter=0.2),
            service.run("turns", self._readers.turn, self.stop),
            service.run("touch", self._touch, self.stop, jitter=0.1),
            service.run("watch", self._watch, self.stop, jitter=0.3),
            self._until_stopped(),
        ]

    async def _open(self, url: str) -> asyncpg.Pool | None:
        """The pool; None when asked to stop before there is a database."""
        opening = asyncio.ensure_future(db.open_pool(url, self.settings.database, "collector", ROLE, self.settings.database.pool_size))
        stopped = asyncio.ensure_future(self.stop.wait())
        await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if opening.done():
            return await opening
        opening.cancel()
        return None

    async def _until_stopped(self) -> None:
        await self.stop.wait()
        for source in self._served:
            source.close()

    def reload(self) -> None:
        """Takes the sources from the configuration as it is now."""
        self._readers.reload.set()

    def _unready(self) -> str | None:
        return "stopping" if self.stop.is_set() else "the database is away" if self._away else None

    def _storing(self, name: str) -> Callable[[Page], Awaitable[asyncpg.Record]]:
        return lambda page: self._reach(self._store, name, page)

    async def _store(self, name: str, page: Page) -> asyncpg.Record:
        if self._appender is None:
            raise ConnectionError("there is no database yet")
        return await self._appender.append(self._ids[name], name, page)

    async def _reach(self, call: Any, *args: Any, **named: Any) -> Any:
        """Calls the database, and says once when it goes away and when it is back."""
        try:
            found = await call(*args, **named)
        except db.AWAY as error:
            if not self._away:
                self._away = True
                emit("database.lost", error=repr(error))
            raise
        if self._away:
            self._away = False
            emit("database.found")
        return found

    async def _patiently(self, call: Any, *args: Any, **named: Any) -> Any:
        """Waits while the database is away; the page stays in hand, so nothing is lost, and a commit whose answer was lost shows
        as a moved position, so nothing comes twice.
        """
        pause = 0.2
        while True:
            try:
                return await self._reach(call, *args, **named)
            except db.AWAY:
                if self.stop.is_set():
                    raise
                await service.rest_or_wake(pause, self.stop)
                pause = min(pause * 1.5, 5.0)

    async def _touch(self) -> float:
        """One statement for all sources that have nothing more at present."""
        found = self._readers.caught_up()
        elapsed, self._touched = time.monotonic() - self._touched, time.monotonic()
        if found and self._pool:
            await self._patiently(self._pool.execute, _TOUCH, [i for i, _ in found], [elapsed if watched else None for _, watched in found])
        return self.settings.collector.touch_seconds

    async def _watch(self) -> float:
        if self._pool is None or not self._pace.ready():
            return 1.0
        with self._pace.timed():
            found = await self._patiently(self._pool.fetchrow, "select * from tailrace.watch($1, 200)", self.settings.worker.max_crashes)
        if found["rescued"]:
            emit("lease.rescued", rescued=found["rescued"], buried=found["buried"])
        return self.settings.worker.watch_seconds


def announcement(settings: Settings, url: str, sources: dict[str, Source]) -> str:
    """What this process will and will not do."""
    lines = [f"tailrace collector: live, database {db.shown(url)}"]
    lines += [f"  reads {name}: {s.describe()}" for name, s in sources.items()]
    if not sources:
        lines.append("  reads nothing: no active [sources.*] in the configuration")
    if off := sorted(set(settings.sources) - set(sources)):
        lines.append(f"  leaves alone: {', '.join(off)} (active = false)")
    lines.append("  makes jobs for live and shadow versions" if settings.enqueue else "  makes NO jobs: TAILRACE_ENQUEUE=0, raw only")
    return "\n".join(lines)


async def live(settings: Settings, url: str) -> int:
    """Runs until SIGTERM or SIGINT; finishes the page in hand."""
    sources = build(settings)
    running = Live(settings, sources, lambda: read()[0])
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, running.reload)
    print(announcement(settings, url, sources), file=sys.stderr, flush=True)
    await running.run(url)
    emit("program.stopped", why="asked to")
    return 0
