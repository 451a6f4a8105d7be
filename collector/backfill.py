"""`collector backfill`: one bounded pass over sources into raw, in lane 1; a second pass adds nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import signal
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

import asyncpg
import orjson

from collector.progress import Progress
from collector.raw import ROLE, Appender, defects_of, finish_run, positions, register
from collector.sources import Fetched, Page, Source, ahead
from collector.sources.building import build
from worker.core import db, options
from worker.core.errors import PositionMoved
from worker.core.models import RawRecord
from worker.core.settings import Settings

LANE = 1
LARGEST = 256_000_000  # bytes of a page whose records were counted by --chunk-size


@dataclass(slots=True)
class Report:
    """What a backfill of one source found and did."""

    source: str
    seen: int = 0
    appended: int = 0
    unchanged: int = 0
    stale: int = 0
    defects: int = 0
    jobs: int = 0
    chunks: int = 0
    error: str = ""
    finished: bool = False
    reopened: int = field(default=0)


class Backfill:
    """One run over some sources, one after the other; one that fails does not stop the rest."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings, given: Any, since: dt.datetime | None, until: dt.datetime | None) -> None:
        self._pool = pool
        self._given = given
        self._since = since
        self._until = until
        self._left = given.max_records
        self.stop = asyncio.Event()
        self._appender = Appender(pool, enqueue=settings.enqueue, bells=settings.collector.bells_per_second)

    async def run(self, source: Source, source_id: int | None) -> Report:
        report = Report(source.name)
        progress = Progress(source.name)
        if not isinstance(source, Fetched):
            report.finished = True
            return report
        try:
            at, other = ({}, {}) if source_id is None else await positions(self._pool, source_id, LANE)
            at = source.joined(at, other)
            async with aclosing(ahead(source.fetch(at))) as pages:
                async for page in pages:
                    for piece in self._chunks(page):
                        await self._store(report, source, source_id, piece, at)
                        at = piece.position
                        progress.show(report.seen)
                        if self.stop.is_set() or self._exhausted(report):
                            return report
            report.finished = True
            report.error = f"cannot read {', '.join(source.unread)}" if source.unread else ""
        except (PositionMoved, asyncpg.PostgresError, *db.AWAY, ValueError) as error:
            report.error = str(error) or repr(error)
        finally:
            progress.show(report.seen, last=True)
        return report

    async def close(self) -> None:
        await self._appender.close()

    def _exhausted(self, report: Report) -> bool:
        chunks = self._given.max_chunks is not None and report.chunks >= self._given.max_chunks
        return chunks or (self._left is not None and self._left <= 0)

    def _chunks(self, page: Page) -> Iterator[Page]:
        """A page in chunks of exactly --chunk-size; a window and --max-records leave records out without moving the position past them."""
        if self._since or self._until:
            page = Page([r for r in page.records if self._inside(r)], page.position)
        size = self._given.chunk_size or max(len(page.records), 1)
        for first in range(0, max(len(page.records), 1), size):
            part = page.records[first : first + size]
            whole = first + size >= len(page.records)
            if self._left is not None:
                if len(part) > self._left:
                    part, whole = part[: self._left], False
                self._left -= len(part)
            if part or whole:
                yield Page(part, page.position if whole else {})

    def _inside(self, record: RawRecord) -> bool:
        when = record.occurred_at
        return when is not None and not (self._since and when < self._since) and not (self._until and when >= self._until)

    async def _store(self, report: Report, source: Source, source_id: int | None, piece: Page, at: dict[str, Any]) -> None:
        report.seen += len(piece.records)
        report.chunks += bool(piece.records)
        report.defects += len(defects_of(piece))
        if source_id is None or self._given.dry_run:
            known = 0 if source_id is None else await self._known(source_id, piece)
            report.unchanged += known
            report.appended += len(piece.records) - known
            return
        windowed = bool(self._since or self._until or not piece.position)
        kept = Page(piece.records, at if windowed else piece.position)
        row = await self._appender.append(source_id, source.name, kept, LANE)
        piece.position.update(kept.position)
        report.appended += row["appended"]
        report.unchanged += row["unchanged"]
        report.stale += row["stale"]
        report.jobs += row["jobs"]

    async def _known(self, source_id: int, piece: Page) -> int:
        """How many are in raw as they are; read-only."""
        return int(await self._pool.fetchval(
            "select count(*) from unnest($2::text[], $3::bytea[]) u(e, d) cross join lateral (select digest from tailrace.raw_records r "
            "where r.source_id = $1 and r.external_id = u.e order by revision desc limit 1) r where r.digest = u.d",
            source_id, [r.external_id for r in piece.records], [r.digest for r in piece.records],
        ))  # fmt: skip

    async def reopen(self, source_id: int) -> int:
        """--force-enqueue: every live version works again on what raw holds of this source; the old results stay."""
        opened = 0
        for row in await self._pool.fetch("select id from tailrace.versions where state = 'live' order by id"):
            spec = orjson.dumps({"sources": [source_id], "force": True, "quiet": True, "since": self._since, "until": self._until}).decode()
            run = await self._pool.fetchval("select tailrace.open_run('replay', $1, $2)", row["id"], spec)
            opened += (await finish_run(self._pool, run))["records"]
        await self._appender.ring()
        await self._appender.close()
        return opened


async def backfill(settings: Settings, url: str, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> int:
    """Exit code 0, or 3 when a source failed; 130 when it was interrupted: the next run goes on from there."""
    if given.chunk_size:
        size = {"page_records": given.chunk_size, "page_bytes": max(settings.collector.page_bytes, LARGEST)}
        settings = settings.model_copy(update={"collector": settings.collector.model_copy(update=size)})
    sources = build(settings, given.source)
    async with await db.open_pool(url, settings.database, "backfill", ROLE, 4) as pool:
        ids = {} if given.dry_run else await register(pool, settings, list(sources))
        if given.dry_run:
            ids = dict(await pool.fetch("select name, id from tailrace.sources"))
        run = Backfill(pool, settings, given, *window)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, run.stop.set)
        reports = []
        for source in sources.values():
            if not run.stop.is_set():
                reports.append(await run.run(source, ids.get(source.name)))
                await run.close()
                if given.force_enqueue and not given.dry_run:
                    reports[-1].reopened = await run.reopen(ids[source.name])
    return _print(reports, given, stopped=run.stop.is_set())


def _print(reports: list[Report], given: Any, *, stopped: bool) -> int:
    if given.json:
        print(json.dumps([asdict(r) for r in reports]))
    else:
        for r in reports:
            would = "would store" if given.dry_run else "stored"
            print(f"{r.source}: {r.seen} read, {would} {r.appended}, {r.unchanged} known, {r.stale} outdated, {r.defects} with a defect, "
                  f"{r.jobs} jobs" + (f", {r.reopened} opened again" if r.reopened else "")
                  + (f"; FAILED: {r.error}" if r.error else "" if r.finished else "; there is more to read"))  # fmt: skip
    if stopped:
        return options.INTERRUPTED
    return options.PARTLY if any(r.error for r in reports) else options.OK
