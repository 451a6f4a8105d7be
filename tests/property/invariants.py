"""What must be true between any two statements, as SQL of its own: it reads tables, none of the project's views or functions."""

from __future__ import annotations

# Each query finds the rows that break the invariant.
BROKEN = {
    "two jobs of a version cover one record": """
        select a.version_id, a.source_id, a.raw_id from tailrace.jobs a join tailrace.jobs b
        on b.version_id = a.version_id and b.source_id = a.source_id and b.raw_id > a.raw_id and b.raw_id <= a.raw_id_to""",
    "the same job twice": "select version_id, source_id, raw_id from tailrace.jobs group by 1, 2, 3 having count(*) > 1",
    "a slice counts other records than it covers": """
        select j.* from tailrace.jobs j where j.n_rows <>
        (select count(*) from tailrace.raw_records r where r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to)""",
    "a slice does not begin and end at a record of its source": """
        select j.* from tailrace.jobs j where not exists (select from tailrace.raw_records r where r.id = j.raw_id and r.source_id = j.source_id)
        or not exists (select from tailrace.raw_records r where r.id = j.raw_id_to and r.source_id = j.source_id)""",
    "a record is both open and done": """
        select j.version_id, r.id from tailrace.jobs j
        join tailrace.raw_records r on r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to
        join tailrace.results x on x.version_id = j.version_id and x.raw_id = r.id and x.rerun = j.rerun""",
    "two results of one run of a record": "select version_id, raw_id, rerun from tailrace.results group by 1, 2, 3 having count(*) > 1",
    "a rerun without the one before": """
        select x.* from tailrace.results x where x.rerun > 0 and not exists (
        select from tailrace.results y where y.version_id = x.version_id and y.raw_id = x.raw_id and y.rerun = x.rerun - 1)""",
    "state, token and lease disagree": """
        select * from tailrace.jobs where (state = 'c') <> (token is not null) or (state = 'c') <> (lease_until is not null)
        or (state = 'c') <> (claimed_at is not null) or (state = 'c') <> (worker is not null)""",
    "a suspect that was in no crash": "select * from tailrace.jobs where state = 's' and crashes = 0",
    "failed without having reached a limit": """
        select x.* from tailrace.results x where x.status = 'failed' and x.error -> -1 ->> 'kind' <> 'failed'
        and (select count(*) from jsonb_array_elements(x.error) e where e ->> 'kind' = 'retry') < 3
        and (select count(*) from jsonb_array_elements(x.error) e where e ->> 'kind' = 'lease lost') < 3""",
    "the log of claims does not add up to the results": """
        select * from (select coalesce(sum(ok), 0) as ok, coalesce(sum(skipped), 0) as skipped, coalesce(sum(failed), 0) as failed,
                              coalesce(sum(retried), 0) as retried from tailrace.settled) s,
        (select count(*) filter (where status = 'ok') as x_ok, count(*) filter (where status = 'skipped') as x_skipped,
                count(*) filter (where status = 'failed') as x_failed from tailrace.results) x
        where ok <> x_ok or skipped <> x_skipped or x_failed not between failed and failed + retried""",
    "revisions of a record are not 1, 2, 3, ...": """
        select source_id, external_id from tailrace.raw_records group by 1, 2
        having count(*) <> max(revision) or min(revision) <> 1 or count(distinct revision) <> count(*)""",
    "a record comes twice in a row": """
        select * from (select source_id, external_id, digest, lag(digest) over (partition by source_id, external_id order by revision) as before
                       from tailrace.raw_records) r where digest = before""",
    "a revision is older than the one before": """
        select * from (select source_id, external_id, source_time, max(source_time) over (partition by source_id, external_id order by revision
                       rows between unbounded preceding and 1 preceding) as before from tailrace.raw_records) r where source_time < before""",
    "more than one live version": "select pipeline_id from tailrace.versions where state = 'live' group by 1 having count(*) > 1",
    "the live pointer points elsewhere": """
        select p.* from tailrace.pipelines p where live_version_id is distinct from
        (select id from tailrace.versions v where v.pipeline_id = p.id and v.state = 'live')""",
    "a key has two deliveries": "select key from tailrace.deliveries group by key having count(*) > 1",
    "a delivery of an effect that does not exist or has another key": """
        select d.* from tailrace.deliveries d where not exists (select from tailrace.effects e where e.id = d.effect_id and e.key = d.key)""",
    "an effect was released and has no delivery": """
        select e.* from tailrace.effects e where e.verdict = 'released' and not exists (select from tailrace.deliveries d where d.key = e.key)""",
    "a delivery that no gate let through": """
        select d.* from tailrace.deliveries d where not exists (select from tailrace.effects e where e.key = d.key and e.verdict = 'released')
        and not exists (select from tailrace.delivery_attempts a where a.key = d.key and a.event = 'released')""",
    "one key was sent twice": "select key from tailrace.delivery_attempts where event = 'sent' group by key having count(*) > 1",
    "sent, and the ledger does not know it": """
        select d.* from tailrace.deliveries d where d.state = 'sent' and not exists (
        select from tailrace.delivery_attempts a where a.key = d.key and (a.event = 'sent' or a.event = 'resolved' and a.detail = 'to sent'))""",
    "a delivery's state, token and lease disagree": """
        select * from tailrace.deliveries where (state = 'sending') <> (token is not null) or (state = 'sending') <> (lease_until is not null)""",
    "an effect of a result that is not there": """
        select e.* from tailrace.effects e where not exists (
        select from tailrace.results x where x.version_id = e.version_id and x.raw_id = e.raw_id and x.rerun = e.rerun)""",
}

# (version, raw id): how often it is covered by open work or done, at its first run.
COVERED = """
select version_id, id, sum(n)::int from (
  select j.version_id, r.id, 1 as n from tailrace.jobs j join tailrace.raw_records r on r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to
  where j.rerun = 0
  union all select version_id, raw_id, 1 from tailrace.results where rerun = 0) c group by 1, 2"""

RAW = "select coalesce(md5(string_agg(r::text, ',' order by id)), '') from tailrace.raw_records r where id <= %s"
EVERYTHING = """
select (select md5(coalesce(string_agg(j::text, ',' order by version_id, source_id, raw_id), '')) from tailrace.jobs j),
       (select md5(coalesce(string_agg(x::text, ',' order by version_id, raw_id, rerun), '')) from tailrace.results x),
       (select md5(coalesce(string_agg(e::text, ',' order by id), '')) from tailrace.effects e),
       (select md5(coalesce(string_agg(d::text, ',' order by key, created_at), '')) from tailrace.deliveries d),
       (select count(*) from tailrace.settled), (select count(*) from tailrace.raw_records)"""
