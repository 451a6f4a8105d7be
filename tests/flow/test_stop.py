"""SIGTERM: claim no more, finish, give the rest back without an attempt, exit 0. Unset DATABASE_URL, a wrong one, a taken port."""

from __future__ import annotations

import json
import signal
import socket
import subprocess

import psycopg
import pytest

CONFIG = """
[sources.inbox]
kind = "files"
path = "inbox"
id_field = "id"

[pipelines.p]
processor = "./mine.py"

[worker]
grace_seconds = 2
"""
SLOW = """
import asyncio
from worker import Done, processor

@processor("p", version="1", concurrency=2)
async def p(record, ctx):
    await asyncio.sleep(0.5 if record.payload["id"] % 2 else 60)
    return Done()
"""


@pytest.fixture
def run(db_url, programs):
    run = programs(db_url)
    run.config(CONFIG)
    (run.folder / "mine.py").write_text(SLOW)
    (run.folder / "inbox").mkdir()
    (run.folder / "inbox" / "a.jsonl").write_text("".join(json.dumps({"id": n}) + "\n" for n in range(10)))
    return run


async def test_sigterm_finishes_what_it_can_and_gives_the_rest_back(run, db_url, eventually):
    assert run.run("collector", "backfill").returncode == 0
    worker = run.start("worker")

    def ask(query):
        with psycopg.connect(db_url) as connection:
            return connection.execute(query).fetchone()[0]

    await eventually(lambda: ask("select count(*) from tailrace.jobs where state = 'c'") == 2)
    worker.send_signal(signal.SIGTERM)
    await eventually(lambda: worker.poll() is not None)
    assert worker.returncode == 0, run.logs()
    assert ask("select count(*) from tailrace.jobs where state = 'c'") == 0
    assert ask("select coalesce(max(attempt), 0) + coalesce(max(crashes), 0) from tailrace.jobs") == 0
    assert ask("select count(*) from tailrace.results") + ask("select count(*) from tailrace.jobs") == 10


async def test_a_collector_stops_in_order_and_a_taken_port_is_said(run, db_url, eventually):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run.run("collector", "live", TAILRACE_COLLECTOR__PORT=str(taken.getsockname()[1]))
        assert (ended.returncode, "TAILRACE_COLLECTOR__PORT" in ended.stderr) == (2, True)
    collector = run.start("collector", "live")

    def stored() -> bool:
        with psycopg.connect(db_url) as connection:
            return connection.execute("select count(*) from tailrace.raw_records").fetchone()[0] == 10

    await eventually(stored)
    collector.send_signal(signal.SIGTERM)
    await eventually(lambda: collector.poll() is not None)
    assert collector.returncode == 0, run.logs()


BUSY = """
import os, pathlib, time
from worker import processor

@processor("p", version="1", executor={executor!r}, deadline=600)
def p(record, ctx):
    pathlib.Path("begun").write_text(str(os.getpid()))
    time.sleep(10_000)
"""


@pytest.mark.parametrize("executor", ["threads", "processes"])
async def test_a_stop_does_not_wait_for_a_record_that_runs_on_where_it_cannot_be_cancelled(run, db_url, eventually, executor):
    (run.folder / "mine.py").write_text(BUSY.format(executor=executor))
    assert run.run("collector", "backfill").returncode == 0
    worker = run.start("worker")
    await eventually((run.folder / "begun").exists)
    worker.send_signal(signal.SIGTERM)
    await eventually(lambda: worker.poll() is not None)
    assert worker.returncode == 0, run.logs()
    with psycopg.connect(db_url) as connection:
        assert connection.execute("select count(*) from tailrace.jobs where state = 'r' and attempt = 0 and crashes = 0").fetchone() == (10,)


async def test_a_killed_worker_leaves_no_process_of_its_pool_behind(run, eventually):
    (run.folder / "mine.py").write_text(BUSY.format(executor="processes"))
    assert run.run("collector", "backfill").returncode == 0
    worker = run.start("worker")
    begun = run.folder / "begun"
    await eventually(lambda: begun.exists() and begun.read_text())
    worker.kill()
    worker.wait()

    def gone() -> bool:
        state = subprocess.run(["ps", "-o", "stat=", "-p", begun.read_text()], capture_output=True, text=True, check=False).stdout
        return not state or state.startswith("Z")

    await eventually(gone)
