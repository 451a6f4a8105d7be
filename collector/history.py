"""The history of one source into raw, chunk by chunk, within a run that can be interrupted anywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import orjson

from collector.breaker import Breaker
from collector.catchup import Means
from collector.control import Bounds, Decision, decide
from collector.positions import position_of, within
from collector.raw import defects_of
from collector.sources import Chunked, Page, Source, Window
from collector.sources.answers import Denied, Limited
from worker.core import service
from worker.core.texts import fit, said

LANE = 1
FAILURES = 5  # chunks that failed in a row, until the run is given up
WHOLE, PART = "history", "window"  # keys of the lane's position
_LOOK = "select * from tailrace.look_at_backfill($1, $2)"


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
    errors: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    reopened: int = 0
    total: int | None = None
    run: int | None = None
    why: str = ""  # why it was chosen, or not


@dataclass(slots=True)
class Allowance:
    """What all sources of one backfill may still read together."""

    records: int | None = None
    until: float | None = None  # on the clock of this process
    chunks: int | None = None  # of each source
    size: int | None = None  # of each chunk, to the letter
    sharers: int = 0  # sources that are being read at present
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, size: int) -> int:
        """So many of `size` may be read: nobody else may have them meanwhile."""
        if self.records is not None:
            size = min(size, self.records)
            self.records -= size
        return size

    def give_back(self, size: int) -> None:
        """These were not there after all."""
        if self.records is not None:
            self.records += size

    def spent(self, report: Report) -> bool:
        late = self.until is not None and time.monotonic() >= self.until
        chunks = self.chunks is not None and report.chunks >= self.chunks
        return self.stop.is_set() or late or chunks or (self.records is not None and self.records <= 0)


class History:
    """One run over a Chunked source. Pauses for limits end by themselves; what only a person can mend ends the run."""

    def __init__(self, means: Means, source: Source, source_id: int, bounds: Bounds, allowed: Allowance) -> None:
        self._means, self._patiently = means, means.patiently
        self._breaker = Breaker(means.breakers, source, "catch-up")
        self._source, self._id = source, source_id
        self._bounds, self._allowed = bounds, allowed
        self._failed = 0

    async def run(self, chunked: Chunked, window: Window, report: Report) -> AsyncGenerator[Report, None]:
        """Yields after each chunk. The cursor is read from the database before each; `report.error` says why it ended early."""
        spec = {k: v for k, v in (("since", window.since), ("until", window.until)) if v}
        run = report.run = await self._call("open_backfill($1, $2)", self._id, orjson.dumps(spec).decode())
        while not self._allowed.spent(report) and not report.finished:
            look = await self._patiently(self._means.pool.fetchrow, _LOOK, run, sorted(self._breaker.names))
            if look["state"] != "active":
                report.error = f"run {run} was {look['state']} by hand"
                return
            decision, held = self._decide(look), await self._patiently(self._breaker.wait)
            if held is None:
                report.error = f"it waits for a person: `tailrace sources retry {self._source.name}`"
                await self._turn(run, "paused", report.error)
                return
            if held or decision.wait:
                await self._pause(run, held or decision.wait, decision.because if not held else "it is held at present")
                continue
            at = _inner(position_of(look["position"], self._source.name), spec)
            await self._chunk(chunked, window, report, at, decision, spec)
            if report.error:
                return
            yield report
        await self._turn(run, *(("done", None) if report.finished else ("paused", self._why_paused())))

    def _decide(self, look: asyncpg.Record) -> Decision:
        if self._allowed.size:
            return Decision(self._allowed.size, "--chunk-size")
        return decide(orjson.loads(look["recent"] or "[]"), orjson.loads(look["quotas"] or "[]"), self._bounds, self._allowed.sharers)

    def _why_paused(self) -> str:
        return "interrupted" if self._allowed.stop.is_set() else "it has read as much as it was allowed to"

    async def _chunk(self, chunked: Chunked, window: Window, report: Report, at: dict[str, Any], decision: Decision, spec: dict[str, Any]) -> None:
        """One chunk: read, stored with its position, written down."""
        size = self._allowed.take(decision.size)
        chunk = await self._call("begin_chunk($1, $2, $3)", report.run, size, orjson.dumps(decision.facts()).decode())
        try:
            page = await service.unless(self._allowed.stop, chunked.chunk(at, size, window))
            if page is None:
                await self._end(chunk, report, 0, 0, "interrupted")
                return
            await self._patiently(self._breaker.worked, page)  # first: killed before the append, a probe would hold the source for a minute
            row = await self._patiently(self._means.appender.append, self._id, self._source.name, replace(page, position=_outer(page, spec)), LANE)
        except Exception as error:  # noqa: BLE001  whatever a client library raises is a chunk that failed
            self._allowed.give_back(size)
            await self._end(chunk, report, 0, 0, said(error, 2000))
            await self._after(error, report)
            return
        self._failed = 0
        self._allowed.give_back(size - len(page.records))
        self._count(report, page, row)
        await self._end(chunk, report, len(page.records), row["appended"], None)

    def _count(self, report: Report, page: Page, row: asyncpg.Record) -> None:
        report.chunks += 1
        report.seen += len(page.records)
        report.defects += len(defects_of(page))
        report.total = page.total if page.total is not None else report.total
        report.appended, report.unchanged = report.appended + row["appended"], report.unchanged + row["unchanged"]
        report.stale, report.jobs = report.stale + row["stale"], report.jobs + row["jobs"]
        report.finished = not page.more

    async def _end(self, chunk: int, report: Report, records: int, stored: int, error: str | None) -> None:
        if error:
            report.errors.append({"source": self._source.name, "chunk": chunk, "error": error})
        await self._call("end_chunk($1, $2, $3, $4, $5)", chunk, records, stored, report.total, error)

    async def _after(self, error: Exception, report: Report) -> None:
        """A limit is waited out; a failure is tried again, smaller, some times in a row; a refusal waits for a person."""
        pause = await self._patiently(self._breaker.failed, error)
        if isinstance(error, Denied):
            report.error = str(error)
            await self._turn(report.run, "paused", f"{said(error)}; then `tailrace sources retry {self._source.name}`")
        elif isinstance(error, Limited):
            await self._pause(report.run, pause, said(error))
        else:
            self._failed += 1
            if self._failed >= FAILURES:
                report.error = fit(f"{FAILURES} chunks in a row failed, the last one with: {error}", 2000)
                await self._turn(report.run, "failed", report.error)
            else:
                await self._pause(report.run, pause, fit(f"a chunk failed: {error}", 2000))

    async def _pause(self, run: int | None, seconds: float, why: str) -> None:
        """Written down with its end, then waited for, as long as we may."""
        await self._turn(run, "paused", why, seconds)
        late = seconds if self._allowed.until is None else min(seconds, max(0.0, self._allowed.until - time.monotonic()))
        await service.rest_or_wake(late, self._allowed.stop)
        await self._turn(run, "active", None)

    async def _turn(self, run: int | None, state: str, why: str | None, seconds: float | None = None) -> None:
        await self._call("turn_backfill($1, $2, $3, $4)", run, state, why, seconds)

    async def _call(self, function: str, *arguments: Any) -> Any:
        return await self._patiently(self._means.pool.fetchval, f"select tailrace.{function}", *arguments)


def _inner(position: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Where this window, or the whole history, stands."""
    if not spec:
        return within(position, WHOLE)
    mine = within(position, PART)
    bounds = orjson.loads(orjson.dumps(spec))
    return within(mine, "at") if mine.get("bounds") == bounds else {}


def _outer(page: Page, spec: dict[str, Any]) -> dict[str, Any]:
    """The lane's position after this page; at the end the next backfill begins anew."""
    at = page.position if page.more else {}
    return {PART: {"bounds": spec, "at": at} if page.more else {}} if spec else {WHOLE: at}
