"""From the database to the facts of a comparison: one transaction, one snapshot, one SQL function for each count."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.pq import TransactionStatus

from ops.chosen import Version
from ops.compare.facts import (
    STATUS,
    WHOLE,
    Agreement,
    Change,
    Cluster,
    Comparison,
    Different,
    Effects,
    Ending,
    Field,
    Hits,
    Pair,
    Sample,
    Side,
    Sums,
    Truth,
)
from ops.db import Connection, Row, one, rows

SAMPLE = 50_000  # records by which chance and spreads are judged
FIELDS = 40  # the most frequent ones are compared
REASONS = CHANGES = 20  # the most frequent ones are told
_PART = 1000  # rows of a gold file in one call
_FIGURES = ("cost", "tokens_in", "tokens_out", "latency")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which records, which fields, which truth. `expected`: rows {raw_id} or {source, external_id}, with `value`, of a gold file; None: the reviews."""

    since: str | None = None
    until: str | None = None
    sources: tuple[int, ...] | None = None
    set: str | None = None
    fields: tuple[str, ...] | None = None
    samples: int = 5
    expected: tuple[dict[str, Any], ...] | None = None
    loose: bool = False  # the expected values are texts, which match numbers too
    save_as: str | None = None  # stores the compared records as a set
    actor: str = "operator"


@dataclass(frozen=True, slots=True)
class _Two:
    """Arguments of the SQL functions of a pair, and what its numbers mean."""

    arguments: list[int]
    fields: list[str]
    sources: dict[int, str]

    def name(self, no: int) -> str:
        return {-1: WHOLE, 0: STATUS}.get(no) or self.fields[no - 1]


def collect(connection: Connection, versions: Sequence[Version], chosen: Chosen) -> Comparison:
    """Compares the first with each of the others. Raises where the set is unknown, or its name for `save_as` is taken (TR040)."""
    outermost = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if outermost:
            connection.execute("set transaction isolation level repeatable read")
        return _collected(connection, versions, chosen)


def _collected(connection: Connection, versions: Sequence[Version], chosen: Chosen) -> Comparison:
    ids = [v.id for v in versions]
    spec = {k: v for k, v in {"sources": chosen.sources, "since": chosen.since, "until": chosen.until, "set": chosen.set}.items() if v is not None}
    found = {r["version_id"]: r for r in rows(connection, "select * from tailrace.compare_records(%s, %s, %s)", [ids, json.dumps(spec), SAMPLE])}
    records = found[ids[0]]["compared"]
    judged = _truth(connection, versions[0], chosen)
    keys = rows(connection, "select * from tailrace.compare_keys(%s, %s)", [ids, FIELDS])
    fields = list(chosen.fields) if chosen.fields is not None else sorted(r["field"] for r in keys)
    sides = [_side(connection, v, place, found[v.id]["results"]) for place, v in enumerate(versions, 1)]
    pairs = tuple(_pair(connection, sides[0], side, place, fields, chosen.samples) for place, side in enumerate(sides[1:], 2))
    if chosen.save_as:
        connection.execute("select tailrace.store_set(%s, array(select raw_id from pg_temp.tailrace_compared), %s, %s)", [
            chosen.save_as, json.dumps(spec | {"versions": [v.name for v in versions]}), chosen.actor,
        ])  # fmt: skip
    return Comparison(
        versions[0].pipeline, tuple(sides), records, spec, None if not judged else "reviews" if chosen.expected is None else "gold", judged, pairs,
        _among(connection, ids, fields) if len(set(ids)) > 2 else (),  # noqa: PLR2004  of two, kappa says it
        left_out=0 if chosen.fields is not None or not keys else keys[0]["fields"] - len(keys),
        unmatched=len(chosen.expected) - judged if chosen.expected is not None else 0,
    )  # fmt: skip


def _truth(connection: Connection, version: Version, chosen: Chosen) -> int:
    if chosen.expected is None:
        return int(one(connection, "select tailrace.compare_reviews(%s) as n", [version.pipeline_id])["n"])
    parts = [chosen.expected[i : i + _PART] for i in range(0, len(chosen.expected), _PART)]
    return sum(one(connection, "select tailrace.compare_gold(%s, %s) as n", [json.dumps(part), chosen.loose])["n"] for part in parts)


def _side(connection: Connection, version: Version, place: int, results: int) -> Side:
    found = {r["name"]: r for r in rows(connection, "select * from tailrace.compare_sums(%s, %s)", [version.id, place])}
    figures = {n: Sums(r["records"], r["total"], *(r["spread"] or (None, None))) for n in _FIGURES if (r := found.get(n))}
    endings = rows(connection, "select * from tailrace.compare_endings(%s, %s, %s)", [version.id, place, REASONS])
    statuses = {n: found[n]["records"] for n in ("ok", "skipped", "failed") if n in found}
    return Side(version.id, version.name, version.state, results, statuses, **figures, endings=tuple(Ending(**r) for r in endings))


def _pair(connection: Connection, a: Side, b: Side, place: int, fields: list[str], samples: int) -> Pair:
    sources = {r["id"]: r["name"] for r in rows(connection, "select id, name from tailrace.sources")}
    two = _Two([a.id, b.id, 1, place], fields, sources)
    counted = rows(connection, "select * from tailrace.compare_pair(%s, %s, %s, %s, %s)", [*two.arguments, fields])
    examples = rows(connection, "select * from tailrace.compare_examples(%s, %s, %s, %s, %s)", [*two.arguments, samples])
    different = tuple(
        Different(r["raw_id"], r["source"], r["external_id"], tuple(map(two.name, r["nos"])), r["status_a"], r["status_b"], r["a"], r["b"])
        for r in examples
    )
    return Pair(a, b, _fields(connection, two, counted), _effects(connection, two, samples), different)


def _fields(connection: Connection, two: _Two, counted: list[Row]) -> tuple[Field, ...]:
    arguments = [*two.arguments, two.fields]
    chances = {r["no"]: r for r in rows(connection, "select * from tailrace.compare_chance(%s, %s, %s, %s, %s)", arguments)}
    changes = defaultdict(list)
    for r in rows(connection, "select * from tailrace.compare_changes(%s, %s, %s, %s, %s, %s)", [*arguments, CHANGES]):
        changes[r["no"]].append(Change(r["a"], r["b"], r["records"]))
    truths = {(r["no"], r["source_id"]): r for r in rows(connection, "select * from tailrace.compare_truth(%s, %s, %s, %s, %s)", arguments)}
    by_field = defaultdict(list)
    for r in counted:
        by_field[r["no"]].append(r)
    return tuple(
        _field(two, no, by_field[no], chances[no], changes[no], {s: t for (n, s), t in truths.items() if n == no}) for no in sorted(by_field)
    )


def _field(two: _Two, no: int, counted: list[Row], chance: Row, changes: list[Change], truths: dict[int, Row]) -> Field:
    total = {k: sum(r[k] for r in counted) for k in ("records", "equal", "only_a", "only_b")}
    judged = {k: chance[k] for k in ("with_a", "with_b", "distinct_a", "distinct_b", "chance")}
    clusters = sorted((_cluster(two.sources[r["source_id"]], r, truths.get(r["source_id"])) for r in counted), key=lambda c: c.source)
    return Field(two.name(no), **total, sampled=chance["records"], **judged, sources=tuple(clusters), changes=tuple(changes), truth=_sum(truths))


def _cluster(source: str, counted: Row, truth: Row | None) -> Cluster:
    if truth is None:
        return Cluster(source, counted["records"], counted["equal"])
    four = [truth[k] for k in ("both_right", "only_a", "only_b", "neither")]
    return Cluster(source, counted["records"], counted["equal"], sum(four), *four)


def _sum(truths: dict[int, Row]) -> Truth | None:
    if not truths:
        return None
    total = {k: sum(t[k] for t in truths.values()) for k in next(iter(truths.values())) if k not in ("no", "source_id")}
    four = total["both_right"], total["only_a"], total["only_b"], total["neither"]
    a, b = (Hits(total[f"tp_{side}"], total[f"fp_{side}"], total[f"fn_{side}"]) for side in "ab")
    return Truth(sum(four), *four, a, b)


def _effects(connection: Connection, two: _Two, samples: int) -> Effects:
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("same", "changed", "only_a", "only_b"), 0))
    for r in rows(connection, "select * from tailrace.compare_effects(%s, %s, %s, %s)", two.arguments):
        kinds[r["kind"]][r["outcome"]] = r["keys"]
    total = {o: sum(k[o] for k in kinds.values()) for o in ("same", "changed", "only_a", "only_b")}
    wishes = rows(connection, "select * from tailrace.compare_wishes(%s)", [samples])
    shown = tuple(Sample(r["outcome"], r["kind"], r["key"], r["target"], r["raw_id"], r["a"], r["b"]) for r in wishes)
    return Effects(**total, kinds=dict(sorted(kinds.items())), samples=shown)


def _among(connection: Connection, ids: list[int], fields: list[str]) -> tuple[Agreement, ...]:
    found = rows(connection, "select * from tailrace.compare_among(%s, %s) order by no", [ids, fields])
    return tuple(Agreement(STATUS if r["no"] == 0 else fields[r["no"] - 1], r["observed"], r["chance"]) for r in found)
