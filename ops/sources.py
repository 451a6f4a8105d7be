"""Sources in one table, each with the worse of the breakers of its lanes, and the end of a breaker by a person's word."""

from __future__ import annotations

from ops.db import connected, rows
from ops.table import as_json, show
from worker.core.errors import Misconfigured, nearest
from worker.core.settings import Settings

SOURCES = """
select l.source, l.records, l.seconds as lag_seconds, l.last_append, s.active,
  (select count(*) from unnest(v.times)) as covered_spans, upper(v.times) as covered_until,
  coalesce(g.gaps, 0) as gaps, n.silence as silence_expected, n.exceeded as silent_too_long,
  (select round(100 * p.ratio)::int from tailrace.backfill_progress p where p.source = l.source order by p.run desc limit 1) as backfill_percent,
  coalesce(b.breaker, 'closed') as breaker, b.reason, b.open_until as resumes_at, q.remaining as quota, q.resets_at as quota_resets_at
from tailrace.source_lag l join tailrace.sources s on s.name = l.source
left join tailrace.coverage v on v.source_id = s.id
left join tailrace.source_gaps g on g.source = l.source
left join tailrace.source_silence n on n.source = l.source
left join lateral (select * from tailrace.source_breakers h where h.source = l.source
                   order by h.breaker <> 'closed' desc, h.open_until desc nulls first limit 1) b on true
left join lateral (select * from tailrace.quotas q where split_part(q.name, ':', 1) = s.kind and q.remaining is not null order by q.updated_at desc limit 1) q on true
order by l.source"""
_COLUMNS = ("source", "records", "lag_seconds", "covered_until", "gaps", "backfill_percent", "quota", "breaker", "resumes_at", "reason")


def sources(settings: Settings, action: str, name: str | None, *, json: bool, dry_run: bool) -> int:
    """`list`, or `retry NAME`: its breaker closes and the next call is made at once."""
    with connected(settings) as connection:
        found = rows(connection, SOURCES)
        if action == "list":
            as_json(found) if json else show(found, _COLUMNS, indent="")
            return 0
        if name not in {row["source"] for row in found}:
            raise Misconfigured(f"there is no source {name!r} in the database", nearest(name or "", [row["source"] for row in found]))
        held = next(row for row in found if row["source"] == name)
        if not dry_run:
            rows(connection, "select tailrace.retry_source(%s)", [name])
    if json:
        as_json({"source": name, "breaker": held["breaker"], "reason": held["reason"], "dry_run": dry_run})
    else:
        print(
            f"{name}: {'would be' if dry_run else 'is'} called again now (it was {held['breaker']}{': ' + held['reason'] if held['reason'] else ''})"
        )
    return 0
