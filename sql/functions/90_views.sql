-- What people, dashboards and metrics read. Slices stay invisible: job_status has one row per record and version.

create or replace view tailrace.current_results as
select distinct on (x.version_id, x.raw_id) x.* from tailrace.results x order by x.version_id, x.raw_id, x.rerun desc;

create or replace view tailrace.job_status as
select r.id as raw_id, s.name as source, r.external_id, r.revision, p.name as pipeline, v.name as version,
       case j.state when 'c' then 'processing' else 'pending' end as status,
       j.attempt, j.crashes, j.error -> -1 ->> 'message' as error, j.run_at, j.worker, j.claimed_at, j.lease_until, j.lane, j.rerun,
       null::timestamptz as finished_at, v.id as version_id, r.source_id
from tailrace.raw_records r
cross join tailrace.versions v
cross join lateral (
  select * from tailrace.jobs j where j.version_id = v.id and j.source_id = r.source_id and j.raw_id <= r.id order by j.raw_id desc limit 1) j
join tailrace.pipelines p on p.id = v.pipeline_id
join tailrace.sources s on s.id = r.source_id
where j.raw_id_to >= r.id
union all
select r.id, s.name, r.external_id, r.revision, p.name, v.name, x.status, null, null, x.error -> -1 ->> 'message', null, null, null, null, null, x.rerun,
       x.finished_at, v.id, r.source_id
from tailrace.raw_records r
cross join tailrace.versions v
cross join lateral (select * from tailrace.results x where x.version_id = v.id and x.raw_id = r.id order by x.rerun desc limit 1) x
join tailrace.pipelines p on p.id = v.pipeline_id
join tailrace.sources s on s.id = r.source_id
where not exists (
    select from (select j.raw_id_to from tailrace.jobs j where j.version_id = x.version_id and j.source_id = r.source_id and j.raw_id <= x.raw_id
                 order by j.raw_id desc limit 1) o where o.raw_id_to >= x.raw_id);

-- The newest decision of a person, else what the version says that speaks for the record: the live one, or a canary for its buckets.
create or replace view tailrace.effective_results as
select r.id as raw_id, p.id as pipeline_id, p.name as pipeline, x.version_id, x.status,
       case when d.decision = 'edit' then d.value else x.output end as output,
       x.confidence, x.needs_review, d.decision, d.reviewer, d.at as decided_at
from tailrace.pipelines p
join tailrace.versions v on v.pipeline_id = p.id and (v.id = p.live_version_id or v.share > 0)
cross join tailrace.raw_records r
cross join lateral (select * from tailrace.results x where x.version_id = v.id and x.raw_id = r.id order by x.rerun desc limit 1) x
left join lateral (select * from tailrace.reviews w where w.pipeline_id = p.id and w.raw_id = r.id order by w.id desc limit 1) d0 on true
left join lateral (select d0.* where d0.decision <> 'undo') d on true
where v.share is null
   or (v.share > 0 and (select tailrace.bucket(s.name, r.external_id) from tailrace.sources s where s.id = r.source_id) < v.share)
   or (v.share < 0 and ((select tailrace.bucket(s.name, r.external_id) from tailrace.sources s where s.id = r.source_id) >= -v.share
                        or not exists (select from tailrace.versions c join tailrace.results y on y.version_id = c.id and y.raw_id = r.id
                                       where c.pipeline_id = p.id and c.share > 0)));

-- The one definition of what analytics may show: approved, edited-and-approved, or accepted by the pipeline itself.
create or replace view tailrace.approved_results as
select e.*, case when e.decision is null then 'auto' else e.decision end as approved_by
from tailrace.effective_results e
where e.status = 'ok' and (e.decision in ('approve', 'edit') or (e.decision is null and not e.needs_review));

-- Versions that have open work: one index probe each, whatever the planner knows.
create or replace view tailrace.working_versions as
with recursive t(id) as (
  (select j.version_id from tailrace.jobs j order by j.version_id limit 1)
  union all
  select (select j.version_id from tailrace.jobs j where j.version_id > t.id order by j.version_id limit 1) from t where t.id is not null)
select id from t where id is not null;

-- Age of the oldest record that is due, by the database's clock: the first thing to alert on. One index probe per source.
create or replace view tailrace.queue_lag as
with held as materialized (  -- one pass for all versions
  select j.version_id, j.lane, min(j.run_at) as run_at from (
    select version_id, lane, run_at from tailrace.jobs where state = 's'
    union all
    select version_id, lane, run_at from tailrace.jobs where state = 'c'
    union all
    select version_id, lane, run_at from tailrace.jobs where state = 'd' and run_at <= tailrace.clock()) j
  group by j.version_id, j.lane)
select p.name as pipeline, v.name as version, l.lane,
       coalesce(extract(epoch from tailrace.clock() - min(o.run_at)), 0)::float8 as seconds
from tailrace.versions v
join tailrace.pipelines p on p.id = v.pipeline_id
cross join (values (0), (1), (2)) l(lane)
left join lateral (
  select j.run_at from tailrace.sources s
  cross join lateral (select j.run_at from tailrace.jobs j
    where j.version_id = v.id and j.lane = l.lane and j.source_id = s.id and j.state = 'r' order by j.raw_id limit 1) j
  union all
  select h.run_at from held h where h.version_id = v.id and h.lane = l.lane) o on true
where v.state in ('live', 'shadow') or v.id in (select id from tailrace.working_versions)
group by p.name, v.name, l.lane;

create or replace view tailrace.queue_depth as
select p.name as pipeline, v.name as version, j.lane,
       case j.state when 'r' then 'ready' when 's' then 'suspect' when 'c' then 'claimed' else 'delayed' end as state, j.records
from (select version_id, lane, state, sum(n_rows)::bigint as records from tailrace.jobs group by version_id, lane, state) j
join tailrace.versions v on v.id = j.version_id join tailrace.pipelines p on p.id = v.pipeline_id;

-- Seconds since a source last brought something or was seen to have nothing more; of one that is asked now and then, seconds since it
-- should have been asked.
create or replace view tailrace.source_lag as
select s.name as source, s.active,
       greatest(extract(epoch from tailrace.clock() - coalesce(max(c.caught_up_at), s.created_at)) - coalesce((s.spec ->> 'every')::float8, 0), 0)::float8 as seconds,
       coalesce(sum(c.records), 0)::bigint as records, max(c.updated_at) as last_append
from tailrace.sources s left join tailrace.cursors c on c.source_id = s.id where s.active group by s.id;

-- Sources that say how long they may be silent (`silence` of [sources.X]), and whether they have been silent for longer.
create or replace view tailrace.source_silence as
select s.name as source, (s.spec ->> 'silence')::float8 as silence, extract(epoch from tailrace.clock() - coalesce(r.observed_at, s.created_at))::float8 as seconds,
       tailrace.clock() - coalesce(r.observed_at, s.created_at) > make_interval(secs => (s.spec ->> 'silence')::float8) as exceeded
from tailrace.sources s
left join lateral (  -- the newest of the source by the index on (source_id, id), which no other order of reading can answer
  select r.source_id, r.observed_at from tailrace.raw_records r where (r.source_id, r.id) <= (s.id, 9223372036854775807)
  order by r.source_id desc, r.id desc limit 1) r on r.source_id = s.id
where s.active and s.spec ->> 'silence' is not null;

-- Holes within what a source was seen to cover, in its time or in its dense ids.
create or replace view tailrace.source_gaps as
select s.name as source, greatest((select count(*) from unnest(c.times)), (select count(*) from unnest(c.ids)), 1) - 1 as gaps
from tailrace.coverage c join tailrace.sources s on s.id = c.source_id;

-- Backfills that are open: how far, at what size of chunk, held back by what.
create or replace view tailrace.backfill_progress as
select r.id as run, s.name as source, r.state, r.position as seen, nullif(r.position_to, 0) as total, r.records as stored,
       least(r.position::float8 / nullif(r.position_to, 0), 1) as ratio, c.no as chunks, c.size as chunk_size, c.decision ->> 'because' as because,
       r.reason, r.resume_at, extract(epoch from tailrace.clock() - r.created_at)::float8 as seconds
from tailrace.runs r join tailrace.sources s on s.id = r.source_id
left join lateral (select * from tailrace.chunks c where c.run_id = r.id order by c.no desc limit 1) c on true
where r.kind = 'backfill' and r.state in ('active', 'paused', 'failed');

create or replace view tailrace.unrunnable as
with idle as materialized (
  select v.id, p.name as pipeline, v.name as version
  from tailrace.working_versions o join tailrace.versions v on v.id = o.id join tailrace.pipelines p on p.id = v.pipeline_id
  where not exists (select from tailrace.workers w where v.id = any (w.versions) and w.seen_at > tailrace.clock() - interval '2 minutes'))
select i.pipeline, i.version, j.records
from idle i join (
  select version_id, sum(n_rows)::bigint as records from tailrace.jobs
  where exists (select from idle) and version_id = any (array(select id from idle)) group by version_id) j on j.version_id = i.id;

create or replace view tailrace.delivery_depth as
select kind, state, count(*)::bigint as deliveries, coalesce(extract(epoch from tailrace.clock() - min(created_at)), 0)::float8 as oldest_seconds
from tailrace.deliveries group by kind, state;

create or replace view tailrace.xmin_holders as
select 'backend' as holder, pid::text as name, age(backend_xmin) as xids, extract(epoch from tailrace.clock() - xact_start)::float8 as seconds
from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid()
union all select 'slot', slot_name, greatest(age(xmin), age(catalog_xmin)), null from pg_replication_slots where xmin is not null or catalog_xmin is not null
union all select 'prepared transaction', gid, age(transaction), extract(epoch from tailrace.clock() - prepared)::float8 from pg_prepared_xacts;
