"""`tailrace verify`: each invariant as one query; a row is a breach."""

from __future__ import annotations

from ops.db import connected, rows
from ops.table import as_json, show
from worker.core.settings import Settings

SHOWN = 5
CHECKS: dict[str, str] = {
    "duplicates: one revision stored twice in a row": """
        select raw_id, external_id from (select id as raw_id, external_id, digest,
          lag(digest) over (partition by source_id, external_id order by revision) as before from tailrace.raw_records) r where digest = before""",
    "revision holes": """
        select source_id, external_id, count(*) as revisions, max(revision) as newest from tailrace.raw_records
        group by 1, 2 having count(*) <> max(revision)""",
    "raw records of unknown sources": "select id as raw_id, source_id from tailrace.raw_records r where not exists (select from tailrace.sources s where s.id = r.source_id)",
    "results without a raw record": "select version_id, raw_id from tailrace.results x where not exists (select from tailrace.raw_records r where r.id = x.raw_id)",
    "effects without a raw record": "select id as effect, raw_id from tailrace.effects e where not exists (select from tailrace.raw_records r where r.id = e.raw_id)",
    "effects without a result": """
        select e.id as effect, e.raw_id from tailrace.effects e where not exists (
          select from tailrace.results x where x.version_id = e.version_id and x.raw_id = e.raw_id and x.rerun = e.rerun)""",
    "slices whose row count is wrong": """
        select j.version_id, j.source_id, j.raw_id, j.n_rows, n.found from tailrace.jobs j cross join lateral (
          select count(*) as found from tailrace.raw_records r where r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to) n where n.found <> j.n_rows""",
    "overlapping slices": """
        select version_id, source_id, raw_id, raw_id_to, following from (
          select version_id, source_id, raw_id, raw_id_to, lead(raw_id) over (partition by version_id, source_id order by raw_id) as following from tailrace.jobs) j
        where following <= raw_id_to""",
    "records both open and done (same rerun)": """
        select j.version_id, r.id as raw_id from tailrace.jobs j
        join tailrace.raw_records r on r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to
        join tailrace.results x on x.version_id = j.version_id and x.raw_id = r.id and x.rerun >= j.rerun""",
    "gaps: records of a live version that are neither open nor done": """
        select v.id as version_id, s.id as source_id, r.id as raw_id from tailrace.versions v
        join tailrace.sources s on s.name like any (v.wants)
        join tailrace.raw_records r on r.source_id = s.id
        where v.state = 'live' and r.observed_at >= v.created_at
          and not exists (select from tailrace.results x where x.version_id = v.id and x.raw_id = r.id)
          and not exists (select from (select j.raw_id_to from tailrace.jobs j where j.version_id = v.id and j.source_id = r.source_id and j.raw_id <= r.id
                          order by j.raw_id desc limit 1) o where o.raw_id_to >= r.id)
          and not exists (select from tailrace.runs u where u.version_id = v.id and u.state in ('active', 'paused') and r.id > u.position and r.id <= u.position_to)""",
    "released effects without a delivery": """
        select id as effect, key from tailrace.effects e where verdict = 'released' and not exists (select from tailrace.deliveries d where d.key = e.key)""",
    "deliveries without an effect": """
        select key, effect_id from tailrace.deliveries d where not exists (select from tailrace.effects e where e.id = d.effect_id and e.key = d.key)""",
    "deliveries sent without a line in the ledger": """
        select key from tailrace.deliveries d where state = 'sent' and not exists (
          select from tailrace.delivery_attempts a where a.key = d.key and (a.event = 'sent' or (a.event = 'resolved' and a.detail = 'to sent')))""",
    "deliveries sent twice": "select key, count(*) from tailrace.delivery_attempts where event = 'sent' group by key having count(*) > 1",
    "cursors that count other records than raw holds": """
        select c.source_id, c.records, r.stored from (select source_id, sum(records) as records from tailrace.cursors group by 1) c
        join (select source_id, count(*) as stored from tailrace.raw_records group by 1) r using (source_id) where r.stored <> c.records""",
    "pipelines whose live pointer and version disagree": """
        select p.name, p.live_version_id from tailrace.pipelines p left join tailrace.versions v on v.id = p.live_version_id
        where p.live_version_id is not null and (v.state <> 'live' or not exists (
          select from tailrace.live_history h where h.pipeline_id = p.id and h.version_id = v.id and h.live_until is null))""",
}


def verify(settings: Settings, *, json: bool) -> int:
    """Exit code 1 if any check finds something. One snapshot for all checks, so that work going on does not look like a breach."""
    with connected(settings) as connection, connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        found = {name: rows(connection, query) for name, query in CHECKS.items()}
    broken = {name: breaches for name, breaches in found.items() if breaches}
    if json:
        as_json({name: {"breaches": len(breaches), "examples": breaches[:SHOWN]} for name, breaches in found.items()})
        return 1 if broken else 0
    for name, breaches in found.items():
        print(f"{'FAIL' if breaches else 'ok  '}  {name}" + (f": {len(breaches)}" if breaches else ""))
        if breaches:
            show(breaches[:SHOWN], indent="        ")
    print(f"{len(CHECKS) - len(broken)} of {len(CHECKS)} checks passed")
    return 1 if broken else 0
