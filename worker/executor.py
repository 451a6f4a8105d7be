"""One attempt: records in, one outcome each out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from worker.core.context import Context
from worker.core.crashpoint import crashpoint
from worker.core.events import emit
from worker.core.models import Done, Outage, Outcome, Record, Retry
from worker.jobs import Slice
from worker.outcomes import DONE, bare, checked, failed, mismatch, words
from worker.registry import Runnable

Pause = Callable[[Runnable, Outage], Awaitable[None]]


def end_with_parent() -> None:
    """In a process of the pool: it ends when the worker does, also when that is killed and can tell nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), name="follow", daemon=True).start()


def _follow(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class WorkerCrashed(Exception):
    """A process of the pool died under this slice: the slice is left to the watchdog, which isolates the culprit."""


def run_singly(function: Callable[..., Any], records: Sequence[Record], context: Context, piece: Slice | None = None) -> list[Any]:
    """Runs in a thread or another process; exceptions come back as values. A thread notes on `piece` when each record began."""
    values: list[Any] = []
    for record in records:
        if piece is not None:
            piece.busy_since = time.monotonic()
        try:
            values.append(function(record, context))
        except Exception as error:  # noqa: BLE001  becomes an outcome in the one place
            values.append(error)
    return values


def run_batch(function: Callable[..., Any], records: Sequence[Record], context: Context) -> list[Any]:
    try:
        return list(function(records, context))
    except Exception as error:  # noqa: BLE001  becomes an outcome in the one place
        return [error] * len(records)


class Executor:
    """Runs the slices of one version."""

    def __init__(self, runnable: Runnable, pause: Pause) -> None:
        self._runnable = runnable
        self._function = runnable.processor.function
        self._async = inspect.iscoroutinefunction(self._function)
        self._batch = runnable.processor.batch
        self._pause = pause
        self._own: concurrent.futures.Executor | None = None
        self._contexts: dict[tuple[int, int], Context] = {}
        wanted = runnable.processor.executor
        self.kind = wanted if wanted is not None else ("inline" if self._async else "threads")
        self.hands_over = self.kind != "inline" and not self._async  # then a hung record cannot be cancelled, only outlived

    async def process(self, piece: Slice) -> None:
        """Appends an outcome for each record that has none yet."""
        context = self._context(piece.attempt, piece.lane)
        start = len(piece.outcomes)
        begun = time.monotonic()
        if self._batch:
            await self._whole(piece, context)
        elif self.hands_over:
            piece.busy_since = begun
            noting = piece if self.kind == "threads" else None
            values = await self._elsewhere(functools.partial(run_singly, self._function, piece.records[start:], context, noting))
            rest = piece.records[start:]
            piece.outcomes.extend([await self._outcome(v, r) for v, r in zip(values, rest, strict=True)])
        else:
            await self._inline(piece, context)
        piece.seconds += time.monotonic() - begun

    def _context(self, attempt: int, lane: int) -> Context:
        found = self._contexts.get((attempt, lane))
        if found is None:
            found = self._contexts[attempt, lane] = self._runnable.context(attempt, lane)
        return found

    async def _inline(self, piece: Slice, context: Context) -> None:
        function, outcomes, is_async, known = self._function, piece.outcomes, self._async, DONE
        for record in piece.records[len(outcomes) :]:
            piece.busy_since = time.monotonic()
            try:
                value = await function(record, context) if is_async else function(record, context)
            except Exception as error:  # noqa: BLE001  becomes an outcome in the one place
                value = error
            if value is known or bare(value):
                known = value
                piece.bare += 1
                outcomes.append(value)
            else:
                outcomes.append(await self._outcome(value, record))

    async def _whole(self, piece: Slice, context: Context) -> None:
        piece.busy_since = time.monotonic()
        records = piece.records
        if self.hands_over:
            values = await self._elsewhere(functools.partial(run_batch, self._function, records, context))
        else:
            try:
                values = list(await self._function(records, context) if self._async else self._function(records, context))
            except Exception as error:  # noqa: BLE001  becomes an outcome in the one place
                values = [error] * len(records)
        if len(values) != len(records):
            values = [Retry(f"the processor returned {len(values)} outcomes for {len(records)} records")] * len(records)
        piece.outcomes.extend([await self._outcome(v, r) for v, r in zip(values, records, strict=True)])

    async def _outcome(self, value: Any, record: Record) -> Outcome:
        try:
            value = (isinstance(value, Done) and mismatch(self._runnable, value, record)) or value
        except Exception as error:  # noqa: BLE001  a schema may raise whatever it likes
            value = error
        if isinstance(value, BaseException):
            if isinstance(value, Outage):
                await self._pause(self._runnable, value)
                crashpoint("after-outage-before-retry")
            told = f"{type(value).__name__}: {words(value)}"
            emit("processor.failed", pipeline=self._runnable.pipeline, version=self._runnable.version, error=told)
            return failed(value)
        return checked(value)

    async def _elsewhere(self, call: Callable[[], list[Any]]) -> list[Any]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool(), call)
        except BrokenProcessPool as error:
            self._own = None
            raise WorkerCrashed(str(error)) from error

    def _pool(self) -> concurrent.futures.Executor:
        if isinstance(self.kind, concurrent.futures.Executor):
            return self.kind
        if self._own is None:
            size = self._runnable.concurrency
            if self.kind == "processes":
                self._own = concurrent.futures.ProcessPoolExecutor(size, initializer=end_with_parent)
            else:
                self._own = concurrent.futures.ThreadPoolExecutor(size, thread_name_prefix=self._runnable.pipeline)
        return self._own

    def kill(self) -> bool:
        """Ends the processes of a pool whose record hangs; False where nothing can be ended (threads)."""
        if not isinstance(self._own, concurrent.futures.ProcessPoolExecutor):
            return False
        for process in list((getattr(self._own, "_processes", None) or {}).values()):
            process.kill()
        return True

    def close(self) -> None:
        """Waits for nobody: what still runs in a process has been given back or left to the watchdog."""
        if self._own is not None:
            self.kill()
            self._own.shutdown(wait=False, cancel_futures=True)
