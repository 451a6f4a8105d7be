"""Two toy processors with planted differences, run for real: what is compared is what they were told to say."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
[sources.inbox]
kind = "files"
path = "inbox"
id_field = "id"

[pipelines.p]
processor = "./p.py"
version = "v1"
model = "one"
promote = "manual"

[pipelines.p.variants.v2]
model = "two"

[pipelines.p.variants.v3]
model = "three"

[effects.post]
sink = "jsonl"
path = "out.jsonl"
"""
PROCESSOR = """
from worker import Done, Effect, Fail, Skip, processor

@processor("p", slice_size=5, executor="inline")
def p(record, ctx):
    said = record.payload["one" if ctx.model == "one" else "two"]
    if said["status"] != "ok":
        return Skip("nothing") if said["status"] == "skipped" else Fail("ValueError: bad")
    return Done(said["output"], effects=[Effect("post", {"b": b}, target=t) for t, b in said["effects"].items()], meta={"cost": 0.5})
"""
RECORDS = 200


def plan() -> list[dict]:
    chance = random.Random(4)

    def said() -> dict:
        status = chance.choices(("ok", "skipped", "failed"), (8, 1, 1))[0]
        return {"status": status, "output": {f: chance.randrange(3) for f in ("kind", "price") if chance.random() < 0.9},
                "effects": {t: chance.randrange(2) for t in ("x", "y") if chance.random() < 0.5}}  # fmt: skip

    ones = [said() for _ in range(RECORDS)]
    return [{"id": n, "one": one, "two": said() if chance.random() < 0.4 else one, "kind": chance.randrange(3)} for n, one in enumerate(ones)]


@pytest.fixture
def run(tmp_path, tailrace, db_url):
    (tmp_path / "tailrace.toml").write_text(CONFIG)
    (tmp_path / "p.py").write_text(PROCESSOR)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in plan()))
    env = {k: v for k, v in os.environ.items() if not k.startswith("TAILRACE_")} | {"DATABASE_URL": db_url, "PYTHONPATH": str(ROOT)}

    def program(*words: str):
        """`tailrace ...` in a thread of its own, any other in a process."""
        if words[0] == "tailrace":
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(tailrace, *words[1:]).result()
        more = {"TAILRACE_WORKER__CLAIM_RECORDS": "10"}
        done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=env | more, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 3), done.stderr
        return done

    program("collector", "backfill")
    program("worker", "drain", "--version", "v1")
    return program


async def test_planted_differences_are_found_to_the_last_one(run, pool, tmp_path):
    run("tailrace", "replay", "p", "v2")
    run("tailrace", "replay", "p", "v3")
    run("worker", "drain")
    planned = plan()
    (tmp_path / "gold.csv").write_text("source,external_id,kind\n" + "".join(f"files:inbox,{r['id']},{r['kind']}\n" for r in planned))
    facts = run("tailrace", "compare", "v1", "v2", "--gold", "gold.csv", "--json").value
    outputs = [[r[s]["output"] if r[s]["status"] == "ok" else {} for s in ("one", "two")] for r in planned]
    fields = {f["name"]: f for f in facts["pairs"][0]["fields"]}
    assert facts["records"] == RECORDS
    for name in ("kind", "price"):
        assert fields[name]["equal"] == sum(a.get(name) == b.get(name) for a, b in outputs)
    assert fields["(status)"]["equal"] == sum(r["one"]["status"] == r["two"]["status"] for r in planned)
    rights = Counter(tuple(o.get("kind") == r["kind"] for o in both) for r, both in zip(planned, outputs, strict=True))
    truth = fields["kind"]["truth"]
    assert [truth[k] for k in ("both", "only_a", "only_b", "neither")] == [rights[k] for k in itertools.product((True, False), repeat=2)]
    wanted: Counter = Counter()
    for r in planned:
        a, b = (r[s]["effects"] if r[s]["status"] == "ok" else {} for s in ("one", "two"))
        for key in a | b:
            wanted["only_b" if key not in a else "only_a" if key not in b else "same" if a[key] == b[key] else "changed"] += 1
    effects = facts["pairs"][0]["effects"]
    assert all(wanted[g] for g in ("same", "changed", "only_a", "only_b"))
    assert {g: effects[g] for g in wanted} == wanted
    assert [v["statuses"] for v in facts["versions"]] == [Counter(r[s]["status"] for r in planned) for s in ("one", "two")]
    order = [r[0] for r in await pool.fetch("select version_id from tailrace.settled where version_id > 1 order by finished_at, raw_id")]
    turns = [len(list(group)) for _, group in itertools.groupby(order)]
    assert len(turns) > 4, "replays of two versions run by one worker take turns"
    assert all(f["agreement"] == 1 for f in run("tailrace", "compare", "v2", "v3", "--json").value["pairs"][0]["fields"])
