"""`collector live`: every source tailed by a task of its own; a dead source never blocks the others."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import AsyncExitStack, aclosing
from typing import Any

import asyncpg
import orjson

from collector.raw import Appender
from collector.sources import Page, Source, build
from collector.sources.webhook import Webhook
from worker.core import db, service
from worker.core.errors import PositionMoved
from worker.core.events import emit
from worker.core.http import serving
from worker.core.metrics import Metrics
from worker.core.settings import Settings

ROLE = "tailrace_collector"


async def register(pool: asyncpg.Pool, settings: Settings, names: list[str]) -> dict[str, int]:
    """Makes the sources known to the database; ids by name."""
    specs = [orjson.dumps(settings.sources[n].model_dump(exclude={"kind"}), default=str).decode() for n in names]
    rows = await pool.fetch("select * from tailrace.register_sources($1, $2)", names, specs)
    return {row["name"]: row["id"] for row in rows}


async def position(pool: asyncpg.Pool, source_id: int, lane: int) -> dict[str, Any]:
    found = await pool.fetchval("select position from tailrace.cursors where source_id = $1 and lane = $2", source_id, lane)
    return orjson.loads(found) if found else {}


class Live:
    """The running collector."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, sources: dict[str, Source], ids: dict[str, int]) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self._pool = pool
        self._sources = sources
        self._ids = ids
        self._appender = Appender(pool, enqueue=settings.enqueue, bells=settings.collector.bells_per_second)
        self._away = False
        self._touched = time.time()

    async def run(self) -> None:
        c = self.settings.collector
        routes = [r for s in self._sources.values() if isinstance(s, Webhook) for r in s.routes(self._storing(s))]
        services = [self._tail(s) for s in self._sources.values()]
        services += [service.run(f"webhook {s.name}", s.step, self.stop) for s in self._sources.values() if isinstance(s, Webhook)]
        services += [
            service.run("touch", self._touch, self.stop, jitter=0.1),
            service.run("watch", self._watch, self.stop, jitter=0.3),
            self._until_stopped(),
        ]
        metrics = Metrics("collector")
        async with serving(c.host, c.port, routes, metrics, lambda: self._pool, lambda: None, "TAILRACE_COLLECTOR__PORT") as port:
            print(f"  serves /healthz /readyz /metrics on {c.host}:{port}", file=sys.stderr, flush=True)
            await service.run_all(self.stop, *services)

    async def _until_stopped(self) -> None:
        await self.stop.wait()

    def _storing(self, source: Source) -> Any:
        async def store(page: Page) -> asyncpg.Record:
            return await self._appender.append(self._ids[source.name], source.name, page)

        return store

    async def _tail(self, source: Source) -> None:
        """Pages of one source, for ever. After any failure it goes on from the position in the database."""
        pause = 0.5
        while not self.stop.is_set():
            try:
                at = await self._patiently(position, self._pool, self._ids[source.name], 0)
                async with aclosing(source.tail(at, self.stop)) as pages:
                    async for page in pages:
                        await self._patiently(self._store, source, page, at)
                        at = page.position
                        pause = 0.5
            except PositionMoved as moved:
                emit("source.failed", source=source.name, error=str(moved), hint="another collector reads it too; going on from the new position")
            except Exception as error:  # noqa: BLE001  one source's failure is its own
                pause = min(pause * 2, 60.0)
                emit("source.failed", source=source.name, error=repr(error), hint=f"tried again in {pause:g} s; the other sources go on")
                await service.rest_or_wake(pause, self.stop)

    async def _store(self, source: Source, page: Page, at: dict[str, Any]) -> None:
        await self._appender.append(self._ids[source.name], source.name, page, expect=at)

    async def _patiently(self, call: Any, *args: Any) -> Any:
        """Waits while the database is away; the page stays in hand, so nothing is lost, and a commit whose answer was lost shows
        as a moved position, so nothing comes twice.
        """
        pause = 0.2
        while True:
            try:
                found = await call(*args)
                if self._away:
                    self._away = False
                    emit("database.found")
                return found
            except db.AWAY as error:
                if not self._away:
                    self._away = True
                    emit("database.lost", error=repr(error))
                if self.stop.is_set():
                    raise
                await service.rest_or_wake(pause, self.stop)
                pause = min(pause * 1.5, 5.0)

    async def _touch(self) -> float:
        """One statement for all sources that have nothing more at present."""
        since, self._touched = self._touched, time.time()
        ids = [self._ids[s.name] for s in self._sources.values() if s.caught_up]
        if ids:
            await self._pool.execute("select tailrace.touch_sources($1, to_timestamp($2))", ids, since)
        return self.settings.collector.touch_seconds

    async def _watch(self) -> float:
        found = await self._pool.fetchrow("select * from tailrace.watch($1, 200)", self.settings.worker.max_crashes)
        if found["rescued"]:
            emit("lease.rescued", rescued=found["rescued"], buried=found["buried"])
        return self.settings.worker.watch_seconds


def announcement(settings: Settings, url: str, sources: dict[str, Source]) -> str:
    """What this process will and will not do."""
    lines = [f"tailrace collector: live, database {db.shown(url)}"]
    lines += [f"  reads {name}: {s.describe()}" for name, s in sources.items()]
    off = sorted(set(settings.sources) - set(sources))
    if not sources:
        lines.append("  reads nothing: no active [sources.*] in the configuration")
    if off:
        lines.append(f"  leaves alone: {', '.join(off)} (active = false)")
    lines.append("  makes jobs for live and shadow versions" if settings.enqueue else "  makes NO jobs: TAILRACE_ENQUEUE=0, raw only")
    return "\n".join(lines)


async def live(settings: Settings, url: str) -> int:
    """Runs until SIGTERM or SIGINT; finishes the page in hand."""
    sources = build(settings)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await db.open_pool(url, settings.database, "collector", ROLE, settings.database.pool_size))
        ids = await register(pool, settings, list(sources))
        running = Live(settings, pool, sources, ids)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.stop.set)
        print(announcement(settings, url, sources), file=sys.stderr, flush=True)
        emit("program.started", mode="live", sources=sorted(sources), enqueue=settings.enqueue)
        await running.run()
        emit("program.stopped", why="asked to")
    return 0
