"""`tailrace explain RAW_ID`: one record, from raw to the world."""

from __future__ import annotations

from typing import Any

from ops.db import connected, one, rows
from ops.table import as_json, show
from worker.core.errors import TailraceError
from worker.core.settings import Settings

_QUERIES = {
    "revisions": "select r.id, r.revision, r.op, r.occurred_at, r.source_time, r.observed_at, encode(r.digest, 'hex') as digest, r.payload, "
    "octet_length(r.body) as body_bytes, r.meta from tailrace.raw_records r where r.source_id = %(source_id)s and r.external_id = %(external_id)s order by revision",
    "work": "select pipeline, version, status, attempt, crashes, rerun, run_at, worker, error, finished_at from tailrace.job_status where raw_id = %(id)s order by pipeline, version_id",
    "results": "select p.name as pipeline, v.name as version, v.state, v.fingerprint, x.rerun, x.status, x.output, x.confidence, x.needs_review, x.error, "
    "x.meta ->> 'input_hash' as input_hash, x.meta ->> 'input' as input, x.meta -> 'votes' as votes, v.spec ->> 'model' as model, "
    "(x.meta ->> 'cost')::float8 as cost, (x.meta ->> 'tokens_in')::float8 as tokens_in, (x.meta ->> 'tokens_out')::float8 as tokens_out, "
    "x.meta, x.started_at, x.finished_at "
    "from tailrace.results x join tailrace.versions v on v.id = x.version_id join tailrace.pipelines p on p.id = v.pipeline_id where x.raw_id = %(id)s "
    "order by p.name, v.id, x.rerun",
    "reviews": "select w.at, p.name as pipeline, w.decision, w.value, w.reviewer, v.name as version_seen from tailrace.reviews w join tailrace.pipelines p on p.id = w.pipeline_id "
    "left join tailrace.versions v on v.id = w.version_id where w.raw_id = %(id)s order by w.id",
    "effects": "select e.id, e.kind, e.target, e.key, e.verdict, e.reason, e.body, encode(e.body_hash, 'hex') as body_hash, d.state as delivery, d.attempts, d.remote_id from tailrace.effects e "
    "left join tailrace.deliveries d on d.key = e.key where e.raw_id = %(id)s order by e.id",
}


def explain(settings: Settings, raw_id: int, *, json: bool) -> int:
    with connected(settings) as connection:
        record = one(connection, "select r.id, r.source_id, r.external_id, s.name as source from tailrace.raw_records r "
                     "join tailrace.sources s on s.id = r.source_id where r.id = %s", [raw_id])  # fmt: skip
        if not record:
            last = one(connection, "select max(id) as n from tailrace.raw_records")["n"]
            raise TailraceError(f"there is no raw record {raw_id}", f"ids go up to {last}" if last else "raw is empty: start a collector")
        facts: dict[str, Any] = {"record": record} | {name: rows(connection, query, record) for name, query in _QUERIES.items()}
    if json:
        as_json(facts)
        return 0
    print(f"raw record {raw_id}: {record['external_id']} of {record['source']}")
    for name in _QUERIES:
        print(f"\n{name}")
        show(facts[name])
    return 0
