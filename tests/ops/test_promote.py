"""Who is live, who speaks for what, and what was believed when."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import pytest

from tests.worker.conftest import append
from worker import Done, Effect, processors, registry
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
from worker.processors import Processor
from worker.run import Worker

OPEN = {"k": {"policy": "never_twice", "max_age": None, "hold": 0}}


class World:
    """Versions of pipeline `p` that say their name, and workers for them in this process."""

    def __init__(self, pool, monkeypatch):
        self.pool, self.made = pool, {}
        monkeypatch.setattr(processors, "_registered", {})

    async def version(self, name, promote="manual", slice_size=5):
        async def says(record, ctx):
            return Done({"n": record.payload["n"], "by": name}, effects=[Effect("k", {"by": name}, key=f"k{record.payload['n']}")])

        found = Processor("f", says, name, slice_size=slice_size, executor="inline")
        self.made[name] = await registry.register_one(self.pool, "p", PipelineSpec(processor="f", promote=promote), found, None, "test")
        return self.made[name]

    async def feed(self, first, count):
        await append(self.pool, "files:a", [{"n": n} for n in range(first, first + count)])

    async def work(self, *names):
        worker = Worker(
            Settings(worker={"watch_seconds": 0.05, "settle_seconds": 0.05, "poll_seconds": 0.2}),
            self.pool,
            [self.made[n] for n in names],
            "drain",
            OPEN,
        )
        worker.settler._mode = "run"
        await worker.run()

    async def released(self):
        """By whom the effect of each record was let out."""
        rows = await self.pool.fetch(
            "select substr(e.key, 2)::int as n, v.name from tailrace.deliveries d join tailrace.effects e on e.id = d.effect_id join tailrace.versions v on v.id = e.version_id"
        )
        assert len(rows) == len({r["n"] for r in rows})
        return {r["n"]: r["name"] for r in rows}

    async def believed(self):
        rows = await self.pool.fetch("select output from tailrace.effective_results")
        found = [json.loads(r[0]) for r in rows]
        assert len(found) == len({f["n"] for f in found})
        return {f["n"]: f["by"] for f in found}


@pytest.fixture
async def world(pool, monkeypatch):
    made = World(pool, monkeypatch)
    await made.version("v1")
    return made


def bucket(n):
    return int(hashlib.md5(f"files:a/k{n}".encode()).hexdigest()[:8], 16) % 100


async def test_a_promotion_is_a_swap_and_so_is_the_way_back(world, tailrace, pool):
    await world.version("v2", promote="shadow")
    await world.feed(0, 20)
    await world.work("v1", "v2")
    assert set((await world.released()).values()) == {"v1"}
    assert tailrace("promote", "p", "v2", "--dry-run", "--json").value["swapped"] is False
    facts = tailrace("promote", "p", "v2", "--json").value
    assert (facts["swapped"], facts["was"], facts["verdict"]) == (True, "v1", "no gate")
    await world.feed(20, 20)
    await world.work("v1", "v2")
    assert {n: by for n, by in (await world.released()).items() if n >= 20} == dict.fromkeys(range(20, 40), "v2")
    assert set((await world.believed()).values()) == {"v2"}
    back = tailrace("rollback", "p", "--json").value
    assert (back["version"], back["was"], back["missing"]) == ("v1", "v2", 20)
    await world.work("v1", "v2")
    assert await world.believed() == dict.fromkeys(range(40), "v1")
    assert len(await world.released()) == 40
    assert await pool.fetchval("select count(*) from tailrace.live_history") == 3
    assert tailrace("promote", "p", "v1").code == 2
    assert "no version 'v9'" in tailrace("promote", "p", "v9").err


async def test_a_canary_speaks_for_its_buckets_and_readers_follow(world, tailrace, pool):
    await world.version("v2", promote="shadow")
    await world.feed(0, 40)
    await world.work("v1", "v2")
    tailrace("promote", "p", "v2", "--percent", "30")
    await world.feed(40, 200)
    await world.work("v1", "v2")
    spoken = await world.released()
    assert {n: by for n, by in spoken.items() if n >= 40} == {n: "v2" if bucket(n) < 30 else "v1" for n in range(40, 240)}
    assert {n: by for n, by in spoken.items() if n < 40} == dict.fromkeys(range(40), "v1")
    assert await world.believed() == {n: "v2" if bucket(n) < 30 else "v1" for n in range(240)}
    tailrace("promote", "p", "v2", "--percent", "0")
    assert set((await world.believed()).values()) == {"v1"}
    tailrace("promote", "p", "v2", "--percent", "10")
    tailrace("promote", "p", "v2")
    assert await pool.fetchval("select count(*) from tailrace.versions where share is not null") == 0


async def test_open_work_of_a_canarys_time_keeps_its_voice_through_a_promotion(world, tailrace):
    await world.version("v2", promote="shadow")
    tailrace("promote", "p", "v2", "--percent", "50")
    await world.feed(0, 60)
    tailrace("promote", "p", "v2")
    await world.work("v1", "v2")
    assert await world.released() == {n: "v2" if bucket(n) < 50 else "v1" for n in range(60)}


async def test_what_a_lost_version_left_is_spoken_for_by_its_successor(world, tailrace, pool, clock):
    """v1's workers are gone for good; its open records were done by v2 as a shadow, so nobody has sent what they wish."""
    await world.version("v2", promote="shadow", slice_size=3)
    await world.feed(0, 20)
    await world.work("v2")
    tailrace("promote", "p", "v2")
    assert await world.released() == {}
    await pool.execute("update tailrace.workers set seen_at = tailrace.clock() - interval '1 hour'")
    await pool.execute("select * from tailrace.watch(5, 200)")
    await world.work("v2")
    assert await world.released() == dict.fromkeys(range(20), "v2")
    assert await pool.fetchval("select count(*) from tailrace.jobs") == 0
    assert await pool.fetchval("select max(rerun) from tailrace.results") == 1


async def test_what_a_swap_touches_does_not_grow_with_what_is_open(world, tailrace, pool):
    """The first slices go along, the rest by the watchdog."""
    await world.version("v2")
    await pool.execute("select tailrace.register_sources('{files:a}', array['{}'::jsonb])")
    await pool.execute(
        "insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at) "
        "select 1, 'x' || n, 1, 'create', '\\x00', now(), now() from generate_series(1, 30000) n"
    )
    await pool.execute(
        "insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, run_at) select 1, 1, id, id, 1, now() from tailrace.raw_records"
    )
    moved = await pool.fetchval("select tailrace.swap_live(2, 'test')")
    assert 0 < moved <= 2000
    for _ in range(40):
        await pool.execute("select * from tailrace.watch(5, 200)")
        if not await pool.fetchval("select count(*) from tailrace.jobs where version_id = 1"):
            break
    assert await pool.fetchval("select count(*) from tailrace.jobs where version_id = 2") == 30000


async def test_what_was_believed_at_a_moment_can_be_asked_later(world, tailrace, pool, clock):
    start = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
    await clock.set(start)
    await world.version("v2", promote="shadow")
    answers, now = {}, start

    async def ask(moment):
        rows = await pool.fetch("select raw_id, version, output, decision, approved from tailrace.as_of($1) order by raw_id", moment)
        return [tuple(r) for r in rows]

    steps = [
        lambda: world.feed(0, 5), lambda: world.work("v1", "v2"), lambda: pool.execute("select tailrace.swap_live(2, 't')"), lambda: world.feed(5, 5),
        lambda: pool.execute("insert into tailrace.reviews (raw_id, pipeline_id, decision, reviewer, version_id, at) values (2, 1, 'reject', 'me', 2, tailrace.clock())"),
        lambda: world.work("v1", "v2"), lambda: pool.execute("select tailrace.swap_live(1, 't')"),
        lambda: pool.execute("insert into tailrace.reviews (raw_id, pipeline_id, decision, reviewer, version_id, at) values (2, 1, 'undo', 'me', 2, tailrace.clock())"),
    ]  # fmt: skip
    for step in steps:
        await step()
        now += dt.timedelta(minutes=1)
        await clock.set(now)
        moment = now - dt.timedelta(seconds=30)
        answers[moment] = await ask(moment)
        now += dt.timedelta(minutes=1)
        await clock.set(now)
    assert len({str(a) for a in answers.values()}) >= 5
    for moment, answer in answers.items():
        assert await ask(moment) == answer


async def test_only_what_nobody_needs_is_pruned(world, tailrace, pool):
    for n in (2, 3):
        await world.version(f"v{n}", promote="on_start")
    await world.version("v4", promote="shadow")
    await world.feed(0, 10)
    await world.work("v1", "v2", "v3", "v4")
    rows = {r["version"]: r for r in tailrace("prune", "--dry-run", "--json").value}
    assert {v: r["kept_because"] for v, r in rows.items()} == {
        "v1": None, "v2": "it was live before: a rollback needs it", "v3": "it is live", "v4": "it is a shadow",
    }  # fmt: skip
    assert all(r["megabytes"] >= 0 for r in rows.values())
    assert {r["version"]: r["pruned"] for r in tailrace("prune", "--json").value} == {"v1": True, "v2": False, "v3": False, "v4": False}
    assert await pool.fetchval("select to_regclass('tailrace.results_v1')") is None
    assert tailrace("verify").code == 0
    await world.version("v1")
    assert await pool.fetchval("select to_regclass('tailrace.results_v1')") is not None
