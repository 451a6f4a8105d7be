-- Pipelines and their versions: who is live, and what a new version starts with.

-- A worker says what it can run. Creates pipeline and version where they are new; a known name with another fingerprint is refused.
-- The first version of a pipeline becomes live and covers what raw already holds; with p_promote = 'on_start' a later new one
-- takes over the live pointer, with 'manual' it stays a candidate.
create or replace function tailrace.register_version(
  p_pipeline text, p_name text, p_fingerprint text, p_spec jsonb, p_slice_size int, p_wants text[], p_promote text, p_actor text)
returns table (version_id int, state text, created boolean, live text) language plpgsql
security definer set search_path = tailrace, pg_temp as $$
#variable_conflict use_column
declare
  v_pipeline pipelines;
  v_version versions;
begin
  perform durable();
  insert into pipelines (name) values (p_pipeline) on conflict (name) do nothing;
  select * into v_version from versions where pipeline_id = (select id from pipelines where name = p_pipeline) and name = p_name;
  if not found then
    perform pg_advisory_xact_lock(7411, 0);  -- no page is half written: it saw either no or the whole new version
    select * into v_pipeline from pipelines where name = p_pipeline for update;
    select * into v_version from versions where pipeline_id = v_pipeline.id and name = p_name;
  end if;
  if v_version.id is not null and v_version.fingerprint <> p_fingerprint then
    raise exception 'version % of pipeline % exists with another fingerprint', p_name, p_pipeline
      using errcode = 'TR010', detail = jsonb_build_object('stored', v_version.spec, 'given', p_spec)::text,
            hint = 'give the changed processor a new version name, or leave the name out to have one derived';
  end if;
  created := v_version.id is null;
  if created then
    insert into versions (pipeline_id, name, fingerprint, spec, state, slice_size, wants)
    values (v_pipeline.id, p_name, p_fingerprint, p_spec, 'candidate', p_slice_size, p_wants) returning * into v_version;
    execute format('create table results_v%s partition of results for values in (%s)', v_version.id, v_version.id);
    if v_pipeline.live_version_id is null then
      perform swap_live(v_version.id, p_actor);
      if exists (select from raw_records) then
        insert into runs (kind, version_id, spec, position_to)
        values ('cover', v_version.id, jsonb_build_object('lane', 2, 'wants', to_jsonb(p_wants)), (select max(id) from raw_records));
      end if;
    elsif p_promote = 'on_start' then
      perform swap_live(v_version.id, p_actor);
    elsif p_promote = 'shadow' then
      update versions set state = 'shadow', quiet = true where id = v_version.id;
    end if;
  elsif v_version.pruned_at is not null then  -- whoever runs it again begins with no results
    execute format('create table if not exists results_v%s partition of results for values in (%s)', v_version.id, v_version.id);
    update versions set pruned_at = null where id = v_version.id;
  elsif v_version.wants <> p_wants or v_version.slice_size <> p_slice_size or (v_version.state = 'candidate' and p_promote = 'shadow') then
    perform pg_advisory_xact_lock(7411, 0);
    update versions v set wants = p_wants, slice_size = p_slice_size,
      state = case when v.state = 'candidate' and p_promote = 'shadow' then 'shadow' else v.state end,
      quiet = v.quiet or (v.state = 'candidate' and p_promote = 'shadow')
    where id = v_version.id;
  end if;
  return query
    select v.id, v.state, created, l.name from versions v join pipelines p on p.id = v.pipeline_id
    left join versions l on l.id = p.live_version_id where v.id = v_version.id;
end $$;

-- Texts that versions are made of: {hash: text}. Each is stored once.
create or replace function tailrace.store_texts(p_texts jsonb) returns void language sql security definer set search_path = tailrace, pg_temp as $$
  insert into texts (hash, text) select key, value from jsonb_each_text(p_texts) order by key on conflict (hash) do nothing
$$;

-- candidate | shadow | retired -> live, live -> retired: who speaks for what comes from now on. Records that came before stay with the version
-- that had to speak for them; its open work that never ran goes along, the first slices at once, the rest by the watchdog. A canary ends.
create or replace function tailrace.swap_live(p_version int, p_actor text) returns int language plpgsql
security definer set search_path = tailrace, pg_temp as $$
declare
  v_version versions;
  v_old int;
begin
  perform durable();
  perform pg_advisory_xact_lock(7411, 0);
  select * into strict v_version from versions where id = p_version;
  select live_version_id into v_old from pipelines where id = v_version.pipeline_id for update;
  if v_old = p_version then
    return 0;
  end if;
  update versions set state = 'retired', quiet = false, share = null where id = v_old;
  update versions set share = null, quiet = (state = 'shadow') where pipeline_id = v_version.pipeline_id and share is not null and id <> p_version;
  update versions set state = 'live', quiet = false, share = null where id = p_version;
  update pipelines set live_version_id = p_version where id = v_version.pipeline_id;
  update live_history set live_until = clock() where pipeline_id = v_version.pipeline_id and live_until is null;
  insert into live_history values (v_version.pipeline_id, p_version, clock(), null, p_actor);
  return case when v_old is null then 0 else move_open_work(v_old, p_version, false, greatest(1, 2000 / v_version.slice_size)) end;
end $$;

-- candidate | shadow -> shadow that speaks for the buckets below p_percent; 0: a shadow that speaks for none. One canary of a pipeline at a time.
create or replace function tailrace.set_canary(p_version int, p_percent int) returns void language plpgsql
security definer set search_path = tailrace, pg_temp as $$
declare v_version versions;
begin
  perform durable();
  perform pg_advisory_xact_lock(7411, 0);
  select * into strict v_version from versions where id = p_version and state in ('candidate', 'shadow');
  update versions set share = null, quiet = (state = 'shadow') where pipeline_id = v_version.pipeline_id and share is not null;
  update versions set state = 'shadow', quiet = (p_percent = 0), share = nullif(p_percent, 0) where id = p_version;
  update versions set share = nullif(-p_percent, 0) where pipeline_id = v_version.pipeline_id and state = 'live';
end $$;

-- 0 to 99, by source and external id: all revisions of a record are in one bucket.
create or replace function tailrace.bucket(p_source text, p_external text) returns int language sql immutable parallel safe as $$
  select ((('x' || substr(md5(p_source || '/' || p_external), 1, 8))::bit(32)::bigint) % 100)::int
$$;

-- Unclaimed work of a retired version becomes work of its successor, where that one has neither work nor result for it: p_limit slices.
-- `offset 0`: asked job by job, on any statistics, until enough are found.
drop function if exists tailrace.move_open_work(int, int, boolean);
create or replace function tailrace.move_open_work(p_from int, p_to int, p_started boolean, p_limit int) returns int language plpgsql
security definer set search_path = tailrace, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare v_moved int;
begin
  perform pg_advisory_xact_lock(7412, p_to);
  update jobs j set version_id = p_to, share = null
  where j.ctid = any (array(  -- all are chosen before the first moves: what moved already is no neighbour to step over
    select j.ctid from jobs j
    where j.version_id = p_from and j.state <> 'c' and j.rerun = 0 and (p_started or (j.attempt = 0 and j.crashes = 0))
      and not exists (select from (select o.raw_id_to from jobs o where o.version_id = p_to and o.source_id = j.source_id and o.raw_id <= j.raw_id_to
                                   order by o.raw_id desc limit 1) o where o.raw_id_to >= j.raw_id)
      and not exists (select from raw_records r cross join lateral (select from results x where x.version_id = p_to and x.raw_id = r.id limit 1) x
                      where r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to offset 0)
    limit p_limit for update skip locked));
  get diagnostics v_moved = row_count;
  return v_moved;
end $$;

-- Work of a retired version that cannot simply move, since its successor has done a part of it as a shadow: what that part wished has stayed here,
-- and nobody is left to wish it. Such a record is done once more by the successor, aloud (its next rerun); what it has not done at all is opened.
create or replace function tailrace.hand_over(p_from int, p_to int, p_limit int) returns int language plpgsql
security definer set search_path = tailrace, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare v_moved int;
begin
  with taken as (
    delete from jobs j where j.ctid = any (array(
      select j.ctid from jobs j
      where j.version_id = p_from and j.state <> 'c' and j.rerun = 0
        and not exists (select from (select o.raw_id_to from jobs o where o.version_id = p_to and o.source_id = j.source_id and o.raw_id <= j.raw_id_to
                                     order by o.raw_id desc limit 1) o where o.raw_id_to >= j.raw_id)
      limit p_limit for update skip locked))
    returning j.*)
  insert into jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, rerun, quiet, run_at)
  select p_to, t.source_id, r.id, r.id, 1, t.lane, coalesce(x.rerun + 1, 0), t.quiet, clock()
  from taken t join raw_records r on r.source_id = t.source_id and r.id between t.raw_id and t.raw_id_to
  left join lateral (select rerun from results x where x.version_id = p_to and x.raw_id = r.id order by x.rerun desc limit 1) x on true
  where x.rerun is null or (not t.quiet and exists (select from effects e where e.version_id = p_to and e.raw_id = r.id and e.rerun = x.rerun and e.verdict = 'suppressed'
                                                   and e.reason = 'shadow' offset 0));
  get diagnostics v_moved = row_count;
  return v_moved;
end $$;

-- "I am here and can run this": for people and for `move_leftovers`; never used to decide whether a claim is alive.
create or replace function tailrace.seen(p_name text, p_kind text, p_versions int[], p_gates text[], p_info jsonb) returns void language sql as $$
  insert into tailrace.workers (name, kind, versions, gates, started_at, seen_at, info)
  values (p_name, p_kind, p_versions, p_gates, tailrace.clock(), tailrace.clock(), p_info)
  on conflict (name) do update set versions = excluded.versions, gates = excluded.gates, seen_at = excluded.seen_at, info = excluded.info;
$$;
