-- source -> raw -> job: records, their jobs, the cursor and the coverage land together or not at all.

-- The page, in the order of the source. Filled by COPY in the same transaction (above some hundreds of records) or by append_raw itself.
create or replace function tailrace.stage() returns void language plpgsql as $$
begin
  create temporary table if not exists tailrace_stage (
    n           int not null,
    external_id text not null,
    op          text not null,
    digest      bytea not null,
    occurred_at timestamptz,
    source_time timestamptz,
    payload     jsonb,
    body        bytea,
    meta        jsonb
  ) on commit delete rows;
  create temporary table if not exists tailrace_known (
    n int not null, external_id text not null, revision int not null, digest bytea not null, source_time timestamptz) on commit delete rows;
  if exists (select from pg_temp.tailrace_stage) then  -- the page before, in the same transaction
    truncate pg_temp.tailrace_stage, pg_temp.tailrace_known;
  end if;
end $$;

-- Writes the staged page of one source. One writer per source at a time, so a source's ids rise in the order of commits
-- and a slice "ids from..to of this source" never gains a row afterwards.
create or replace function tailrace.append_staged(
  p_source int, p_position jsonb, p_lane int, p_enqueue boolean, p_expect jsonb,
  p_times tstzrange, p_ids int8range)
returns table (appended int, unchanged int, stale int, jobs int, first_id bigint, last_id bigint)
language plpgsql
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  v_now timestamptz := tailrace.clock();
  v_name text;
  v_total int;
  v_known int;
  v_position jsonb;
begin
  perform tailrace.durable();
  perform pg_advisory_xact_lock_shared(7411, 0);
  perform pg_advisory_xact_lock(7411, p_source);
  select name into v_name from tailrace.sources where id = p_source;
  if not found then
    raise exception 'source % is not registered', p_source using errcode = 'TR020', hint = 'register_sources first';
  end if;
  if p_expect is not null then
    select position into v_position from tailrace.cursors where source_id = p_source and lane = p_lane;
    if coalesce(v_position, '{}') <> coalesce(nullif(p_expect, 'null'::jsonb), '{}') then
      raise exception 'the position of % moved under this page', v_name
        using errcode = 'TR021', hint = 'another collector reads this source; read the position again and go on from there';
    end if;
  end if;

  select count(*) into v_total from pg_temp.tailrace_stage;
  if v_total > 0 then
    -- Records that raw has never seen and that the page holds once: the common case, without any comparison.
    insert into pg_temp.tailrace_known
    select s.n, s.external_id, r.revision, r.digest,
      case when r.source_time is not null or r.revision = 1 then r.source_time  -- a revision without a time is as late as those before it
           else (select max(o.source_time) from tailrace.raw_records o where o.source_id = p_source and o.external_id = s.external_id) end
    from pg_temp.tailrace_stage s
    cross join lateral (select r.revision, r.digest, r.source_time from tailrace.raw_records r
                        where r.source_id = p_source and r.external_id = s.external_id
                        order by r.revision desc limit 1) r;
    get diagnostics v_known = row_count;
    if v_known = 0 and not exists (select from pg_temp.tailrace_stage group by external_id having count(*) > 1) then
      with fresh as (
        insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, source_time, observed_at, payload, body, meta)
        select p_source, s.external_id, 1, s.op, s.digest, coalesce(s.occurred_at, s.source_time, v_now), s.source_time, v_now, s.payload, s.body, s.meta
        from pg_temp.tailrace_stage s order by s.n
        returning id)
      select count(*)::int, min(id), max(id) into appended, first_id, last_id from fresh;
      unchanged := 0; stale := 0;
    else
      select * into appended, unchanged, stale, first_id, last_id from tailrace.append_revisions(p_source, v_now);
    end if;
  else
    appended := 0; unchanged := 0; stale := 0;
  end if;

  jobs := 0;
  if appended > 0 and p_enqueue then
    insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, quiet, share, run_at)
    select v.id, p_source, g.lo, least(g.lo + v.slice_size - 1, last_id), least(v.slice_size, last_id - g.lo + 1)::int, p_lane, v.quiet, v.share, v_now
    from tailrace.versions v
    cross join lateral (select generate_series(first_id, last_id, v.slice_size) lo) g
    where v.state in ('live', 'shadow') and v_name like any (v.wants) and last_id - first_id + 1 = appended
    order by v.id, g.lo;
    get diagnostics jobs = row_count;
    if last_id - first_id + 1 <> appended then
      jobs := tailrace.slice_ids(p_source, first_id, last_id, p_lane);
    end if;
  end if;

  insert into tailrace.cursors as c (source_id, lane, position, records, updated_at, caught_up_at)
  values (p_source, p_lane, coalesce(p_position, '{}'), appended, v_now, case when appended > 0 then v_now end)
  on conflict (source_id, lane) do update set
    position = case when p_lane = 0 then coalesce(p_position, c.position) else c.position || coalesce(p_position, '{}') end, records = c.records + appended, updated_at = v_now,
    caught_up_at = case when appended > 0 then v_now else c.caught_up_at end;
  if p_times is not null or p_ids is not null then
    insert into tailrace.coverage as c (source_id, times, ids)
    values (p_source, coalesce(tstzmultirange(p_times), '{}'), coalesce(int8multirange(p_ids), '{}'))
    on conflict (source_id) do update set times = c.times + excluded.times, ids = c.ids + excluded.ids;
  end if;
  return next;
end $$;

-- The general case: some records are known, or the page holds one several times. In the page's order, each is compared with the
-- newest revision before it: same digest is no news, an older source_time never becomes a revision.
create or replace function tailrace.append_revisions(p_source int, p_now timestamptz)
returns table (appended int, unchanged int, stale int, first_id bigint, last_id bigint) language plpgsql as $$
#variable_conflict use_column
declare
  v_total int;
  v_row record;
  v_key text;
  v_revision int;
  v_digest bytea;
  v_time timestamptz;
  v_keep int[] := '{}';
  v_revisions int[] := '{}';
begin
  unchanged := 0; stale := 0; v_total := 0;
  for v_row in
    select s.n, s.external_id, s.digest, s.source_time, k.revision as known, k.digest as known_digest, k.source_time as known_time
    from pg_temp.tailrace_stage s left join pg_temp.tailrace_known k on k.n = s.n
    order by s.external_id collate "C", s.n
  loop
    v_total := v_total + 1;
    if v_key is distinct from v_row.external_id then
      v_key := v_row.external_id;
      v_revision := coalesce(v_row.known, 0);
      v_digest := v_row.known_digest;
      v_time := v_row.known_time;
    end if;
    if v_digest = v_row.digest then
      unchanged := unchanged + 1;
      v_time := greatest(v_time, v_row.source_time);
    elsif v_row.source_time < v_time then
      stale := stale + 1;
    else
      v_revision := v_revision + 1;
      v_digest := v_row.digest;
      v_time := coalesce(v_row.source_time, v_time);
      v_keep := v_keep || v_row.n;
      v_revisions := v_revisions || v_revision;
    end if;
  end loop;
  with fresh as (
    insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, source_time, observed_at, payload, body, meta)
    select p_source, s.external_id, u.revision, case when s.op = 'create' and u.revision > 1 then 'update' else s.op end, s.digest,
           coalesce(s.occurred_at, s.source_time, p_now), s.source_time, p_now, s.payload, s.body, s.meta
    from unnest(v_keep, v_revisions) u(n, revision) join pg_temp.tailrace_stage s on s.n = u.n
    order by s.n
    returning id)
  select count(*)::int, min(id), max(id) into appended, first_id, last_id from fresh;
  return next;
end $$;

-- Job slices for exactly the given rows where other sources' ids lie between them (another writer drew from the sequence meanwhile).
create or replace function tailrace.slice_ids(p_source int, p_from bigint, p_to bigint, p_lane int) returns int language plpgsql as $$
declare v_jobs int;
begin
  insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, quiet, share, run_at)
  select v.id, p_source, min(r.id), max(r.id), count(*)::int, p_lane, v.quiet, v.share, tailrace.clock()
  from tailrace.versions v
  join tailrace.sources s on s.id = p_source and s.name like any (v.wants)
  cross join lateral (select id, (row_number() over (order by id) - 1) / v.slice_size as g
                      from tailrace.raw_records where source_id = p_source and id between p_from and p_to) r
  where v.state in ('live', 'shadow')
  group by v.id, r.g;
  get diagnostics v_jobs = row_count;
  return v_jobs;
end $$;

-- A small page without COPY: arrays in, one round trip.
create or replace function tailrace.append_raw(
  p_source int, p_position jsonb, p_lane int, p_enqueue boolean, p_expect jsonb, p_times tstzrange, p_ids int8range,
  p_external text[], p_ops text[], p_digests bytea[], p_occurred timestamptz[], p_source_times timestamptz[],
  p_payloads jsonb[], p_bodies bytea[], p_metas jsonb[])
returns table (appended int, unchanged int, stale int, jobs int, first_id bigint, last_id bigint) language plpgsql as $$
begin
  perform tailrace.stage();
  insert into pg_temp.tailrace_stage
  select u.n, u.e, u.o, u.d, u.oc, u.st, u.p, u.b, u.m
  from unnest(p_external, p_ops, p_digests, p_occurred, p_source_times, p_payloads, p_bodies, p_metas)
       with ordinality u(e, o, d, oc, st, p, b, m, n);
  return query select * from tailrace.append_staged(p_source, p_position, p_lane, p_enqueue, p_expect, p_times, p_ids);
end $$;

-- What raw holds of a source, deletions left out: of these keys, and of the keys between two.
create or replace function tailrace.known_among(p_source int, p_keys text[]) returns setof text language sql stable
set enable_seqscan = off set enable_bitmapscan = off as $$
  select k from unnest(p_keys) k
  cross join lateral (select op from tailrace.raw_records r where r.source_id = p_source and r.external_id = k order by r.revision desc limit 1) r
  where r.op <> 'delete'
$$;

create or replace function tailrace.known_between(p_source int, p_first text, p_last text) returns setof text language sql stable
set enable_seqscan = off set enable_bitmapscan = off as $$
  select k from (
    select distinct on (r.external_id) r.external_id as k, r.op from tailrace.raw_records r
    where r.source_id = p_source and r.external_id between p_first and p_last order by r.external_id, r.revision desc) n
  where n.op <> 'delete' order by k
$$;

-- Reading the log by position without gaps: everything below the oldest running transaction is committed or gone, so half-open
-- ranges of xid partition the log. `id > last` loses rows that commit late.
create or replace function tailrace.raw_horizon() returns xid8 language sql stable as $$ select pg_snapshot_xmin(pg_current_snapshot()) $$;

create or replace function tailrace.read_raw(p_from xid8, p_to xid8) returns setof tailrace.raw_records language sql stable as $$
  select * from tailrace.raw_records where xid >= p_from and xid < least(p_to, tailrace.raw_horizon()) order by id
$$;
