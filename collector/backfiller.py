"""The histories of sources into raw, in lane 1; a second pass adds nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from collector.breaker import Breakers
from collector.catchup import Means
from collector.control import Bounds
from collector.history import LANE, Allowance, History, Report
from collector.positions import positions
from collector.progress import Board, Progress
from collector.raw import Appender, defects_of, finish_run
from collector.reporting import Reporter
from collector.sources import Chunked, Closing, Fetched, Page, Source, Window, ahead
from collector.turns import Turns
from worker.core import db
from worker.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """What a backfill may be told; the options of the command have the same names."""

    max_records: int | None = None
    max_chunks: int | None = None
    max_minutes: float | None = None
    chunk_size: int | None = None
    dry_run: bool = False


class Backfill:
    """One pass over some sources. What it may read in all is shared by them; one that fails does not stop the rest."""

    def __init__(
        self, pool: asyncpg.Pool, settings: Settings, given: Any, since: dt.datetime | None, until: dt.datetime | None, means: Means | None = None
    ) -> None:
        """`means` are those of a running collector, where it is a part of one."""
        c = settings.collector
        self._pool = pool
        self._settings = settings
        self._given = given
        self._window = Window(since, until)
        self._bounds = Bounds(c.chunk_floor, c.chunk_ceiling, c.chunk_seconds)
        until = time.monotonic() + given.max_minutes * 60 if given.max_minutes else None
        self.allowed = Allowance(given.max_records, until, given.max_chunks, given.chunk_size)
        self._board = Board()
        self._reporter = Reporter(pool, settings)
        self._guest = means is not None
        self._means = means or Means(
            pool, Appender(pool, enqueue=settings.enqueue, bells=c.bells_per_second), self._patiently, Breakers(pool), Turns(pool), c
        )
        self._appender, self.turns = self._means.appender, self._means.turns

    @property
    def stop(self) -> asyncio.Event:
        return self.allowed.stop

    async def _patiently(self, call: Any, *args: Any, **named: Any) -> Any:
        return await db.patiently(self._settings.database, lambda: call(*args, **named))

    async def run(self, source: Source, source_id: int | None) -> Report:
        """Reads one source; never raises for what is the matter with it."""
        report, progress = Report(source.name), Progress(source.name, board=self._board)
        lease = f"backfill:{source.name}"
        taken = [] if source_id is None or self._given.dry_run else [lease, *source.exclusive_history]
        held: list[str] = []
        try:
            for name in taken:
                if holder := await self._means.patiently(self.turns.take, name):
                    report.error = f"{name} is in use by {holder}: stop that one, or give this one a session of its own"
                    return report
                held.append(name)
            await self._read(report, progress, source, source_id)
        except Exception as error:  # noqa: BLE001  one source's failure is its own
            report.error = str(error) or repr(error)
        finally:
            progress.show(report.seen, last=True, total=report.total)
            for name in held:
                await self._means.patiently(self.turns.drop, name)
            if not self._given.dry_run:
                await self._means.patiently(self._reporter.tell, report)
            if isinstance(source, Closing) and not self._guest:
                await source.aclose()
        return report

    async def close(self) -> None:
        await self._appender.close()

    async def _read(self, report: Report, progress: Progress, source: Source, source_id: int | None) -> None:
        if isinstance(source, Chunked) and self._given.dry_run:
            await self._look(report, source)
        elif isinstance(source, Chunked) and source_id is not None:
            history = History(self._means, source, source_id, self._bounds, self.allowed)
            async with aclosing(history.run(source, self._window, report)) as chunks:
                async for _ in chunks:
                    progress.show(report.seen, total=report.total)
        elif isinstance(source, Fetched):
            await self._pages(report, progress, source, source_id)
        else:
            report.finished = True

    async def _look(self, report: Report, source: Chunked) -> None:
        """What a dry run can know without reading it all: the size, and what the first records would do."""
        size = min(self.allowed.size or 100, self.allowed.records or 100)
        page = await source.chunk({}, size, self._window)
        report.total, report.seen, report.defects, report.finished = page.total, len(page.records), len(defects_of(page)), not page.more
        source_id = await self._pool.fetchval("select id from tailrace.sources where name = $1", report.source)
        await self._would(report, source_id, page)

    async def _pages(self, report: Report, progress: Progress, source: Fetched, source_id: int | None) -> None:
        at, other = ({}, {}) if source_id is None else await positions(self._pool, source_id, LANE)
        at = source.joined(at, other)
        async with aclosing(ahead(source.fetch(at))) as pages:
            async for page in pages:
                for piece in self._cut(page):
                    await self._store(report, source_id, piece, at)
                    at = piece.position
                    progress.show(report.seen)
                    if self.allowed.spent(report):
                        return
        report.finished = True
        report.error = f"cannot read {', '.join(source.unread)}" if source.unread else ""

    def _cut(self, page: Page) -> Iterator[Page]:
        """A page in chunks of exactly --chunk-size; a window and --max-records leave records out without moving the position past them."""
        if self._window != Window():
            page = Page([r for r in page.records if self._window.holds(r.occurred_at)], page.position)
        size = self._given.chunk_size or max(len(page.records), 1)
        for first in range(0, max(len(page.records), 1), size):
            part = page.records[first : first + size]
            whole = first + size >= len(page.records)
            if self.allowed.records is not None:
                if len(part) > self.allowed.records:
                    part, whole = part[: self.allowed.records], False
                self.allowed.records -= len(part)
            if part or whole:
                yield Page(part, page.position if whole else {})

    async def _store(self, report: Report, source_id: int | None, piece: Page, at: dict[str, Any]) -> None:
        report.seen += len(piece.records)
        report.chunks += bool(piece.records)
        report.defects += len(defects_of(piece))
        if source_id is None or self._given.dry_run:
            await self._would(report, source_id, piece)
            return
        windowed = self._window != Window() or not piece.position
        kept = Page(piece.records, at if windowed else piece.position)
        row = await self._appender.append(source_id, report.source, kept, LANE)
        piece.position.update(kept.position)
        report.appended, report.unchanged = report.appended + row["appended"], report.unchanged + row["unchanged"]
        report.stale, report.jobs = report.stale + row["stale"], report.jobs + row["jobs"]

    async def _would(self, report: Report, source_id: int | None, piece: Page) -> None:
        """Counts what is in raw as it is; read-only."""
        known = 0 if source_id is None else int(await self._pool.fetchval(
            "select count(*) from unnest($2::text[], $3::bytea[]) u(e, d) cross join lateral (select digest from tailrace.raw_records r "
            "where r.source_id = $1 and r.external_id = u.e order by revision desc limit 1) r where r.digest = u.d",
            source_id, [r.external_id for r in piece.records], [r.digest for r in piece.records],
        ))  # fmt: skip
        report.unchanged += known
        report.appended += len(piece.records) - known

    async def reopen(self, source_id: int) -> int:
        """--force-enqueue: every live version works again on what raw holds of this source; the old results stay."""
        opened = 0
        for row in await self._pool.fetch("select id from tailrace.versions where state = 'live' order by id"):
            spec = {"sources": [source_id], "force": True, "quiet": True, "since": self._window.since, "until": self._window.until}
            run = await self._pool.fetchval("select tailrace.open_run('replay', $1, $2)", row["id"], orjson.dumps(spec).decode())
            opened += (await finish_run(self._pool, run))["records"]
        await self._appender.ring()
        await self._appender.close()
        return opened
