-- Versions over time: what was believed at a moment, and what of the past may go.

-- What we believed at a moment: records that were there, as the version that was live then saw them, and the decisions of people until then.
-- A canary of that time is left out. Results are immutable per version and decisions append-only, so this is a view, not a restore; what was
-- being written at that very moment counts by its time.
create or replace function tailrace.as_of(p_at timestamptz)
returns table (raw_id bigint, pipeline text, version text, status text, output jsonb, confidence real, needs_review boolean, decision text,
               reviewer text, decided_at timestamptz, approved boolean) language sql stable as $$
  select r.id, p.name, v.name, x.status, case when d.decision = 'edit' then d.value else x.output end, x.confidence, x.needs_review,
         d.decision, d.reviewer, d.at,
         x.status = 'ok' and (d.decision in ('approve', 'edit') or (d.decision is null and not x.needs_review))
  from tailrace.live_history h
  join tailrace.pipelines p on p.id = h.pipeline_id
  join tailrace.versions v on v.id = h.version_id
  cross join lateral (select distinct on (y.raw_id) y.* from tailrace.results y
                      where y.version_id = h.version_id and y.finished_at <= p_at order by y.raw_id, y.rerun desc) x
  join tailrace.raw_records r on r.id = x.raw_id and r.observed_at <= p_at
  left join lateral (select * from tailrace.reviews w where w.pipeline_id = h.pipeline_id and w.raw_id = r.id and w.at <= p_at
                     order by w.id desc limit 1) d0 on true
  left join lateral (select d0.* where d0.decision <> 'undo') d on true
  where h.live_from <= p_at and (h.live_until is null or h.live_until > p_at)
$$;

-- Versions whose results may be pruned: retired, not the one that was live before, nothing open, no replay under way, in no kept comparison.
create or replace view tailrace.prunable as
select p.name as pipeline, v.name as version, v.id as version_id, v.state,
       pg_total_relation_size(to_regclass('tailrace.results_v' || v.id)) as bytes, l.live_until as retired_at,
       case
         when v.state = 'live' then 'it is live'
         when v.state in ('shadow', 'candidate') then 'it is a ' || v.state
         when v.id = prev.version_id then 'it was live before: a rollback needs it'
         when exists (select from tailrace.jobs j where j.version_id = v.id) then 'it has open work'
         when exists (select from tailrace.runs r where r.version_id = v.id and r.state in ('active', 'paused')) then 'a run of it is open'
         when exists (select from tailrace.runs r where r.version_id = v.id and r.kind = 'experiment') then 'it is part of an experiment'
       end as kept_because
from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id
left join lateral (select max(h.live_until) as live_until from tailrace.live_history h where h.version_id = v.id) l on true
left join lateral (select h.version_id from tailrace.live_history h where h.pipeline_id = v.pipeline_id and h.live_until is not null and h.version_id <> p.live_version_id
                   order by h.live_until desc limit 1) prev on true
where v.pruned_at is null and to_regclass('tailrace.results_v' || v.id) is not null;

-- The results of one version go, as a whole; raw, effects, deliveries and decisions stay.
create or replace function tailrace.prune_version(p_version int) returns bigint language plpgsql security definer set search_path = tailrace, pg_temp as $$
declare
  v_bytes bigint;
  v_why text;
begin
  perform durable();
  select kept_because, bytes into v_why, v_bytes from prunable where version_id = p_version;
  if not found or v_why is not null then
    raise exception 'the results of version % are kept: %', p_version, coalesce(v_why, 'there are none')
      using errcode = 'TR041', hint = '`tailrace prune --dry-run` shows what may go';
  end if;
  execute format('drop table results_v%s', p_version);
  update versions set pruned_at = clock() where id = p_version;
  return v_bytes;
end $$;

create or replace function tailrace.store_verdict(
  p_pipeline int, p_version int, p_against int, p_verdict text, p_forced boolean, p_facts jsonb, p_hash text, p_actor text)
returns bigint language sql security definer set search_path = tailrace, pg_temp as $$
  insert into verdicts (pipeline_id, version_id, against_id, verdict, forced, facts, inputs_hash, actor)
  values (p_pipeline, p_version, p_against, p_verdict, p_forced, p_facts, p_hash, p_actor) returning id
$$;
