"""Workers killed again and again, one stopped for longer than its lease, Postgres restarted: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal

import asyncpg
import pytest

RECORDS = int(os.environ.get("KILLS_RECORDS", "3000"))
KILLS = int(os.environ.get("KILLS", "8"))

CONFIG = """
[sources.inbox]
kind = "files"
path = "inbox"
id_field = "id"

[pipelines.p]
processor = "./mine.py"
max_attempts = 100

[effects.post]
sink = "webhook"
url = "{url}"

[worker]
lease_seconds = 2
beat_seconds = 0.5
watch_seconds = 0.3
grace_seconds = 3
max_crashes = 50
"""
PROCESSOR = """
import asyncio
from worker import Done, Effect, processor

@processor("p", version="1", slice_size=20, concurrency=4)
async def p(record, ctx):
    await asyncio.sleep(0.002)
    return Done({"n": record.payload["id"]}, effects=[Effect("post", {"n": record.payload["id"]}, key=f"post:{record.payload['id']}")])
"""


async def count(url: str, query: str) -> int:
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError):
        return -1
    try:
        return await connection.fetchval(query)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return -1
    finally:
        connection.terminate()


@pytest.mark.slow
async def test_kills_stops_and_a_restart_lose_and_repeat_nothing(server, programs, receiver, eventually):
    run = programs(server.url)
    run.config(CONFIG.format(url=receiver.url))
    (run.folder / "mine.py").write_text(PROCESSOR)
    (run.folder / "inbox").mkdir()
    (run.folder / "inbox" / "a.jsonl").write_text("".join(json.dumps({"id": n, "pad": "x" * 50}) + "\n" for n in range(RECORDS)))
    chance = random.Random(7)
    gate = {"TAILRACE_EFFECTS__POST": "1"}
    run.start("collector", "live")
    workers = [run.start("worker", **gate) for _ in range(3)]
    results = "select count(*) from tailrace.results"

    def after(done: int):
        async def reached() -> bool:
            return await count(server.url, results) >= done

        return reached

    for kill in range(KILLS):
        await eventually(after(RECORDS * kill // (KILLS + 2)), 90)
        victim = chance.randrange(3)
        if kill == KILLS // 3:
            workers[victim].send_signal(signal.SIGSTOP)
            continued = asyncio.get_running_loop().call_later(4, lambda w=workers[victim]: w.poll() is None and w.send_signal(signal.SIGCONT))
        elif kill == KILLS // 2:
            await asyncio.to_thread(server.restart)
        else:
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = run.start("worker", **gate)
    await eventually(after(RECORDS), 180)
    continued.cancel()
    for worker in workers:
        worker.send_signal(signal.SIGCONT)

    async def delivered() -> bool:
        return await count(server.url, "select count(*) from tailrace.deliveries where state = 'sent'") == RECORDS

    await eventually(delivered, 180)
    assert await count(server.url, "select count(*) from tailrace.raw_records") == RECORDS
    assert await count(server.url, "select count(distinct raw_id) from tailrace.results where status = 'ok' and rerun = 0") == RECORDS, run.logs()
    assert await count(server.url, results) == RECORDS
    assert await count(server.url, "select count(*) from tailrace.jobs") == 0
    assert len(receiver.calls) == RECORDS
    assert all(receiver.bodies[f"post:{n}"]["body"] == {"n": n} for n in range(RECORDS))
    verified = run.run("ops", "verify")
    assert verified.returncode == 0, verified.stdout
    repeats = sum(receiver.calls.values()) - RECORDS
    print(f"{RECORDS} records, {KILLS} blows, {repeats} repeated posts with a key that the receiver knew")
