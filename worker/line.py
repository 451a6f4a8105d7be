"""What one version holds in this process: claimed slices that wait, run, or wait to be settled."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from worker.core.crashpoint import crashpoint
from worker.core.events import emit
from worker.core.models import Retry
from worker.executor import Executor, WorkerCrashed
from worker.jobs import Slice
from worker.registry import Runnable

EIGHTH = 8  # where live slices wait, at least one start in eight is of a catch-up or replay
LONG = 100  # records of a slice after which others of this process get their turn, also where the processor never waits
FAST = 0.1  # a slice quicker than this may wait in the local queue behind others
QUICK = 0.02  # slices quicker than this keep the database busy, not the processor


class Line:
    """A local queue with `concurrency` runners. It asks for more by `room`; how much it holds grows while runners starve."""

    def __init__(self, runnable: Runnable, executor: Executor, most: int, changed: Callable[[], None]) -> None:
        self.runnable = runnable
        self.executor = executor
        self.held: dict[Slice, None] = {}
        self.finished: list[Slice] = []
        self.running: dict[Slice, asyncio.Task[None]] = {}
        self.records = 0
        self._live: deque[Slice] = deque()
        self._slow: deque[Slice] = deque()  # of catch-ups and replays
        self._unsettled: set[Slice] = set()  # of these, what is done
        self._starts = 0
        self.settle = asyncio.Event()  # there is something to settle
        self._more = asyncio.Event()
        self._changed = changed
        self._most = max(most, runnable.slice_size)
        self._least = min(self._most, runnable.concurrency * runnable.slice_size)
        self._target = self._least
        self._mean = FAST  # seconds of a slice; nothing is claimed ahead until some have shown to be quick
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(), name=f"{self.runnable.pipeline}-{i}") for i in range(self.runnable.concurrency)]

    def room(self) -> int:
        """Records that may be claimed now: half of what we may hold, so that one half settles while the other is claimed; no crumbs."""
        free = min(self._target - self.records, max(self._target // 2, self.runnable.slice_size))
        waiting = self._live or self._slow
        return free if free > 0 and (not waiting or free * 4 >= self._target) else 0

    @property
    def crowds(self) -> bool:
        """Whether a settle of a catch-up or replay is due or under way that more work of that kind would only crowd."""
        return bool(self._unsettled) and self._mean < QUICK

    def push(self, pieces: list[Slice]) -> None:
        crashpoint("after-claim-before-process")
        for piece in pieces:
            self.held[piece] = None
            self.records += len(piece.records)
            (self._slow if piece.lane else self._live).append(piece)
        self._more.set()

    def drop(self, *pieces: Slice) -> None:
        """These slices are no longer ours: settled, lost or given back."""
        for piece in pieces:
            self._unsettled.discard(piece)
            if self.held.pop(piece, piece) is None:
                self.records -= len(piece.records)
        self._changed()

    def lose(self, piece: Slice) -> None:
        """The claim went to another worker: stop working on it."""
        piece.lost = True
        if task := self.running.get(piece):
            if not self.executor.hands_over:
                task.cancel()
        else:
            for queue in (self._live, self._slow):
                if piece in queue:
                    queue.remove(piece)
                    self.drop(piece)

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  we are in one
        while True:
            while not (self._live or self._slow):
                if self._mean < FAST:
                    self._target = min(self._target * 2, self._most)
                self._more.clear()
                self._changed()
                await self._more.wait()
            piece = self._next()
            if time.monotonic() - piece.claimed > 5 * FAST and self._mean >= FAST:
                self._target = max(self._target // 2, self._least)
            await self._attempt(piece, task)
            if len(piece.records) > LONG:
                await asyncio.sleep(0)

    def _next(self) -> Slice:
        """Live before the other lanes, which are never starved."""
        self._starts += 1
        slow = self._slow and (not self._live or self._starts % EIGHTH == 0)
        return (self._slow if slow else self._live).popleft()

    async def _attempt(self, piece: Slice, task: asyncio.Task[None]) -> None:
        self.running[piece] = task
        piece.started = time.monotonic()
        try:
            while not piece.done and not piece.lost:
                try:
                    await self.executor.process(piece)
                except asyncio.CancelledError:
                    if self._stopping or not task.cancelling() or (not piece.lost and not self._overdue(piece)):
                        raise
                    task.uncancel()
        except WorkerCrashed as crash:
            emit("processor.failed", pipeline=self.runnable.pipeline, version=self.runnable.version, error=f"pool process died: {crash}")
            piece.lost = True
        finally:
            self.running.pop(piece, None)
        self._mean += 0.3 * ((time.monotonic() - piece.started) - self._mean)
        if piece.lost:
            self.drop(piece)
        else:
            self.finished.append(piece)
            if piece.lane:
                self._unsettled.add(piece)
            if len(self.finished) == 1:
                self.settle.set()
                self._changed()

    def _overdue(self, piece: Slice) -> bool:
        """The deadline cancelled one record: it is tried again later, the rest of the slice goes on."""
        late = piece.busy_since and time.monotonic() - piece.busy_since >= self.runnable.deadline
        if late:
            piece.outcomes.append(Retry(f"deadline of {self.runnable.deadline:g} s passed"))
        return bool(late)

    def hanging(self) -> list[Slice]:
        """Slices whose present record or batch has passed its deadline."""
        now = time.monotonic()
        return [p for p in self.running if p.busy_since and now - p.busy_since > self.runnable.deadline]

    async def stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._live.clear()
        self._slow.clear()
        self.executor.close()
