-- What the gate of a promotion asks beyond the counts of a comparison. In the transaction of one, after its compare_records and its truth.

create or replace function tailrace.fields_of(p_output jsonb) returns text[] language sql immutable parallel safe as $$
  select case jsonb_typeof(p_output) when 'object' then array(select jsonb_object_keys(p_output)) else '{(value)}' end
$$;

-- The records of a set, and which of them speak against B (`fault`), by p_fields (null: the whole output). Where people (or a gold file) have said what is right, B has to say it;
-- what they rejected, it must not say; elsewhere it has to say what A says, with the same status. `lacking`: not both have a result of it.
create or replace function tailrace.set_faults(p_set text, p_a int, p_b int, p_fields text[]) returns table (raw_id bigint, lacking boolean, fault boolean)
language plpgsql as $$
#variable_conflict use_column
begin
  perform tailrace.set_id(p_set);
  return query
  with members as (
    select m.raw_id, c.raw_id is null as lacking, a.status as status_a, b.status as status_b, a.output as a, b.output as b,
           t.decision, t.value, t.status as status_t, t.loose
    from tailrace.set_members(p_set) m(raw_id)
    left join pg_temp.tailrace_compared c on c.raw_id = m.raw_id
    left join tailrace.results a on a.version_id = p_a and a.raw_id = c.raw_id and a.rerun = c.reruns[1]
    left join tailrace.results b on b.version_id = p_b and b.raw_id = c.raw_id and b.rerun = c.reruns[2]
    left join pg_temp.tailrace_truth t on t.raw_id = c.raw_id),
  values_of as (
    select m.raw_id, m.decision in ('approve', 'edit') or (m.decision = 'gold' and f.name = any (tailrace.fields_of(m.value))) as known, m.loose,
           nullif(tailrace.field_of(m.a, f.name), 'null') as a, nullif(tailrace.field_of(m.b, f.name), 'null') as b,
           nullif(tailrace.field_of(m.value, f.name), 'null') as truth
    from members m cross join lateral (
      select distinct u from unnest(coalesce(p_fields, tailrace.fields_of(m.a) || tailrace.fields_of(m.b) || tailrace.fields_of(m.value))) u) f(name)
    where not m.lacking and m.decision is distinct from 'reject'),
  faults as (
    select v.raw_id from values_of v
    where case when v.known then v.b is distinct from v.truth and not (v.loose and coalesce(v.b #>> '{}' = v.truth #>> '{}', false))
               else v.b is distinct from v.a end)
  select m.raw_id, m.lacking, not m.lacking and (
      exists (select from faults f where f.raw_id = m.raw_id)
      or case m.decision when 'reject' then m.b is not distinct from m.value when 'gold' then false
         when 'approve' then m.status_b is distinct from m.status_t when 'edit' then m.status_b is distinct from m.status_t
         else m.status_b is distinct from m.status_a end)
  from members m;
end $$;
