"""Promotions and rollbacks at any moment, under load and kills, gates open: every effect leaves once, whoever is live when it is settled."""

from __future__ import annotations

import asyncio
import json
import random
import signal

import pytest

CONFIG = """
[collector]
poll_seconds = 0.1
[worker]
lease_seconds = 2
beat_seconds = 0.5
poll_seconds = 0.2
watch_seconds = 0.2
[sources.inbox]
kind = "files"
path = "inbox"
id_field = "id"
[pipelines.p]
processor = "./p.py"
version = "v1"
promote = "manual"
slice_size = 7
[pipelines.p.variants.v2]
model = "large"
promote = "shadow"
slice_size = 3
[effects.post]
sink = "webhook"
url = "URL"
"""
PROCESSOR = """
import asyncio
from worker import Done, Effect, processor

@processor("p", concurrency=4)
async def p(record, ctx):
    await asyncio.sleep(0.002)
    n = record.payload["id"]
    return Done({"n": n, "by": ctx.version}, effects=[Effect("post", {"n": n}, key=f"post:{n}")])
"""
RECORDS = 600
DONE = f"""select (select count(*) from tailrace.raw_records) = {RECORDS} and not exists (select from tailrace.jobs)
  and not exists (select from tailrace.deliveries where state in ('pending', 'sending'))"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_no_effect_is_lost_or_doubled_by_a_swap(programs, receiver, db_url, pool, eventually, seed):
    chance = random.Random(seed)
    run = programs(db_url)
    run.config(CONFIG.replace("URL", receiver.url))
    (run.folder / "p.py").write_text(PROCESSOR)
    (run.folder / "inbox").mkdir()
    gate = {"TAILRACE_EFFECTS__POST": "1"}
    collector = run.start("collector", "live")
    workers = [run.start("worker", **gate) for _ in range(2)]
    await eventually(lambda: pool.fetchval("select count(*) = 2 from tailrace.versions"), 30)
    never, written, live = asyncio.Event(), 0, 0
    while written < RECORDS:
        with (run.folder / "inbox" / "a.jsonl").open("a") as file:
            for _ in range(min(60, RECORDS - written)):
                file.write(json.dumps({"id": written}) + "\n")
                written += 1
        if chance.random() < 0.5:
            live = 1 - live
            words = ("promote", "p", ("v1", "v2")[live]) if chance.random() < 0.7 else ("rollback", "p")
            done = await asyncio.to_thread(run.run, "ops", *words)
            assert done.returncode in (0, 2), done.stderr
            live = (await pool.fetchval("select live_version_id from tailrace.pipelines")) - 1
        if chance.random() < 0.2:
            victim = chance.randrange(2)
            workers[victim].send_signal(signal.SIGKILL)
            workers[victim] = run.start("worker", **gate)
        await asyncio.wait([asyncio.ensure_future(never.wait())], timeout=chance.random() * 0.3)
    assert collector.poll() is None
    await eventually(lambda: pool.fetchval(DONE), 90)
    keys = {f"post:{n}" for n in range(RECORDS)}
    assert set(receiver.calls) == keys, f"{len(keys - set(receiver.calls))} effects were lost"
    assert await pool.fetchval("select count(*) from tailrace.deliveries where state = 'sent'") == RECORDS
    assert (
        await pool.fetchval("select count(*) from (select key from tailrace.delivery_attempts where event = 'sent' group by 1 having count(*) > 1) x")
        == 0
    )
    assert await pool.fetchval("select count(*) from tailrace.live_history") > 2
