"""The queue's SQL functions, one method each, and what a worker holds of it."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import orjson

from worker.core.db import mapped
from worker.core.models import Outcome, Record
from worker.registry import Runnable

CANARY, BESIDE = 1000, 2000  # from where on a voice is that of a canary, or of the live version beside one


@dataclass(slots=True, eq=False)
class Slice:
    """A claimed job: a run of raw records of one source, and how far we are with it."""

    runnable: Runnable
    token: uuid.UUID
    source_id: int
    source: str
    raw_id: int
    raw_id_to: int
    n_rows: int
    lane: int
    rerun: int
    attempt: int
    crashes: int
    voice: int  # of which records its version speaks: 0 all, 1 none, 1000 + p buckets below p, 2000 + p buckets from p on
    due: bytes  # as Postgres sends a time: sorts as it is, few are decoded
    history: str | None
    records: list[Record]
    claimed: float  # on the clock of this process
    beyond: int | None = None  # the first record that we leave to others, where --max-jobs ends within the slice
    outcomes: list[Outcome] = field(default_factory=list)
    bare: int = 0  # outcomes that say no more than Done()
    settled: int = 0
    started: float = 0.0
    busy_since: float = 0.0
    seconds: float = 0.0
    lost: bool = False

    def cut(self, count: int) -> None:
        """Takes only the first records; the rest is given back at the end."""
        if count < len(self.records):
            self.beyond = self.records[count].id
            del self.records[count:]

    @property
    def quiet(self) -> bool:
        return self.voice == 1

    @property
    def share(self) -> int | None:
        """As `jobs.share` has it."""
        return None if self.voice < CANARY else self.voice - CANARY if self.voice < BESIDE else BESIDE - self.voice

    @property
    def shared(self) -> bool:
        return self.voice >= CANARY

    def speaks_for(self, record: Record) -> bool:
        """Whether what this version wishes for the record may leave, if a gate is open."""
        if self.voice < CANARY:
            return self.voice == 0
        bucket = int(hashlib.md5(f"{record.source}/{record.external_id}".encode(), usedforsecurity=False).hexdigest()[:8], 16) % 100
        return bucket < self.voice - CANARY if self.voice < BESIDE else bucket >= self.voice - BESIDE

    @property
    def done(self) -> bool:
        return len(self.outcomes) == len(self.records)


_CLAIM = "select * from tailrace.claim_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_SUSPECT = "select * from tailrace.claim_suspect($1, $2, $3, $4, $5)"
_SETTLE = (
    "select * from tailrace.settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)"
)


async def warm(connection: asyncpg.Connection) -> None:
    """Claims and settles nothing."""
    await connection.fetch(_CLAIM, uuid.uuid4(), "", 0, 0, [], [], 1, 1, 1.0)
    await connection.fetch(_SETTLE, 0, "", "run", "{}", [], [], [], *[None] * 17)


class Jobs:
    """The calls of one worker. `sources` maps ids to names, read when an unknown id turns up."""

    def __init__(self, pool: asyncpg.Pool, worker: str, lease: float) -> None:
        self._pool = pool
        self._worker = worker
        self._lease = lease
        self._sources: dict[int, str] = {}

    async def peek(self, versions: Sequence[int]) -> list[tuple[int, int, int, int | None, int]]:
        """(version, lane, source, records that its budget allows, first raw id) that have ready work; lane -1: suspects."""
        return [tuple(row) for row in await self._pool.fetch("select * from tailrace.peek($1)", versions)]

    async def claim(self, runnable: Runnable, lane: int, sources: Sequence[tuple[int, int]], per_source: int, limit: int) -> list[Slice]:
        """Claims up to `limit` slices from `sources` (id, lower bound), at most `per_source` from each."""
        token = uuid.uuid4()
        rows = await self._pool.fetch(
            _CLAIM,
            token,
            self._worker,
            runnable.version_id,
            lane,
            [s for s, _ in sources],
            [low for _, low in sources],
            per_source,
            limit,
            self._lease,
        )
        return await self._slices(runnable, token, lane, rows)

    async def claim_suspect(self, runnable: Runnable, low: int) -> list[Slice]:
        token = uuid.uuid4()
        return await self._slices(runnable, token, 0, await self._pool.fetch(_SUSPECT, token, self._worker, runnable.version_id, self._lease, low))

    async def _slices(self, runnable: Runnable, token: uuid.UUID, lane: int, rows: list[Any]) -> list[Slice]:
        slices, at, now = [], 0, time.monotonic()
        while at < len(rows):
            row = rows[at]
            head = row["job"]
            source = self._sources.get(head[0]) or await self._name(head[0])
            if len(head) == 1:
                head = (head[0], row["id"], row["id"], 1, lane, 0, 0, 0, 0)
            source_id, raw_id, raw_id_to, n_rows, lane, rerun, attempt, crashes, voice = head
            slices.append(
                Slice(
                    runnable, token, source_id, source, raw_id, raw_id_to, n_rows, lane, rerun, attempt, crashes, voice,
                    row["due"], row["error"], [Record(r, source) for r in rows[at : at + n_rows]], now,
                )
            )  # fmt: skip
            at += n_rows
        return slices

    async def _name(self, source_id: int) -> str:
        self._sources = dict(await self._pool.fetch("select id, name from tailrace.sources"))
        return self._sources[source_id]

    async def beat(self, tokens: Sequence[uuid.UUID], caps: Sequence[float], within: float) -> set[uuid.UUID]:
        """Extends the leases of these claims; what does not come back is lost."""
        rows = await self._pool.fetch("select * from tailrace.beat($1, $2, $3)", tokens, caps, self._lease, timeout=within)
        return {row[0] for row in rows}

    async def give_back(self, tokens: Sequence[uuid.UUID]) -> int:
        return int(await self._pool.fetchval("select tailrace.give_back($1)", tokens))

    async def settle(self, version_id: int, mode: str, gates: str, columns: Sequence[Any]) -> tuple[int, int, int]:
        """One transaction; ClaimLost when a slice is no longer ours. Returns effects released, suppressed, records buried."""
        with mapped():
            row = await self._pool.fetchrow(_SETTLE, version_id, self._worker, mode, gates, *columns)
        return tuple(row)

    async def watch(self, max_crashes: int) -> asyncpg.Record:
        return await self._pool.fetchrow("select * from tailrace.watch($1, 200)", max_crashes)

    async def advance_runs(self, ids: int) -> list[asyncpg.Record]:
        """One step of every open run that has a version."""
        return await self._pool.fetch(  # type: ignore[no-any-return]
            "select r.id, a.* from tailrace.runs r cross join lateral tailrace.advance_run(r.id, $1) a "
            "where r.version_id is not null and ((r.state = 'active' and r.position < r.position_to) "
            "or (r.state = 'paused' and r.resume_at <= tailrace.clock()))",
            ids,
        )

    async def pause(self, version_id: int, seconds: float, reason: str) -> None:
        await self._pool.execute("select tailrace.pause_version($1, $2, $3)", version_id, seconds, reason)

    async def open_work(self, versions: Sequence[int]) -> asyncpg.Record:
        """What is left of these versions: due, held by somebody, due later, open runs, seconds until the next is due."""
        return await self._pool.fetchrow("select * from tailrace.open_work($1)", versions)

    async def seen(self, versions: Sequence[int], gates: Sequence[str], info: dict[str, Any]) -> None:
        await self._pool.execute("select tailrace.seen($1, 'worker', $2, $3, $4)", self._worker, versions, gates, orjson.dumps(info).decode())
