"""All sources of a collector: one reader each, added and removed while it runs."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

import asyncpg
import orjson

from collector.backfiller import Asked, Backfill
from collector.breaker import Breakers, Patiently
from collector.catchup import Means
from collector.raw import Appender, register
from collector.reader import Reader
from collector.sources import Polled, Served, Source
from collector.sources.building import build
from collector.turns import Turns
from worker.core.errors import Misconfigured, TailraceError
from worker.core.events import emit
from worker.core.settings import Settings

ADOPT = 10.0  # seconds between two looks for backfills that were left behind
PATIENCE = 20.0  # seconds for the page in hand


class Readers:
    """`again` reads the configuration anew, for `reload`."""

    def __init__(self, settings: Settings, patiently: Patiently, again: Callable[[], Settings] | None) -> None:
        self.reload = asyncio.Event()
        self._settings = settings
        self._patiently = patiently
        self._again = again
        self._sources: dict[str, Source] = {}
        self._running: dict[str, tuple[Reader, asyncio.Task[None]]] = {}

    async def begin(self, pool: asyncpg.Pool, appender: Appender, sources: dict[str, Source]) -> dict[str, int]:
        """Starts a reader for each source. Returns ids by name."""
        self._means = Means(pool, appender, self._patiently, Breakers(pool), Turns(pool), self._settings.collector)
        return await self._add(sources)

    async def turn(self) -> float:
        """One look at leases and polls of all sources; seconds to rest."""
        return float(await self._patiently(self._means.turns.step))

    async def _add(self, sources: dict[str, Source]) -> dict[str, int]:
        every = {name: source.every for name, source in sources.items() if isinstance(source, Polled)}
        ids: dict[str, int] = await self._patiently(register, self._means.pool, self._settings, list(sources), every)
        for name, source in sources.items():
            reader = Reader(source, ids[name], self._means)
            self._running[name] = (reader, asyncio.create_task(reader.run(), name=f"read {name}"))
        self._sources |= sources
        return ids

    async def adopt(self) -> float:
        """Goes on with a backfill that nobody works on: its collector was lost, its pause is over, or a person resumed it."""
        for row in await self._patiently(self._means.pool.fetch, "select * from tailrace.orphaned_backfills()"):
            reader, _ = self._running.get(row["source"], (None, None))
            if reader is not None and not reader.stop.is_set():
                spec = {k: dt.datetime.fromisoformat(v) for k, v in orjson.loads(row["spec"]).items()}
                run = Backfill(self._means.pool, self._settings, Asked(), spec.get("since"), spec.get("until"), self._means)
                run.allowed.stop = reader.stop
                report = await run.run(reader.source, reader.source_id)
                emit("source.backfilled", source=report.source, run=report.run, seen=report.seen, appended=report.appended, error=report.error)
        return ADOPT

    def caught_up(self) -> list[tuple[int, bool]]:
        """Sources that have nothing more at present: id, and whether they were watched all the time since the last look."""
        return [found for r, _ in self._running.values() if (found := r.caught_up())]

    async def end(self, names: list[str] | None = None) -> None:
        """Ends these readers, or all. Each finishes the page in hand."""
        ending = [self._running.pop(name) for name in (list(self._running) if names is None else names)]
        for reader, _ in ending:
            reader.stop.set()
        if ending:
            await asyncio.wait({task for _, task in ending}, timeout=PATIENCE)
        for _, task in ending:
            task.cancel()
        await asyncio.gather(*(task for _, task in ending), return_exceptions=True)

    async def supervised(self, stop: asyncio.Event) -> None:
        """A reader that fails ends the program; `reload` adds and removes sources."""
        stopped = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            reloading = asyncio.ensure_future(self.reload.wait())
            tasks = {task for _, task in self._running.values()}
            await asyncio.wait({*tasks, stopped, reloading}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            reloading.cancel()
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
            refused = [r.refused for r, _ in self._running.values() if r.refused]
            if refused and len(refused) == len(self._running):
                raise Misconfigured(f"nothing to read: {refused[0]}", "stop that collector, or give this one a session of its own")
            if self.reload.is_set():
                self.reload.clear()
                await self._reload()

    async def _reload(self) -> None:
        """One whose settings changed goes on from its position with the new ones."""
        try:
            settings = self._again() if self._again else self._settings
            sources = build(settings)
        except TailraceError as error:
            emit("config.refused", error=str(error))
            return
        served = {n for n, s in (self._sources | sources).items() if isinstance(s, Served)}  # their routes are those of the start
        old = self._settings.sources
        gone = [n for n in self._running if n not in served and (n not in sources or settings.sources[n] != old.get(n))]
        await self.end(gone)
        self._settings = self._settings.model_copy(update={"sources": settings.sources})
        self._sources = {n: s for n, s in self._sources.items() if n not in gone}
        new = {n: s for n, s in sources.items() if n not in self._running and n not in served}
        await self._add(new)
        emit("config.reloaded", removed=sorted(set(gone) - set(new)), added=sorted(set(new) - set(gone)), changed=sorted(set(gone) & set(new)))
