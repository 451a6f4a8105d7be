"""source -> raw: one page, one transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg

from collector.sources import Page, Polled, Source
from worker.core.crashpoint import crashpoint
from worker.core.db import AWAY, mapped
from worker.core.events import emit
from worker.core.models import RawRecord
from worker.core.settings import Settings
from worker.core.texts import as_json

RUN_STEP = 200_000  # raw ids in one transaction
STAGED = 200  # from here on COPY is cheaper than arrays
_COLUMNS = ("n", "external_id", "op", "digest", "occurred_at", "source_time", "payload", "body", "meta")
_STAGED = "select * from tailrace.append_staged($1, $2, $3, $4, $5, $6, $7)"
_ARRAYS = "select * from tailrace.append_raw($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
_ARRAYS_BELL = f"select a.*, case when a.jobs > 0 then pg_notify($16, $17) end from ({_ARRAYS}) a"  # noqa: S608  constants
ROLE = "tailrace_collector"
CHANNEL = "tailrace_jobs"
# NOTIFY serialises the commits that carry it: only a small page after a pause does, so that a lone event is quick. The others are told
# by a statement of its own; it takes a transaction id, so its commit would wait for the disk, which a bell need not.
_BELL = "select set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


async def register(pool: asyncpg.Pool, settings: Settings, names: list[str], sources: Mapping[str, Source] | None = None) -> dict[str, int]:
    """Makes the sources known to the database; ids by name. Of `sources` also how often they are asked and which limits they share."""
    specs = []
    for name in names:
        source = (sources or {}).get(name)
        facts: dict[str, Any] = {"every": source.every} if isinstance(source, Polled) else {}
        facts |= {"limits": list(source.limits)} if source is not None and source.limits else {}
        specs.append(as_json(settings.sources[name].model_dump(exclude={"kind"}) | facts))
    rows = await pool.fetch("select * from tailrace.register_sources($1, $2)", names, specs)
    return {row["name"]: row["id"] for row in rows}


class Appender:
    """Writes pages of one collector. Rings the bell of the workers, at most `bells` times a second."""

    def __init__(self, pool: asyncpg.Pool, *, enqueue: bool, bells: float) -> None:
        self._pool = pool
        self._enqueue = enqueue
        self._gap = 1 / bells if bells else None
        self._owed: str | None = None
        self._ringing: asyncio.Task[None] | None = None

    async def append(self, source_id: int, source: str, page: Page, lane: int = 0, expect: dict[str, Any] | None = None) -> asyncpg.Record:
        """Records, their jobs, the cursor and the coverage in one transaction. Raises PositionMoved when `expect` is no longer
        where the source stands. A record that Postgres refuses is found by halving the page and kept as bytes.
        """
        crashpoint("after-fetch-before-append")
        begun = time.monotonic()
        expected = None if expect is None else as_json(expect or None)
        bell = str(source_id) if len(page.records) < STAGED and self._rests() else None
        covered = [asyncpg.Range(*span) if span else None for span in (page.times, page.ids)]
        head = (source_id, as_json(page.position), lane, self._enqueue, expected, *covered)
        row = await self._write(source, page.records, head, bell)
        crashpoint("after-append-before-next")
        if row["jobs"] and not bell:
            await self.ring(source_id)
        emit(
            "raw.appended", source=source, appended=row["appended"], unchanged=row["unchanged"], stale=row["stale"], jobs=row["jobs"],
            seconds=round(time.monotonic() - begun, 4),
        )  # fmt: skip
        if defects := defects_of(page):
            emit("raw.defective", source=source, count=len(defects), first=defects[0])
        return row

    def _rests(self) -> bool:
        """Nothing rang for a while: the page at hand may carry the bell, and the next waits for its turn."""
        if self._gap is None or (self._ringing is not None and not self._ringing.done()):
            return False
        self._ringing = asyncio.create_task(self._ring(self._gap, told=True))
        return True

    async def ring(self, source_id: int | None = None) -> None:
        """Wakes idle workers, beside what comes next."""
        if self._gap is None:
            return
        payload = "" if source_id is None else str(source_id)
        self._owed = payload if self._owed in (None, payload) else ""
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring(self._gap))

    async def _ring(self, gap: float, *, told: bool = False) -> None:
        """What is asked for while one bell rings is told by the next: the last page is never left untold."""
        if told:
            await asyncio.sleep(gap)
        while self._owed is not None:
            payload, self._owed = self._owed, None
            try:
                await self._pool.execute(_BELL, CHANNEL, payload)
            except AWAY:  # the records are stored; workers poll
                return
            await asyncio.sleep(gap)

    async def close(self) -> None:
        """Rings what is owed."""
        if self._ringing is not None:
            await self._ringing

    async def _write(self, source: str, records: Sequence[RawRecord], head: tuple[Any, ...], bell: str | None) -> asyncpg.Record:
        try:
            with mapped():
                async with self._pool.acquire() as connection:
                    if bell:
                        return await connection.fetchrow(_ARRAYS_BELL, *head, *_arrays(records), CHANNEL, bell)
                    if len(records) < STAGED:
                        return await connection.fetchrow(_ARRAYS, *head, *_arrays(records))
                    async with connection.transaction():
                        await connection.execute("select tailrace.stage()")
                        await connection.copy_records_to_table("tailrace_stage", schema_name="pg_temp", columns=_COLUMNS, records=_rows(records))
                        row = await connection.fetchrow(_STAGED, *head)
                        crashpoint("after-append-before-commit")
                        return row
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            mended = await self._quarantined(records)
            if mended == list(records):
                raise
            emit("raw.defective", source=source, count=len(records) - len(set(map(id, records)) & set(map(id, mended))), first=str(error))
            return await self._write(source, mended, head, bell)

    async def _quarantined(self, records: Sequence[RawRecord]) -> list[RawRecord]:
        """The page with the records that Postgres refuses kept as bytes. Found by halving, each half tried on its own."""
        try:
            await self._pool.execute("select count(*) from unnest($1::jsonb[])", [r.payload for r in records])
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            if len(records) == 1:
                return [_as_bytes(records[0], str(error))]
            half = len(records) // 2
            return [*await self._quarantined(records[:half]), *await self._quarantined(records[half:])]
        return list(records)


async def finish_run(pool: asyncpg.Pool, run: int, show: Callable[[int], None] = lambda _: None) -> asyncpg.Record:
    """Steps a run to its end; a worker's watchdog may step it too. Returns its last state."""
    crashpoint("after-open-before-advance")
    while True:
        row = await pool.fetchrow("select * from tailrace.advance_run($1, $2)", run, RUN_STEP)
        if row is None:  # another one is at this step
            await asyncio.sleep(0.05)
            continue
        show(row["records"])
        if row["state"] != "active":
            return row


def defects_of(page: Page) -> list[str]:
    return [r.meta["defect"] for r in page.records if r.meta and "defect" in r.meta]


def _as_bytes(record: RawRecord, why: str) -> RawRecord:
    body = (record.payload or "").encode() if record.body is None else record.body
    return RawRecord(
        record.external_id, record.digest, None, body, record.op, record.occurred_at, record.source_time, {**(record.meta or {}), "defect": why}
    )


def _rows(records: Sequence[RawRecord]) -> list[tuple[Any, ...]]:
    return [
        (n, key, op, digest, occurred, edited, payload, body, as_json(meta) if meta else None)
        for n, (key, digest, payload, body, op, occurred, edited, meta) in enumerate(records)
    ]


def _arrays(records: Sequence[RawRecord]) -> list[list[Any]]:
    if not records:
        return [[] for _ in range(8)]
    return [list(column) for column in zip(*(row[1:] for row in _rows(records)), strict=True)]
