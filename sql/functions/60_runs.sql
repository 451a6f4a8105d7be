-- Open work for raw records that are already stored: the cover of a first version, replays, forced re-runs, retries of failures.

-- Opens a run. Waits for pages that are being written (each takes milliseconds), so that everything below the run's end is committed
-- and gets its slices from this run, everything above from append_staged.
-- p_spec: {lane, quiet, sources: [ids], since, until, max_records, failed, force, raw_ids, set: only its members, from: only raw ids above, watch: done when its work is}
create or replace function tailrace.open_run(p_kind text, p_version int, p_spec jsonb) returns bigint language plpgsql
security definer set search_path = tailrace, pg_temp as $$
declare v_run bigint;
begin
  perform durable();
  perform pg_advisory_xact_lock(7411, 0);
  insert into runs (kind, version_id, spec, position, position_to)
  values (p_kind, p_version, p_spec, coalesce((p_spec ->> 'from')::bigint, 0), coalesce((select max(id) from raw_records), 0)) returning id into v_run;
  return v_run;
end $$;

-- One step of a run: slices for the wanted among the next p_ids raw ids. Resumable anywhere; two steps of one version never overlap.
create or replace function tailrace.advance_run(p_run bigint, p_ids bigint)
returns table (state text, "position" bigint, position_to bigint, records bigint, skipped bigint) language plpgsql
security definer set search_path = tailrace, pg_temp set work_mem = '64MB' as $$
#variable_conflict use_column
declare
  v_run runs;
  v_size int;
  v_sources int[];
  v_to bigint;
  v_left bigint;
  v_records bigint;
  v_seen bigint;
begin
  select * into v_run from runs r where r.id = p_run for update skip locked;
  if not found then return; end if;
  if v_run.state = 'paused' and v_run.resume_at <= clock() then v_run.state := 'active'; end if;
  if v_run.state = 'active' and (v_run.position < v_run.position_to or not coalesce((v_run.spec ->> 'watch')::boolean, false)) then
    perform pg_advisory_xact_lock(7412, v_run.version_id);
    select slice_size into v_size from versions where id = v_run.version_id;
    select array_agg(s.id) into v_sources from sources s, versions v
      where v.id = v_run.version_id and s.name like any (v.wants)
        and (v_run.spec -> 'sources' is null or to_jsonb(s.id) <@ (v_run.spec -> 'sources'));
    v_to := least(v_run.position + p_ids, v_run.position_to);
    v_left := coalesce((v_run.spec ->> 'max_records')::bigint - v_run.records, 9223372036854775807);
    select * into v_records, v_seen from slice_range(v_run, v_size, v_sources, v_run.position + 1, v_to, v_left);
    v_run.records := v_run.records + v_records;
    v_run.skipped := v_run.skipped + v_seen - v_records;
    v_run.position := v_to;
    if v_to >= v_run.position_to or v_records >= v_left then
      v_run.position := v_run.position_to;
      v_run.state := case when (v_run.spec ->> 'watch')::boolean then 'active' else 'done' end;  -- a replay is done when its work is: watch_replays
    end if;
    update runs r set state = v_run.state, position = v_run.position, records = v_run.records, skipped = v_run.skipped, updated_at = clock(),
      finished_at = case when v_run.state = 'done' then clock() end, reason = null, resume_at = null where r.id = p_run;
  end if;
  return query select v_run.state, v_run.position, v_run.position_to, v_run.records, v_run.skipped;
end $$;

-- Slices of neighbours: rows of one source between which no other row of that source lies, of one rerun, at most p_size of them.
-- Planned for each window: a plan for any window takes few records for granted, and looks through all results of the window for each of them.
create or replace function tailrace.slice_range(p_run tailrace.runs, p_size int, p_sources int[], p_from bigint, p_to bigint, p_left bigint)
returns table (records bigint, seen bigint) language plpgsql security definer set search_path = tailrace, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  v_since timestamptz := (p_run.spec ->> 'since')::timestamptz;
  v_until timestamptz := (p_run.spec ->> 'until')::timestamptz;
  v_failed boolean := coalesce((p_run.spec ->> 'failed')::boolean, false);
  v_force boolean := coalesce((p_run.spec ->> 'force')::boolean, false);
  v_ids bigint[] := (select array_agg(i::bigint) from jsonb_array_elements_text(p_run.spec -> 'raw_ids') i);
  v_set int := set_id(p_run.spec ->> 'set');
  v_lane smallint := coalesce((p_run.spec ->> 'lane')::smallint, 2);
  v_quiet boolean := coalesce((p_run.spec ->> 'quiet')::boolean, false);
  v_plain boolean := v_since is null and v_until is null and v_ids is null and v_set is null and not v_failed and p_left > p_to - p_from;
  v_results boolean := exists (select from results x where x.version_id = p_run.version_id and x.raw_id between p_from and p_to);
  v_jobs boolean := exists (
    select from unnest(p_sources) s cross join lateral (
      select j.raw_id_to from jobs j where j.version_id = p_run.version_id and j.source_id = s and j.raw_id <= p_to order by j.raw_id desc limit 1) j
    where j.raw_id_to >= p_from);
begin
  if v_plain and not v_results and not v_jobs then  -- nothing of these was ever begun: no record has to be looked at
    with put as (
      insert into jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, quiet, run_at)
      select p_run.version_id, s, r.first, r.last, r.n, v_lane, v_quiet, clock()
      from unnest(p_sources) s cross join lateral (
        select min(i.id) as first, max(i.id) as last, count(*)::int as n
        from (select id, (row_number() over (order by id) - 1) / p_size as g from raw_records where source_id = s and id between p_from and p_to) i
        group by i.g) r
      order by r.first
      returning n_rows)
    select coalesce(sum(n_rows), 0), coalesce(sum(n_rows), 0) into records, seen from put;
  else
    with here as (
      select r.id, r.source_id, r.occurred_at, row_number() over (partition by r.source_id order by r.id) as n
      from raw_records r where r.id between p_from and p_to and r.source_id = any (p_sources)),
    asked as (
      select h.*, x.rerun as last_rerun, x.status as last_status
      from here h
      left join (select distinct on (x.raw_id) x.raw_id, x.rerun, x.status from results x
                 where v_results and x.version_id = p_run.version_id and x.raw_id between p_from and p_to order by x.raw_id, x.rerun desc) x on x.raw_id = h.id
      where (v_since is null or h.occurred_at >= v_since) and (v_until is null or h.occurred_at < v_until)
        and (v_ids is null or h.id = any (v_ids))
        and (v_set is null or h.id in (select m.raw_id from record_set_members m where m.set_id = v_set and m.raw_id between p_from and p_to))),
    wanted as (
      select a.id, a.source_id, a.n, coalesce(a.last_rerun + 1, 0)::smallint as rerun
      from asked a
      left join lateral (select j.raw_id_to from jobs j where v_jobs and j.version_id = p_run.version_id and j.source_id = a.source_id and j.raw_id <= a.id
                         order by j.raw_id desc limit 1) j on j.raw_id_to >= a.id
      where j.raw_id_to is null
        and case when v_failed then a.last_status = 'failed' when v_force then true else a.last_rerun is null end
      order by a.id limit p_left),
    islands as (
      select w.*, w.n - row_number() over (partition by w.source_id, w.rerun order by w.id) as island from wanted w),
    slices as (
      select i.*, (row_number() over (partition by i.source_id, i.rerun, i.island order by i.id) - 1) / p_size as g from islands i),
    put as (
      insert into jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, rerun, quiet, run_at)
      select p_run.version_id, source_id, min(id), max(id), count(*)::int, v_lane, rerun, v_quiet, clock()
      from slices group by source_id, rerun, island, g order by min(id)
      returning n_rows)
    select coalesce((select sum(n_rows) from put), 0), (select count(*) from asked) into records, seen;
  end if;
  return next;
end $$;

-- What a run would open, without opening anything.
create or replace function tailrace.count_wanted(p_version int, p_spec jsonb) returns table (source text, matching bigint, wanted bigint) language sql stable
security definer set search_path = tailrace, pg_temp as $$
  select s.name, count(*), count(*) filter (where j.raw_id_to is null and case
      when coalesce((p_spec ->> 'failed')::boolean, false) then x.status = 'failed'
      when coalesce((p_spec ->> 'force')::boolean, false) then true else x.rerun is null end)
  from raw_records r join sources s on s.id = r.source_id join versions v on v.id = p_version and s.name like any (v.wants)
  left join lateral (select rerun, status from results x where x.version_id = p_version and x.raw_id = r.id order by rerun desc limit 1) x on true
  left join lateral (select j.raw_id_to from jobs j where j.version_id = p_version and j.source_id = r.source_id and j.raw_id <= r.id
                     order by j.raw_id desc limit 1) j on j.raw_id_to >= r.id
  where (p_spec -> 'sources' is null or to_jsonb(s.id) <@ (p_spec -> 'sources'))
    and (p_spec ->> 'since' is null or r.occurred_at >= (p_spec ->> 'since')::timestamptz)
    and (p_spec ->> 'until' is null or r.occurred_at < (p_spec ->> 'until')::timestamptz)
  group by s.name order by s.name
$$;

-- delayed -> due now, by a person: all of a version, or only these records.
create or replace function tailrace.hasten(p_version int, p_ids bigint[]) returns int language plpgsql as $$
declare v_due int;
begin
  update tailrace.jobs set run_at = tailrace.clock()
  where version_id = p_version and state = 'd' and run_at > tailrace.clock() and (p_ids = '{}' or raw_id = any (p_ids));
  get diagnostics v_due = row_count;
  return v_due;
end $$;

create or replace function tailrace.set_run_state(p_run bigint, p_state text, p_reason text) returns boolean language plpgsql as $$
begin
  update tailrace.runs set state = p_state, reason = p_reason, resume_at = null, updated_at = tailrace.clock(),
    finished_at = case when p_state = 'cancelled' then tailrace.clock() end
  where id = p_run and state in ('active', 'paused', 'failed') and state <> p_state;
  return found;
end $$;

-- Daily partitions of the log of claims, a week ahead; a day for which rows already fell into the default partition stays there.
create or replace function tailrace.ensure_partitions() returns int language plpgsql security definer set search_path = tailrace, pg_temp as $$
declare
  v_day date;
  v_made int := 0;
begin
  if not pg_try_advisory_xact_lock(7413, 0) then return 0; end if;
  for v_day in select d::date from generate_series(clock()::date, clock()::date + 7, interval '1 day') d loop
    if to_regclass('tailrace.settled_' || to_char(v_day, 'YYYYMMDD')) is null
       and not exists (select from settled_default where finished_at >= v_day and finished_at < v_day + 1) then
      begin
        execute format('create table settled_%s partition of settled for values from (%L) to (%L)', to_char(v_day, 'YYYYMMDD'), v_day, v_day + 1);
        v_made := v_made + 1;
      exception when check_violation then  -- a settle wrote into the default partition meanwhile: the day stays there
      end;
    end if;
  end loop;
  return v_made;
end $$;
