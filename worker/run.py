"""One worker process put together: claim, process, settle, beat, watch, dispatch; run for ever or drain once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from typing import Any

import asyncpg
import orjson

from worker.core import db, service
from worker.core.crashpoint import crashpoint
from worker.core.events import emit
from worker.core.models import Outage
from worker.core.pace import Pace
from worker.core.settings import Settings
from worker.executor import Executor
from worker.feeder import Feeder
from worker.heartbeat import Guard, Heartbeat
from worker.jobs import Jobs
from worker.line import Line
from worker.outcomes import rest, words
from worker.registry import Runnable
from worker.settler import Settler
from worker.watchdog import Watchdog


def worker_name(settings: Settings) -> str:
    return settings.worker.name or f"{socket.gethostname()}:{os.getpid()}"


class Worker:
    """`mode` is run or drain. In a drain no gate is open, whatever the settings say, and it ends when nothing is due or held."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, runnables: list[Runnable], mode: str, gates: dict[str, Any]) -> None:
        self.settings = settings
        self.name = worker_name(settings)
        self.exit_code = 0
        self.stopped_why = ""
        self._pace = Pace(5.0)  # of the drain's question what is left
        self._stopped = 0.0
        self.stop = asyncio.Event()
        self.released = asyncio.Event()
        self._pool = pool
        self._mode = mode
        w = settings.worker
        self.jobs = Jobs(pool, self.name, w.lease_seconds)
        self.lines = [Line(r, Executor(r, self._pause), w.claim_records, self._changed) for r in runnables]
        self.feeder = Feeder(self.jobs, self.lines, w.poll_seconds)
        self.settler = Settler(self.jobs, mode, orjson.dumps(gates).decode(), w.settle_seconds, self.released.set)
        self.heartbeat = Heartbeat(self.jobs, self.lines, w.beat_seconds, w.lease_seconds)
        self.watchdog = Watchdog(self.jobs, self.lines, self.feeder, pool, w.watch_seconds, w.max_crashes, sorted(gates), self._give_up)
        self.limit(settings.worker.max_jobs)
        self._guard = Guard(2 * w.lease_seconds + 2)

    def limit(self, records: int | None) -> None:
        """Stop after so many records."""
        self.max_jobs = self.feeder.budget = records

    @property
    def done(self) -> int:
        return sum(self.settler.totals.values())

    def _changed(self) -> None:
        self.feeder.wake.set()
        if self.max_jobs is not None and self.done >= self.max_jobs:
            self.stop.set()

    def _give_up(self, why: str) -> None:
        self.exit_code, self.stopped_why = 70, why
        self.stop.set()

    async def _pause(self, runnable: Runnable, outage: Outage) -> None:
        asked, reason = rest(outage.seconds), words(outage)
        wait = Outage("").seconds if asked is None else asked
        emit("version.paused", pipeline=runnable.pipeline, version=runnable.version, seconds=wait, reason=reason)
        await self.jobs.pause(runnable.version_id, wait, reason)
        self.feeder.ring()

    async def run(self, *services: Any) -> None:
        """Works until `stop` is set, then finishes what runs within the grace time and gives the rest back."""
        for line in self.lines:
            line.start()
        self._guard.start()
        quiet = asyncio.Event()
        self.feeder.quiet = quiet.set
        off = asyncio.Event()  # the housekeeping goes on while the rest is finished
        w = self.settings.worker
        keep = [
            *(service.run("settle", functools.partial(self.settler.step, line), off, wake=line.settle) for line in self.lines),
            service.run("beat", self.heartbeat.step, off),
            service.run("guard", self._tick, off),
        ]
        work = [
            service.run("feed", self.feeder.step, self.stop, wake=self.feeder.wake, jitter=0.1),
            service.run("watch", self.watchdog.step, self.stop, jitter=0.3),
            self._no_more_claims(),
            *services,
        ]
        if self._mode == "drain":
            work.append(service.run("drain", self._until_drained, self.stop, wake=quiet))
        kept = asyncio.ensure_future(service.run_all(off, *keep))
        try:
            await service.run_all(self.stop, *work, patience=w.grace_seconds)
        finally:
            await self._finish(w.grace_seconds)
            off.set()
            with contextlib.suppress(asyncio.CancelledError):
                await kept
            self._guard.off()

    async def _no_more_claims(self) -> None:
        """At once, also where the feeder waits for what runs to end."""
        await self.stop.wait()
        self._stopped = time.monotonic()
        self.feeder.stopping = True
        self.feeder.wake.set()

    async def _tick(self) -> float:
        self._guard.tick()
        return 1.0

    async def _until_drained(self) -> float:
        """Ends the drain when the database says that nothing is due or held, and no run has more to open."""
        if not self.feeder.exhausted or not self._pace.ready():
            return 1.0
        with self._pace.timed():
            left = await self.jobs.open_work([line.runnable.version_id for line in self.lines])
        if not left["due"] and not left["held"] and not left["runs"]:
            self.stop.set()
        elif left["due"]:
            self.feeder.ring()
        return 0.2

    async def _finish(self, grace: float) -> None:
        """Claims no more, settles what is done, gives the rest back without an attempt."""
        self.feeder.stopping = True
        await self.feeder.ended(max(1.0, self._stopped + grace - time.monotonic()))
        waiting = [p for line in self.lines for p in line.held if p not in line.running and not p.done]
        for line in self.lines:
            for piece in waiting:
                line.lose(piece)
        until = max(self._stopped + grace, time.monotonic() + 1)
        while any(p not in line.hanging() for line in self.lines for p in line.held) and time.monotonic() < until:
            for line in self.lines:
                line.settle.set()
            await service.rest_or_wake(0.05, self.released)
        hung = {p.token for line in self.lines for p in line.hanging()}
        for line in self.lines:
            await line.stop()
        left = {p.token for line in self.lines for p in line.held} | {p.token for p in waiting} | self.settler.cut
        left -= hung  # they come back as suspects when their lease ends, so that the record at fault is found
        if left:
            crashpoint("after-stop-before-give-back")
            with contextlib.suppress(*db.AWAY):
                given = await self.jobs.give_back(sorted(left))
                crashpoint("after-give-back-before-exit")
                emit("claim.given_back", slices=given)
