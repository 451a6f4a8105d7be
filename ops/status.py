"""`tailrace status`: what is where, on one screen."""

from __future__ import annotations

from typing import Any

from ops.db import Connection, connected, one, rows
from ops.sources import SOURCES
from ops.table import as_json, show
from worker.core.db import shown
from worker.core.embedded import database_url
from worker.core.settings import Settings

_PIPELINES = """
select p.name as pipeline, v.name as version, v.state,
  coalesce((select sum(n_rows) from tailrace.jobs j where j.version_id = v.id and j.state in ('r', 's')), 0)::bigint as waiting,
  coalesce((select sum(n_rows) from tailrace.jobs j where j.version_id = v.id and j.state = 'c'), 0)::bigint as in_work,
  coalesce((select sum(n_rows) from tailrace.jobs j where j.version_id = v.id and j.state = 'd'), 0)::bigint as delayed,
  coalesce(r.ok, 0) as ok, coalesce(r.skipped, 0) as skipped, coalesce(r.failed, 0) as failed
from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id
left join lateral (select count(*) filter (where status = 'ok') as ok, count(*) filter (where status = 'skipped') as skipped,
                   count(*) filter (where status = 'failed') as failed from tailrace.current_results x where x.version_id = v.id) r on true
order by p.name, v.id"""
_WORKERS = """select name, kind, extract(epoch from tailrace.clock() - seen_at)::int as seen_seconds_ago, gates,
  array(select p.name || '/' || v.name from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id where v.id = any (w.versions)) as runs
from tailrace.workers w where seen_at > tailrace.clock() - interval '2 minutes' order by name"""
RUNS = """select r.id, r.kind, coalesce(p.name, s.name) as subject, v.name as version, r.state, r.records, r.skipped,
  coalesce(round(100 * (select g.ratio from tailrace.replay_progress g where g.run = r.id and r.position >= r.position_to)::numeric, 1),
           round(100.0 * r.position / greatest(r.position_to, 1), 1))::float8 as percent,
  (select g.seconds_left from tailrace.replay_progress g where g.run = r.id)::int as seconds_left, r.reason, r.resume_at, r.created_at
from tailrace.runs r left join tailrace.versions v on v.id = r.version_id left join tailrace.pipelines p on p.id = v.pipeline_id
left join tailrace.sources s on s.id = r.source_id"""
_EFFECTS = """select kind, verdict, coalesce(reason, '') as reason, count(*) as effects from tailrace.effects group by 1, 2, 3 order by 1, 2, 3"""


def collect(connection: Connection, settings: Settings) -> dict[str, Any]:
    """The facts of `status`, as its JSON has them."""
    migration = one(connection, "select max(number) as n, current_setting('server_version') as v from tailrace.schema_migrations")
    facts: dict[str, Any] = {
        "database": {"url": shown(database_url(settings)), "server": migration["v"], "migration": migration["n"]},
        "enqueue": settings.enqueue,
        "gates": {kind: "open" if spec.open else "closed" for kind, spec in sorted(settings.effects.items())},
        "sources": rows(connection, SOURCES),
        "pipelines": rows(connection, _PIPELINES),
        "lag": rows(connection, "select pipeline, version, lane, seconds from tailrace.queue_lag where seconds > 0 order by 1, 2, 3"),
        "effects": rows(connection, _EFFECTS),
        "deliveries": rows(connection, "select * from tailrace.delivery_depth order by kind, state"),
        "workers": rows(connection, _WORKERS),
        "runs": rows(connection, RUNS + " where r.state in ('active', 'paused', 'failed') order by r.id"),
    }
    return facts | {"warnings": warnings(connection, facts)}


def warnings(connection: Connection, facts: dict[str, Any]) -> list[str]:
    """What a person should look at."""
    found = []
    if not facts["enqueue"]:
        found.append("TAILRACE_ENQUEUE=0: collectors with this setting store raw only and make no jobs")
    for row in rows(connection, "select * from tailrace.unrunnable"):
        found.append(
            f"{row['records']} open records of {row['pipeline']} {row['version']} can be run by no worker that is up: start one with that version"
        )
    stuck = one(connection, "select count(*) as n from tailrace.jobs where state = 'c' and lease_until < tailrace.clock() - interval '30 seconds'")[
        "n"
    ]
    if stuck:
        found.append(f"{stuck} claims are past their lease: no watchdog runs; start a worker or a collector, or `tailrace stale reset`")
    for row in facts["deliveries"]:
        if row["state"] == "uncertain":
            found.append(f"{row['deliveries']} deliveries of {row['kind']} are uncertain: look at the receiver, then `tailrace effects resolve KEY`")
        if row["state"] == "pending" and facts["gates"].get(row["kind"]) != "open":
            found.append(f"{row['deliveries']} deliveries of {row['kind']} wait, but its gate is closed in this configuration")
    return found + _about_sources(connection, facts["sources"])


def _about_sources(connection: Connection, sources: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in sources:
        if row["silent_too_long"]:
            found.append(f"{row['source']} has brought nothing for longer than the {row['silence_expected']:g} s that are expected of it")
    for row in rows(
        connection, "select name, reason, open_until from tailrace.quotas where breaker = 'open' and (open_until > tailrace.clock()) is not false"
    ):
        name = row["name"].removeprefix("source:")
        if row["open_until"]:
            found.append(f"{name} is held back until {row['open_until']:%H:%M:%S}: {row['reason']}")
        else:
            found.append(f"{name} is refused: {row['reason']}; mend it, then `tailrace sources retry {name.removesuffix(' catch-up')}`")
    return found


def status(settings: Settings, *, json: bool) -> int:
    with connected(settings) as connection:
        facts = collect(connection, settings)
    if json:
        as_json(facts)
        return 0
    d = facts["database"]
    print(f"database  {d['url']}  PostgreSQL {d['server']}, migration {d['migration']}")
    gates = ", ".join(f"{kind} {state}" for kind, state in facts["gates"].items()) or "none configured"
    print(f"gates     {gates} (in this configuration)\nenqueue   {'on' if facts['enqueue'] else 'OFF: raw only'}")
    shapes = (
        ("sources", ("source", "records", "lag_seconds", "last_append")), ("pipelines", ()), ("lag", ()), ("effects", ()),
        ("deliveries", ()), ("workers", ("name", "seen_seconds_ago", "runs", "gates")), ("runs", ("id", "kind", "subject", "version", "state", "records", "percent", "reason", "resume_at")),
    )  # fmt: skip
    for name, columns in shapes:
        print(f"\n{name}")
        show(facts[name], columns)
    if facts["warnings"]:
        print("\nlook at")
        for warning in facts["warnings"]:
            print(f"  {warning}")
    return 0
