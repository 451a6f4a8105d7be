"""claimed -> claimed: one statement per process extends the leases of all it holds."""

from __future__ import annotations

import os
import threading
import time
import uuid

from worker.core.events import emit
from worker.jobs import Jobs, Slice
from worker.line import Line


class Heartbeat:
    """Beats for what makes progress. A record past its deadline gets no more beats, so that its lease ends by itself."""

    def __init__(self, jobs: Jobs, lines: list[Line], every: float, lease: float) -> None:
        self._jobs = jobs
        self._lines = lines
        self._every = every
        self._lease = lease

    async def step(self) -> float:
        held = self._tokens()
        if held:
            caps = [self._cap(pieces) for pieces in held.values()]
            alive = await self._jobs.beat(list(held), caps, within=self._lease - self._every)
            for token, pieces in held.items():
                if token not in alive:
                    self._lost(pieces)
        return self._every

    def _tokens(self) -> dict[uuid.UUID, list[tuple[Line, Slice]]]:
        held: dict[uuid.UUID, list[tuple[Line, Slice]]] = {}
        for line in self._lines:
            for piece in line.held:
                held.setdefault(piece.token, []).append((line, piece))
        return held

    def _cap(self, pieces: list[tuple[Line, Slice]]) -> float:
        """Seconds after the claim at which its lease must end: never, unless something of it hangs."""
        ends = [
            piece.busy_since - piece.claimed + line.runnable.deadline + self._lease
            for line, piece in pieces
            if piece in line.running and piece.busy_since
        ]
        return min(ends, default=time.monotonic() - pieces[0][1].claimed + 10 * self._lease)

    def _lost(self, pieces: list[tuple[Line, Slice]]) -> None:
        for line, piece in pieces:
            if piece in line.held and not piece.done and not piece.lost:
                emit("claim.lost", pipeline=line.runnable.pipeline, version=line.runnable.version, raw_id=piece.raw_id, slices=1)
                line.lose(piece)


class Guard(threading.Thread):
    """Ends the process when its event loop has not turned for `seconds`: its claims are lost, others take over, a supervisor restarts it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(name="guard", daemon=True)
        self._seconds = seconds
        self._ticked = time.monotonic()
        self._off = threading.Event()

    def tick(self) -> None:
        self._ticked = time.monotonic()

    def off(self) -> None:
        self._off.set()

    def run(self) -> None:
        while not self._off.wait(1.0):
            if time.monotonic() - self._ticked > self._seconds:
                emit("processor.overdue", pipeline="", error=f"the event loop stood still for {self._seconds:g} s; this process ends")
                os._exit(70)
