-- The queue. Every function is one arrow of the picture in sql/README.md.

-- Where is ready work for these versions? lane -1: suspects. Skip scan, one index probe per source. `low`: the first ready raw id, from where the
-- next claims look. Paused versions and the lane of paused replays are left out; `most`: so many records may be claimed within the budget of the replay.
create or replace function tailrace.peek(p_versions int[]) returns table (version_id int, lane int, source_id int, most bigint, low bigint) language sql stable
set enable_seqscan = off set enable_bitmapscan = off as $$
  with active as (
    select v, (select a.records from tailrace.affordable(array[v]) a) as most,
           exists (select from tailrace.runs r where r.version_id = v and r.kind = 'replay' and r.state = 'paused') as held
    from unnest(p_versions) v
    where not exists (select from tailrace.quotas q where q.name = 'version:' || v and q.breaker = 'open' and q.open_until > tailrace.clock()))
  select a.v, l.lane, s.source_id, case when l.lane = 2 then a.most end, s.low
  from active a join (values (0), (1), (2)) l(lane) on l.lane < 2 or not (a.held or coalesce(a.most, 1) = 0)
  cross join lateral (
    with recursive t(source_id, low) as (
      (select j.source_id, j.raw_id from tailrace.jobs j where j.version_id = a.v and j.lane = l.lane and j.state = 'r'
       order by j.source_id, j.raw_id limit 1)
      union all
      select n.source_id, n.raw_id from t
      cross join lateral (select j.source_id, j.raw_id from tailrace.jobs j
                          where j.version_id = a.v and j.lane = l.lane and j.state = 'r' and j.source_id > t.source_id
                          order by j.source_id, j.raw_id limit 1) n)
    select t.source_id, t.low from t limit 1000) s
  union all
  select a.v, -1, 0, null, s.raw_id from active a
  cross join lateral (select j.raw_id from tailrace.jobs j where j.version_id = a.v and j.state = 's' order by j.raw_id limit 1) s
$$;

-- Of which records of a slice the version speaks, as one number: 0 all, 1 none, 1000 + p buckets below p, 2000 + p buckets from p on.
create or replace function tailrace.voice(p_quiet boolean, p_share smallint) returns int language sql immutable parallel safe as $$
  select case when p_quiet then 1 when p_share is null then 0 when p_share > 0 then 1000 + p_share else 2000 - p_share end
$$;

-- ready -> claimed: some slices of each given source, in the given order of sources, from the given lower bounds (a hint: a wrong
-- one delays, never loses). Returns the raw records of the claim; `job` is the header of a slice and stands on its first record:
-- source_id, raw_id, raw_id_to, n_rows, lane, rerun, attempt, crashes, voice; only source_id for a single record at its first try.
-- Times are in Postgres's binary form (microseconds since 2000): few processors ask for them, so few are decoded.
create or replace function tailrace.claim_jobs(
  p_token uuid, p_worker text, p_version int, p_lane int, p_sources int[], p_lows bigint[], p_per_source int, p_limit int,
  p_lease double precision)
returns table (job bigint[], due bytea, error jsonb, id bigint, external_id text, revision int, op text, occurred_at bytea,
               source_time bytea, observed_at bytea, payload jsonb, body bytea, meta jsonb)
language plpgsql
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare v_now timestamptz := tailrace.clock();
begin
  -- For the whole transaction (a `set` of the function would end before the commit): a claim that a crash of the server forgets is
  -- refused by the fence, so nobody has to wait for the disk.
  perform set_config('synchronous_commit', 'off', true);
  return query
  with mine as (
    update tailrace.jobs j
    set state = 'c', token = p_token, worker = p_worker, claimed_at = v_now, lease_until = v_now + make_interval(secs => p_lease)
    where j.ctid = any (array(  -- the rows that we hold locked; one that somebody changed after our snapshot stays for the next claim
      select j.ctid from unnest(p_sources, p_lows) l(source_id, low)
      cross join lateral (
        select j.ctid from tailrace.jobs j
        where j.version_id = p_version and j.lane = p_lane and j.source_id = l.source_id and j.state = 'r' and j.raw_id >= l.low
        order by j.raw_id limit p_per_source for update skip locked) j
      limit p_limit))
    returning j.source_id, j.raw_id, j.raw_id_to, j.n_rows, j.lane, j.rerun, j.attempt, j.crashes, j.quiet, j.share, j.run_at, j.error)
  select case when r.id <> m.raw_id then null
              when m.n_rows = 1 and m.attempt = 0 and m.rerun = 0 and m.crashes = 0 and not m.quiet and m.share is null then array[m.source_id]
              else array[m.source_id, m.raw_id, m.raw_id_to, m.n_rows, m.lane, m.rerun, m.attempt, m.crashes, tailrace.voice(m.quiet, m.share)] end,
         case when r.id = m.raw_id then timestamptz_send(m.run_at) end, case when r.id = m.raw_id then m.error end,
         r.id, r.external_id, r.revision, r.op, timestamptz_send(r.occurred_at), timestamptz_send(r.source_time),
         timestamptz_send(r.observed_at), r.payload, r.body, r.meta
  from mine m cross join lateral (  -- ordered slice by slice: settling a prefix goes by it, and which index is read is the planner's choice
    select * from tailrace.raw_records r where r.source_id = m.source_id and r.id between m.raw_id and m.raw_id_to order by r.id) r;
end $$;

-- suspect -> claimed: one slice, alone, from a lower bound as above.
drop function if exists tailrace.claim_suspect(uuid, text, int, double precision);
create or replace function tailrace.claim_suspect(p_token uuid, p_worker text, p_version int, p_lease double precision, p_low bigint default 0)
returns table (job bigint[], due bytea, error jsonb, id bigint, external_id text, revision int, op text, occurred_at bytea,
               source_time bytea, observed_at bytea, payload jsonb, body bytea, meta jsonb)
language plpgsql
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare v_now timestamptz := tailrace.clock();
begin
  return query
  with mine as (
    update tailrace.jobs j
    set state = 'c', token = p_token, worker = p_worker, claimed_at = v_now, lease_until = v_now + make_interval(secs => p_lease)
    where j.ctid = any (array(
      select j.ctid from tailrace.jobs j where j.version_id = p_version and j.state = 's' and j.raw_id >= p_low
      order by j.raw_id limit 1 for update skip locked))
    returning j.*)
  select case when r.id = m.raw_id
              then array[m.source_id, m.raw_id, m.raw_id_to, m.n_rows, m.lane, m.rerun, m.attempt, m.crashes, tailrace.voice(m.quiet, m.share)] end,
         case when r.id = m.raw_id then timestamptz_send(m.run_at) end, case when r.id = m.raw_id then m.error end,
         r.id, r.external_id, r.revision, r.op, timestamptz_send(r.occurred_at), timestamptz_send(r.source_time),
         timestamptz_send(r.observed_at), r.payload, r.body, r.meta
  from mine m join tailrace.raw_records r on r.source_id = m.source_id and r.id between m.raw_id and m.raw_id_to order by r.id;
end $$;

-- claimed -> claimed: the leases of these claims last p_lease from now, never past the cap of each. What does not come back is lost.
create or replace function tailrace.beat(p_tokens uuid[], p_caps double precision[], p_lease double precision)
returns setof uuid language sql set enable_seqscan = off as $$
  select set_config('synchronous_commit', 'off', true);
  with beaten as (
    update tailrace.jobs j
    set lease_until = least(tailrace.clock() + make_interval(secs => p_lease), j.claimed_at + make_interval(secs => u.cap))
    from unnest(p_tokens, p_caps) u(token, cap)
    where j.token = u.token and j.state = 'c' and j.lease_until >= tailrace.clock()
    returning j.token)
  select distinct token from beaten
$$;

-- claimed -> ready: SIGTERM, a paused version. Costs neither an attempt nor a crash.
create or replace function tailrace.give_back(p_tokens uuid[]) returns int language plpgsql set enable_seqscan = off as $$
declare v_given int;
begin
  update tailrace.jobs set state = case when crashes > 0 and error -> -1 ->> 'kind' = 'lease lost' then 's' else 'r' end::"char",
    token = null, worker = null, claimed_at = null, lease_until = null
  where token = any(p_tokens) and state = 'c';
  get diagnostics v_given = row_count;
  return v_given;
end $$;

-- claimed -> done: results, effects, deliveries, retries and the removal of the job commit together, and only if every slice named
-- is still held by its token. A slice with `next` keeps the rest (n rows from raw id `next` on) under the same claim.
-- Arrays are parallel; sources and tokens of one element hold for every slice; counts that are null mean that every record is ok (of
-- one-row slices even p_ok may be missing); ids that are null are all that the slices cover, which must then be without gaps; a null
-- array of results means its default for every row (ok, no output, ...).
create or replace function tailrace.settle(
  p_version int, p_worker text, p_mode text, p_gates jsonb,
  p_sources int[], p_raws bigint[], p_tokens uuid[], p_nexts bigint[], p_lefts int[],
  p_ok int[], p_skipped int[], p_failed int[], p_retried int[],
  p_ids bigint[], p_reruns smallint[], p_statuses text[], p_outputs jsonb[], p_confidences real[], p_reviews boolean[],
  p_errors jsonb[], p_metas jsonb[], p_started timestamptz[],
  p_retries jsonb, p_effects jsonb)
returns table (released int, suppressed int, buried int) language plpgsql
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := tailrace.clock();
  v_slices int;
  v_rows bigint;
  v_started timestamptz;
  v_ids bigint[] := coalesce(p_ids, p_raws);
  v_given bigint;
begin
  released := 0; suppressed := 0; buried := 0;
  if p_nexts is null and p_skipped is null then  -- whole slices, all ok: found by their claims alone
    with gone as (
      delete from tailrace.jobs j
      where j.token = any (p_tokens) and j.state = 'c' and j.version_id = p_version and j.raw_id = any (p_raws)
      returning j.source_id, j.lane, j.n_rows, j.raw_id, j.raw_id_to, j.run_at, j.claimed_at, j.token),
    logged as (
      insert into tailrace.settled (finished_at, version_id, source_id, lane, raw_id, raw_id_to, ok, skipped, failed, retried, due_at, claimed_at, token, worker)
      select v_now, p_version, source_id, lane, min(raw_id), max(raw_id_to), sum(n_rows), 0, 0, 0, min(run_at), min(claimed_at), (array_agg(token))[1], p_worker
      from gone group by source_id, lane)
    select count(*), coalesce(sum(n_rows), 0), min(claimed_at),
           case when p_ids is null and p_ok is not null then array(select i from gone cross join generate_series(gone.raw_id, gone.raw_id_to) i) else v_ids end
    into v_slices, v_rows, v_started, v_ids from gone;
  else
    with named as (
      select coalesce(source_id, p_sources[1]) as source_id, raw_id, coalesce(token, p_tokens[1]) as token, next, remaining, ok, skipped, failed, retried
      from unnest(p_sources, p_raws, p_tokens, p_nexts, p_lefts, p_ok, p_skipped, p_failed, p_retried)
        u(source_id, raw_id, token, next, remaining, ok, skipped, failed, retried)),
    gone as (
      delete from tailrace.jobs j using named u
      where u.next is null and j.version_id = p_version and j.source_id = u.source_id and j.raw_id = u.raw_id and j.token = u.token
      returning j.source_id, j.lane, j.n_rows as done, j.raw_id, j.raw_id_to, j.run_at, j.claimed_at, j.token, u.ok, u.skipped, u.failed, u.retried),
    cut as (
      update tailrace.jobs j set raw_id = u.next, n_rows = u.remaining
      from named u
      where u.next is not null and j.version_id = p_version and j.source_id = u.source_id and j.raw_id = u.raw_id and j.token = u.token
        and u.next > u.raw_id and u.next <= j.raw_id_to
      returning j.source_id, j.lane, u.ok + u.skipped + u.failed + u.retried as done, u.raw_id, u.next - 1, j.run_at, j.claimed_at, j.token,
                u.ok, u.skipped, u.failed, u.retried),
    both_ as (select * from gone union all select * from cut),
    logged as (
      insert into tailrace.settled (finished_at, version_id, source_id, lane, raw_id, raw_id_to, ok, skipped, failed, retried, due_at, claimed_at, token, worker)
      select v_now, p_version, source_id, lane, min(raw_id), max(raw_id_to), sum(coalesce(ok, done)), sum(coalesce(skipped, 0)),
             sum(coalesce(failed, 0)), sum(coalesce(retried, 0)), min(run_at), min(claimed_at), (array_agg(token))[1], p_worker
      from both_ group by source_id, lane)
    select count(*), coalesce(sum(done), 0), min(claimed_at) into v_slices, v_rows, v_started from both_;
  end if;

  if v_slices <> cardinality(p_raws) then
    raise exception 'only % of % slices are still ours', v_slices, cardinality(p_raws)
      using errcode = 'TR002', hint = 'the lease ran out and the records went to another worker; drop what was computed for them';
  end if;
  v_given := cardinality(v_ids) + coalesce(jsonb_array_length(p_retries), 0);
  if v_rows <> v_given or v_rows <> (select sum(n) from unnest(p_ok || p_skipped || p_failed || p_retried) n) then
    raise exception 'the slices hold % rows, % outcomes were given', v_rows, v_given
      using errcode = 'TR003', hint = 'each raw record of a slice needs exactly one outcome';
  end if;

  if p_statuses is null and p_outputs is null and p_reruns is null and p_metas is null and p_confidences is null and p_started is null then
    insert into tailrace.results (version_id, raw_id, rerun, status, token, started_at, finished_at)
    select p_version, i, 0::smallint, 'ok', p_tokens[1], v_started, v_now from unnest(v_ids) i;
  else
    insert into tailrace.results (version_id, raw_id, rerun, status, output, confidence, needs_review, error, meta, token, started_at, finished_at)
    select p_version, u.id, coalesce(u.rerun, 0::smallint), coalesce(u.status, 'ok'), u.output, u.confidence, coalesce(u.review, false), u.error, u.meta,
           p_tokens[1], coalesce(u.started, v_started), v_now
    from unnest(v_ids, p_reruns, p_statuses, p_outputs, p_confidences, p_reviews, p_errors, p_metas, p_started)
      u(id, rerun, status, output, confidence, review, error, meta, started);
  end if;
  if p_metas is not null and exists (select from tailrace.budgets where version_id = p_version) then
    perform tailrace.pay(p_version, p_metas, cardinality(v_ids));
  end if;
  if p_effects is not null then
    select * into released, suppressed from tailrace.decide_effects(p_version, p_mode, p_gates, p_effects);
  end if;
  if p_retries is not null then
    buried := tailrace.delay_or_bury(p_version, p_retries);
  end if;
  return next;
end $$;

-- claimed -> delayed, or failed when the attempts are used up. The one place where an attempt is counted. After `max_attempts` quick
-- tries come `retry_rounds` slow ones, `retry_after` apart; then the record waits for `tailrace retry`.
-- p_retries: [{source, raw, rerun, lane, quiet, share, attempt, crashes, counts, after, error, history}]
create or replace function tailrace.delay_or_bury(p_version int, p_retries jsonb) returns int language plpgsql as $$
declare
  v_now timestamptz := tailrace.clock();
  v_spec jsonb := (select spec from tailrace.versions where id = p_version);
  v_max int := coalesce((v_spec ->> 'max_attempts')::int, 8);
  v_rounds int := coalesce((v_spec ->> 'retry_rounds')::int, 3);
  v_base float8 := coalesce((v_spec ->> 'retry_base')::float8, 1);
  v_slow float8 := coalesce((v_spec ->> 'retry_after')::float8, 14400);
  v_buried int;
begin
  with r as (
    select x.*, x.attempt + x.counts::int as tries,
           coalesce(x.history, '[]') || jsonb_build_array(x.error || jsonb_build_object('at', v_now)) as errors
    from jsonb_to_recordset(p_retries) x(source int, raw bigint, rerun smallint, lane smallint, quiet boolean, share smallint, attempt int, crashes smallint,
                                         counts boolean, after float8, error jsonb, history jsonb)),
  later as (
    insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, rerun, quiet, share, state, attempt, crashes, run_at, error)
    select p_version, source, raw, raw, 1, lane, rerun, quiet, share, 'd', tries, crashes,
           v_now + make_interval(secs => case
             when after is not null then after
             when tries >= v_max then v_slow
             else least(v_base * 2 ^ greatest(tries - 1, 0), 3600) * (0.5 + random()) end),
           jsonb_path_query_array(errors, '$[last - 19 to last]')
    from r where tries < v_max + v_rounds
    returning 1)
  insert into tailrace.results (version_id, raw_id, rerun, status, error, finished_at)
  select p_version, raw, rerun, 'failed', errors, v_now from r where tries >= v_max + v_rounds;
  get diagnostics v_buried = row_count;
  return v_buried;
end $$;

-- The watchdog, in every daemon, no leader: everything skips what is locked and may run any number of times at once.
create or replace function tailrace.watch(p_max_crashes int, p_limit int)
returns table (rescued int, buried int, due int, moved int, deliveries int, runs int, dead_rows bigint) language plpgsql
security definer set search_path = tailrace, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
begin
  select * into rescued, buried from tailrace.rescue(p_max_crashes, p_limit);
  due := tailrace.promote_delayed(1000);
  moved := tailrace.move_leftovers();
  deliveries := tailrace.rescue_deliveries(p_limit);
  perform tailrace.watch_replays();
  select count(*) into runs from tailrace.runs r where (r.state = 'active' and r.position < r.position_to) or (r.state = 'paused' and r.resume_at <= tailrace.clock());
  select coalesce(n_dead_tup, 0) into dead_rows from pg_stat_user_tables where relid = 'tailrace.jobs'::regclass and n_dead_tup > greatest(10000, 5 * n_live_tup);
  dead_rows := coalesce(dead_rows, 0);
  return next;
end $$;

-- claimed -> suspect | delayed | failed: the lease ran out. A large slice comes back as two halves, a small one as singles, all of
-- which run alone; a single that was alone when it was lost counts one crash more and is buried after p_max_crashes.
create or replace function tailrace.rescue(p_max_crashes int, p_limit int) returns table (rescued int, buried int) language plpgsql
security definer set search_path = tailrace, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock();
  v_job jobs;
begin
  rescued := 0; buried := 0;
  for v_job in
    select * from jobs where state = 'c' and lease_until < v_now order by token limit p_limit for update skip locked
  loop
    v_job.error := jsonb_path_query_array(coalesce(v_job.error, '[]') || jsonb_build_array(jsonb_build_object(
      'kind', 'lease lost', 'message', 'lease lost by ' || v_job.worker, 'at', v_now, 'rows', v_job.n_rows)), '$[last - 19 to last]');
    delete from jobs where version_id = v_job.version_id and source_id = v_job.source_id and raw_id = v_job.raw_id;
    rescued := rescued + 1;
    if v_job.n_rows = 1 and v_job.crashes + 1 >= p_max_crashes then
      insert into results (version_id, raw_id, rerun, status, error, token, started_at, finished_at)
      values (v_job.version_id, v_job.raw_id, v_job.rerun, 'failed', v_job.error, v_job.token, v_job.claimed_at, v_now);
      insert into settled (finished_at, version_id, source_id, lane, raw_id, raw_id_to, ok, skipped, failed, retried, due_at, claimed_at, token, worker)
      values (v_now, v_job.version_id, v_job.source_id, v_job.lane, v_job.raw_id, v_job.raw_id_to, 0, 0, 1, 0, v_job.run_at, v_job.claimed_at, v_job.token, v_job.worker);
      buried := buried + 1;
    else
      perform put_back_suspect(v_job, v_now);
    end if;
  end loop;
  return next;
end $$;

create or replace function tailrace.put_back_suspect(p_job tailrace.jobs, p_now timestamptz) returns void language sql
set enable_seqscan = off as $$
  insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, rerun, quiet, share, state, attempt, crashes, run_at, error)
  select p_job.version_id, p_job.source_id, min(r.id), max(r.id), count(*)::int, p_job.lane, p_job.rerun, p_job.quiet, p_job.share,
         case when p_job.n_rows = 1 and p_job.crashes > 0 then 'd' else 's' end::"char", p_job.attempt,
         case when p_job.n_rows = 1 then p_job.crashes + 1 else greatest(p_job.crashes, 1) end,
         case when p_job.n_rows = 1 and p_job.crashes > 0 then p_now + make_interval(secs => 2 ^ p_job.crashes) else p_job.run_at end, p_job.error
  from (select id, row_number() over (order by id) - 1 as n from tailrace.raw_records
        where source_id = p_job.source_id and id between p_job.raw_id and p_job.raw_id_to) r
  group by case when p_job.n_rows > 64 then r.n / ((p_job.n_rows + 1) / 2) else r.n end
$$;

-- delayed -> ready, or suspect where the last that happened to the record was a crash: one that came to an outcome alone since is none any more.
create or replace function tailrace.promote_delayed(p_limit int) returns int language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare v_due int;
begin
  with pick as materialized (
    select version_id, source_id, raw_id from tailrace.jobs where state = 'd' and run_at <= tailrace.clock()
    order by run_at limit p_limit for update skip locked)
  update tailrace.jobs j set state = case when crashes > 0 and error -> -1 ->> 'kind' = 'lease lost' then 's' else 'r' end::"char"
  from pick p where j.version_id = p.version_id and j.source_id = p.source_id and j.raw_id = p.raw_id;
  get diagnostics v_due = row_count;
  return v_due;
end $$;

-- What a retired version has left: work that never ran goes to its successor at once, some slices a round; work that has run goes too once no
-- worker that can run the old version has shown itself for two minutes.
create or replace function tailrace.move_leftovers() returns int language plpgsql
security definer set search_path = tailrace, pg_temp as $$
declare
  v_old record;
  v_moved int := 0;
begin
  for v_old in
    select v.id, v.slice_size, p.live_version_id,
           not exists (select from workers w where v.id = any (w.versions) and w.seen_at > clock() - interval '2 minutes') as alone
    from versions v join pipelines p on p.id = v.pipeline_id
    where v.state = 'retired' and p.live_version_id is not null and exists (select from jobs j where j.version_id = v.id and j.state <> 'c' and j.rerun = 0)
  loop
    v_moved := v_moved + move_open_work(v_old.id, v_old.live_version_id, v_old.alone, greatest(1, 20000 / v_old.slice_size));
    if v_old.alone then
      v_moved := v_moved + hand_over(v_old.id, v_old.live_version_id, greatest(1, 5000 / v_old.slice_size));
    end if;
  end loop;
  return v_moved;
end $$;

-- An outage of what a version depends on: nothing of it is claimed until p_seconds from now; nobody's attempts are used up.
create or replace function tailrace.pause_version(p_version int, p_seconds double precision, p_reason text) returns void language sql as $$
  insert into tailrace.quotas as q (name, breaker, open_until, reason, updated_at)
  values ('version:' || p_version, 'open', tailrace.clock() + make_interval(secs => p_seconds), p_reason, tailrace.clock())
  on conflict (name) do update set breaker = 'open', open_until = excluded.open_until, reason = excluded.reason, updated_at = excluded.updated_at
$$;

-- What is left of these versions: due now, held by somebody, due later (delayed, or of a paused version), runs that have more to open.
create or replace function tailrace.open_work(p_versions int[])
returns table (due bigint, held bigint, later bigint, runs bigint, next_seconds double precision) language sql stable as $$
  with versions as materialized (  -- asked once, not for each job
    select v as id, tailrace.clock() as now,
           (select q.open_until from tailrace.quotas q where q.name = 'version:' || v and q.breaker = 'open' and q.open_until > tailrace.clock()) as paused_until,
           exists (select from tailrace.runs r where r.version_id = v and r.kind = 'replay' and r.state = 'paused') as held
    from unnest(p_versions) v),
  work as (
    select j.state, j.n_rows, greatest(v.paused_until, j.run_at) as run_at, v.now,
           j.state <> 'c' and (v.paused_until is not null or (j.state = 'd' and j.run_at > v.now) or (j.lane = 2 and v.held)) as waits
    from versions v join tailrace.jobs j on j.version_id = v.id)
  select coalesce(sum(n_rows) filter (where state <> 'c' and not waits), 0),
         coalesce(sum(n_rows) filter (where state = 'c'), 0),
         coalesce(sum(n_rows) filter (where waits), 0),
         (select count(*) from tailrace.runs r where r.version_id = any (p_versions) and r.state = 'active' and r.position < r.position_to),
         extract(epoch from min(run_at) filter (where waits) - min(now))::float8
  from work
$$;
