"""The work that `make bench` measures: ours, and the bare loops beside it."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from collector import raw
from collector.backfiller import Backfill
from collector.raw import Appender
from collector.sources import Page
from collector.sources.building import build
from worker import registry
from worker.bell import Bell
from worker.core import db, service
from worker.core.context import Context
from worker.core.models import Done, RawRecord, Record
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
from worker.jobs import warm
from worker.processors import Processor
from worker.run import Worker

SOURCES = 4
_DONE = Done()
_started: asyncio.Queue[float] = asyncio.Queue()


async def noop(_record: Record, _ctx: Context) -> Done:
    return _DONE


async def probe(_record: Record, _ctx: Context) -> Done:
    _started.put_nowait(time.monotonic())
    return _DONE


async def register(url: str, slice_size: int, function: Callable[..., Any] = noop) -> registry.Runnable:
    """The version that is measured."""
    async with await db.open_pool(url, Settings().database, "bench", "tailrace_worker", 2) as pool:
        found = Processor("noop", function, "1", slice_size)
        return await registry.register_one(pool, "bench", PipelineSpec(processor="noop"), found, None, "bench")


async def fill(url: str, records: int, slice_size: int, *, open_work: bool = True) -> int:
    """Raw records of 200 bytes of payload in four sources, and their open work. Returns the version's id."""
    connection = await asyncpg.connect(url, server_settings={"client_min_messages": "warning"})
    names = [f"files:bench{n}" for n in range(SOURCES)]
    await connection.execute("select * from tailrace.register_sources($1, array_fill('{}'::jsonb, array[$2::int]))", names, SOURCES)
    await connection.execute(
        "insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at, payload) "
        "select g / 1000 % $2::int + 1, g::text, 1, 'create', '\\x01', now(), now(), "
        "jsonb_build_object('i', g, 'pad', repeat('x', 176)) from generate_series(0, $1::int - 1) g",
        records, SOURCES,
    )  # fmt: skip
    runnable = await register(url, slice_size)
    await connection.execute("update tailrace.runs set state = 'cancelled'")
    if open_work:
        run = await connection.fetchval("select tailrace.open_run('cover', $1, '{}')", runnable.version_id)
        await connection.execute("select tailrace.advance_run($1, 1000000000)", run)
    await connection.execute("vacuum (analyze) tailrace.raw_records")
    await connection.execute("checkpoint")
    await connection.close()
    return runnable.version_id


Cost = tuple[float, float]  # seconds on the clock, seconds of CPU of all processes at work
Target = Callable[[str, int, Callable[[], object]], Coroutine[Any, Any, None]]


async def spread(target: Target, url: str, slice_size: int, processes: int, server: Callable[[], float]) -> Cost:
    """What `processes` of `target` take from a common start to the last end; starting up is outside."""
    context = multiprocessing.get_context("spawn")
    gate, ready, ends = context.Event(), context.Semaphore(0), context.Queue()
    started = [context.Process(target=_child, args=(target, url, slice_size, gate, ready, ends)) for _ in range(processes)]
    for process in started:
        process.start()
    for _ in started:
        await asyncio.to_thread(ready.acquire)
    begun, before = time.monotonic(), server()
    gate.set()
    found = [await asyncio.to_thread(ends.get) for _ in started]
    after = server()
    for process in started:
        process.join()
    return max(end for end, _ in found) - begun, sum(cpu for _, cpu in found) + after - before


def _child(target: Target, url: str, slice_size: int, gate: Any, ready: Any, ends: Any) -> None:
    cpu = 0.0

    def wait() -> None:
        nonlocal cpu
        ready.release()
        gate.wait()
        cpu = time.process_time()

    uvloop.run(target(url, slice_size, wait))
    ends.put((time.monotonic(), time.process_time() - cpu))


async def drain(url: str, slice_size: int, wait: Callable[[], object]) -> None:
    """The worker as it is, until nothing is left."""
    settings = Settings()
    runnable = await register(url, slice_size)
    async with await db.open_pool(url, settings.database, "bench", "tailrace_worker", 8, warm) as pool:
        worker = Worker(settings, pool, [runnable], "drain", {})
        wait()
        await worker.run()


async def intake(url: str, lines: list[bytes]) -> float:
    """Seconds that a backfill of a file takes; the bell is off."""
    await register(url, slice_size=500)
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as folder:
        (Path(folder) / "lines.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        spec = {"kind": "files", "path": folder, "id_field": "id"}
        settings = Settings.model_validate({"sources": {"files:bench": spec}, "collector": {"bells_per_second": 0}})
        given = argparse.Namespace(max_records=None, chunk_size=None, max_chunks=None, max_minutes=None, dry_run=False)
        async with await db.open_pool(url, settings.database, "bench", "tailrace_collector", 4) as pool:
            ids = await raw.register(pool, settings, ["files:bench"])
            begun = time.monotonic()
            report = await Backfill(pool, settings, given, None, None).run(build(settings)["files:bench"], ids["files:bench"])
    if report.appended != len(lines):
        raise RuntimeError(f"{report.appended} of {len(lines)} records were stored: {report.error}")
    return time.monotonic() - begun


async def latency(url: str, rounds: int, *beside: registry.Runnable) -> list[float]:
    """Seconds from the commit of one record to the start of its processing, by a worker in this process that runs the versions `beside`, too."""
    settings = Settings()
    runnable = await register(url, 1, probe)
    async with (
        await db.open_pool(url, settings.database, "bench", "tailrace_worker", 8, warm) as pool,
        await db.open_pool(url, settings.database, "bench", "tailrace_collector", 2) as feeding,
    ):
        source = (await feeding.fetch("select * from tailrace.register_sources('{files:bench}', array['{}'::jsonb])"))[0]["id"]
        worker = Worker(settings, pool, [runnable, *beside], "run", {})
        bell = service.run("bell", Bell(url, settings.database, worker.feeder).step, worker.stop)
        running = asyncio.create_task(worker.run(bell))
        appender, waits = Appender(feeding, enqueue=True, bells=1000), []
        for n in range(rounds):
            await asyncio.sleep(0.005 if n else 1.0)
            key = uuid.uuid4().hex
            page = Page([RawRecord(key, key.encode(), f'{{"i": {n}}}')], {"n": n})
            await appender.append(source, "files:bench", page)
            committed = time.monotonic()
            waits.append(await _started.get() - committed)
        worker.stop.set()
        await running
    return waits


async def claim_times(url: str, records: int, *, snapshot: bool = False) -> tuple[float, float]:
    """Milliseconds of a claim of 500 singles, in the first and in the last tenth of draining `records`, as the worker claims."""
    holder = await asyncpg.connect(url)
    held = holder.transaction(isolation="repeatable_read")
    await held.start()
    if snapshot:
        await holder.fetchval("select count(*) from tailrace.jobs")
    connection = await asyncpg.connect(url)
    version = await connection.fetchval("select max(id) from tailrace.versions")
    lows, times = dict.fromkeys(range(1, SOURCES + 1), 0), []
    for n in range(records // 500):
        token, source = uuid.uuid4(), n % SOURCES + 1
        begun = time.monotonic()
        rows = await connection.fetch(
            "select * from tailrace.claim_jobs($1, 'bench', $2, 2, $3, $4, 500, 500, 15)", token, version, [source], [lows[source]]
        )
        times.append((time.monotonic() - begun) * 1000)
        ids = [r["id"] for r in rows]
        if ids:
            lows[source] = max(ids) + 1
            await connection.execute(
                "select tailrace.settle($1, 'bench', 'run', '{}', $2, $3, $4, null, null, null, null, null, null, null, "
                "null, null, null, null, null, null, null, null, null, null)", version, [source], ids, [token],
            )  # fmt: skip
    await held.rollback()
    await holder.close()
    await connection.close()
    tenth = max(1, len(times) // 10)
    return sum(times[1 : tenth + 1]) / tenth, sum(times[-tenth:]) / tenth
