"""`python -m worker [run | drain]`: the composition root of the worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from worker import registry
from worker.bell import Bell
from worker.core import db, log, options, service
from worker.core.embedded import database_url
from worker.core.events import emit
from worker.core.http import serving
from worker.core.metrics import Metrics
from worker.core.settings import Settings, read
from worker.jobs import warm
from worker.run import Worker, worker_name

ROLE = "tailrace_worker"
LINGER = 1.0  # seconds for threads that only have to notice that it is over
HUNG = 70  # a record hung in a thread: only a new process is rid of it


def parse(argv: Sequence[str]) -> Any:
    parser = options.Parser(prog="python -m worker", description="raw -> job -> result -> effect -> delivery")
    parser.set_defaults(command="run", max_jobs=None, pipeline=None, version=None, json=False)
    commands = parser.add_subparsers(dest="command", metavar="run | drain")
    run = commands.add_parser("run", help="work until stopped (the default)")
    drain = commands.add_parser(
        "drain", help="work until nothing is due or held, with all side effects off; exit 0 all settled, 3 some failed, 4 work left"
    )
    for command in (run, drain):
        command.add_argument("--max-jobs", type=options.positive, metavar="N", help="stop after so many records")
        command.add_argument("--pipeline", metavar="P", help="only this pipeline")
        command.add_argument("--version", metavar="V", help="run as this version instead of the configured one")
        command.add_argument("--json", action="store_true", help="print the summary as JSON")
    given = parser.parse_args(argv)
    given.command = given.command or "run"
    return given


def main(argv: Sequence[str] | None = None) -> int:
    code = options.guarded(lambda: uvloop.run(_main(parse(sys.argv[1:] if argv is None else argv))))
    if code == HUNG or _threads_run_on():
        sys.stdout.flush()
        os._exit(code)  # a thread that hangs would be waited for
    return code


def _threads_run_on() -> bool:
    """Whether a record is still being processed in a thread after the grace time: it was given back, and nothing can end it but our end."""
    until = time.monotonic() + LINGER
    others = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
    for thread in others:
        thread.join(max(0.0, until - time.monotonic()))
    return any(thread.is_alive() for thread in others)


async def _main(given: Any) -> int:
    settings, loaded = read()
    log.configure("worker", settings.log.level, settings.log.format)
    mode = "drain" if given.command == "drain" or settings.worker.oneshot else "run"
    url = database_url(settings)
    name = worker_name(settings)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await db.open_pool(url, settings.database, f"worker {name}", ROLE, settings.database.pool_size, warm))
        folder = loaded.path.parent if loaded.path else Path.cwd()
        runnables = await db.patiently(settings.database, registry.register, pool, settings, folder, given.pipeline, given.version, name)
        return await _work(settings, url, pool, runnables, mode, given)


async def _work(settings: Settings, url: str, pool: asyncpg.Pool, runnables: list[registry.Runnable], mode: str, given: Any) -> int:
    gates, services = {}, []
    if mode == "run":
        from worker.sinks import gates as open_gates  # noqa: PLC0415  a drain never loads a sink

        gates = open_gates(settings)
    worker = Worker(settings, pool, runnables, mode, gates)
    worker.limit(given.max_jobs or settings.worker.max_jobs)
    _on_signals(worker)
    print(announcement(settings, worker.name, url, runnables, mode, sorted(gates)), file=sys.stderr, flush=True)
    emit("program.started", mode=mode, worker=worker.name, versions=[f"{r.pipeline}/{r.version}" for r in runnables], gates=sorted(gates))
    started = time.monotonic()
    if settings.database.pooler == "none":
        services.append(service.run("bell", Bell(url, settings.database, worker.feeder).step, worker.stop))
    if gates:
        services.append(_dispatching(settings, pool, worker))
    if mode == "drain":
        await worker.run(*services)
    else:
        async with serving(settings.worker.host, settings.worker.port, [], Metrics("worker"), lambda: pool, lambda: _ready(worker)) as port:
            print(f"  serves /healthz /readyz /metrics on {settings.worker.host}:{port}", file=sys.stderr, flush=True)
            await worker.run(*services)
    emit("program.stopped", worker=worker.name, why=worker.stopped_why or "asked to", **worker.settler.totals)
    if mode == "drain":
        return await _summary(worker, given, time.monotonic() - started)
    return worker.exit_code


async def _dispatching(settings: Settings, pool: asyncpg.Pool, worker: Worker) -> None:
    from worker.dispatcher import Dispatcher  # noqa: PLC0415  a drain never loads a sink

    dispatcher = Dispatcher(pool, settings, worker.name, worker.released)
    try:
        await service.run("dispatch", dispatcher.step, worker.stop, wake=worker.released)
    finally:
        await dispatcher.close()


def _ready(worker: Worker) -> str | None:
    return "stopping" if worker.stop.is_set() else None


def _on_signals(worker: Worker) -> None:
    """The first signal stops politely, the second at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if worker.stop.is_set():
            sys.stderr.write("stopped at once; what was held comes back after its lease\n")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGKILL)
        worker.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def announcement(settings: Settings, name: str, url: str, runnables: list[registry.Runnable], mode: str, gates: list[str]) -> str:
    """What this process will and will not do."""
    lines = [f"tailrace worker {name}: {mode}, database {db.shown(url)}"]
    for r in runnables:
        live = "" if r.state == "live" else f" ({r.state}: its effects stay here)"
        lines.append(f"  runs {r.pipeline} version {r.version}{live}, slices of {r.slice_size}, {r.concurrency} at once")
    if not runnables:
        lines.append("  runs nothing: no [pipelines.*] in the configuration")
    closed = sorted(set(settings.effects) - set(gates))
    if mode == "drain":
        lines.append("  lets nothing out: a drain has no gates")
    else:
        lines.append(f"  gates open: {', '.join(gates) or 'none'}; closed: {', '.join(closed) or 'none'}")
    return "\n".join(lines)


async def _summary(worker: Worker, given: Any, seconds: float) -> int:
    left = await worker.jobs.open_work([line.runnable.version_id for line in worker.lines])
    totals = worker.settler.totals
    waiting = left["due"] + left["held"] + left["later"]
    code = options.WORK_LEFT if waiting else options.PARTLY if totals["failed"] else options.OK
    facts = {
        **totals, "seconds": round(seconds, 3), "records_per_second": round(worker.done / seconds, 1) if seconds else 0,
        "left_due": left["due"], "left_held": left["held"], "left_later": left["later"], "next_due_seconds": left["next_seconds"], "exit": code,
    }  # fmt: skip
    if given.json:
        print(json.dumps(facts))
    else:
        print(f"drained {worker.done} records in {seconds:.1f} s ({worker.done / seconds:.0f}/s): {totals['ok']} ok, {totals['skipped']} skipped, "
              f"{totals['failed']} failed, {totals['retried']} to be tried again")  # fmt: skip
        if waiting:
            soon = f", the next in {left['next_seconds']:.0f} s" if left["next_seconds"] is not None else ""
            print(f"left: {left['due']} due, {left['held']} held by others, {left['later']} due later{soon}")
    return code
