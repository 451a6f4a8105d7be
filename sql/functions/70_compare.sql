-- Versions over exactly the same records. Everything is counted here; what leaves is as many rows as there are fields, sources and samples.
-- The steps of one comparison share temporary tables, so they are one transaction: compare_records first, compare_pair before what reads its tables.

-- A number that a processor noted; null where it is none.
create or replace function tailrace.noted(p_value jsonb) returns numeric language sql immutable parallel safe as $$
  select case when jsonb_typeof(p_value) = 'number' then p_value::numeric end
$$;

-- As a double; null where it is beyond one.
create or replace function tailrace.double_of(p_value numeric) returns double precision language sql immutable parallel safe as $$
  select case when abs(p_value) < 1e300 then p_value::double precision end
$$;

-- What ended a record: the class of the last error, or the reason of a skip; digits are folded, so that ids in messages make no classes of their own.
create or replace function tailrace.ending(p_status text, p_error jsonb, p_meta jsonb) returns text language sql immutable parallel safe as $$
  select case when p_status = 'failed' then
      coalesce(substring(p_error -> -1 ->> 'message' from '^([A-Za-z_][A-Za-z0-9_.]*): '),
               regexp_replace(left(p_error -> -1 ->> 'message', 80), '[0-9]+', '#', 'g'), '(none)')
    when p_status = 'skipped' then coalesce(regexp_replace(left(p_meta ->> 'reason', 80), '[0-9]+', '#', 'g'), '(none)') end
$$;

-- A value for people: whole where it is short, else its beginning.
create or replace function tailrace.shortened(p_value jsonb, p_most int) returns jsonb language sql immutable parallel safe as $$
  select case when length(p_value::text) <= p_most then p_value else to_jsonb(left(p_value::text, p_most) || '…') end
$$;

-- The value of one field; an output that is no object is the field "(value)".
create or replace function tailrace.field_of(p_output jsonb, p_field text) returns jsonb language sql immutable parallel safe as $$
  select case when p_field = '(value)' and jsonb_typeof(p_output) <> 'object' then p_output else p_output -> p_field end
$$;

-- Chooses the records: those that each version has a result of, newest rerun. Says how many each version has within the selection.
-- p_spec: {sources: [ids], since, until, set}. Counts are over all of them; values and spreads are judged by about p_sample of them, the same each time.
create or replace function tailrace.compare_records(p_versions int[], p_spec jsonb, p_sample int) returns table (version_id int, results bigint, compared bigint)
language plpgsql set work_mem = '64MB' set enable_hashjoin = off as $$
#variable_conflict use_column
declare
  v_set int := tailrace.set_id(p_spec ->> 'set');
  v_where text := concat_ws(' and ', 'true',
    case when p_spec ? 'sources' then format('r.source_id = any (array(select i::int from jsonb_array_elements_text(%L::jsonb) i))', p_spec -> 'sources') end,
    case when p_spec ? 'since' then format('r.occurred_at >= %L::timestamptz', p_spec ->> 'since') end,
    case when p_spec ? 'until' then format('r.occurred_at < %L::timestamptz', p_spec ->> 'until') end,
    case when v_set is not null then format('exists (select from tailrace.record_set_members m where m.set_id = %s and m.raw_id = r.id)', v_set) end);
  v_newest text := '(select x.raw_id, max(x.rerun) as rerun from tailrace.results x where x.version_id = %s group by x.raw_id) %s';
  v_from text;
  v_reruns text;
  v_compared bigint;
  v_version int;
begin
  drop table if exists pg_temp.tailrace_compared, pg_temp.tailrace_sampled, pg_temp.tailrace_truth;
  create temporary table tailrace_compared (raw_id bigint, source_id int, reruns smallint[]) on commit drop;
  create temporary table tailrace_truth (raw_id bigint, value jsonb, status text, decision text, loose boolean) on commit drop;
  select string_agg(case when i = 1 then format(v_newest, v, 'n1') else format('join ' || v_newest || ' using (raw_id)', v, 'n' || i) end, ' ' order by i),
         string_agg(format('n%s.rerun', i), ', ' order by i)
  into v_from, v_reruns from unnest(p_versions) with ordinality u(v, i);
  execute format('insert into pg_temp.tailrace_compared select raw_id, r.source_id, array[%s] from %s join tailrace.raw_records r on r.id = raw_id where %s',
                 v_reruns, v_from, v_where);
  get diagnostics v_compared = row_count;
  create unique index on pg_temp.tailrace_compared (raw_id);
  create temporary table tailrace_sampled on commit drop as
    select * from pg_temp.tailrace_compared c
    where v_compared <= p_sample or hashint8extended(c.raw_id, 7) & 1048575 < 1048576::float8 * p_sample / v_compared;
  create unique index on pg_temp.tailrace_sampled (raw_id);
  analyze pg_temp.tailrace_compared;
  analyze pg_temp.tailrace_sampled;
  foreach v_version in array p_versions loop
    version_id := v_version;
    compared := v_compared;
    execute format('select count(*) from tailrace.results x%s where x.version_id = %s and x.rerun = 0 and %s',  -- a record's first result has rerun 0
                   case when v_where <> 'true' then ' join tailrace.raw_records r on r.id = x.raw_id' end, v_version, v_where)
    into results;
    return next;
  end loop;
end $$;

-- The truth that people have said: the newest decision that is not undone. approve: what the version gave that they saw; edit: their value; reject:
-- what they saw is wrong.
create or replace function tailrace.compare_reviews(p_pipeline int) returns bigint language plpgsql as $$
declare v_known bigint;
begin
  insert into pg_temp.tailrace_truth
  select c.raw_id, case d.decision when 'edit' then d.value else seen.output end, case d.decision when 'edit' then 'ok' else seen.status end, d.decision, false
  from (select distinct on (w.raw_id) w.* from tailrace.reviews w where w.pipeline_id = p_pipeline order by w.raw_id, w.id desc) d
  join pg_temp.tailrace_compared c on c.raw_id = d.raw_id
  left join lateral (select x.output, x.status from tailrace.results x where x.version_id = d.version_id and x.raw_id = d.raw_id
                     order by x.finished_at <= d.at desc, x.rerun desc limit 1) seen on true
  where d.decision <> 'undo' and (d.decision = 'edit' or seen.status is not null);
  get diagnostics v_known = row_count;
  return v_known;
end $$;

-- The truth of a gold file: rows {raw_id} or {source, external_id} with `value`: the fields that it speaks of. A value of null: there is nothing to
-- be found. Loose: texts of a .csv, which match numbers too. Returns how many rows match a compared record; the newest revision of it.
create or replace function tailrace.compare_gold(p_rows jsonb, p_loose boolean) returns bigint language plpgsql as $$
declare v_known bigint;
begin
  with given as (
    select (g ->> 'raw_id')::bigint as raw_id, g ->> 'source' as source, g ->> 'external_id' as external_id, g -> 'value' as value
    from jsonb_array_elements(p_rows) g),
  found as (
    select coalesce(g.raw_id, newest.id) as raw_id, g.value
    from given g left join lateral (
      select r.id from tailrace.sources s join tailrace.raw_records r on r.source_id = s.id and r.external_id = g.external_id
      join pg_temp.tailrace_compared c on c.raw_id = r.id
      where s.name = g.source order by r.revision desc limit 1) newest on g.raw_id is null)
  insert into pg_temp.tailrace_truth
  select distinct on (f.raw_id) f.raw_id, f.value, null, 'gold', p_loose from found f join pg_temp.tailrace_compared c on c.raw_id = f.raw_id
  where not exists (select from pg_temp.tailrace_truth t where t.raw_id = f.raw_id);
  get diagnostics v_known = row_count;
  return v_known;
end $$;

-- The fields of the outputs and of the truth, the most frequent first, and how many there are in all. Frequency: in the sample; a field that no output
-- of the sample has is found nevertheless.
create or replace function tailrace.compare_keys(p_versions int[], p_most int) returns table (field text, fields bigint)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan set enable_hashjoin = off as $$
#variable_conflict use_column
declare
  v_version int;
  v_place int := 0;
  v_known text[] := '{}';
begin
  drop table if exists pg_temp.tailrace_keys;
  create temporary table tailrace_keys (key text, n float8) on commit drop;
  foreach v_version in array p_versions loop
    v_place := v_place + 1;
    insert into pg_temp.tailrace_keys
    select k, count(*) * 1e6 from pg_temp.tailrace_sampled c
    join tailrace.results x on x.version_id = v_version and x.raw_id = c.raw_id and x.rerun = c.reruns[v_place] and x.output is not null
    cross join lateral jsonb_object_keys(case when jsonb_typeof(x.output) = 'object' then x.output else '{"(value)": 0}' end) k
    where hashint8extended(c.raw_id, 11) % 10 = 0 or (select count(*) from pg_temp.tailrace_sampled) < 10000
    group by k;
  end loop;
  insert into pg_temp.tailrace_keys
  select k, count(*) from pg_temp.tailrace_truth t
  cross join lateral jsonb_object_keys(case when jsonb_typeof(t.value) = 'object' then t.value else '{"(value)": 0}' end) k
  where t.decision in ('edit', 'gold') and t.value is not null group by k;
  v_known := array(select k.key from pg_temp.tailrace_keys k group by k.key order by sum(k.n) desc, k.key limit 1000);
  v_place := 0;
  foreach v_version in array p_versions loop
    v_place := v_place + 1;
    insert into pg_temp.tailrace_keys
    select k, count(*) from pg_temp.tailrace_compared c
    join tailrace.results x on x.version_id = v_version and x.raw_id = c.raw_id and x.rerun = c.reruns[v_place] and x.output is not null
    cross join lateral jsonb_object_keys(case when jsonb_typeof(x.output) = 'object' then x.output - v_known else '{"(value)": 0}' end) k
    where case when jsonb_typeof(x.output) = 'object' then x.output - v_known <> '{}' else not '(value)' = any (v_known) end
    group by k;
  end loop;
  return query select k.key, count(*) over () from pg_temp.tailrace_keys k group by k.key order by sum(k.n) desc, k.key limit p_most;
end $$;

-- Counts one version: statuses, and sums of what was noted in meta; median and the value below which 95 of 100 lie come from the sample.
create or replace function tailrace.compare_sums(p_version int, p_place int)
returns table (name text, records bigint, total double precision, spread double precision[])
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan set enable_hashjoin = off as $$
#variable_conflict use_column
declare v_sums record;
begin
  select count(*) filter (where n.status = 'ok') as ok, count(*) filter (where n.status = 'skipped') as skipped, count(*) filter (where n.status = 'failed') as failed,
         count(n.cost) as n_cost, sum(n.cost) as cost, count(n.tokens_in) as n_in, sum(n.tokens_in) as tokens_in,
         count(n.tokens_out) as n_out, sum(n.tokens_out) as tokens_out, count(n.latency) as n_latency, sum(n.latency) as latency
  into v_sums from (
    select m.status, tailrace.noted(m.cost) as cost, tailrace.noted(m.tokens_in) as tokens_in, tailrace.noted(m.tokens_out) as tokens_out,
           tailrace.noted(m.latency) as latency
    from (select x.status, x.meta -> 'cost' as cost, x.meta -> 'tokens_in' as tokens_in, x.meta -> 'tokens_out' as tokens_out, x.meta -> 'latency' as latency
          from pg_temp.tailrace_compared c
          join tailrace.results x on x.version_id = p_version and x.raw_id = c.raw_id and x.rerun = c.reruns[p_place] offset 0) m offset 0) n;
  return query
  with figures as (
    select m.name, tailrace.double_of(tailrace.noted(x.meta -> m.name)) as value from pg_temp.tailrace_sampled c
    join tailrace.results x on x.version_id = p_version and x.raw_id = c.raw_id and x.rerun = c.reruns[p_place]
    cross join unnest(array['cost', 'tokens_in', 'tokens_out', 'latency']) m(name))
  select s.name, s.n, s.total, null::float8[] from (values ('ok', v_sums.ok, null::float8), ('skipped', v_sums.skipped, null), ('failed', v_sums.failed, null)) s(name, n, total)
  where s.n > 0
  union all
  select s.name, s.n, tailrace.double_of(s.total), f.spread
  from (values ('cost', v_sums.n_cost, v_sums.cost), ('tokens_in', v_sums.n_in, v_sums.tokens_in), ('tokens_out', v_sums.n_out, v_sums.tokens_out),
               ('latency', v_sums.n_latency, v_sums.latency)) s(name, n, total)
  left join (select f.name, percentile_cont(array[0.5, 0.95]) within group (order by f.value) as spread from figures f group by f.name) f on f.name = s.name
  where s.n > 0;
end $$;

-- Why records of one version did not end well: the most frequent reasons, the others as one.
create or replace function tailrace.compare_endings(p_version int, p_place int, p_most int) returns table (status text, reason text, records bigint)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan set enable_hashjoin = off as $$
#variable_conflict use_column
begin
  return query
  with reasons as (
    select x.status, tailrace.ending(x.status, x.error, x.meta) as reason, count(*) as n
    from pg_temp.tailrace_compared c
    join tailrace.results x on x.version_id = p_version and x.raw_id = c.raw_id and x.rerun = c.reruns[p_place] and x.status <> 'ok'
    group by 1, 2),
  ranked as (select r.*, row_number() over (partition by r.status order by r.n desc, r.reason) <= p_most as top from reasons r)
  select r.status, case when r.top then r.reason else '(other)' end, sum(r.n)::bigint from ranked r group by 1, 2 order by 3 desc, 1, 2;
end $$;

-- Two versions, field by field and source by source: in how many records they have the same value. Fields: -1 the whole output, 0 the status, then
-- p_fields. What differs is left in tailrace_differences, one row per record and field, with hashes of the values. Equality is that of jsonb.
create or replace function tailrace.compare_pair(p_a int, p_b int, p_place_a int, p_place_b int, p_fields text[])
returns table (no int, source_id int, records bigint, equal bigint, only_a bigint, only_b bigint)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan set enable_hashjoin = off set enable_nestloop = on as $$
#variable_conflict use_column
begin
  -- the planner takes the equality of reruns for a rare thing, and would look up each of a million records
  perform set_config('enable_nestloop', 'off', true) from pg_temp.tailrace_compared offset 50000 limit 1;
  drop table if exists pg_temp.tailrace_differences;
  create temporary table tailrace_differences (raw_id bigint, source_id int, no int, a bigint, b bigint) on commit drop;
  insert into pg_temp.tailrace_differences
  select d.raw_id, d.source_id, d.no, jsonb_hash_extended(d.a, 0), jsonb_hash_extended(d.b, 0)
  from (
    select c.raw_id, c.source_id, f.no,
           case f.no when -1 then a.output when 0 then to_jsonb(a.status) else tailrace.field_of(a.output, f.name) end as a,
           case f.no when -1 then b.output when 0 then to_jsonb(b.status) else tailrace.field_of(b.output, f.name) end as b
    from pg_temp.tailrace_compared c
    join tailrace.results a on a.version_id = p_a and a.raw_id = c.raw_id and a.rerun = c.reruns[p_place_a]
    join tailrace.results b on b.version_id = p_b and b.raw_id = c.raw_id and b.rerun = c.reruns[p_place_b]
    cross join (select -1 as no, '' as name union all select 0, '' union all select i::int, u from unnest(p_fields) with ordinality x(u, i)) f
    where a.output is distinct from b.output or a.status <> b.status offset 0) d
  where d.a is distinct from d.b;
  analyze pg_temp.tailrace_differences;
  return query
  with totals as (select c.source_id, count(*) as n from pg_temp.tailrace_compared c group by 1),
  differing as (
    select d.no, d.source_id, count(*) as n, count(*) filter (where d.b is null) as only_a, count(*) filter (where d.a is null) as only_b
    from pg_temp.tailrace_differences d group by 1, 2)
  select f.no, t.source_id, t.n, t.n - coalesce(d.n, 0), coalesce(d.only_a, 0), coalesce(d.only_b, 0)
  from totals t cross join generate_series(-1, cardinality(p_fields)) f(no) left join differing d on d.no = f.no and d.source_id = t.source_id;
end $$;

-- By the sample, what chance alone would make equal: for two versions the sum over the values (by hash) of the product of their shares; how many distinct values
-- each has; in how many records each has the field.
create or replace function tailrace.compare_chance(p_a int, p_b int, p_place_a int, p_place_b int, p_fields text[])
returns table (no int, records bigint, with_a bigint, with_b bigint, distinct_a bigint, distinct_b bigint, chance double precision)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan set enable_hashjoin = off as $$
#variable_conflict use_column
begin
  return query
  with found as (
    select f.no, side.a, side.b,
           jsonb_hash_extended(case f.no when -1 then side.output when 0 then to_jsonb(side.status) else tailrace.field_of(side.output, f.name) end, 0) as hash
    from (
      select 1 as a, 0 as b, x.output, x.status from pg_temp.tailrace_sampled c
      join tailrace.results x on x.version_id = p_a and x.raw_id = c.raw_id and x.rerun = c.reruns[p_place_a]
      union all
      select 0, 1, x.output, x.status from pg_temp.tailrace_sampled c
      join tailrace.results x on x.version_id = p_b and x.raw_id = c.raw_id and x.rerun = c.reruns[p_place_b]) side
    cross join (select -1 as no, '' as name union all select 0, '' union all select i::int, u from unnest(p_fields) with ordinality x(u, i)) f),
  valued as (select f.no, f.hash, sum(f.a) as a, sum(f.b) as b from found f group by 1, 2)
  select v.no, sum(v.a)::bigint, coalesce(sum(v.a) filter (where v.hash is not null), 0)::bigint, coalesce(sum(v.b) filter (where v.hash is not null), 0)::bigint,
         count(*) filter (where v.a > 0 and v.hash is not null), count(*) filter (where v.b > 0 and v.hash is not null),
         sum(v.a::float8 * v.b) / nullif(sum(v.a)::float8 * sum(v.b), 0)
  from valued v group by v.no;
end $$;

-- The most frequent changes of a field, with the values themselves.
create or replace function tailrace.compare_changes(p_a int, p_b int, p_place_a int, p_place_b int, p_fields text[], p_most int)
returns table (no int, a text, b text, records bigint) language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  return query
  with counted as (
    select d.no, min(d.raw_id) as raw_id, count(*) as n, row_number() over (partition by d.no order by count(*) desc, min(d.raw_id)) as rank
    from pg_temp.tailrace_differences d where d.no >= 0 group by d.no, d.a, d.b)
  select k.no, left(case k.no when 0 then a.status else tailrace.field_of(a.output, p_fields[k.no])::text end, 80),
         left(case k.no when 0 then b.status else tailrace.field_of(b.output, p_fields[k.no])::text end, 80), k.n
  from counted k join pg_temp.tailrace_compared c on c.raw_id = k.raw_id
  join tailrace.results a on a.version_id = p_a and a.raw_id = c.raw_id and a.rerun = c.reruns[p_place_a]
  join tailrace.results b on b.version_id = p_b and b.raw_id = c.raw_id and b.rerun = c.reruns[p_place_b]
  where k.rank <= p_most order by k.no, k.n desc, k.raw_id;
end $$;

-- The records that differ in most fields (the status is one), side by side.
create or replace function tailrace.compare_examples(p_a int, p_b int, p_place_a int, p_place_b int, p_most int)
returns table (raw_id bigint, source text, external_id text, nos int[], status_a text, status_b text, a jsonb, b jsonb)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  return query
  with most as (
    select d.raw_id, count(*) filter (where d.no >= 0) as n from pg_temp.tailrace_differences d
    group by 1 order by 2 desc, hashint8extended(d.raw_id, 7), 1 limit p_most)
  select m.raw_id, s.name, r.external_id, array(select d.no from pg_temp.tailrace_differences d where d.raw_id = m.raw_id and d.no >= 0 order by 1),
         a.status, b.status, tailrace.shortened(a.output, 20000), tailrace.shortened(b.output, 20000)
  from most m join pg_temp.tailrace_compared c on c.raw_id = m.raw_id
  join tailrace.results a on a.version_id = p_a and a.raw_id = c.raw_id and a.rerun = c.reruns[p_place_a]
  join tailrace.results b on b.version_id = p_b and b.raw_id = c.raw_id and b.rerun = c.reruns[p_place_b]
  join tailrace.raw_records r on r.id = m.raw_id join tailrace.sources s on s.id = r.source_id
  order by m.n desc, hashint8extended(m.raw_id, 7), m.raw_id;
end $$;

-- Who is right, field by field and source by source, over records of which that is known for both. A value of null says that there is none. A reject speaks
-- of the whole output only (-1): who gave the same is wrong, of others nothing is known. A gold file speaks of the fields that it names.
create or replace function tailrace.compare_truth(p_a int, p_b int, p_place_a int, p_place_b int, p_fields text[])
returns table (no int, source_id int, both_right bigint, only_a bigint, only_b bigint, neither bigint,
               tp_a bigint, fp_a bigint, fn_a bigint, tp_b bigint, fp_b bigint, fn_b bigint)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  return query
  with judged as (
    select c.source_id, f.no, t.decision, t.loose,
           nullif(case f.no when -1 then t.value when 0 then to_jsonb(t.status) else tailrace.field_of(t.value, f.name) end, 'null') as truth,
           nullif(case f.no when -1 then a.output when 0 then to_jsonb(a.status) else tailrace.field_of(a.output, f.name) end, 'null') as a,
           nullif(case f.no when -1 then b.output when 0 then to_jsonb(b.status) else tailrace.field_of(b.output, f.name) end, 'null') as b
    from pg_temp.tailrace_truth t join pg_temp.tailrace_compared c on c.raw_id = t.raw_id
    join tailrace.results a on a.version_id = p_a and a.raw_id = c.raw_id and a.rerun = c.reruns[p_place_a]
    join tailrace.results b on b.version_id = p_b and b.raw_id = c.raw_id and b.rerun = c.reruns[p_place_b]
    cross join (select -1 as no, '' as name union all select 0, '' union all select i::int, u from unnest(p_fields) with ordinality x(u, i)) f
    where case t.decision when 'gold' then f.no > 0 and t.value ? f.name when 'reject' then f.no = -1 else true end),
  rights as (
    select j.source_id, j.no, j.a is not null as given_a, j.b is not null as given_b, j.truth is not null and j.decision <> 'reject' as there,
           case when j.decision <> 'reject' then j.a is not distinct from j.truth or (j.loose and coalesce(j.a #>> '{}' = j.truth #>> '{}', false))
                when j.a is not distinct from j.truth then false end as a,
           case when j.decision <> 'reject' then j.b is not distinct from j.truth or (j.loose and coalesce(j.b #>> '{}' = j.truth #>> '{}', false))
                when j.b is not distinct from j.truth then false end as b
    from judged j)
  select r.no, r.source_id, count(*) filter (where r.a and r.b), count(*) filter (where r.a and not r.b),
         count(*) filter (where r.b and not r.a), count(*) filter (where not r.a and not r.b),
         count(*) filter (where r.a and r.there), count(*) filter (where not r.a and r.given_a), count(*) filter (where not r.a and r.there),
         count(*) filter (where r.b and r.there), count(*) filter (where not r.b and r.given_b), count(*) filter (where not r.b and r.there)
  from rights r where r.a is not null and r.b is not null group by 1, 2;
end $$;

-- What the two wish to send, by key: a key that several records wish counts once, as its last record wishes it. Leaves them in tailrace_wishes.
create or replace function tailrace.compare_effects(p_a int, p_b int, p_place_a int, p_place_b int)
returns table (kind text, outcome text, keys bigint) language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  drop table if exists pg_temp.tailrace_wishes;
  create temporary table tailrace_wishes on commit drop as
  with a as (
    select distinct on (e.key) e.id, e.key, e.kind, e.target, e.body_hash
    from pg_temp.tailrace_compared c join tailrace.effects e on e.raw_id = c.raw_id and e.version_id = p_a and e.rerun = c.reruns[p_place_a]
    order by e.key, e.raw_id desc, e.id desc),
  b as (
    select distinct on (e.key) e.id, e.key, e.kind, e.target, e.body_hash
    from pg_temp.tailrace_compared c join tailrace.effects e on e.raw_id = c.raw_id and e.version_id = p_b and e.rerun = c.reruns[p_place_b]
    order by e.key, e.raw_id desc, e.id desc)
  select coalesce(a.key, b.key) as key, coalesce(a.kind, b.kind) as kind, a.id as a, b.id as b,
         case when b.id is null then 'only_a' when a.id is null then 'only_b' when a.body_hash = b.body_hash and a.target = b.target then 'same'
              else 'changed' end as outcome
  from a full join b on b.key = a.key;
  return query select w.kind, w.outcome, count(*) from pg_temp.tailrace_wishes w group by 1, 2;
end $$;

-- Some of those that are not the same, with both bodies.
create or replace function tailrace.compare_wishes(p_most int)
returns table (outcome text, kind text, key text, target text, raw_id bigint, a jsonb, b jsonb) language plpgsql as $$
#variable_conflict use_column
begin
  return query
  select w.outcome, w.kind, w.key, coalesce(a.target, b.target), coalesce(b.raw_id, a.raw_id), tailrace.shortened(a.body, 20000), tailrace.shortened(b.body, 20000)
  from (select i.*, row_number() over (partition by i.outcome order by hashtextextended(i.key, 7), i.key) as rank
        from pg_temp.tailrace_wishes i where i.outcome <> 'same') w
  left join tailrace.effects a on a.id = w.a left join tailrace.effects b on b.id = w.b
  where w.rank <= p_most order by w.outcome, w.rank;
end $$;

-- Three versions or more: the mean share of equal pairs among them, and what chance alone would give (Fleiss); by the sample and by hashes of the values.
create or replace function tailrace.compare_among(p_versions int[], p_fields text[]) returns table (no int, observed double precision, chance double precision)
language plpgsql set work_mem = '64MB' set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
  return query
  with said as (
    select c.raw_id, f.no, jsonb_hash_extended(case f.no when 0 then to_jsonb(x.status) else tailrace.field_of(x.output, f.name) end, 0) as hash
    from unnest(p_versions) with ordinality v(id, i) join pg_temp.tailrace_sampled c on true
    join tailrace.results x on x.version_id = v.id and x.raw_id = c.raw_id and x.rerun = c.reruns[v.i]
    cross join (select 0 as no, '' as name union all select i::int, u from unnest(p_fields) with ordinality y(u, i)) f),
  alike as (select s.no, s.raw_id, s.hash, count(*) as n from said s group by 1, 2, 3),
  pooled as (select l.no, l.hash, sum(l.n) as n, sum(l.n * (l.n - 1)) as pairs from alike l group by 1, 2)
  select p.no, (sum(p.pairs) / (sum(p.n) * (cardinality(p_versions) - 1)))::float8, (sum(p.n * p.n) / (sum(p.n) * sum(p.n)))::float8
  from pooled p group by 1;
end $$;
