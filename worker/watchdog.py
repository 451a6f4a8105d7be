"""Every second, in every worker, no leader: expired claims, due retries, open runs, dead rows, deadlines of our own records."""

from __future__ import annotations

import time
from collections.abc import Callable

import asyncpg

from worker.core.crashpoint import crashpoint
from worker.core.events import emit
from worker.core.pace import Pace
from worker.feeder import Feeder
from worker.jobs import Jobs
from worker.line import Line

RUN_STEP = 200_000  # raw ids per step of a run
SEEN = 30.0
VACUUM = 60.0
LONGEST = 10.0  # seconds that a slow round lets the next one wait, unless it did as much as it may (sql/functions/40_jobs.sql)
RESCUED, DUE = 200, 1000


class Watchdog:
    """`give_up` is called when a thread hangs past its deadline: only a new process gets rid of it."""

    def __init__(
        self,
        jobs: Jobs,
        lines: list[Line],
        feeder: Feeder,
        pool: asyncpg.Pool,
        every: float,
        max_crashes: int,
        gates: list[str],
        give_up: Callable[[str], None],
    ) -> None:
        self._jobs = jobs
        self._lines = lines
        self._feeder = feeder
        self._pool = pool
        self._every = every
        self._max_crashes = max_crashes
        self._gates = gates
        self._give_up = give_up
        self._seen = -1e9
        self._pace = Pace(LONGEST)
        self._vacuumed = time.monotonic()
        self._partitioned = -1e9

    async def step(self) -> float:
        self._deadlines()
        if time.monotonic() - self._seen > SEEN:
            await self._say_seen()
        if not self._pace.ready():
            return self._every
        with self._pace.timed():
            found = await self._jobs.watch(self._max_crashes)
        if found["rescued"] >= RESCUED or found["due"] >= DUE or found["moved"]:
            self._pace.again()
        if found["rescued"]:
            crashpoint("after-rescue-before-claim")
            emit("lease.rescued", rescued=found["rescued"], buried=found["buried"])
        if found["rescued"] or found["due"] or found["moved"]:
            self._feeder.ring()
        if found["dead_rows"] and time.monotonic() - self._vacuumed > VACUUM:
            await self._vacuum(found["dead_rows"])
        return 0.0 if found["runs"] and await self._advance() else self._every

    async def _advance(self) -> bool:
        more = False
        for row in await self._jobs.advance_runs(RUN_STEP):
            crashpoint("after-advance-before-next")
            emit("run.advanced", run=row["id"], state=row["state"], position=row["position"], of=row["position_to"], records=row["records"])
            more |= row["state"] == "active" and row["position"] < row["position_to"]
            self._feeder.ring()
        return more

    async def _say_seen(self) -> None:
        self._seen = time.monotonic()
        await self._jobs.seen([line.runnable.version_id for line in self._lines], self._gates, {"held": sum(line.records for line in self._lines)})
        if time.monotonic() - self._partitioned > 3600:  # noqa: PLR2004  once an hour
            self._partitioned = time.monotonic()
            await self._pool.execute("select tailrace.ensure_partitions()")

    async def _vacuum(self, dead: int) -> None:
        """Vacuum needs the owner's rights: where the login has them, the role is put off for it; elsewhere autovacuum has to do."""
        self._vacuumed = time.monotonic()
        async with self._pool.acquire() as connection:
            role = await connection.fetchval("select current_user")
            if await connection.fetchval("select pg_has_role(session_user, relowner, 'usage') from pg_class where oid = 'tailrace.jobs'::regclass"):
                await connection.execute("reset role")
                try:
                    await connection.execute("vacuum (index_cleanup on, truncate off) tailrace.jobs", timeout=600)
                    emit("jobs.vacuumed", dead_rows=dead)
                finally:
                    await connection.execute(f'set role "{role}"')

    def _deadlines(self) -> None:
        for line in self._lines:
            for piece in line.hanging():
                task = line.running[piece]
                emit(
                    "processor.overdue", pipeline=line.runnable.pipeline, raw_id=piece.raw_id, error=f"no outcome after {line.runnable.deadline:g} s"
                )
                if not line.executor.hands_over:
                    task.cancel()
                elif not line.executor.kill():
                    self._give_up(f"{line.runnable.pipeline}: a thread hangs on raw record {piece.raw_id}")
