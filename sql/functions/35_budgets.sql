-- What the work of a version may cost: reserved when it is claimed, paid when it is settled.

-- Holds the work of a version within money and time from now on; a later replay's budget takes the place of an earlier one's.
create or replace function tailrace.set_budget(p_version int, p_run bigint, p_most double precision, p_estimate double precision, p_seconds double precision)
returns void language sql security definer set search_path = tailrace, pg_temp as $$
  insert into tailrace.budgets (version_id, run_id, most, estimate, until)
  values (p_version, p_run, p_most, coalesce(p_estimate, 0), tailrace.clock() + make_interval(secs => p_seconds))
  on conflict (version_id) do update set run_id = excluded.run_id, most = excluded.most, estimate = excluded.estimate, until = excluded.until, spent = 0, records = 0
$$;

-- How many records of each budgeted version may still be claimed, in whole slices: what is claimed already is reserved at the estimate of a
-- record. Null: as many as you like. Until it is known what a record costs, one slice at a time.
create or replace function tailrace.affordable(p_versions int[]) returns table (version_id int, records bigint) language sql stable
set enable_seqscan = off as $$
  select b.version_id, case
    when b.until <= tailrace.clock() or b.spent >= b.most then 0
    when b.most is null then null
    when b.estimate <= 0 then case when c.n > 0 then 0 else v.slice_size end
    else (floor(greatest(floor((b.most - b.spent) / b.estimate) - c.n, 0) / v.slice_size) * v.slice_size)::bigint end
  from tailrace.budgets b join tailrace.versions v on v.id = b.version_id
  cross join lateral (select coalesce(sum(j.n_rows), 0) as n from tailrace.jobs j where j.version_id = b.version_id and j.state = 'c') c
  where b.version_id = any (p_versions)
$$;

-- What settled records have cost (`cost` of their meta) is taken off; the estimate of a record follows, on the safe side.
create or replace function tailrace.pay(p_version int, p_metas jsonb[], p_records int) returns void language sql
security definer set search_path = tailrace, pg_temp as $$
  update tailrace.budgets b set
    spent = b.spent + c.cost, records = b.records + p_records,
    estimate = greatest(b.estimate, c.dearest, 1.25 * (b.spent + c.cost) / greatest(b.records + p_records, 1))
  from (select coalesce(sum((m ->> 'cost')::float8), 0) as cost, coalesce(max((m ->> 'cost')::float8), 0) as dearest from unnest(p_metas) m) c
  where b.version_id = p_version
$$;
