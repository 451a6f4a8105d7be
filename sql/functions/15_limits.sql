-- Quotas as answers told them, and breakers: closed -> open (failures, a flood, no permission) -> half-open (one probe) -> closed.
-- Shared by all processes, and still there after a restart. An open breaker without an end waits for a person.

create or replace function tailrace.note_quotas(p_quotas jsonb) returns void language sql as $$
  insert into tailrace.quotas as q (name, remaining, limit_n, resets_at, updated_at)
  select x.name, x.remaining, x.limit_n, x.resets_at, tailrace.clock()
  from jsonb_to_recordset(p_quotas) x(name text, remaining float8, limit_n float8, resets_at timestamptz) order by x.name
  on conflict (name) do update set remaining = excluded.remaining, limit_n = coalesce(excluded.limit_n, q.limit_n),
    resets_at = coalesce(excluded.resets_at, q.resets_at), updated_at = excluded.updated_at
$$;

-- Seconds until all of these may be called: 0 now, null when a person has to act first. Whoever gets 0 from a breaker whose time is
-- over holds the one probe for p_probe seconds; the others wait for what it finds.
create or replace function tailrace.may_call(p_names text[], p_probe double precision) returns double precision language plpgsql as $$
declare
  v_row tailrace.quotas;
  v_wait double precision := 0;
begin
  if not exists (select from tailrace.quotas where name = any (p_names) and breaker <> 'closed') then
    return 0;
  end if;
  for v_row in select * from tailrace.quotas where name = any (p_names) and breaker <> 'closed' order by name for update loop
    if v_row.open_until is null then return null; end if;
    v_wait := greatest(v_wait, extract(epoch from v_row.open_until - tailrace.clock()));
  end loop;
  if v_wait <= 0 then
    update tailrace.quotas set breaker = 'half-open', open_until = tailrace.clock() + make_interval(secs => p_probe), updated_at = tailrace.clock()
    where name = any (p_names) and breaker <> 'closed';
  end if;
  return v_wait;
end $$;

-- A probe, or a call after failures, worked. What is held (open) stays so: the call began before.
create or replace function tailrace.call_worked(p_names text[]) returns void language sql as $$
  update tailrace.quotas set breaker = 'closed', failures = 0, open_until = null, reason = null, updated_at = tailrace.clock()
  where name = any (p_names) and (breaker = 'half-open' or (breaker = 'closed' and failures > 0))
$$;

-- Returns seconds until the next try: growing pauses while closed, then the breaker opens, longer each time, an hour at most.
create or replace function tailrace.call_failed(p_name text, p_reason text, p_threshold int) returns double precision language plpgsql as $$
declare
  v_failures int;
  v_probe boolean;
  v_pause double precision;
begin
  insert into tailrace.quotas (name, updated_at) values (p_name, tailrace.clock()) on conflict (name) do nothing;
  select failures + 1, breaker <> 'closed' into v_failures, v_probe from tailrace.quotas where name = p_name for update;
  v_pause := case when v_failures < p_threshold and not v_probe then 0.5 * 2 ^ v_failures
                  else least(60 * 2 ^ least(greatest(v_failures - p_threshold, 0), 10), 3600) end;
  update tailrace.quotas set failures = v_failures, reason = p_reason, updated_at = tailrace.clock(),
    breaker = case when v_failures >= p_threshold or v_probe then 'open' else 'closed' end,
    open_until = case when v_failures >= p_threshold or v_probe then tailrace.clock() + make_interval(secs => v_pause) end
  where name = p_name;
  return v_pause;
end $$;

-- What was spent of a budget of our own (money, say), which begins anew at p_resets. False when it is used up: then nobody spends from it
-- until then.
create or replace function tailrace.spend(p_name text, p_amount double precision, p_most double precision, p_resets timestamptz)
returns boolean language plpgsql as $$
declare v_left double precision;
begin
  insert into tailrace.quotas as q (name, remaining, limit_n, resets_at, updated_at)
  values (p_name, p_most - p_amount, p_most, p_resets, tailrace.clock())
  on conflict (name) do update set updated_at = excluded.updated_at, limit_n = p_most, resets_at = p_resets,
    remaining = p_most - p_amount - case when q.resets_at = p_resets then q.limit_n - q.remaining else 0 end
  returning remaining into v_left;
  if v_left <= 0 then
    perform tailrace.hold_calls(array[p_name], extract(epoch from p_resets - tailrace.clock())::float8, 'the budget of ' || p_most || ' is spent');
  end if;
  return v_left > 0;
end $$;

-- The service says when to come back, or (p_seconds null) that a person has to do something. A later end is not shortened.
create or replace function tailrace.hold_calls(p_names text[], p_seconds double precision, p_reason text) returns void language sql as $$
  insert into tailrace.quotas as q (name, breaker, open_until, reason, updated_at)
  select n, 'open', tailrace.clock() + make_interval(secs => p_seconds), p_reason, tailrace.clock() from unnest(p_names) n order by n
  on conflict (name) do update set breaker = 'open', reason = excluded.reason, updated_at = excluded.updated_at,
    open_until = case when excluded.open_until is null then null
                      when q.breaker = 'open' then greatest(q.open_until, excluded.open_until) else excluded.open_until end
$$;

-- A person says: try again now.
create or replace function tailrace.reset_breaker(p_name text) returns boolean language plpgsql as $$
begin
  update tailrace.quotas set breaker = 'closed', failures = 0, open_until = null, reason = null, updated_at = tailrace.clock()
  where name = p_name and (breaker <> 'closed' or failures > 0);
  return found;
end $$;

-- Open records of one lane that versions have of this source: what holds a catch-up back.
create or replace function tailrace.lane_backlog(p_source int, p_lane int) returns bigint language sql stable set enable_seqscan = off as $$
  select coalesce(sum(n_rows), 0) from (
    select j.n_rows from tailrace.versions v
    cross join lateral (select n_rows from tailrace.jobs j where j.version_id = v.id and j.lane = p_lane and j.source_id = p_source and j.state = 'r'
                        order by j.raw_id limit 10000) j
    where v.state in ('live', 'shadow')) o
$$;

-- What may hold a source back: its own breaker, that of its catch-up, and limits that it shares.
create or replace view tailrace.source_breakers as
select s.name as source, q.name, q.breaker, q.open_until, nullif(q.reason, '') as reason
from tailrace.sources s join tailrace.quotas q on q.name in ('source:' || s.name, 'source:' || s.name || ' catch-up')
  or (jsonb_typeof(s.spec -> 'limits') = 'array' and s.spec -> 'limits' ? q.name);

-- A person says: call this source again now.
create or replace function tailrace.retry_source(p_source text) returns void language sql as $$
  select tailrace.reset_breaker(name) from tailrace.source_breakers where source = p_source
$$;
