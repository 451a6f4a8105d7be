"""Records that take their worker down: they are buried with their history, their neighbours are not."""

from __future__ import annotations

import json

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
lease_seconds = 1
beat_seconds = 0.3
watch_seconds = 0.2
grace_seconds = 1
max_crashes = 3
"""
HOW = {
    "exits": ("inline", "os._exit(9)"),
    "blocks the event loop": ("inline", "time.sleep(1000)"),
    "hangs in a thread": ("threads", "time.sleep(1000)"),
    "kills a process of the pool": ("processes", "os._exit(9)"),
}
PROCESSOR = """
import os, time
from worker import Done, processor

@processor("p", version="1", slice_size=10, executor={executor!r}, deadline=1)
def p(record, ctx):
    if record.payload["id"] == 13:
        {deed}
    return Done()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
async def test_a_poison_record_is_buried_alone(db_url, programs, eventually, how):
    run = programs(db_url)
    run.config(CONFIG)
    executor, deed = HOW[how]
    (run.folder / "mine.py").write_text(PROCESSOR.format(executor=executor, deed=deed))
    (run.folder / "inbox").mkdir()
    (run.folder / "inbox" / "a.jsonl").write_text("".join(json.dumps({"id": n}) + "\n" for n in range(40)))
    assert run.run("collector", "backfill").returncode == 0
    worker = [run.start("worker")]

    def settled() -> bool:
        if worker[0].poll() is not None:
            worker[0] = run.start("worker")
        with psycopg.connect(db_url) as connection:
            return connection.execute("select count(*) from tailrace.results").fetchone()[0] == 40

    await eventually(settled, 90)
    with psycopg.connect(db_url) as connection:
        failed = connection.execute(
            "select r.external_id, x.error from tailrace.results x join tailrace.raw_records r on r.id = x.raw_id where x.status = 'failed'"
        ).fetchall()
        assert [key for key, _ in failed] == ["13"], run.logs()
        assert len(failed[0][1]) >= 3
        assert connection.execute("select count(*) from tailrace.jobs").fetchone() == (0,)
