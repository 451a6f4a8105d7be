"""`tailrace plan`: what a replay would do, take and cost, and how the version's outputs differ from live. Changes nothing but this: a version that
only the configuration has is registered as a candidate, and the plan is kept under its hash.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json as json_module
from typing import Any

from ops import chosen, schema_diff
from ops.chosen import Version
from ops.db import Connection, connected, one, rows
from ops.promote import actor
from ops.table import as_json, show
from worker.core.config import Loaded
from worker.core.settings import Settings

SAMPLE = 1000  # newest results by which costs and outputs are judged
CONFIDENT = 1.96


def plan(settings: Settings, loaded: Loaded, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> int:
    with connected(settings) as connection:
        pipeline = chosen.pipeline_of(connection, given.pipeline)
        version = chosen.find_or_register(connection, settings, loaded, pipeline, given.version)
        spec = chosen.selection(connection, given, window)
        facts = make(connection, version, spec, given.sample)
        keep(connection, version, facts)
        if given.save_set:
            facts["set"] = {"name": given.save_set, "records": chosen.freeze(connection, version, spec, given.sample, given.save_set, actor())}
    as_json(facts) if given.json else _print(facts)
    return 0


def make(connection: Connection, version: Version, spec: dict[str, Any], size: int | None) -> dict[str, Any]:
    """The facts of a plan, with its hash."""
    counts = rows(connection, "select * from tailrace.plan_counts(%s, %s, %s)", [version.id, version.wants, json_module.dumps(spec)])
    for row in counts:
        row["wanted"] = row["failed"] if spec.get("failed") else max(0, row["matching"] - row["done"] - row["open"])
    wanted = sum(row["wanted"] for row in counts)
    elsewhere = rows(connection, "select * from tailrace.answered_elsewhere(%s)", [version.id])
    hits = 0 if spec.get("failed") or spec.get("set") else sum(row["records"] for row in elsewhere)
    asked = max(0, wanted - hits) if size is None else min(size, wanted)
    horizon = one(connection, "select coalesce(max(id), 0) as id from tailrace.raw_records")["id"]
    live = chosen.find(connection, version.pipeline, None) if version.live_id else None
    promised = {"version": version.id, "fingerprint": version.fingerprint, "selection": spec, "sample": size, "horizon": horizon,
                "wanted": {row["source"]: row["wanted"] for row in counts}}  # fmt: skip
    return {
        "pipeline": version.pipeline, "version": version.name, "state": version.state, "live": live.name if live else None,
        "selection": spec, "sample": size, "horizon": horizon, "sources": counts, "matching": sum(r["matching"] for r in counts),
        "done": sum(r["done"] for r in counts), "open": sum(r["open"] for r in counts), "wanted": asked, "cache_hits": hits,
        **_time(connection, version, asked), **_cost(connection, version, asked),
        "changes": schema_diff.between(connection, live, version, SAMPLE) if live and live.id != version.id else [],
        "hash": hashlib.sha256(json_module.dumps(promised, sort_keys=True).encode()).hexdigest()[:16],
    }  # fmt: skip


def keep(connection: Connection, version: Version, facts: dict[str, Any]) -> None:
    connection.execute("select tailrace.store_plan(%s, %s, %s, %s)", [
        facts["hash"], version.id, json_module.dumps(facts["selection"] | {"sample": facts["sample"]}), json_module.dumps(facts, default=str),
    ])  # fmt: skip


def _time(connection: Connection, version: Version, asked: int) -> dict[str, Any]:
    """Seconds at the best and at the usual rate that the pipeline was worked at; live work goes first."""
    found = one(
        connection, "select * from tailrace.measured_rate(array(select id from tailrace.versions where pipeline_id = %s))", [version.pipeline_id]
    )
    if not found["usual"]:
        return {"rate": None, "seconds": None}
    return {"rate": [found["usual"], found["best"]], "seconds": [asked / found["best"], asked / found["usual"]]}


def _cost(connection: Connection, version: Version, asked: int) -> dict[str, Any]:
    """Money and tokens as ranges, from what this version's records have cost or, where there are too few, those of live."""
    ids = [i for i in dict.fromkeys((version.id, version.live_id)) if i is not None]
    found = {r["version_id"]: r for r in rows(connection, "select * from tailrace.measured_costs(%s, %s)", [ids, SAMPLE])}
    judged = next((found[i] for i in ids if i in found and (i != version.id or found[i]["results"] >= 20)), None)  # noqa: PLR2004  fewer say too little
    if judged is None or (judged["cost"] is None and judged["tokens"] is None):
        return {"cost": None, "tokens": None, "cost_per_record": None, "measured_on": None}
    name = one(connection, "select name from tailrace.versions where id = %s", [judged["version_id"]])["name"]
    return {
        "cost": _range(asked, judged["cost"], judged["cost_deviation"], judged["results"]),
        "tokens": _range(asked, judged["tokens"], judged["tokens_deviation"], judged["results"]),
        "cost_per_record": judged["cost_high"], "measured_on": name,
    }  # fmt: skip


def _range(n: int, mean: float | None, deviation: float, sampled: int) -> list[float] | None:
    """A 95 % prediction interval of the sum of n records like the sampled ones."""
    if mean is None or n == 0:
        return None if mean is None else [0.0, 0.0]
    half = CONFIDENT * n * deviation * (1 / sampled + 1 / n) ** 0.5
    return [max(0.0, n * mean - half), n * mean + half]


def _print(facts: dict[str, Any]) -> None:
    print(f"{facts['pipeline']} {facts['version']} ({facts['state']}), live is {facts['live'] or 'none'}")
    show(facts["sources"], ("source", "matching", "done", "open", "failed", "wanted"))
    print(
        f"to do     {facts['wanted']:,} records"
        + (f", {facts['cache_hits']:,} more are answered under the same fingerprint" if facts["cache_hits"] else "")
    )
    if facts["seconds"]:
        print(
            f"time      {_span(facts['seconds'][0])} to {_span(facts['seconds'][1])} at {facts['rate'][1]:,.0f} to {facts['rate'][0]:,.0f} records/s; live work goes first"
        )
    else:
        print("time      unknown: nothing of this pipeline was settled in the last week")
    if facts["measured_on"]:
        for what, unit in (("cost", ""), ("tokens", "")):
            if facts[what]:
                print(f"{what:9} {facts[what][0]:,.2f} to {facts[what][1]:,.2f}{unit}, as the records of {facts['measured_on']} cost")
    else:
        print("cost      unknown: no result says what it cost (`cost`, `tokens_in`, `tokens_out` in meta)")
    if facts["changes"]:
        print("outputs compared with live")
        show(facts["changes"])
    if "set" in facts:
        print(f"set       {facts['set']['name']}: {facts['set']['records']:,} records")
    print(f"\nplan {facts['hash']}: tailrace replay {facts['pipeline']} {facts['version']} --plan {facts['hash']}")


def _span(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))
