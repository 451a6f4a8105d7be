"""Versions over the same records: every count equals the plan by which the results were planted."""

from __future__ import annotations

import html.parser
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest

from ops import chosen
from ops.compare.collect import Chosen, collect
from ops.compare.facts import STATUS, WHOLE
from ops.compare.judged import judged
from ops.compare.page import page
from ops.db import open_url

FIELDS = ("kind", "price", "title")
KINDS = ("post", "note")


def plan(seed: int, records: int = 120, versions: int = 2) -> list[dict]:
    """What each version says of each record, and what is true of it."""
    chance = random.Random(seed)

    def said() -> dict:
        status = chance.choices(("ok", "skipped", "failed"), (8, 1, 1))[0]
        choices = {"kind": ["sale", "swap", None], "price": [1, 2, 2.5], "title": ["a", {"b": [1]}, "<i>"]}
        output = {f: chance.choice(choices[f]) for f in FIELDS if chance.random() < 0.9} if status == "ok" else None
        effects = {f"{kind}:{chance.randrange(3)}": chance.randrange(2) for kind in KINDS if status == "ok" and chance.random() < 0.6}
        return {"status": status, "output": output, "effects": effects, "there": chance.random() < 0.95, "cost": chance.choice([0.5, 0.25, None])}

    first = [said() for _ in range(records)]
    others = [[said() if chance.random() < 0.3 else dict(f, there=chance.random() < 0.95) for f in first] for _ in range(versions - 1)]
    return [
        {"source": n % 3, "said": list(s), "truth": said()["output"] if chance.random() < 0.5 else None}
        for n, s in enumerate(zip(first, *others, strict=True))
    ]


async def plant(pool: asyncpg.Pool, planned: list[dict]) -> None:
    await pool.execute("insert into tailrace.sources (name, kind) select 'files:s' || i, 'files' from generate_series(0, 2) i")
    await pool.execute("insert into tailrace.pipelines (name) values ('p')")
    for v in range(1, len(planned[0]["said"]) + 1):
        await pool.execute(
            "insert into tailrace.versions (pipeline_id, name, fingerprint, state, slice_size) values (1, $1, $1, 'candidate', 10)", f"v{v}"
        )
        await pool.execute(f"create table tailrace.results_v{v} partition of tailrace.results for values in ({v})")
    for n, record in enumerate(planned, 1):
        await pool.execute(
            """insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at, payload)
            values ($1, $2, 1, 'create', '', '2026-01-01Z'::timestamptz + $3 * interval '1 day', now(), '{}')""", record["source"] + 1, f"x{n}", n,
        )  # fmt: skip
        for v, said in enumerate(record["said"], 1):
            await say(pool, n, v, said)


async def say(pool: asyncpg.Pool, n: int, v: int, said: dict, rerun: int = 0) -> None:
    if not said["there"]:
        return
    meta = {k: said[k] for k in ("cost",) if said.get(k) is not None} | said.get("meta", {})
    error = [{"kind": "failed", "message": f"ValueError: {n}"}] if said["status"] == "failed" else None
    await pool.execute(
        "insert into tailrace.results (version_id, raw_id, rerun, status, output, error, meta, finished_at) values ($1, $2, $3, $4, $5, $6, $7, now())",
        v, n, rerun, said["status"], None if said["output"] is None else json.dumps(said["output"]), error and json.dumps(error), json.dumps(meta),
    )  # fmt: skip
    for key, body in said.get("effects", {}).items():
        await pool.execute(
            """insert into tailrace.effects (version_id, raw_id, rerun, kind, key, body, body_hash, verdict, reason, created_at)
            values ($1, $2, $3, $4, $5, $6, $7, 'suppressed', 'replay', now())""",
            v, n, rerun, key.split(":")[0], f"{key}:{n}", json.dumps({"b": body}), bytes([body]),
        )  # fmt: skip


def compared(url: str, *names: str, **chosen_by):
    with open_url(url) as connection:
        connection.execute("set role tailrace_operator")
        return collect(connection, [chosen.find(connection, "p", name) for name in names], Chosen(**chosen_by))


def of(said: dict, field: str):
    """(present, value), where JSON compares: 2.0 is 2."""
    if field == STATUS:
        return True, json.dumps(said["status"])
    if field == WHOLE:
        return said["output"] is not None, json.dumps(said["output"], sort_keys=True)
    return (True, json.dumps(said["output"][field], sort_keys=True)) if field in (said["output"] or {}) else (False, None)


def expected(planned: list[dict], a: int, b: int, field: str) -> dict:
    both = [(r["said"][a], r["said"][b], r["source"]) for r in planned if all(s["there"] for s in r["said"])]
    equal = [(of(x, field) == of(y, field), s) for x, y, s in both]
    changes = Counter((of(x, field), of(y, field)) for x, y, _ in both if of(x, field) != of(y, field))
    values = [Counter(of(side, field) for side in column) for column in zip(*[(x, y) for x, y, _ in both], strict=True)]
    return {
        "records": len(both), "equal": sum(e for e, _ in equal), "by_source": Counter(s for e, s in equal if e),
        "only_a": sum(n for ((p, _), (q, _)), n in changes.items() if p and not q), "only_b": sum(n for ((p, _), (q, _)), n in changes.items() if q and not p),
        "changes": sorted(changes.values(), reverse=True)[:20], "chance": sum(n * values[1][v] for v, n in values[0].items()) / len(both) ** 2,
        "distinct": [sum(p for p, _ in v) for v in values],
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
async def test_every_count_is_that_of_the_plan(db_url, pool, seed):
    planned = plan(seed)
    await plant(pool, planned)
    found = compared(db_url, "v1", "v2", samples=1000)
    assert found.records == sum(all(s["there"] for s in r["said"]) for r in planned)
    assert [v.results for v in found.versions] == [sum(r["said"][i]["there"] for r in planned) for i in (0, 1)]
    assert [f.name for f in found.fields] == [WHOLE, STATUS, *FIELDS]
    for field in found.fields:
        wanted = expected(planned, 0, 1, field.name)
        assert (field.records, field.equal, field.only_a, field.only_b) == tuple(wanted[k] for k in ("records", "equal", "only_a", "only_b"))
        assert {c.source: c.equal for c in field.sources} == {f"files:s{s}": wanted["by_source"][s] for s in range(3)}
        assert field.chance == pytest.approx(wanted["chance"])
        assert [field.distinct_a, field.distinct_b] == wanted["distinct"]
        assert field.name == WHOLE or [c.records for c in field.changes] == wanted["changes"]
    both = [r["said"] for r in planned if all(s["there"] for s in r["said"])]
    for side, said in zip(found.versions, zip(*both, strict=True), strict=True):
        assert side.statuses == Counter(s["status"] for s in said)
        assert side.cost.total == pytest.approx(sum(s["cost"] or 0 for s in said))
        assert side.cost.noted == sum(s["cost"] is not None for s in said)
        assert {e.reason: e.records for e in side.endings if e.status == "failed"} == {"ValueError": side.statuses["failed"]}
    wanted = effects_of(planned)
    assert {g: getattr(found.effects, g) for g in ("same", "changed", "only_a", "only_b")} == {
        g: wanted[g] for g in ("same", "changed", "only_a", "only_b")
    }
    assert Counter(s.group for s in found.effects.samples) == Counter({g: n for g, n in wanted.items() if g != "same"})
    assert len(found.pairs[0].different) == sum(x["output"] != y["output"] or x["status"] != y["status"] for x, y in both)
    assert [len(d.fields) for d in found.pairs[0].different] == sorted((len(d.fields) for d in found.pairs[0].different), reverse=True)


def effects_of(planned: list[dict]) -> Counter:
    groups: Counter = Counter()
    for a, b in (r["said"] for r in planned if all(s["there"] for s in r["said"])):
        for key in a["effects"] | b["effects"]:
            x, y = a["effects"].get(key), b["effects"].get(key)
            groups["only_b" if x is None else "only_a" if y is None else "same" if x == y else "changed"] += 1
    return groups


@pytest.mark.parametrize("truth", ["reviews", "jsonl", "csv"])
async def test_who_is_right_is_counted_pair_by_pair(db_url, pool, truth, tmp_path):
    planned = plan(7)
    await plant(pool, planned)
    known = {n: r["truth"] for n, r in enumerate(planned, 1) if r["truth"] is not None}
    given: dict = {}
    if truth == "reviews":
        for n, value in known.items():
            await pool.execute(
                "insert into tailrace.reviews (raw_id, pipeline_id, decision, value, reviewer, version_id) values ($1, 1, 'edit', $2, 'me', 1)",
                n,
                json.dumps(value),
            )
    else:
        given = gold_file(tmp_path / f"gold.{truth}", known, planned)
    found = compared(db_url, "v1", "v2", **given)
    assert found.judged_by == ("reviews" if truth == "reviews" else "gold")
    judged_records = [r for n, r in enumerate(planned, 1) if n in known and all(s["there"] for s in r["said"])]
    assert found.judged == len(judged_records)
    for field in found.fields:
        if field.name in FIELDS:
            rights = Counter(tuple(right(s, r["truth"], field.name) for s in r["said"]) for r in judged_records)
            t = field.truth
            assert (t.both, t.only_a, t.only_b, t.neither) == tuple(rights[k] for k in ((True, True), (True, False), (False, True), (False, False)))
            for side, hits in enumerate((t.a, t.b)):
                pairs = [(thing(r["said"][side]["output"], field.name), thing(r["truth"], field.name)) for r in judged_records]
                assert hits.tp == sum(x == y is not None for x, y in pairs)
                assert hits.fp == sum(x is not None and x != y for x, y in pairs)
                assert hits.fn == sum(y is not None and x != y for x, y in pairs)
            assert sum(c.truth for c in field.sources) == t.records
            p = next(f["truth"] for f in judged(found)["pairs"][0]["fields"] if f["name"] == field.name)
            assert 0 < p["p"] <= p["p_holm"] <= 1


def gold_file(path, known, planned) -> dict:
    from ops.compare import gold  # noqa: PLC0415  only here

    if path.suffix == ".jsonl":
        rows = [{"raw_id": n} | {f: value.get(f) for f in FIELDS} for n, value in known.items()]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        cell = lambda v: "" if v is None else v if isinstance(v, str) else json.dumps(v)  # noqa: E731
        lines = [
            f"files:s{planned[n - 1]['source']},x{n}," + ",".join('"' + cell(value.get(f)).replace('"', '""') + '"' for f in FIELDS)
            for n, value in known.items()
        ]
        path.write_text("source,external_id," + ",".join(FIELDS) + "\n" + "\n".join(lines) + "\nfiles:s0,unheard,,,\n")
    rows, loose = gold.read(path)
    return {"expected": rows, "loose": loose}


def thing(output, field):
    """A value, where null and absent are both nothing; a .csv has texts only."""
    value = (output or {}).get(field)
    return None if value is None else json.dumps(value, sort_keys=True)


def right(said, truth, field) -> bool:
    return thing(said["output"], field) == thing(truth, field)


async def test_decisions_of_people_are_the_truth_until_they_are_undone(db_url, pool):
    same = {"status": "ok", "output": {"kind": "sale"}, "there": True}
    other = {"status": "ok", "output": {"kind": "swap"}, "there": True}
    await plant(pool, [{"source": 0, "said": [same, other]} for _ in range(5)])
    decide = "insert into tailrace.reviews (raw_id, pipeline_id, decision, value, reviewer, version_id) values ($1, 1, $2, $3, 'me', $4)"
    await pool.execute(decide, 1, "approve", None, 1)
    await pool.execute(decide, 2, "approve", None, 2)
    await pool.execute(decide, 3, "edit", '{"kind": "else"}', 1)
    await pool.execute(decide, 4, "approve", None, 1)
    await pool.execute(decide, 4, "undo", None, 1)
    await pool.execute(decide, 5, "reject", None, 1)
    found = compared(db_url, "v1", "v2")
    truths = {f.name: f.truth for f in found.fields}
    assert (truths["kind"].both, truths["kind"].only_a, truths["kind"].only_b, truths["kind"].neither) == (0, 1, 1, 1)
    assert truths[WHOLE].records == 3  # of the rejected one it is known for v1 only
    alike = {f.name: f.truth for f in compared(db_url, "v1", "v1").fields}
    assert (alike[WHOLE].both, alike[WHOLE].neither) == (1, 3)


async def test_a_version_beside_itself_is_all_equal_and_two_mirror_each_other(db_url, pool):
    await plant(pool, plan(11))
    alone = compared(db_url, "v1", "v1")
    assert all(f.equal == f.records and not f.changes for f in alone.fields)
    assert (alone.effects.changed, alone.effects.only_a, alone.effects.only_b) == (0, 0, 0)
    assert alone.effects.same > 0
    assert not alone.pairs[0].different
    one, two = compared(db_url, "v1", "v2"), compared(db_url, "v2", "v1")
    for f, g in zip(one.fields, two.fields, strict=True):
        assert (f.equal, f.only_a, f.only_b, f.with_a, f.chance) == (g.equal, g.only_b, g.only_a, g.with_b, pytest.approx(g.chance))
        assert sorted((c.a or "", c.b or "", c.records) for c in f.changes) == sorted((c.b or "", c.a or "", c.records) for c in g.changes)
    assert (one.effects.only_a, one.effects.only_b, one.effects.changed) == (two.effects.only_b, two.effects.only_a, two.effects.changed)
    assert [d.raw_id for d in one.pairs[0].different] == [d.raw_id for d in two.pairs[0].different]


async def test_three_versions_are_compared_with_the_first_and_all_together(db_url, pool):
    planned = plan(5, versions=3)
    await plant(pool, planned)
    found = compared(db_url, "v1", "v2", "v3")
    assert [(p.a.name, p.b.name) for p in found.pairs] == [("v1", "v2"), ("v1", "v3")]
    assert found.pairs[1].fields[2].equal == expected(planned, 0, 2, "kind")["equal"]
    among = {a.name: a for a in found.among}
    mean = sum(expected(planned, a, b, "kind")["equal"] for a, b in ((0, 1), (0, 2), (1, 2))) / 3 / found.records
    assert among["kind"].observed == pytest.approx(mean)
    values = Counter(of(s, "kind") for r in planned if all(x["there"] for x in r["said"]) for s in r["said"])
    assert among["kind"].chance == pytest.approx(sum(n * n for n in values.values()) / values.total() ** 2)


async def test_the_newest_rerun_counts_within_a_window_and_a_source(db_url, pool):
    planned = plan(3, 30)
    for r in planned:
        r["said"][0]["there"] = r["said"][1]["there"] = True
    await plant(pool, planned)
    await say(pool, 4, 2, {"status": "ok", "output": {"kind": "anew"}, "there": True, "effects": {"post:9": 1}}, rerun=1)
    found = compared(db_url, "v1", "v2", since="2026-01-05T00:00:00Z", until="2026-01-06T00:00:00Z", sources=(1,))
    assert (found.records, [v.results for v in found.versions]) == (1, [1, 1])
    assert found.pairs[0].different[0].b == {"kind": "anew"}
    assert found.effects.only_b == 1


async def test_what_processors_say_breaks_nothing(db_url, pool):
    strange = [
        [1, 2],
        "text",
        7,
        None,
        {"": 1, "(value)": 2, "(status)": "x", "<b>": "</script>"},
        {"a": "\u202e\x1b[31m"},
        {f"k{i}": i for i in range(300)},
        {"n": 1},
    ]
    said = [
        {"status": "ok", "output": o, "there": True, "meta": {"cost": c, "latency": "soon"}}
        for o, c in zip(strange, ["free", 1, None, [], {}, 2, 3, 4], strict=True)
    ]
    other = [dict(s, output={"n": 1.0, "a": "x" * 100_000}) for s in said]
    await plant(pool, [{"source": 0, "said": [a, b]} for a, b in zip(said, other, strict=True)])
    await pool.execute("update tailrace.results_v1 set meta = '{\"cost\": 1e400}' where raw_id = 1")
    found = compared(db_url, "v1", "v2", samples=8)
    assert found.left_out == 300 + 6 - 40  # the k's, and (value), "", (status), <b>, a, n
    facts = judged(compared(db_url, "v1", "v2", samples=8, fields=("n", "a", "(value)", "<b>", "absent")))
    fields = {f["name"]: f for f in facts["pairs"][0]["fields"]}
    assert fields["n"]["equal"] == 1  # 1 and 1.0 are the same number
    assert fields["absent"]["agreement"] == 1
    assert fields["(value)"]["only_a"] == 4
    assert json.dumps(facts)
    text = page(facts)
    assert "</script>" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "\\u202e" in text


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter = Counter()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}


async def test_a_page_holds_only_what_we_wrote_ourselves(db_url, pool, tailrace, tmp_path):
    evil = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    said = [{"status": "ok", "output": {evil: evil, "n": i}, "there": True, "effects": {"post:1": i}} for i in (0, 1)]
    await plant(pool, [{"source": 0, "said": said}])
    await pool.execute("update tailrace.versions set name = $1 where id = 2", f"v2{evil}")
    await pool.execute("insert into tailrace.reviews (raw_id, pipeline_id, decision, reviewer, version_id) values (1, 1, 'approve', 'me', 1)")
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(tailrace, "compare", "p", "v1", f"v2{evil}", "--html", str(tmp_path / "page.html")).result()
    assert done.code == 0, done.err
    found = Tags()
    found.feed((tmp_path / "page.html").read_text())
    assert not {"script", "img", "iframe", "object", "link"} & found.tags.keys()
    assert not {a for a in found.attributes if a.startswith("on") or a in {"href", "src"}}
    assert found.tags["svg"] >= 3


async def test_records_are_kept_as_a_set_and_compared_and_replayed_again(db_url, pool, tailrace):
    planned = plan(2, 40)
    for n, r in enumerate(planned):
        r["said"][0]["there"], r["said"][1]["there"] = n < 30, n < 20
    await plant(pool, planned)

    def run(*words):
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(tailrace, *words).result()

    assert run("compare", "v1", "v2", "--save-set", "twenty", "--json").value["records"] == 20
    assert [r[0] for r in await pool.fetch("select tailrace.set_members('twenty')")] == list(range(1, 21))
    assert run("compare", "v1", "v2", "--until", "2026-01-10T00:00:00Z", "--save-set", "twenty").code != 0  # taken by others
    assert run("compare", "v1", "v2", "--save-set", "twenty").code == 0
    assert "twenty" in run("compare", "v1", "v2", "--set", "twnty").err
    facts = run("compare", "v1", "v2", "--set", "twenty", "--json").value
    assert (facts["records"], [v["results"] for v in facts["versions"]]) == (20, [20, 20])
    with pytest.raises(asyncpg.PostgresError, match="append-only"):
        await pool.execute("delete from tailrace.record_set_members")
    await pool.execute("insert into tailrace.versions (pipeline_id, name, fingerprint, state, slice_size) values (1, 'v3', 'v3', 'candidate', 10)")
    await pool.execute("create table tailrace.results_v3 partition of tailrace.results for values in (3)")
    assert run("plan", "p", "v3", "--set", "twenty", "--json").value["wanted"] == 20
    assert run("replay", "p", "v3", "--set", "twenty", "--json").value["opened"] == 20
    assert await pool.fetchval("select count(*) from tailrace.job_status where version = 'v3' and raw_id <= 20 and status = 'pending'") == 20
    assert await pool.fetchval("select sum(n_rows) from tailrace.jobs where version_id = 3 and quiet and lane = 2") == 20
    assert run("plan", "p", "v3", "--set", "twenty", "--json").value["wanted"] == 0
    assert run("plan", "p", "v3", "--json").value["wanted"] == 20
    assert run("compare", "v1", "v3").code == 1
    chosen_by = ("--source", "files:s1", "--until", "2026-01-20T00:00:00Z", "--sample", "5", "--save-set", "five")
    assert run("plan", "p", "v3", *chosen_by, "--json").value["set"] == {"name": "five", "records": 5}
    assert await pool.fetchval(
        "select bool_and(r.source_id = 2 and r.id < 19) from tailrace.set_members('five') m join tailrace.raw_records r on r.id = m"
    )
    assert run("plan", "p", "v3", "--failed", "--save-set", "six").code == 2


async def test_a_reader_may_compare_and_keep_nothing(db_url, pool):
    await plant(pool, plan(4, 10))
    with open_url(db_url) as connection:
        connection.execute("set role tailrace_reader")
        versions = [chosen.find(connection, "p", name) for name in ("v1", "v2")]
        assert collect(connection, versions, Chosen()).records > 0
        with pytest.raises(Exception, match="permission denied"):
            collect(connection, versions, Chosen(save_as="mine"))
