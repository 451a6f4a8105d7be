"""The verdict on a finished run, by own SQL, the receiver's log and the writer's ledger; no code of the project.

    python tests/chaos/check.py --database URL --written ledger.jsonl --received received.jsonl

Exit code 0: nothing is wrong; 1: something is. The ledger has one line per record that was acknowledged ({source, id, v, how}) and one per version
that must be complete ({complete, pipeline}). The log of the receiver has one line per request ({kind, key, did}); `did` is processed, repeat
(a key that it knew, nothing was done) or refused. `how` says what has to become of a record: quick, slow, flaky, again end as ok, skip as skipped;
raise, late fail by themselves; exit, kill, hang take their worker down and are to be buried.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import psycopg

SHOWN = 5
ENDS = {"quick": "ok", "slow": "ok", "flaky": "ok", "again": "ok", "skip": "skipped"}  # everything else has to end as failed

QUERIES = {
    "duplicated: one content, two raw rows": """
        select s.name, r.external_id, r.payload ->> 'v', count(*) from tailrace.raw_records r join tailrace.sources s on s.id = r.source_id
        group by 1, 2, 3 having count(*) > 1""",
    "duplicated: holes or repeats in revisions": """
        select source_id, external_id, array_agg(revision order by revision) from tailrace.raw_records
        group by 1, 2 having count(*) <> max(revision) or count(distinct revision) <> count(*)""",
    "duplicated: two results": "select version_id, raw_id, rerun, count(*) from tailrace.results group by 1, 2, 3 having count(*) > 1",
    "duplicated: one wish written twice": """
        select version_id, raw_id, rerun, key, count(*) from tailrace.effects group by 1, 2, 3, 4 having count(*) > 1""",
    "both open and done": """
        select j.version_id, r.id, j.state, x.status from tailrace.jobs j
        join tailrace.raw_records r on r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to
        join tailrace.results x on x.version_id = j.version_id and x.raw_id = r.id and x.rerun >= j.rerun""",
    "never became quiet: open jobs": "select version_id, raw_id, raw_id_to, state, attempt, crashes, run_at, worker, lease_until from tailrace.jobs",
    "never became quiet: deliveries under way": "select key, state, attempts, next_at, error from tailrace.deliveries where state in ('pending', 'sending')",
    "never became quiet: open runs": "select id, kind, state, position, position_to from tailrace.runs where state in ('active', 'paused')",
    "the result of another record": """
        select x.version_id, r.id, r.payload, x.output from tailrace.results x join tailrace.raw_records r on r.id = x.raw_id
        where x.status = 'ok' and (x.output ->> 'id', x.output ->> 'v') is distinct from (r.payload ->> 'id', r.payload ->> 'v')""",
    "effects without a result of their record": """
        select e.id, e.raw_id from tailrace.effects e where not exists (
          select from tailrace.results x where x.version_id = e.version_id and x.raw_id = e.raw_id and x.rerun = e.rerun and x.status = 'ok')""",
    "released, but without a delivery": """
        select e.id, e.key from tailrace.effects e where e.verdict = 'released' and not exists (select from tailrace.deliveries d where d.key = e.key)""",
    "one key released twice": "select key, count(*) from tailrace.effects where verdict = 'released' group by 1 having count(*) > 1",
}
LIVE = """
    select p.name, v.name, s.name, r.id, r.payload ->> 'how', x.status
    from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id
    join tailrace.sources s on s.name like any (v.wants) join tailrace.raw_records r on r.source_id = s.id
    left join tailrace.results x on x.version_id = v.id and x.raw_id = r.id"""
DELIVERIES = "select key, kind, policy, state, attempts, error from tailrace.deliveries"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def of_records(db: psycopg.Connection, ledger: list[dict]) -> dict[str, list]:
    """Everything that was acknowledged is in raw; every record has its end in each version that must be complete."""
    stored = set(
        db.execute("select s.name, r.external_id, (r.payload ->> 'v')::int from tailrace.raw_records r join tailrace.sources s on s.id = r.source_id")
    )
    complete = {(line["pipeline"], line["complete"]) for line in ledger if "complete" in line}
    ends = db.execute(LIVE).fetchall()
    wanted = [row for row in ends if row[:2] in complete]
    return {
        "lost: acknowledged, but not in raw": [line for line in ledger if "id" in line and (line["source"], line["id"], line["v"]) not in stored],
        "lost: versions that nobody registered": [c for c in complete if c not in {row[:2] for row in ends}],
        "lost: raw without a result": [row for row in wanted if row[5] is None],
        "innocents buried": [row for row in ends if row[5] == "failed" and row[4] in ENDS],
        "a wrong end": [row for row in ends if row[5] not in (None, "failed") and row[5] != ENDS.get(row[4])],
    }


def of_deliveries(db: psycopg.Connection, received: list[dict]) -> dict[str, list]:
    """What left against what was to leave, by the policy of each kind."""
    done = Counter(line["key"] for line in received if line["did"] == "processed")
    released = {key for (key,) in db.execute("select key from tailrace.effects where verdict = 'released'")}
    rows = db.execute(DELIVERIES).fetchall()
    policy = {key: promise for key, _, promise, *_ in rows}
    return {
        "delivered twice": [(key, n, policy.get(key)) for key, n in done.items() if n > 1 and policy.get(key) != "never_lost"],
        "left without being released": [key for key in done if key not in released],
        "released, but never delivered": [row for row in rows if row[3] == "failed" or (row[3] == "sent" and not done[row[0]])],
        "uncertain where the policy knows": [row for row in rows if row[3] == "uncertain" and row[2] != "never_twice"],
        "cancelled by nobody": [row for row in rows if row[3] == "cancelled"],
    }


def figures(db: psycopg.Connection, ledger: list[dict], received: list[dict]) -> dict[str, object]:
    count = lambda query: db.execute(query).fetchone()[0]  # noqa: E731
    done = Counter(line["key"] for line in received if line["did"] == "processed")
    return {
        "records acknowledged": sum("id" in line for line in ledger),
        "raw records": count("select count(*) from tailrace.raw_records"),
        "results": count("select count(*) from tailrace.results"),
        "buried or failed": count("select count(*) from tailrace.results where status = 'failed'"),
        "claims lost and rescued (lines in histories)": count(
            "select count(*) from tailrace.results x, jsonb_array_elements(x.error) e where e ->> 'kind' = 'lease lost'"),
        "effects released": count("select count(*) from tailrace.effects where verdict = 'released'"),
        "effects suppressed": dict(db.execute("select reason, count(*) from tailrace.effects where verdict = 'suppressed' group by 1 order by 1")),
        "deliveries": dict(db.execute("select state, count(*) from tailrace.deliveries group by 1 order by 1")),
        "requests received": len(received),
        "repeats that the receiver knew by their key": sum(line["did"] == "repeat" for line in received),
        "repeats under never_lost, as promised": sum(n - 1 for key, n in done.items() if key.startswith("lossy:")),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="what a finished chaos run lost, repeated or left open")
    parser.add_argument("--database", required=True, help="URL of somebody who may read everything")
    parser.add_argument("--written", type=Path, required=True, help="the writer's ledger")
    parser.add_argument("--received", type=Path, required=True, help="the receiver's log")
    given = parser.parse_args()
    ledger, received = lines(given.written), lines(given.received)
    with psycopg.connect(given.database) as db, db.transaction():
        db.execute("set transaction isolation level repeatable read, read only")
        found = {name: db.execute(query).fetchall() for name, query in QUERIES.items()}
        found |= of_records(db, ledger) | of_deliveries(db, received)
        facts = figures(db, ledger, received)
    for name, value in facts.items():
        print(f"  {name:<46} {value}")
    print()
    for name, breaches in sorted(found.items()):
        print(f"  {'FAIL' if breaches else 'ok  '} {name:<46} {len(breaches)}")
        for breach in breaches[:SHOWN]:
            print(f"         {breach}")
    broken = sum(bool(b) for b in found.values())
    print(f"\n{'FAILED' if broken else 'PASSED'}: {len(found) - broken} of {len(found)} checks hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
