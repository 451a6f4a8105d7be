"""`tailrace runs | retry | stale`: what people do to open work."""

from __future__ import annotations

import json as json_module
from typing import Any

from ops.db import Connection, connected, one, rows
from ops.status import RUNS
from ops.table import as_json, show
from worker.core.errors import Misconfigured, nearest
from worker.core.settings import Settings

_STATE = {"pause": "paused", "resume": "active", "cancel": "cancelled"}


def runs(settings: Settings, action: str, number: int | None, *, json: bool, dry_run: bool) -> int:
    with connected(settings) as connection:
        if action == "list":
            found = rows(connection, RUNS + " order by r.id desc limit 50")
            as_json(found) if json else show(found, indent="")
            return 0
        run = one(connection, RUNS + " where r.id = %s", [number])
        if not run:
            known = [str(r["id"]) for r in rows(connection, "select id from tailrace.runs order by id desc limit 20")]
            raise Misconfigured(f"there is no run {number}", nearest(str(number), known))
        changed = dry_run or _turn(connection, run, action)
        facts = {"run": number, "was": run["state"], "now": _STATE[action] if changed else run["state"], "changed": bool(changed) and not dry_run}
        as_json(facts) if json else print(f"run {number}: {facts['was']} -> {facts['now']}" + (" (dry run)" if dry_run else ""))
        return 0 if changed else 1


def _turn(connection: Connection, run: dict[str, Any], action: str) -> bool:
    if action == "cancel" and run["kind"] == "replay":
        return one(connection, "select tailrace.cancel_replay(%s, 'by hand') as n", [run["id"]])["n"] is not None
    return bool(one(connection, "select tailrace.set_run_state(%s, %s, 'by hand') as done", [run["id"], _STATE[action]])["done"])


def retry(settings: Settings, pipeline: str | None, ids: list[int], *, every: bool, json: bool, dry_run: bool) -> int:
    """Failed records get another run: the failed result stays, the next is its rerun. Delayed retries become due now."""
    if not every and not ids and pipeline is None:
        raise Misconfigured("which records?", "name --pipeline P, --raw-id N, or --all")
    with connected(settings) as connection:
        versions = rows(connection, "select v.id, v.name, p.name as pipeline from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id "
                        "where v.state = 'live' and (%s::text is null or p.name = %s)", [pipeline, pipeline])  # fmt: skip
        if not versions:
            known = [r["name"] for r in rows(connection, "select name from tailrace.pipelines")]
            raise Misconfigured(f"there is no pipeline {pipeline!r}" if pipeline else "there is no pipeline yet", nearest(pipeline or "", known))
        facts = [_retry(connection, v, ids, dry_run=dry_run) for v in versions]
    if json:
        as_json(facts)
    else:
        for f in facts:
            would = "would be opened again" if dry_run else "opened again"
            print(
                f"{f['pipeline']} {f['version']}: {f['failed']} failed records {would}, {f['delayed']} delayed ones {'would be' if dry_run else 'are'} due now"
            )
    return 0


def _retry(connection: Connection, version: dict[str, Any], ids: list[int], *, dry_run: bool) -> dict[str, Any]:
    found = {"pipeline": version["pipeline"], "version": version["name"]}
    if dry_run:
        counts = one(connection, """select (select count(*) from tailrace.current_results x where x.version_id = %(v)s and x.status = 'failed'
              and (%(ids)s::bigint[] = '{}' or x.raw_id = any (%(ids)s))) as failed,
            (select count(*) from tailrace.jobs j where j.version_id = %(v)s and j.state = 'd' and (%(ids)s::bigint[] = '{}' or j.raw_id = any (%(ids)s))) as delayed""",
            {"v": version["id"], "ids": ids})  # fmt: skip
        return found | counts
    delayed = one(connection, "select tailrace.hasten(%s, %s) as n", [version["id"], ids])["n"]
    spec = {"failed": True, "lane": 1, "quiet": False} | ({"raw_ids": ids} if ids else {})
    run = one(connection, "select tailrace.open_run('replay', %s, %s) as id", [version["id"], json_module.dumps(spec)])["id"]
    step = {"state": "active", "records": 0}
    while step.get("state") == "active":
        step = one(connection, "select * from tailrace.advance_run(%s, 200000)", [run])
    return found | {"failed": step.get("records", 0), "delayed": delayed}


_STALE = """select p.name as pipeline, v.name as version, j.source_id, j.raw_id, j.n_rows, j.worker, j.attempt, j.crashes,
  extract(epoch from tailrace.clock() - j.lease_until)::float8 as seconds_past_lease
from tailrace.jobs j join tailrace.versions v on v.id = j.version_id join tailrace.pipelines p on p.id = v.pipeline_id
where j.state = 'c' and j.lease_until < tailrace.clock() order by j.lease_until limit 200"""


def stale(settings: Settings, action: str, *, json: bool, dry_run: bool) -> int:
    """Claims past their lease. `reset` does what a watchdog does each second: they come back as suspects, none is lost."""
    with connected(settings) as connection:
        found = rows(connection, _STALE)
        reset = {}
        if action == "reset" and not dry_run:
            reset = one(connection, "select * from tailrace.watch(%s, 100000)", [settings.worker.max_crashes])
        waiting = rows(connection, "select * from tailrace.unrunnable")
    if json:
        as_json({"stale": found, "unrunnable": waiting, "reset": reset})
        return 0
    print(f"{len(found)} claims past their lease")
    if found:
        show(found)
    for row in waiting:
        print(f"{row['records']} records of {row['pipeline']} {row['version']}: no worker that is up can run them")
    if reset:
        print(f"reset: {reset['rescued']} came back, {reset['buried']} buried, {reset['due']} due, {reset['deliveries']} deliveries")
    return 0
