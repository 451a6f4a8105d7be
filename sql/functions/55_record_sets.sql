-- Frozen sets of records, by name.

create or replace function tailrace.set_members(p_name text) returns setof bigint language sql stable as $$
  select m.raw_id from tailrace.record_sets s join tailrace.record_set_members m on m.set_id = s.id where s.name = p_name order by m.raw_id
$$;

-- The id of a set. Raises TR040 where there is none, with the names that there are.
create or replace function tailrace.set_id(p_name text) returns int language plpgsql stable as $$
declare v_id int;
begin
  if p_name is null then return null; end if;
  select s.id into v_id from tailrace.record_sets s where s.name = p_name;
  if not found then
    raise exception 'there is no set of records %', p_name using errcode = 'TR040',
      hint = coalesce('known: ' || (select string_agg(s.name, ', ' order by s.id desc) from (select * from tailrace.record_sets order by id desc limit 10) s),
                      'none is stored yet: --save-set NAME');
  end if;
  return v_id;
end $$;

-- Stores these records under a name. The same records again: nothing. Raises TR040 where the name is taken by others: a set never changes.
create or replace function tailrace.store_set(p_name text, p_ids bigint[], p_spec jsonb, p_actor text) returns bigint language plpgsql as $$
declare
  v_id int;
  v_records bigint;
begin
  perform tailrace.durable();
  insert into tailrace.record_sets (name, records, spec, actor)
  values (p_name, (select count(distinct i) from unnest(p_ids) i), p_spec, p_actor)
  on conflict (name) do nothing returning id, records into v_id, v_records;
  if v_id is not null then
    insert into tailrace.record_set_members select distinct v_id, i from unnest(p_ids) i;
    return v_records;
  end if;
  if exists ((select tailrace.set_members(p_name) except select unnest(p_ids)) union all (select unnest(p_ids) except select tailrace.set_members(p_name))) then
    raise exception 'a set % of other records is stored', p_name using errcode = 'TR040', hint = 'a set never changes: choose another name';
  end if;
  return (select records from tailrace.record_sets where name = p_name);
end $$;
