-- A backfill of one source: a run whose chunks are written down with the reason for their size. Its cursor is the one of lane 1, moved
-- with the records; what is counted here is for people.

-- none | paused | failed | active (its collector was lost) -> active. A run over the same window goes on; its unfinished chunk is read again.
create or replace function tailrace.open_backfill(p_source int, p_spec jsonb) returns bigint language plpgsql as $$
declare v_run bigint;
begin
  perform tailrace.durable();
  select id into v_run from tailrace.runs
  where kind = 'backfill' and source_id = p_source and state in ('active', 'paused', 'failed') and spec = p_spec order by id desc limit 1 for update;
  if found then
    update tailrace.runs set state = 'active', reason = null, resume_at = null, error = null, updated_at = tailrace.clock() where id = v_run;
    update tailrace.chunks set finished_at = tailrace.clock(), error = 'the collector was lost; what it read is read again'
    where run_id = v_run and finished_at is null;
  else
    insert into tailrace.runs (kind, source_id, spec) values ('backfill', p_source, p_spec) returning id into v_run;
  end if;
  update tailrace.runs set state = 'cancelled', reason = 'another window was asked for', finished_at = tailrace.clock(), updated_at = tailrace.clock()
  where kind = 'backfill' and source_id = p_source and state in ('active', 'paused', 'failed') and id <> v_run;
  return v_run;
end $$;

-- What the size of the next chunk is chosen by: where the cursor stands, what is left of the limits, how the last chunks went, and
-- whether a person paused or cancelled the run.
create or replace function tailrace.look_at_backfill(p_run bigint, p_limits text[])
returns table (state text, "position" jsonb, quotas jsonb, recent jsonb, backlog bigint) language sql stable as $$
  select r.state, coalesce(c.position, '{}'),
    (select jsonb_agg(jsonb_build_object('name', q.name, 'remaining', q.remaining, 'limit', q.limit_n,
                                         'resets_in', extract(epoch from q.resets_at - tailrace.clock())))
     from tailrace.quotas q where q.name = any (p_limits) and q.remaining is not null),
    (select jsonb_agg(jsonb_build_object('size', h.size, 'records', h.records, 'error', h.error, 'decision', h.decision,
                                         'seconds', extract(epoch from h.finished_at - h.started_at)) order by h.no)
     from (select * from tailrace.chunks h where h.run_id = p_run and h.finished_at is not null order by h.no desc limit 10) h),
    tailrace.lane_backlog(r.source_id, 1)
  from tailrace.runs r left join tailrace.cursors c on c.source_id = r.source_id and c.lane = 1 where r.id = p_run
$$;

create or replace function tailrace.begin_chunk(p_run bigint, p_size int, p_decision jsonb) returns bigint language sql as $$
  insert into tailrace.chunks (run_id, no, size, decision)
  select p_run, coalesce(max(no), 0) + 1, p_size, p_decision from tailrace.chunks where run_id = p_run
  returning id
$$;

-- p_seen: how many records of the history have been gone through since the run began; p_total: how many there are, where it is known.
create or replace function tailrace.end_chunk(p_chunk bigint, p_records int, p_stored int, p_total bigint, p_error text) returns void language sql as $$
  update tailrace.runs r set position = r.position + p_records, position_to = coalesce(p_total, r.position_to), records = r.records + p_stored,
    skipped = r.skipped + p_records - p_stored, updated_at = tailrace.clock()
  from tailrace.chunks c where c.id = p_chunk and r.id = c.run_id;
  update tailrace.chunks set records = p_records, finished_at = tailrace.clock(), error = p_error where id = p_chunk
$$;

-- active -> paused until p_seconds from now (it resumes by itself), or (null) until a person resumes it. -> done | failed | cancelled.
create or replace function tailrace.turn_backfill(p_run bigint, p_state text, p_reason text, p_seconds double precision) returns void language sql as $$
  update tailrace.runs set state = p_state, reason = p_reason, updated_at = tailrace.clock(),
    error = case when p_state = 'failed' then p_reason end,
    resume_at = case when p_state = 'paused' then tailrace.clock() + make_interval(secs => p_seconds) end,
    finished_at = case when p_state in ('done', 'cancelled') then tailrace.clock() end
  where id = p_run and state in ('active', 'paused') and (p_state <> 'active' or resume_at is not null)  -- a person's pause stays
$$;

-- Backfills that nobody works on although they could go on: their collector was lost, or their pause is over.
create or replace function tailrace.orphaned_backfills() returns table (run bigint, source text, spec jsonb) language sql stable as $$
  select r.id, s.name, r.spec from tailrace.runs r join tailrace.sources s on s.id = r.source_id
  where r.kind = 'backfill' and (r.state = 'active' or (r.state = 'paused' and r.resume_at <= tailrace.clock()))
    and not exists (select from tailrace.quotas q where q.name = 'lease:backfill:' || s.name and q.open_until > tailrace.clock())
$$;
