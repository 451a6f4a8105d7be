-- Sources and where we are in them.

-- This transaction is on the disk when its commit returns, also under `synchronous_commit = off`: somebody outside relies on it, or will.
create or replace function tailrace.durable() returns void language sql as $$
  select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'
$$;

-- Makes the sources of one configuration known. Returns id by name. Never removes one: its raw records stay.
create or replace function tailrace.register_sources(p_names text[], p_specs jsonb[])
returns table (id int, name text) language plpgsql as $$
#variable_conflict use_column
begin
  perform tailrace.durable();
  insert into tailrace.sources as s (name, kind, spec)
  select n, split_part(n, ':', 1), sp from unnest(p_names, p_specs) u(n, sp)
  on conflict (name) do update set spec = excluded.spec, active = true
    where s.spec is distinct from excluded.spec or not s.active;
  return query select s.id, s.name from tailrace.sources s where s.name = any(p_names);
end $$;

-- The sources were looked at just now and had nothing more: what lag and coverage are measured by. Each is covered from its p_sinces on,
-- or (null) from where its coverage ended.
drop function if exists tailrace.touch_sources(int[], timestamptz);
create or replace function tailrace.touch_sources(p_ids int[], p_sinces double precision[]) returns void language sql as $$
  insert into tailrace.cursors (source_id, lane, position, caught_up_at, updated_at)
  select i, 0, '{}', tailrace.clock(), tailrace.clock() from unnest(p_ids) i order by i
  on conflict (source_id, lane) do update set caught_up_at = excluded.caught_up_at;
  insert into tailrace.coverage as c (source_id, times)
  select u.i, tstzmultirange(tstzrange(u.since, tailrace.clock()))
  from (select i, coalesce(tailrace.clock() - make_interval(secs => ago), (select upper(o.times) from tailrace.coverage o where o.source_id = i)) as since
        from unnest(p_ids, p_sinces) u(i, ago)) u
  where u.since < tailrace.clock() order by u.i
  on conflict (source_id) do update set times = c.times + excluded.times;
$$;

-- A lease for what only one process may do (a session, a poll): true when it is ours now.
create or replace function tailrace.take_lease(p_name text, p_holder text, p_seconds double precision)
returns text language plpgsql as $$
declare v_holder text;
begin
  insert into tailrace.quotas as q (name, reason, open_until, updated_at)
  values ('lease:' || p_name, p_holder, tailrace.clock() + make_interval(secs => p_seconds), tailrace.clock())
  on conflict (name) do update set reason = excluded.reason, open_until = excluded.open_until, updated_at = excluded.updated_at
    where q.reason = excluded.reason or q.open_until < tailrace.clock() or q.open_until is null;
  select reason into v_holder from tailrace.quotas where name = 'lease:' || p_name;
  return v_holder;
end $$;

-- The same for many: renews, takes, and (p_over) frees after p_rests seconds, during which nobody may take them. Tells of each asked one
-- who has it and for how many seconds.
create or replace function tailrace.take_turns(p_names text[], p_holder text, p_seconds double precision, p_over text[], p_rests double precision[])
returns table (name text, holder text, seconds double precision) language sql as $$
  update tailrace.quotas q set reason = '', open_until = tailrace.clock() + make_interval(secs => u.rest), updated_at = tailrace.clock()
  from unnest(p_over, p_rests) u(name, rest) where q.name = 'lease:' || u.name and q.reason = p_holder;
  insert into tailrace.quotas as q (name, reason, open_until, updated_at)
  select 'lease:' || n, p_holder, tailrace.clock() + make_interval(secs => p_seconds), tailrace.clock() from unnest(p_names) n order by n
  on conflict (name) do update set reason = excluded.reason, open_until = excluded.open_until, updated_at = excluded.updated_at
    where q.reason = excluded.reason or q.open_until < tailrace.clock() or q.open_until is null;
  select n, q.reason, extract(epoch from q.open_until - tailrace.clock())::float8
  from unnest(p_names) n join tailrace.quotas q on q.name = 'lease:' || n
$$;

create or replace function tailrace.drop_lease(p_name text, p_holder text) returns void language sql as $$
  update tailrace.quotas set open_until = null where name = 'lease:' || p_name and reason = p_holder
$$;
