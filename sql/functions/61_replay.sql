-- Replays: planned, opened, held within a budget, paused and cancelled. Opening is a run of 60_runs; a replay stays active until its work is done.

-- What a selection matches, by source: {sources, since, until, failed, force, set}. `wanted` has neither result nor open job (failed: its newest
-- result is failed).
create or replace function tailrace.plan_counts(p_version int, p_wants text[], p_spec jsonb)
returns table (source text, matching bigint, done bigint, open bigint, failed bigint) language sql stable
security definer set search_path = tailrace, pg_temp set work_mem = '64MB' as $$
  with chosen as (
    select s.id, s.name from sources s
    where s.name like any (p_wants) and (p_spec -> 'sources' is null or to_jsonb(s.id) <@ (p_spec -> 'sources'))),
  matched as (
    select r.source_id, count(*) as n from raw_records r
    where r.source_id in (select id from chosen)
      and (p_spec ->> 'since' is null or r.occurred_at >= (p_spec ->> 'since')::timestamptz)
      and (p_spec ->> 'until' is null or r.occurred_at < (p_spec ->> 'until')::timestamptz)
      and (p_spec ->> 'set' is null or r.id in (select set_members(p_spec ->> 'set')))
    group by 1),
  results_of as (
    select r.source_id, count(*) as n, count(*) filter (where x.status = 'failed') as failed
    from (select distinct on (x.raw_id) x.raw_id, x.status from results x where x.version_id = p_version order by x.raw_id, x.rerun desc) x
    join raw_records r on r.id = x.raw_id
    where r.source_id in (select id from chosen)
      and (p_spec ->> 'since' is null or r.occurred_at >= (p_spec ->> 'since')::timestamptz)
      and (p_spec ->> 'until' is null or r.occurred_at < (p_spec ->> 'until')::timestamptz)
      and (p_spec ->> 'set' is null or r.id in (select set_members(p_spec ->> 'set')))
    group by 1),
  open_of as (
    select j.source_id, sum(j.n_rows) as n from jobs j where p_spec ->> 'set' is null and j.version_id = p_version group by 1
    union all
    select r.source_id, count(*) from set_members(p_spec ->> 'set') m join raw_records r on r.id = m
    cross join lateral (select j.raw_id_to from jobs j where j.version_id = p_version and j.source_id = r.source_id and j.raw_id <= r.id
                        order by j.raw_id desc limit 1) j
    where p_spec ->> 'set' is not null and j.raw_id_to >= r.id group by 1)
  select c.name, m.n, coalesce(d.n, 0), coalesce(o.n, 0)::bigint, coalesce(d.failed, 0)
  from chosen c join matched m on m.source_id = c.id left join results_of d on d.source_id = c.id left join open_of o on o.source_id = c.id
  order by c.name
$$;

-- What a record of these versions has cost lately, by the newest p_sample results each: means and deviations. Null where nothing was noted.
create or replace function tailrace.measured_costs(p_versions int[], p_sample int)
returns table (version_id int, results bigint, cost double precision, cost_deviation double precision, cost_high double precision,
               tokens double precision, tokens_deviation double precision, latency double precision) language sql stable
security definer set search_path = tailrace, pg_temp as $$
  select v, count(*), avg(c), coalesce(stddev_samp(c), 0), percentile_cont(0.95) within group (order by c), avg(t), coalesce(stddev_samp(t), 0), avg(l)
  from unnest(p_versions) v
  cross join lateral (
    select (x.meta ->> 'cost')::float8 as c, coalesce((x.meta ->> 'tokens_in')::float8, 0) + (x.meta ->> 'tokens_out')::float8 as t,
           (x.meta ->> 'latency')::float8 as l
    from results x where x.version_id = v and x.status = 'ok' order by x.raw_id desc limit p_sample) x
  group by v
$$;

-- Records a second that these versions were settled at while they were busy: by minute, the median and the best of the last week.
create or replace function tailrace.measured_rate(p_versions int[]) returns table (usual double precision, best double precision) language sql stable
security definer set search_path = tailrace, pg_temp as $$
  select percentile_cont(0.5) within group (order by n / 60.0), max(n / 60.0)
  from (select date_trunc('minute', finished_at), sum(ok + skipped + failed)::float8 as n from settled
        where version_id = any (p_versions) and finished_at > clock() - interval '7 days' group by 1) m
$$;

-- Types of the fields of a version's newest outputs, with how many have them.
create or replace function tailrace.output_fields(p_version int, p_sample int) returns table (field text, types text[], present bigint, outputs bigint)
language sql stable security definer set search_path = tailrace, pg_temp as $$
  with sample as (select x.output from results x where x.version_id = p_version and x.status = 'ok' and x.output is not null order by x.raw_id desc limit p_sample)
  select f.key, array_agg(distinct jsonb_typeof(f.value)), count(*), (select count(*) from sample)
  from sample s cross join lateral jsonb_each(case when jsonb_typeof(s.output) = 'object' then s.output else jsonb_build_object('(value)', s.output) end) f
  group by 1 order by 1
$$;

create or replace function tailrace.store_plan(p_hash text, p_version int, p_spec jsonb, p_facts jsonb) returns void language sql
security definer set search_path = tailrace, pg_temp as $$
  insert into tailrace.plans (hash, version_id, spec, facts) values (p_hash, p_version, p_spec, p_facts) on conflict (hash) do nothing
$$;

-- Records that a version of the same fingerprint under another name has answered, and this one not.
create or replace function tailrace.answered_elsewhere(p_version int) returns table (from_version int, records bigint) language sql stable
security definer set search_path = tailrace, pg_temp as $$
  select o.id, count(*) from versions v join versions o on o.pipeline_id = v.pipeline_id and o.fingerprint = v.fingerprint and o.id <> v.id
  join results x on x.version_id = o.id and x.status in ('ok', 'skipped')
  where v.id = p_version and not exists (select from results y where y.version_id = p_version and y.raw_id = x.raw_id)
  group by o.id
$$;

-- The same answers need no second asking: they become results of this version, their effects intents of a replay. Not where a job is open.
create or replace function tailrace.take_over_answers(p_version int, p_from int) returns bigint language plpgsql
security definer set search_path = tailrace, pg_temp as $$
declare v_taken bigint;
begin
  perform durable();
  perform pg_advisory_xact_lock(7412, p_version);
  with taken as (
    insert into results (version_id, raw_id, rerun, status, output, confidence, needs_review, error, meta, started_at, finished_at)
    select p_version, x.raw_id, 0, x.status, x.output, x.confidence, x.needs_review, x.error,
           coalesce(x.meta, '{}') - 'cost' || jsonb_build_object('taken_from', p_from), x.started_at, clock()
    from current_results x join raw_records r on r.id = x.raw_id join versions v on v.id = p_version
    join sources s on s.id = r.source_id and s.name like any (v.wants)
    where x.version_id = p_from and x.status in ('ok', 'skipped')
      and not exists (select from results y where y.version_id = p_version and y.raw_id = x.raw_id)
      and not exists (select from (select j.raw_id_to from jobs j where j.version_id = p_version and j.source_id = r.source_id and j.raw_id <= r.id
                                   order by j.raw_id desc limit 1) o where o.raw_id_to >= r.id)
    returning raw_id),
  wished as (
    insert into effects (version_id, raw_id, rerun, kind, key, target, body, body_hash, verdict, reason, created_at)
    select p_version, e.raw_id, 0, e.kind, e.key, e.target, e.body, e.body_hash, 'suppressed', 'replay', clock()
    from taken t join effects e on e.version_id = p_from and e.raw_id = t.raw_id
    where e.rerun = (select max(x.rerun) from results x where x.version_id = p_from and x.raw_id = t.raw_id))
  select count(*) into v_taken from taken;
  return v_taken;
end $$;

-- active -> paused: a budget is spent, or its time is over, and nothing is being worked on. -> done: a replay's last job is settled.
create or replace function tailrace.watch_replays() returns int language plpgsql security definer set search_path = tailrace, pg_temp
set enable_seqscan = off as $$
declare v_changed int;
begin
  if not exists (select from runs r where r.kind = 'replay' and r.state = 'active' and r.position >= r.position_to) then return 0; end if;
  with judged as (
    select r.id, b.until <= clock() as late, coalesce(a.records = 0, false) as broke,
           exists (select from jobs j where j.version_id = r.version_id and j.lane = 2 and j.quiet) as working
    from runs r left join budgets b on b.run_id = r.id left join lateral affordable(array[b.version_id]) a on true
    where r.kind = 'replay' and r.state = 'active' and r.position >= r.position_to
    for update of r skip locked)
  update runs r set state = case when j.working then 'paused' else 'done' end, resume_at = null, updated_at = clock(),
    reason = case when not j.working then null when j.late then 'its time is over' else 'its budget is spent' end,
    finished_at = case when not j.working then clock() end
  from judged j
  where r.id = j.id and (not j.working or j.late
    or (j.broke and not exists (select from jobs c where c.version_id = r.version_id and c.state = 'c')));
  get diagnostics v_changed = row_count;
  return v_changed;
end $$;

-- A replay is given up: what nobody has begun of it is no longer open. What is claimed is finished; results stay.
create or replace function tailrace.cancel_replay(p_run bigint, p_reason text) returns bigint language plpgsql
security definer set search_path = tailrace, pg_temp as $$
declare
  v_run runs;
  v_gone bigint;
begin
  select * into v_run from runs where id = p_run and kind = 'replay' and state in ('active', 'paused', 'failed') for update;
  if not found then return null; end if;
  perform pg_advisory_xact_lock(7412, v_run.version_id);
  with gone as (
    delete from jobs j where (j.version_id, j.source_id, j.raw_id) in (
      select o.version_id, o.source_id, o.raw_id from jobs o
      where o.version_id = v_run.version_id and o.lane = 2 and o.quiet and o.state <> 'c' and o.raw_id <= v_run.position_to for update skip locked)
    returning n_rows)
  select coalesce(sum(n_rows), 0) into v_gone from gone;
  update runs set state = 'cancelled', reason = p_reason, resume_at = null, updated_at = clock(), finished_at = clock() where id = p_run;
  return v_gone;
end $$;

-- The open work of earlier replays of a version belongs to its newest one: its budget holds, and a pause of theirs is over.
create or replace function tailrace.take_over_replays(p_run bigint) returns int language plpgsql as $$
declare v_taken int;
begin
  update tailrace.runs o set state = 'done', reason = 'its rest is part of run ' || p_run, resume_at = null, updated_at = tailrace.clock(), finished_at = tailrace.clock()
  from tailrace.runs r
  where r.id = p_run and o.version_id = r.version_id and o.kind = 'replay' and o.id <> r.id and o.state in ('active', 'paused')
    and o.position >= o.position_to;
  get diagnostics v_taken = row_count;
  delete from tailrace.budgets b using tailrace.runs r where r.id = p_run and b.version_id = r.version_id and b.run_id <> p_run;
  return v_taken;
end $$;

-- How far replays are: opened, still to do, records a second of the last five minutes.
create or replace view tailrace.replay_progress as
select r.id as run, p.name as pipeline, v.name as version, r.state, r.records as opened, o.left_, r.records - o.left_ as done,
       (r.records - o.left_)::float8 / nullif(r.records, 0) as ratio, b.most as budget, b.spent, b.until, s.rate,
       o.left_ / nullif(s.rate, 0) as seconds_left, r.reason
from tailrace.runs r join tailrace.versions v on v.id = r.version_id join tailrace.pipelines p on p.id = v.pipeline_id
left join tailrace.budgets b on b.run_id = r.id
cross join lateral (select coalesce(sum(j.n_rows), 0)::bigint as left_ from tailrace.jobs j where j.version_id = r.version_id and j.lane = 2 and j.quiet) o
cross join lateral (select sum(ok + skipped + failed)::float8 / 300 as rate from tailrace.settled s
                    where s.version_id = r.version_id and s.lane = 2 and s.finished_at > tailrace.clock() - interval '5 minutes') s
where r.kind = 'replay' and r.state in ('active', 'paused', 'failed');
