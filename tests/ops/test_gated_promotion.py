"""`tailrace promote` with a gate in the configuration: exit codes, what is swapped, what is written down."""

from __future__ import annotations

import json

import pytest

from tests.ops.conftest import CONFIG
from tests.worker.conftest import append
from worker import Done, Effect, processors, registry
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
from worker.processors import Processor
from worker.run import Worker

RECORDS = 400


def right(n):
    return "abc"[n % 3]


def version(name, *, wrong=lambda n: n % 10 == 0, silent=lambda n: False, cost=0.01):
    """Says the category of a record, wrongly for some; every fifth record wishes an effect."""

    async def says(record, ctx):
        n = record.payload["n"]
        wishes = [Effect("post", {"n": n}, key=f"k{n}")] if n % 5 == 0 and not silent(n) else []
        return Done({"category": "?" if wrong(n) else right(n)}, effects=wishes, meta={"cost": cost})

    return Processor("f", says, name, slice_size=100, executor="inline")


@pytest.fixture
async def world(pool, monkeypatch, tailrace, tmp_path):
    monkeypatch.setattr(processors, "_registered", {})
    made = []

    class World:
        async def add(self, found, promote="shadow"):
            made.append(await registry.register_one(pool, "p", PipelineSpec(processor="f", promote=promote), found, None, "test"))

        async def work(self, records=RECORDS):
            await append(pool, "files:a", [{"n": n} for n in range(records)])
            await Worker(Settings(worker={"watch_seconds": 0.05, "settle_seconds": 0.05, "poll_seconds": 0.2}), pool, made, "drain", {}).run()

        async def review(self, first, last):
            for n in range(first, last):
                await pool.execute(
                    "insert into tailrace.reviews (raw_id, pipeline_id, decision, value, reviewer, version_id) "
                    "select id, 1, 'edit', $1, 'me', 1 from tailrace.raw_records where external_id = $2",
                    json.dumps({"category": right(n)}),
                    f"k{n}",
                )

        def gate(self, text):
            (tmp_path / "tailrace.toml").write_text(CONFIG.replace("[effects.post]", f"[pipelines.p.gate]\n{text}\n\n[effects.post]"))

        async def live(self):
            return await pool.fetchval("select v.name from tailrace.pipelines p join tailrace.versions v on v.id = p.live_version_id")

    found = World()
    await found.add(version("v1"), promote="on_start")
    return found


async def test_the_verdict_on_reviews_decides(world, tailrace, pool):
    await world.add(version("good", wrong=lambda n: n % 10 == 1 and n < 300))
    await world.add(version("bad", wrong=lambda n: n % 4 == 0))
    await world.work()
    world.gate("fields = { category = 0.1 }")
    unsure = tailrace("promote", "p", "good", "--json")
    assert (unsure.code, unsure.value["verdict"], unsure.value["swapped"]) == (2, "not enough evidence", False)
    await world.review(0, 30)
    assert tailrace("promote", "p", "good").code == 2, "few discordant pairs"
    await world.review(30, RECORDS)
    no = tailrace("promote", "p", "bad", "--json")
    assert (no.code, no.value["verdict"], await world.live()) == (1, "fail", "v1")
    assert tailrace("promote", "p", "bad", "--percent", "10").code == 1
    assert await pool.fetchval("select count(*) from tailrace.versions where share is not null") == 0
    would = tailrace("promote", "p", "good", "--dry-run")
    assert (would.code, await world.live()) == (0, "v1")
    assert "right 370 against 360 of 400, only one right in 70" in would.out
    assert tailrace("promote", "p", "good", "--percent", "10").code == 0
    assert tailrace("promote", "p", "good").code == 0
    assert await world.live() == "good"


async def test_each_verdict_is_written_down_with_a_hash_of_what_it_was_said_of(world, tailrace, pool):
    await world.add(version("bad", wrong=lambda n: n % 4 == 0))
    await world.work()
    await world.review(0, RECORDS)
    world.gate("fields = { category = 0.02 }")
    assert tailrace("promote", "p", "bad", "--dry-run").code == 1
    assert await pool.fetchval("select count(*) from tailrace.verdicts") == 0
    for words in ((), (), ("--force",)):
        tailrace("promote", "p", "bad", *words)
    assert await world.live() == "bad"
    kept = await pool.fetch("select verdict, forced, inputs_hash, facts from tailrace.verdicts order by id")
    assert [(r["verdict"], r["forced"]) for r in kept] == [("fail", False), ("fail", False), ("fail", True)]
    assert len({r["inputs_hash"] for r in kept}) == 1
    inputs = json.loads(kept[0]["facts"])["inputs"]
    assert inputs["gate"] == {"fields": {"category": 0.02}}
    assert (
        inputs["evidence"]["fields"]["category"] == {"both": 260, "only_a": 100, "only_b": 40, "neither": 0}
        or inputs["evidence"]["records"] == RECORDS
    )


async def test_gold_effects_and_cost(world, tailrace, tmp_path):
    await world.add(version("v2", wrong=lambda n: False, silent=lambda n: n < 20, cost=0.02))
    await world.work()
    rows = [json.dumps({"source": "files:a", "external_id": f"k{n}", "category": right(n)}) for n in range(300)]
    (tmp_path / "gold.jsonl").write_text("\n".join(rows))
    for text, code in (
        ('fields = { category = 0.02 }\ngold = "gold.jsonl"', 0),
        ("most_lost_effects = 0.05", 0),
        ("most_lost_effects = 0.04", 1),
        ("most_new_effects = 0\nmost_changed_effects = 0", 0),
        ("most_cost = 2", 0),
        ("most_cost = 1.9", 1),
        ("most_cost = 2\nmin_records = 401", 2),
    ):
        world.gate(text)
        found = tailrace("promote", "p", "v2", "--dry-run")
        assert found.code == code, found.out + found.err
    world.gate('fields = { category = 0.02 }\ngold = "absent.jsonl"')
    refused = tailrace("promote", "p", "v2", "--dry-run")
    assert (refused.code, "absent.jsonl" in refused.err) == (2, True)


async def test_no_record_of_a_frozen_set_may_differ_or_be_wrong(world, tailrace, pool):
    await world.add(version("v2", wrong=lambda n: n in (0, 7)))
    await world.work()
    ids = dict(await pool.fetch("select external_id, id from tailrace.raw_records")) | {"absent": 999999}
    review = "insert into tailrace.reviews (raw_id, pipeline_id, decision, reviewer, version_id) values ($1, 1, $2, 'me', 1)"

    async def faults(name, *keys, more=""):
        """Exit code, and the numbers of the records that speak against v2."""
        await pool.fetchval("select tailrace.store_set($1, $2, '{}', 'me')", name, [ids[k] for k in keys])
        world.gate(f'zero_tolerance = "{name}"\n{more}')
        found = tailrace("promote", "p", "v2", "--dry-run", "--json").value
        wrong = found["inputs"]["evidence"]["differing"]
        return found["verdict"], [k for k in keys if ids[k] in (wrong or ())]

    assert await faults("same", "k0", "k1", "k2") == ("pass", [])
    assert await faults("changed", "k6", "k7", "k10") == ("fail", ["k7", "k10"])
    assert await faults("lacking", "k1", "absent") == ("not enough evidence", [])
    assert await faults("both", "k7", "absent") == ("fail", ["k7"])
    assert await faults("empty") == ("not enough evidence", [])
    assert await faults("other field", "k7", more='zero_tolerance_fields = ["tone"]') == ("pass", [])
    assert await faults("this field", "k7", more='zero_tolerance_fields = ["tone", "category"]') == ("fail", ["k7"])
    await world.review(0, 11)
    assert await faults("corrected", "k8", "k10") == ("pass", [])
    assert await faults("wrong", "k0", "k1") == ("fail", ["k0"])
    for key, decision in (("k20", "reject"), ("k21", "reject"), ("k30", "approve")):
        await pool.execute(review, ids[key], decision)
    assert await faults("rejected", "k20", "k21") == ("fail", ["k21"]), "it repeats what was rejected of k21, and says something else of k20"
    assert await faults("approved", "k30", "k31") == ("fail", ["k30"])
    world.gate('zero_tolerance = "unknown"')
    refused = tailrace("promote", "p", "v2", "--dry-run")
    assert (refused.code, "there is no set of records unknown" in refused.err) == (2, True)


async def test_the_end_of_a_canary_asks_no_gate(world, tailrace, pool):
    await world.add(version("v2"))
    await world.work(20)
    world.gate("most_cost = 2")
    assert tailrace("promote", "p", "v2", "--percent", "20").code == 2
    assert tailrace("promote", "p", "v2", "--percent", "20", "--force").code == 0
    assert await pool.fetchval("select count(*) from tailrace.versions where share > 0") == 1
    assert tailrace("promote", "p", "v2", "--percent", "0").code == 0
    assert await pool.fetchval("select count(*) from tailrace.versions where share > 0") == 0
