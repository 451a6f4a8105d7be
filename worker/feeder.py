"""ready -> claimed: which version, lane and sources the next claim is for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from worker.core.events import emit
from worker.core.pace import Pace
from worker.core.times import from_binary
from worker.jobs import Jobs, Slice
from worker.line import Line
from worker.ready import LIVE, Ready

EIGHTH = 8  # at least one claim in eight goes to the catch-up and replay lanes
FORGET = 2.0  # seconds after which lower bounds and the list of ready sources are read anew
LIVELY, GENTLE = 60.0, 500  # for so many seconds after live work, so many records of a slow lane are claimed at once
ALONE = 1.0  # seconds of suspects in a row before ordinary work goes on


class Feeder:
    """Keeps the lines supplied. Fair over sources, live before replay and never waiting for a claim of it, suspects alone."""

    def __init__(self, jobs: Jobs, lines: list[Line], poll: float) -> None:
        self._jobs = jobs
        self._lines = lines
        self._by_version = {line.runnable.version_id: line for line in lines}
        self._poll = poll
        self._ready = Ready(list(self._by_version))
        self._pace = Pace(5.0)  # where reading them is slow, so many seconds at most
        self._looked = -1e9
        self._live_at = -1e9  # when live work was last rung for or claimed
        self._slow: asyncio.Task[None] | None = None  # the claim of catch-up or replay work that is under way
        self._claims = 0
        self._normal = 0  # claims since suspects last had their turn
        self.wake = asyncio.Event()
        self.stopping = False
        self.budget: int | None = None  # records that may still be claimed; None: no end
        self.quiet: Callable[[], None] = lambda: None  # called when nothing is ready and nothing is held

    def ring(self, source_id: int | None = None) -> None:
        """Work may be ready: of this source, or (None) somewhere."""
        if source_id is None:
            self._looked = -1e9
            self._pace.again()
        else:
            self._ready.ring(source_id)
            self._live_at = time.monotonic()
        self.wake.set()

    async def step(self) -> float:
        self._collect()
        if self.stopping or self.budget == 0:
            return self._poll
        if self._outdated():
            await self._look()
        if self._ready.suspects and (self._normal >= EIGHTH or not self._ready):
            await self._alone()
            return 0.0
        choice = self._choose()
        if choice is None:
            if not self._ready and self._idle():
                self.quiet()
            return self._poll
        line, lane = choice
        if lane == LIVE or self.budget is not None:
            await self._claim(line, lane)
        else:
            self._slow = asyncio.create_task(self._claim(line, lane), name="feed-slow")
            self._slow.add_done_callback(lambda _: self.wake.set())
        return 0.0

    def _outdated(self) -> bool:
        since = time.monotonic() - self._looked
        return since > FORGET and (bool(self._ready) or self._idle() or since > self._poll) and self._pace.ready()

    def _collect(self) -> None:
        if self._slow and self._slow.done():
            slow, self._slow = self._slow, None
            slow.result()

    async def ended(self, seconds: float) -> None:
        """Waits for the claim that is under way, so that what it brings is given back. Its error is of no interest any more."""
        if self._slow:
            await asyncio.wait([self._slow], timeout=seconds)
            self._slow.cancel()

    @property
    def exhausted(self) -> bool:
        """The last look found nothing ready, and nothing is held."""
        return self._ready.known and not self._ready and not self._ready.suspects and self._idle()

    def _idle(self) -> bool:
        return self._slow is None and not any(line.held for line in self._lines)

    async def _look(self) -> None:
        self._ready.known = False
        self._looked = time.monotonic()  # before the question: a ring while it is answered asks again
        self._ready.asking()
        with self._pace.timed():
            found = await self._jobs.peek(list(self._by_version))
        self._ready.told(found)

    def _choose(self) -> tuple[Line, int] | None:
        """A line with room, in the best lane that has ready work; every eighth claim begins at the slow lanes. While live work comes in,
        a catch-up or replay keeps one connection busy: it is claimed when what was claimed before is settled.
        """
        busy = self._slow or (self._lively() and any(line.crowds for line in self._lines))
        lanes = (LIVE,) if busy else (1, 2, LIVE) if self._claims % EIGHTH == EIGHTH - 1 else (LIVE, 1, 2)
        open_lines = [line for line in self._lines if line.room()]
        random.shuffle(open_lines)
        for lane in lanes:
            for line in open_lines:
                if self._ready.has(line.runnable.version_id, lane):
                    return line, lane
        return None

    async def _claim(self, line: Line, lane: int) -> None:
        version = line.runnable.version_id
        room = min(line.room(), *self._bounds(line, lane))
        if room <= 0:
            self._ready.unaffordable(version, lane)
            return
        sources = self._ready.some(version, lane)
        limit = max(1, room // line.runnable.slice_size)
        each = -(-limit // len(sources))
        if lane == LIVE:
            self._ready.asking()
        pieces = await self._jobs.claim(line.runnable, lane, sources, each, limit)
        self._claims += 1
        self._normal += 1
        if len(pieces) < limit:
            self._ready.exhausted(version, lane, [source for source, _ in sources], pieces, each)
        self._ready.claimed(version, lane, pieces)
        if pieces:
            self._live_at = time.monotonic() if lane == LIVE else self._live_at
            self._spend(pieces)
            self._report(line, lane, pieces)
            line.push(pieces)

    def _lively(self) -> bool:
        return time.monotonic() - self._live_at < LIVELY

    def _bounds(self, line: Line, lane: int) -> list[int]:
        """Records that may be claimed, beside the room that there is: --max-jobs, the budget of a replay, what delays no live record."""
        slice_size = line.runnable.slice_size
        bounds = [slice_size + line.room()] if self.budget is None else [self.budget]
        if lane != LIVE and self._lively():
            bounds.append(max(GENTLE, slice_size))
        affordable = self._ready.affordable(line.runnable.version_id, lane)
        return bounds if affordable is None else [*bounds, affordable]

    def _spend(self, pieces: list[Slice]) -> None:
        """Keeps to the budget: a slice that goes beyond it is cut."""
        if self.budget is not None:
            for piece in pieces:
                piece.cut(max(self.budget, 1))
                self.budget = max(0, self.budget - len(piece.records))

    async def _alone(self) -> None:
        """Records that were in a crash run with nothing beside them, one slice at a time."""
        self._normal = 0
        version = min(self._ready.suspects)
        line = self._by_version[version]
        until = time.monotonic() + ALONE
        while not self.stopping and self.budget != 0 and time.monotonic() < until:
            await self._wait_idle()
            pieces = [] if self.stopping else await self._jobs.claim_suspect(line.runnable, self._ready.suspects[version])
            if not pieces:
                del self._ready.suspects[version]
                break
            self._ready.suspects[version] = pieces[0].raw_id + 1
            self._spend(pieces)
            self._report(line, pieces[0].lane, pieces)
            line.push(pieces)
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        self._collect()
        while not self._idle() and not self.stopping:
            self.wake.clear()
            await self.wake.wait()
            self._collect()

    def _report(self, line: Line, lane: int, pieces: list[Slice]) -> None:
        due = from_binary(min(p.due for p in pieces)).timestamp()
        emit(
            "job.claimed", pipeline=line.runnable.pipeline, version=line.runnable.version, lane=lane, slices=len(pieces),
            records=sum(len(p.records) for p in pieces), wait=round(time.time() - due, 4),
        )  # fmt: skip
