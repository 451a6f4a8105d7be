"""Tailrace as one system among others in a harness that drives job queues: `adapter.py setup|enqueue|latency|work|load N`.

The harness hands over the database (BENCH_DSN), a probe that counts handler calls (`common`, on PYTHONPATH) and a gate behind which all
workers start together. BENCH_SLICE is the records of a slice: 1 is the classic one row, one job. Every record leaves a result row.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).parents[3]))
from common import DSN, ahandler, latency, out, payload, ready_and_gate

from collector.raw import Appender
from collector.record import digest_of
from collector.sources import Page
from ops.migrate import migrate
from worker import Done, registry
from worker.bell import Bell
from worker.core import db, service
from worker.core.models import RawRecord
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
from worker.jobs import warm
from worker.processors import Processor
from worker.run import Worker

SLICE = int(os.environ.get("BENCH_SLICE", "500"))
DONE = Done()


async def noop(record, _ctx):
    await ahandler(record.payload["i"])
    return DONE


async def version(pool):
    return await registry.register_one(pool, "bench", PipelineSpec(processor="noop"), Processor("noop", noop, "1", SLICE), None, "bench")


async def source(pool):
    return (await pool.fetch("select * from tailrace.register_sources('{files:bench}', array['{}'::jsonb])"))[0]["id"]


def record(i):
    text = orjson.dumps(payload(i))
    return RawRecord(str(i), digest_of(text), text.decode())


async def append(count):
    """`count` records with their jobs, in pages of 1,000, each page one transaction."""
    async with await db.open_pool(DSN, Settings().database, "bench", "tailrace_collector", 2) as pool:
        at, appender = await source(pool), Appender(pool, enqueue=True, bells=0)
        begun = time.monotonic()
        for first in range(0, count, 1000):
            await appender.append(at, "files:bench", Page([record(i) for i in range(first, min(count, first + 1000))], {"n": first}))
        out(secs=time.monotonic() - begun, n=count)


async def one_at_a_time(count):
    async with await db.open_pool(DSN, Settings().database, "bench", "tailrace_collector", 2) as pool:
        at, appender = await source(pool), Appender(pool, enqueue=True, bells=200)
        await latency(count, lambda i: appender.append(at, "files:bench", Page([record(i)], {"n": i})))


async def work():
    settings = Settings()
    async with await db.open_pool(DSN, settings.database, "bench", "tailrace_worker", 8, warm) as pool:
        worker = Worker(settings, pool, [await version(pool)], "run", {})
        bell = service.run("bell", Bell(DSN, settings.database, worker.feeder).step, worker.stop)
        ready_and_gate()
        await worker.run(bell)


async def setup():
    await asyncio.to_thread(migrate, DSN)
    async with await db.open_pool(DSN, Settings().database, "bench", "tailrace_worker", 2) as pool:
        await version(pool)


command, number = sys.argv[1], int(sys.argv[2])
commands = {"setup": lambda _: setup(), "work": lambda _: work(), "latency": one_at_a_time, "enqueue": append, "load": append}
run = asyncio.run if command == "latency" else uvloop.run  # a short sleep spins under uvloop, beside the path that is measured
run(commands[command](number))
