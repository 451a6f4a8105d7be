"""`tailrace promote` and `tailrace rollback`: who is live. Both are one swap of a pointer in one transaction; nothing is computed, nothing is sent."""

from __future__ import annotations

import getpass
import hashlib
import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ops import chosen, gate
from ops.chosen import Version
from ops.db import Connection, connected, one, rows
from ops.table import as_json
from worker.core.config import Loaded
from worker.core.errors import Misconfigured
from worker.core.settings import Settings

_EXIT = {"pass": 0, "no gate": 0, "fail": 1, "not enough evidence": 2}
_RESULTS = """select count(*) as results from tailrace.results where version_id = %s"""
_LEFT = """select coalesce(sum(n_rows), 0)::bigint as open_of_old from tailrace.jobs where version_id = %s"""
_SINCE = """select coalesce((select r.id from tailrace.raw_records r
  where r.observed_at < (select max(live_until) from tailrace.live_history where version_id = %s) order by r.id desc limit 1), 0) as id"""
_COVER = """select count(*) as missing from tailrace.raw_records r join tailrace.sources s on s.id = r.source_id
where s.name like any (%s) and r.id > %s and not exists (select from tailrace.results x where x.version_id = %s and x.raw_id = r.id)"""


def promote(settings: Settings, loaded: Loaded, given: Any) -> int:
    """Exit code 0: it is live (or a canary) now; 1: the gate says no; 2: not enough evidence, or a wrong name."""
    folder = loaded.path.parent if loaded.path else Path.cwd()
    with connected(settings) as connection:
        pipeline = chosen.pipeline_of(connection, given.pipeline)
        version = chosen.find(connection, pipeline, given.version)
        live = chosen.find(connection, pipeline, None) if version.live_id else None
        if live and live.id == version.id:
            raise Misconfigured(f"{pipeline} {version.name} is live already", "`tailrace rollback` goes back to the one before")
        verdict, inputs = _judged(connection, settings, live, version, folder, ends=given.percent == 0)
        allowed = given.force or verdict["verdict"] in ("pass", "no gate")
        if not given.dry_run:
            _note(connection, version, live, verdict | {"inputs": inputs}, forced=given.force and _EXIT[verdict["verdict"]] != 0)
            if allowed:
                _swap(connection, version, given.percent)
        facts = verdict | {"inputs": inputs, "pipeline": pipeline, "version": version.name, "was": live.name if live else None, "percent": given.percent,
                           "swapped": allowed and not given.dry_run} | (one(connection, _LEFT, [live.id]) if live else {})  # fmt: skip
    if given.json:
        as_json(facts)
    else:
        _print(facts, dry_run=given.dry_run)
    return 0 if allowed else _EXIT[verdict["verdict"]]


def _judged(
    connection: Connection, settings: Settings, live: Version | None, version: Version, folder: Path, *, ends: bool
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What the gate says, and what it said it of. A canary that ends asks no gate: that is the way back."""
    pipeline = settings.pipelines.get(version.pipeline)
    asked = pipeline.gate if pipeline and live and not ends else None
    inputs: dict[str, Any] = {"live": live.fingerprint if live else None, "version": version.fingerprint}
    if asked is None or live is None:
        return asdict(gate.no_gate(version.pipeline, version.name, one(connection, _RESULTS, [version.id])["results"] if live else None)), inputs
    evidence = gate.evidence(connection, live, version, asked, folder)
    gold = {"gold_sha256": hashlib.sha256((folder / asked.gold).read_bytes()).hexdigest()} if asked.gold else {}
    return asdict(gate.judge(asked, evidence)), inputs | {"gate": asked.model_dump(exclude_defaults=True), "evidence": asdict(evidence)} | gold


def _note(connection: Connection, version: Version, live: Version | None, verdict: dict[str, Any], *, forced: bool) -> None:
    facts, inputs = (json_module.dumps(value, default=str, sort_keys=True) for value in (verdict, verdict["inputs"]))
    connection.execute("select tailrace.store_verdict(%s, %s, %s, %s, %s, %s, %s, %s)", [
        version.pipeline_id, version.id, live.id if live else None, verdict["verdict"], forced, facts, hashlib.sha256(inputs.encode()).hexdigest(), actor(),
    ])  # fmt: skip


def _swap(connection: Connection, version: Version, percent: int | None) -> None:
    if percent is None:
        connection.execute("select tailrace.swap_live(%s, %s)", [version.id, actor()])
    else:
        connection.execute("select tailrace.set_canary(%s, %s)", [version.id, percent])


def actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


def _print(facts: dict[str, Any], *, dry_run: bool) -> None:
    for line in facts.get("lines", ()):
        print(f"  {line}")
    print(f"gate: {facts['verdict']}")
    if not facts["swapped"]:
        print("would be swapped" if dry_run and facts["verdict"] in ("pass", "no gate") else "nothing was changed")
        return
    if facts["percent"] is not None:
        print(f"{facts['pipeline']}: {facts['version']} speaks for {facts['percent']} % of the records from now on, {facts['was']} for the others")
        return
    print(f"{facts['pipeline']}: {facts['version']} is live, {facts['was'] or 'none'} was; `tailrace rollback {facts['pipeline']}` goes back")
    if facts.get("open_of_old"):
        print(f"{facts['open_of_old']:,} open records of {facts['was']} go to it as they are unclaimed")


def rollback(settings: Settings, given: Any) -> int:
    """The version that was live before is live again; what came meanwhile is opened for it, quietly: the other one has spoken for it."""
    with connected(settings) as connection:
        pipeline = chosen.pipeline_of(connection, given.pipeline)
        live = chosen.find(connection, pipeline, None)
        target = chosen.find(connection, pipeline, given.to) if given.to else _previous(connection, live)
        since = one(connection, _SINCE, [target.id])["id"]
        missing = one(connection, _COVER, [target.wants, since, target.id])["missing"]
        run = None
        if not given.dry_run:
            connection.execute("select tailrace.swap_live(%s, %s)", [target.id, actor()])
            run = _cover(connection, target, since) if missing else None
    facts = {"pipeline": pipeline, "was": live.name, "version": target.name, "missing": missing, "run": run, "dry_run": given.dry_run}
    if given.json:
        as_json(facts)
    else:
        would = "would be" if given.dry_run else "is"
        print(
            f"{pipeline}: {target.name} {would} live again, {live.name} was"
            + (f"; {missing:,} records that came meanwhile {would} opened for it" if missing else "")
        )
    return 0


def _previous(connection: Connection, live: Version) -> Version:
    found = rows(connection, """select v.name from tailrace.live_history h join tailrace.versions v on v.id = h.version_id
        where h.pipeline_id = %s and h.live_until is not null and h.version_id <> %s order by h.live_until desc limit 1""", [live.pipeline_id, live.id])  # fmt: skip
    if not found:
        raise Misconfigured(f"no version of {live.pipeline} was live before {live.name}", "name one with --to")
    return chosen.find(connection, live.pipeline, found[0]["name"])


def _cover(connection: Connection, version: Version, since: int) -> int:
    spec = {"lane": 1, "quiet": True, "from": since}
    run = one(connection, "select tailrace.open_run('replay', %s, %s) as id", [version.id, json_module.dumps(spec)])["id"]
    return int(run)
