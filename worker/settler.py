"""claimed -> done: everything of a version that has finished since the last time, in one transaction."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import asyncpg

from worker.core.crashpoint import crashpoint
from worker.core.errors import ClaimLost
from worker.core.events import emit
from worker.core.models import Retry
from worker.jobs import Jobs, Slice
from worker.line import Line
from worker.settling import Columns

MOST = 5000  # records per settle


class Settler:
    """Commits outcomes. Long slices settle what is done every `every` seconds. No version waits for another's."""

    def __init__(self, jobs: Jobs, mode: str, gates: str, every: float, released: Callable[[], None]) -> None:
        self._jobs = jobs
        self._mode = mode
        self._gates = gates
        self._every = every
        self._released = released
        self.cut: set[uuid.UUID] = set()  # claims of which a part was left alone
        self.totals = {"ok": 0, "skipped": 0, "failed": 0, "retried": 0}

    async def step(self, line: Line) -> float:
        pieces = self._take(line)
        if pieces:
            await self._settle(line, pieces)
        return 0.0 if pieces else self._every

    def _take(self, line: Line) -> list[Slice]:
        taken: list[Slice] = []
        records = 0
        while line.finished and records < MOST:
            piece = line.finished.pop()
            records += len(piece.records) - piece.settled
            taken.append(piece)
        now = time.monotonic()
        for piece in line.running:
            if len(piece.outcomes) > piece.settled and now - piece.started >= self._every and not piece.done and not piece.lost:
                taken.append(piece)
        taken.sort(key=lambda piece: piece.raw_id)  # results are cheapest to insert in the order of their key
        return taken

    async def _settle(self, line: Line, pieces: list[Slice]) -> None:
        """Where it ends in an error, a later step takes again what is done and still held."""
        try:
            await self._parted(line, pieces)
        except BaseException:
            line.finished.extend(p for p in pieces if p.done and p in line.held and p not in line.finished)
            raise

    async def _parted(self, line: Line, pieces: list[Slice]) -> None:
        """All at once; where Postgres refuses that, each slice by itself."""
        try:
            await self._commit(line, pieces)
        except (ClaimLost, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError) as error:
            if len(pieces) > 1:
                for piece in pieces:
                    await self._parted(line, [piece])
            elif isinstance(error, ClaimLost):
                emit("claim.lost", pipeline=line.runnable.pipeline, version=line.runnable.version, raw_id=pieces[0].raw_id, slices=1)
                line.lose(pieces[0])
                line.drop(pieces[0])
            else:
                await self._refused(line, pieces[0], error)

    async def _refused(self, line: Line, piece: Slice, error: asyncpg.PostgresError) -> None:
        """Postgres cannot store what the processor said: that is a failed attempt of these records."""
        done = len(piece.outcomes)
        piece.bare = 0
        piece.outcomes[piece.settled : done] = [Retry(f"the outcome cannot be stored: {error}")] * (done - piece.settled)
        await self._commit(line, [piece])

    async def _commit(self, line: Line, pieces: list[Slice]) -> None:
        crashpoint("after-process-before-settle")
        begun = time.monotonic()
        columns = Columns(pieces)
        counts = [sum(c) for c in columns.counts]
        runnable = line.runnable
        released, suppressed, _buried = await self._jobs.settle(runnable.version_id, self._mode, self._gates, columns.arguments())
        crashpoint("after-settle-before-next")
        sums = [sum(c) for c in zip(*columns.counts, strict=True)]
        outcome = dict(zip(self.totals, sums, strict=True))
        for name, value in outcome.items():
            self.totals[name] += value
        for piece, count in zip(pieces, counts, strict=True):
            piece.settled += count
            if piece.settled < len(piece.records):
                crashpoint("after-prefix-before-rest")
                piece.raw_id = piece.records[piece.settled].id
            elif piece.beyond is not None:
                self.cut.add(piece.token)
        line.drop(*(p for p in pieces if p.settled == len(p.records)))
        if released:
            self._released()
        seconds = sum(p.seconds / len(p.records) for p in pieces) / len(pieces)
        emit(
            "job.settled", pipeline=runnable.pipeline, version=runnable.version, slices=len(pieces), records=sum(counts), **outcome,
            released=released, suppressed=suppressed, seconds=round(seconds, 6), settle_seconds=round(time.monotonic() - begun, 4),
        )  # fmt: skip
