"""The one loop. Whatever lives long is a step that does one round and says how long to rest."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from worker.core.errors import Misconfigured
from worker.core.events import emit

T = TypeVar("T")
Step = Callable[[], Awaitable[float]]  # seconds to rest; zero: there may be more to do


async def rest_or_wake(seconds: float, *wakers: asyncio.Event) -> None:
    """Returns after `seconds`, or as soon as one of the events is set."""
    waits = [asyncio.ensure_future(w.wait()) for w in wakers]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def run(name: str, step: Step, stop: asyncio.Event, *, wake: asyncio.Event | None = None, jitter: float = 0.0) -> None:
    """Runs `step` until `stop`. A failed step is reported and tried again, backing off from 0.2 to 15 seconds, for ever."""
    failures = 0
    while not stop.is_set():
        try:
            rest = await step()
            failures = 0
        except (asyncio.CancelledError, Misconfigured):
            raise
        except Exception as error:  # noqa: BLE001  the one place where a loop survives its step
            failures += 1
            rest = min(15.0, 0.2 * 2 ** min(failures, 7)) * random.uniform(0.5, 1.0)  # noqa: S311  jitter
            emit("step.failed", step=name, error=repr(error), failures=failures, rest=round(rest, 2))
        if rest <= 0:
            await asyncio.sleep(0)
        else:
            wakers = (stop, wake) if wake and not failures else (stop,)
            await rest_or_wake(rest * random.uniform(1 - jitter, 1 + jitter), *wakers)  # noqa: S311  jitter
            if wake:
                wake.clear()


async def unless(stop: asyncio.Event, call: Coroutine[Any, Any, T]) -> T | None:
    """What `call` returns; None, and the call cancelled, when `stop` is set before."""
    task, stopped = asyncio.ensure_future(call), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for waited in (task, stopped):
            waited.cancel()


async def until(stop: asyncio.Event) -> None:
    """A service that only waits to be stopped."""
    await stop.wait()


async def run_all(stop: asyncio.Event, *services: Awaitable[None], patience: float = 10.0) -> None:
    """Runs services side by side until all have ended. When one ends with an error, the others are stopped and the error is raised.

    Once `stop` is set each may finish its step for `patience` seconds; what hangs longer (a dead connection) is cancelled.
    """
    tasks = [asyncio.create_task(_awaited(s)) for s in services]
    stopped = asyncio.ensure_future(stop.wait())
    running = set(tasks)
    try:
        while running and not stopped.done():
            await asyncio.wait({*running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            running = _still(running)
        if running:
            await asyncio.wait(running, timeout=patience)
            _still(running)
    finally:
        stop.set()
        for task in (*tasks, stopped):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, stopped, return_exceptions=True)


def _still(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that have not ended; raises the error of one that failed."""
    for task in running:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error
    return {task for task in running if not task.done()}


async def _awaited(service: Awaitable[None]) -> None:
    await service
