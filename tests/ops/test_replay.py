"""A changed processor over the history: planned, replayed within a budget, paused, resumed, cancelled, killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CONFIG = """
[sources.inbox]
kind = "files"
path = "inbox"
id_field = "id"
time_field = "at"

[pipelines.p]
processor = "./p.py"
version = "v1"
model = "small"
promote = "manual"

[pipelines.p.variants.v2]
model = "large"

[pipelines.p.variants.v3]
model = "large"

[effects.post]
sink = "jsonl"
path = "out.jsonl"
"""
PROCESSOR = """
from worker import Done, Effect, Fail, processor

@processor("p", slice_size=10, executor="inline")
def p(record, ctx):
    n = record.payload["id"]
    if n % 50 == 7:
        return Fail("seven")
    output = {"n": n, "big": n > 100} if ctx.model == "small" else {"n": str(n), "price": 2 * n}
    return Done(output, effects=[Effect("post", {"n": n})] if n % 10 == 0 else (), meta={"cost": 0.01, "tokens_in": 90, "tokens_out": 10})
"""
RECORDS = 200
ROOT = Path(__file__).resolve().parents[2]


class World:
    def __init__(self, folder, tailrace, pool, url):
        self.folder, self._tailrace, self.pool = folder, tailrace, pool
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("TAILRACE_")} | {"DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
        (folder / "tailrace.toml").write_text(CONFIG)
        (folder / "p.py").write_text(PROCESSOR)
        (folder / "inbox").mkdir()
        (folder / "inbox" / "a.jsonl").write_text(
            "".join(json.dumps({"id": n, "at": f"2026-01-01T{n // 10:02}:00:00Z"}) + "\n" for n in range(RECORDS))
        )

    def tailrace(self, *words):
        """In a thread: the command has an event loop of its own."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._tailrace, *words).result()

    def crash(self, point):
        env = self.env | {"CRASHPOINT": point, "TAILRACE_WORKER__CLAIM_RECORDS": "10"}
        command = [sys.executable, "-m", "worker", "drain", "--version", "v3", "--max-jobs", "20"]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, timeout=60, check=False).returncode

    def run(self, *command, **env):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.folder, env=self.env | env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode in (0, 3, 4), done.stderr
        return done

    def drain(self, version, **env):
        return json.loads(self.run("worker", "drain", "--json", "--version", version, **env).stdout.splitlines()[-1])

    async def results(self, version):
        return await self.pool.fetch(
            "select raw_id, rerun, status, output from tailrace.results x join tailrace.versions v on v.id = x.version_id where v.name = $1 order by 1, 2",
            version,
        )


@pytest.fixture
def world(tmp_path, tailrace, pool, db_url):
    made = World(tmp_path, tailrace, pool, db_url)
    made.run("collector", "backfill")
    assert made.drain("v1")["ok"] == 196
    return made


async def test_a_plan_says_what_there_is_to_do_and_what_it_may_cost(world):
    facts = world.tailrace("plan", "p", "v2", "--json").value
    assert (facts["version"], facts["state"], facts["live"]) == ("v2", "candidate", "v1")
    assert (facts["matching"], facts["done"], facts["open"], facts["wanted"], facts["cache_hits"]) == (200, 0, 0, 200, 0)
    assert facts["sources"] == [{"source": "files:inbox", "matching": 200, "done": 0, "open": 0, "failed": 0, "wanted": 200}]
    assert facts["measured_on"] == "v1"
    assert facts["cost"] == pytest.approx([2.0, 2.0])
    assert facts["tokens"] == pytest.approx([20000, 20000])
    assert facts["seconds"][0] <= facts["seconds"][1]
    text = world.tailrace("plan", "p", "v2").out
    assert f"--plan {facts['hash']}" in text
    assert await world.pool.fetchval("select count(*) from tailrace.jobs") == 0


async def test_a_replay_does_what_its_plan_promised_and_nothing_leaves(world):
    digest = world.tailrace("plan", "p", "v2", "--json").value["hash"]
    opened = world.tailrace("replay", "p", "v2", "--plan", digest, "--json").value
    assert (opened["opened"], opened["plan"]) == (200, digest)
    (run,) = world.tailrace("runs", "--json").value[:1]
    assert (run["state"], run["percent"]) == ("active", 0)
    assert world.drain("v2")["ok"] == 196
    await world.pool.execute("select tailrace.watch_replays()")
    assert world.tailrace("runs", "--json").value[0]["state"] == "done"
    assert len(await world.results("v2")) == 200
    assert len(await world.results("v1")) == 200
    assert dict(await world.pool.fetch("select reason, count(*) from tailrace.effects where version_id = 2 group by 1")) == {"drain": 20}
    changes = {c["field"]: (c["change"], c["breaking"]) for c in world.tailrace("plan", "p", "v2", "--json").value["changes"]}
    assert changes == {"big": ("removed", True), "n": ("retyped", True), "price": ("added", False)}
    assert world.tailrace("replay", "p", "v2", "--json").value["opened"] == 0


async def test_the_same_fingerprint_under_another_name_is_not_asked_again(world):
    world.tailrace("replay", "p", "v2")
    world.drain("v2")
    facts = world.tailrace("plan", "p", "v3", "--json").value
    assert (facts["cache_hits"], facts["wanted"]) == (196, 4)
    opened = world.tailrace("replay", "p", "v3", "--json").value
    assert (opened["taken_over"], opened["opened"]) == (196, 4)
    world.drain("v3")
    assert [tuple(r)[2:] for r in await world.results("v3")] == [tuple(r)[2:] for r in await world.results("v2")]
    assert await world.pool.fetchval("select count(*) from tailrace.effects where version_id = 3 and reason = 'replay'") == 20


async def test_answers_are_taken_over_of_the_selection_only(world):
    """What is outside the sources and the window stays open for a later replay."""
    world.tailrace("replay", "p", "v2")
    world.drain("v2")
    middle = (await world.pool.fetchval("select percentile_disc(0.5) within group (order by occurred_at) from tailrace.raw_records")).isoformat()
    inside = await world.pool.fetchval(
        "select count(*) from tailrace.results x join tailrace.raw_records r on r.id = x.raw_id where x.version_id = 2 and x.status = 'ok' "
        "and r.occurred_at < $1::text::timestamptz", middle,
    )  # fmt: skip
    assert 0 < inside < 196
    assert world.tailrace("plan", "p", "v3", "--until", middle, "--json").value["cache_hits"] == inside
    assert world.tailrace("replay", "p", "v3", "--until", middle, "--json").value["taken_over"] == inside
    assert {(await world.pool.fetchval("select count(*) from tailrace.results where version_id = 3"))} == {inside}


async def test_a_sample_is_the_same_each_time(world):
    first = world.tailrace("replay", "p", "v2", "--sample", "30", "--json").value
    assert first["opened"] == 30
    world.drain("v2")
    ids = [r["raw_id"] for r in await world.results("v2")]
    world.tailrace("replay", "p", "v3", "--sample", "30")
    world.drain("v3")
    assert [r["raw_id"] for r in await world.results("v3")] == ids


async def test_a_window_a_source_and_failed_ones_are_chosen(world):
    assert world.tailrace("plan", "p", "v2", "--until", "2020-01-01T00:00:00Z", "--json").value["wanted"] == 0
    assert world.tailrace("plan", "p", "v1", "--failed", "--json").value["wanted"] == 4
    refused = world.tailrace("plan", "p", "v2", "--source", "files:inbx")
    assert refused.code == 2
    assert "did you mean 'files:inbox'" in refused.err
    assert world.tailrace("replay", "p", "v1", "--failed", "--json").value["opened"] == 4
    world.drain("v1")
    assert await world.pool.fetchval("select count(*) from tailrace.results where rerun = 1") == 4


async def test_it_is_paused_resumed_and_cancelled(world):
    run = world.tailrace("replay", "p", "v2", "--json").value["run"]
    world.tailrace("runs", "pause", str(run))
    left = world.drain("v2")
    assert (left["ok"], left["left_later"], left["exit"]) == (0, 200, 4)
    world.tailrace("runs", "resume", str(run))
    world.run("worker", "drain", "--version", "v2", "--max-jobs", "50")
    world.tailrace("runs", "cancel", str(run))
    assert world.drain("v2")["ok"] == 0
    assert len(await world.results("v2")) == 50
    assert world.tailrace("replay", "p", "v2", "--json").value["opened"] == 150


async def test_a_budget_is_not_exceeded_and_the_run_waits_for_more(world):
    run = world.tailrace("replay", "p", "v2", "--budget", "0.55", "--json").value["run"]
    world.drain("v2")
    spent = await world.pool.fetchval("select spent from tailrace.budgets")
    assert 0.4 <= spent <= 0.55
    row = next(r for r in world.tailrace("runs", "--json").value if r["id"] == run)
    assert (row["state"], row["reason"]) == ("paused", "its budget is spent")
    done = len(await world.results("v2"))
    again = world.tailrace("replay", "p", "v2", "--budget", "10", "--json").value
    assert again["opened"] == 0
    assert world.drain("v2")["ok"] > 100
    assert len(await world.results("v2")) == 200
    assert done < 60


async def test_a_budget_without_any_measured_cost_begins_with_one_slice(world):
    await world.pool.execute("alter table tailrace.results_v1 disable trigger user")
    await world.pool.execute("update tailrace.results_v1 set meta = null")
    world.tailrace("replay", "p", "v2", "--budget", "0.35")
    world.drain("v2")
    assert 0.1 <= await world.pool.fetchval("select spent from tailrace.budgets") <= 0.36


async def test_time_that_is_over_pauses_it(world, clock):
    world.tailrace("replay", "p", "v2", "--time", "1h")
    world.run("worker", "drain", "--version", "v2", "--max-jobs", "50")
    await clock.advance(3601)
    assert world.drain("v2")["ok"] == 0
    assert world.tailrace("runs", "--json").value[0]["reason"] == "its time is over"


async def test_killed_ten_times_it_has_the_same_rows_as_undisturbed(world):
    world.tailrace("replay", "p", "v2")
    world.drain("v2")
    world.tailrace("replay", "p", "v3", "--sample", str(RECORDS))
    for n in range(1, 11):
        point = "after-settle-before-next" if n % 2 else "after-claim-before-process"
        assert world.crash(point) == -9
        await world.pool.execute("update tailrace.jobs set lease_until = tailrace.clock() - interval '1 second' where state = 'c'")
        await world.pool.execute("update tailrace.jobs set run_at = tailrace.clock() where state = 'd'")
    world.drain("v3")
    assert [tuple(r) for r in await world.results("v3")] == [tuple(r) for r in await world.results("v2")]
