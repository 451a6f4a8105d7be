"""`tailrace replay`: opens what a plan promised, in lane 2, as a run that can be paused, resumed, cancelled and held within a budget."""

from __future__ import annotations

import datetime as dt
import json as json_module
import threading
from typing import Any

from collector.progress import Progress
from ops import chosen, plan
from ops.chosen import Version
from ops.db import Connection, connected, one, rows
from ops.table import as_json
from worker.core import options
from worker.core.config import Loaded
from worker.core.errors import Misconfigured, nearest
from worker.core.settings import Settings
from worker.core.times import parse_seconds

STEP = 500_000  # raw ids in one transaction


def replay(settings: Settings, loaded: Loaded, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> int:
    """Exit code 0; 3 when, waited for, some of its records failed; 4 when it was paused or cancelled before its end."""
    with connected(settings) as connection:
        pipeline = chosen.pipeline_of(connection, given.pipeline)
        version = chosen.find_or_register(connection, settings, loaded, pipeline, given.version)
        spec, size = _promised(connection, version, given.plan) if given.plan else (chosen.selection(connection, given, window), given.sample)
        facts = plan.make(connection, version, spec, size)
        if given.plan is None:
            plan.keep(connection, version, facts)
        if given.dry_run:
            as_json(facts) if given.json else print(f"would open {facts['wanted']:,} records for {pipeline} {version.name}; nothing was changed")
            return 0
        taken = 0 if size or spec.get("failed") or spec.get("set") else _taken_over(connection, version)
        run = _open(connection, version, spec, size, facts, given)
        row = _step(connection, run, version)
        if given.json:
            as_json({"run": run, "plan": facts["hash"], "opened": row["records"], "taken_over": taken, "skipped": row["skipped"]})
        else:
            print(f"run {run}: opened {row['records']:,} records for {pipeline} {version.name}" + (f", {taken:,} answers taken over" if taken else "")
                  + f"; `tailrace runs` shows how far it is, `tailrace runs pause|resume|cancel {run}`")  # fmt: skip
        return _wait(connection, run, row["records"], version) if given.wait else 0


def _promised(connection: Connection, version: Version, digest: str) -> tuple[dict[str, Any], int | None]:
    row = one(connection, "select * from tailrace.plans where hash = %s", [digest])
    if not row:
        known = [r["hash"] for r in rows(connection, "select hash from tailrace.plans order by created_at desc limit 20")]
        raise Misconfigured(f"there is no plan {digest}", nearest(digest, known) if known else "`tailrace plan` makes one")
    if row["version_id"] != version.id:
        raise Misconfigured(f"plan {digest} is of another version", f"`tailrace plan {version.pipeline} {version.name}` makes one for this")
    spec = dict(row["spec"])
    size = spec.pop("sample", None)
    return spec, size


def _taken_over(connection: Connection, version: Version) -> int:
    found = rows(connection, "select * from tailrace.answered_elsewhere(%s)", [version.id])
    return sum(one(connection, "select tailrace.take_over_answers(%s, %s) as n", [version.id, r["from_version"]])["n"] for r in found)


def _open(connection: Connection, version: Version, spec: dict[str, Any], size: int | None, facts: dict[str, Any], given: Any) -> int:
    """The run and its budget, before anything of it can be claimed."""
    full = spec | {"lane": 2, "quiet": True, "watch": True, "plan": facts["hash"]} | ({"force": True} if given.force else {})
    if size is not None:
        full["raw_ids"] = chosen.sample(connection, version, spec, size)
    with connection.transaction():
        run = one(connection, "select tailrace.open_run('replay', %s, %s) as id", [version.id, json_module.dumps(full)])["id"]
        connection.execute("select tailrace.take_over_replays(%s)", [run])
        if given.budget is not None or given.time is not None:
            seconds = None if given.time is None else parse_seconds(given.time)
            connection.execute("select tailrace.set_budget(%s, %s, %s, %s, %s)", [version.id, run, given.budget, facts["cost_per_record"], seconds])
    return int(run)


def _step(connection: Connection, run: int, version: Version) -> dict[str, Any]:
    """Opens all of it; a worker's watchdog may take steps too."""
    progress = Progress(f"opening {version.name}")
    pause = threading.Event()
    while True:
        row = one(connection, "select * from tailrace.advance_run(%s, %s)", [run, STEP])
        if row:
            progress.show(row["position"], total=row["position_to"])
            if row["state"] != "active" or row["position"] >= row["position_to"]:
                return row
        else:
            pause.wait(0.05)


def _wait(connection: Connection, run: int, opened: int, version: Version) -> int:
    progress, pause = Progress(f"replay {version.name}", opened), threading.Event()
    while True:
        row = one(connection, "select * from tailrace.replay_progress where run = %s", [run])
        if not row or row["state"] != "active":
            break
        progress.show(row["done"], f"spent {row['spent']:.2f}" if row["spent"] else "")
        pause.wait(0.5)
    ended = one(connection, "select state, reason from tailrace.runs where id = %s", [run])
    progress.show(opened if ended["state"] == "done" else row.get("done", 0), last=True)
    if ended["state"] != "done":
        print(f"run {run} is {ended['state']}: {ended['reason']}")
        return options.WORK_LEFT
    failed = one(connection, "select count(*) as n from tailrace.current_results where version_id = %s and status = 'failed'", [version.id])["n"]
    return options.PARTLY if failed else options.OK
