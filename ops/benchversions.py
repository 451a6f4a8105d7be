"""What `make bench` measures of versions: plans, replays, swaps, and live work beside a replay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import asyncpg

from ops import benchwork
from worker import registry
from worker.core import db
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
from worker.processors import Processor

if TYPE_CHECKING:
    from ops.bench import Bench


async def _candidate(url: str, slice_size: int) -> registry.Runnable:
    async with await db.open_pool(url, Settings().database, "bench", "tailrace_worker", 2) as pool:
        found = Processor("noop", benchwork.noop, "2", slice_size)
        return await registry.register_one(pool, "bench", PipelineSpec(processor="noop", promote="manual"), found, None, "bench")


async def measured(bench: Bench, records: int) -> list[tuple[str, str]]:
    """(what, figure): seconds of a plan and of opening a replay of `records`, milliseconds of a swap with as many open jobs."""
    await bench.fresh()
    await benchwork.fill(bench.url, records, 500, open_work=False)
    second = await _candidate(bench.url, 500)
    connection = await asyncpg.connect(bench.url)
    planned = await _seconds(connection, "select * from tailrace.plan_counts($1, '{%}', '{}')", second.version_id)
    begun = time.monotonic()
    run = await connection.fetchval('select tailrace.open_run(\'replay\', $1, \'{"lane": 2, "quiet": true, "watch": true}\')', second.version_id)
    while True:
        row = await connection.fetchrow("select * from tailrace.advance_run($1, 500000)", run)
        if row["position"] >= row["position_to"]:
            break
    opened = time.monotonic() - begun
    await connection.execute("truncate tailrace.jobs")
    await connection.execute(
        "insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, run_at) select 1, source_id, id, id, 1, now() "
        "from tailrace.raw_records limit 1000000"
    )
    await connection.execute("vacuum (analyze) tailrace.jobs")
    swaps = [await _seconds(connection, "select tailrace.swap_live($1, 'bench')", 2 - n % 2) * 1000 for n in range(6)]
    await connection.close()
    return [
        (f"plan over {records:,} records", f"{planned:.2f} s"),
        (f"opening a replay of {records:,} records", f"{opened:.2f} s"),
        ("promote or rollback, 1,000,000 jobs open", f"{sorted(swaps)[3]:.0f} ms, at most {max(swaps):.0f} ms"),
    ]


async def _seconds(connection: asyncpg.Connection, query: str, *arguments: Any) -> float:
    begun = time.monotonic()
    await connection.fetch(query, *arguments)
    return time.monotonic() - begun


async def beside_a_replay(bench: Bench, records: int, rounds: int) -> list[tuple[str, str]]:
    """Commit of a live record to the start of its processing: by an idle worker, and by one that works on a replay as well."""
    await bench.fresh()
    await benchwork.fill(bench.url, records, 500, open_work=False)
    alone = sorted(await benchwork.latency(bench.url, rounds))
    second = await _candidate(bench.url, 500)
    connection = await asyncpg.connect(bench.url)
    run = await connection.fetchval("select tailrace.open_run('replay', $1, '{\"lane\": 2, \"quiet\": true}')", second.version_id)
    await connection.execute("select tailrace.advance_run($1, 1000000000)", run)
    busy = sorted(await benchwork.latency(bench.url, rounds, second))
    left = await connection.fetchval("select count(*) from tailrace.jobs where version_id = $1", second.version_id)
    await connection.close()
    text = f"p50 {_at(busy, 0.5):.2f} ms, p99 {_at(busy, 0.99):.2f} ms; idle {_at(alone, 0.5):.2f} and {_at(alone, 0.99):.2f} ms"
    return [("commit to start in a worker that replays as well", text + ("" if left else " (the replay had ended)"))]


def _at(waits: list[float], share: float) -> float:
    return waits[int(len(waits) * share)] * 1000
