"""source -> raw: one page, one transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import asyncpg
import orjson

from collector.sources import Page
from worker.core.db import mapped
from worker.core.events import emit
from worker.core.models import RawRecord

STAGED = 200  # from here on COPY is cheaper than arrays
_COLUMNS = ("n", "external_id", "op", "digest", "occurred_at", "source_time", "payload", "body", "meta")
_STAGED = "select * from tailrace.append_staged($1, $2, $3, $4, $5, null, null)"
_ARRAYS = "select * from tailrace.append_raw($1, $2, $3, $4, $5, null, null, $6, $7, $8, $9, $10, $11, $12, $13)"
CHANNEL = "tailrace_jobs"


class Appender:
    """Writes pages of one collector. Rings the bell of the workers, at most `bells` times a second."""

    def __init__(self, pool: asyncpg.Pool, *, enqueue: bool, bells: float) -> None:
        self._pool = pool
        self._enqueue = enqueue
        self._gap = 1 / bells if bells else float("inf")
        self._rang = -1e9

    async def append(self, source_id: int, source: str, page: Page, lane: int = 0, expect: dict[str, Any] | None = None) -> asyncpg.Record:
        """Records, their jobs, the cursor and the coverage in one transaction. Raises PositionMoved when `expect` is no longer
        where the source stands. A record that Postgres refuses is found by halving the page and kept as bytes.
        """
        begun = time.monotonic()
        expected = None if expect is None else orjson.dumps(expect or None).decode()
        row = await self._write(source_id, source, page.records, orjson.dumps(page.position).decode(), lane, expected)
        emit(
            "raw.appended", source=source, appended=row["appended"], unchanged=row["unchanged"], stale=row["stale"], jobs=row["jobs"],
            seconds=round(time.monotonic() - begun, 4),
        )  # fmt: skip
        defects = sum(1 for r in page.records if r.meta and "defect" in r.meta)
        if defects:
            emit("raw.defective", source=source, count=defects, first=next(r.meta["defect"] for r in page.records if r.meta and "defect" in r.meta))
        if row["jobs"]:
            await self.ring(source_id)
        return row

    async def ring(self, source_id: int | None = None) -> None:
        """Wakes idle workers; by a statement of its own, since NOTIFY serialises the commits that carry it."""
        if time.monotonic() - self._rang >= self._gap:
            self._rang = time.monotonic()
            await self._pool.execute("select pg_notify($1, $2)", CHANNEL, "" if source_id is None else str(source_id))

    async def _write(self, source_id: int, source: str, records: Sequence[RawRecord], position: str, lane: int, expect: str | None) -> asyncpg.Record:
        head = (source_id, position, lane, self._enqueue, expect)
        try:
            with mapped():
                async with self._pool.acquire() as connection:
                    if len(records) < STAGED:
                        return await connection.fetchrow(_ARRAYS, *head, *_arrays(records))
                    async with connection.transaction():
                        await connection.execute("select tailrace.stage()")
                        await connection.copy_records_to_table("tailrace_stage", schema_name="pg_temp", columns=_COLUMNS, records=_rows(records))
                        return await connection.fetchrow(_STAGED, *head)
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            emit("raw.defective", source=source, count=0, first=f"the page is halved: {error}")
            return await self._write(source_id, source, await self._quarantined(records), position, lane, expect)

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


def _as_bytes(record: RawRecord, why: str) -> RawRecord:
    body = (record.payload or "").encode() if record.body is None else record.body
    return RawRecord(
        record.external_id, record.digest, None, body, record.op, record.occurred_at, record.source_time, {**(record.meta or {}), "defect": why}
    )


def _meta(record: RawRecord) -> str | None:
    return orjson.dumps(record.meta, default=str).decode() if record.meta else None


def _rows(records: Sequence[RawRecord]) -> list[tuple[Any, ...]]:
    return [(n, r.external_id, r.op, r.digest, r.occurred_at, r.source_time, r.payload, r.body, _meta(r)) for n, r in enumerate(records)]


def _arrays(records: Sequence[RawRecord]) -> list[list[Any]]:
    if not records:
        return [[] for _ in range(8)]
    return [list(column) for column in zip(*(row[1:] for row in _rows(records)), strict=True)]
