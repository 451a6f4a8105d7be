-- The gate and what passes it.

-- What a version wants becomes an effect with a verdict; what is released becomes a delivery in the same statement.
-- p_gates: the open gates of this process, {kind: {policy, max_age, hold, on_change}}; on_change = edit: what was sent with another body is changed
-- at the receiver, by a delivery of its own (its key is the other's and the body's).
-- p_effects: [{raw, rerun, lane, quiet, shared, kind, key, target, body, occurred}]; quiet: the version does not speak for this record; shared: it does
-- as one of two (a canary, or live beside one). A retired version still speaks for what came while it was live.
-- A key longer than an index can hold becomes its digest.
create or replace function tailrace.decide_effects(p_version int, p_mode text, p_gates jsonb, p_effects jsonb)
returns table (released int, suppressed int) language plpgsql
set enable_hashjoin = on as $$
#variable_conflict use_column
declare
  v_now timestamptz := tailrace.clock();
  v_state text := (select state from tailrace.versions where id = p_version);
begin
  with wanted as (
    select x.raw, x.rerun, x.quiet, x.lane, coalesce(x.shared, false) as shared, x.kind, coalesce(x.target, '') as target, x.occurred, p_gates -> x.kind as gate,
           case when octet_length(x.key) > 1000 then 'sha256:' || encode(sha256(convert_to(x.key, 'UTF8')), 'hex') else x.key end as key,
           coalesce(x.body, 'null') as body, sha256(convert_to(coalesce(x.body, 'null')::text, 'UTF8')) as body_hash,
           nextval(pg_get_serial_sequence('tailrace.effects', 'id')) as id
    from jsonb_to_recordset(p_effects) x(raw bigint, rerun smallint, lane int, quiet boolean, shared boolean, kind text, key text, target text,
                                         body jsonb, occurred timestamptz)),
  judged as (
    select w.*, make_interval(secs => (w.gate ->> 'max_age')::float8) as max_age,
      make_interval(secs => coalesce((w.gate ->> 'hold')::float8, 0)) as hold,
      case
        when p_mode = 'drain' then 'drain'
        when w.quiet and w.lane = 2 then 'replay'
        when w.quiet or not (v_state = 'live' or w.shared or (v_state = 'retired' and w.rerun = 0)) then 'shadow'
        when w.gate is null then 'gate closed'
        when w.occurred < v_now - make_interval(secs => (w.gate ->> 'max_age')::float8) then 'stale' end as refused
    from wanted w),
  ranked as (
    select j.*, row_number() over same as nth, first_value(j.body_hash) over same as first_hash
    from judged j window same as (partition by j.key, j.refused is null order by j.raw, j.rerun, j.id)),
  edited as (
    insert into tailrace.deliveries (key, effect_id, kind, target, policy, next_at, expires_at, created_at, updated_at, edits)
    select r.key || '~' || left(encode(r.body_hash, 'hex'), 16), r.id, r.kind, d.target, r.gate ->> 'policy', v_now + r.hold,
           v_now + r.hold + coalesce(r.max_age, interval '3 days'), v_now, v_now, r.key
    from ranked r join tailrace.deliveries d on d.key = r.key and d.state = 'sent' and d.remote_id is not null
    join tailrace.effects e on e.id = coalesce((select o.effect_id from tailrace.deliveries o where o.edits = r.key order by o.created_at desc limit 1), d.effect_id)
      and e.body_hash <> r.body_hash
    where r.refused is null and r.nth = 1 and r.gate ->> 'on_change' = 'edit' order by r.key
    on conflict (key) do nothing
    returning key, effect_id),
  sent as (
    insert into tailrace.deliveries (key, effect_id, kind, target, policy, next_at, expires_at, created_at, updated_at)
    select key, id, kind, target, gate ->> 'policy', v_now + hold,
           hold + case when max_age is null then v_now + interval '3 days' else greatest(occurred, v_now) + max_age end, v_now, v_now
    from ranked where refused is null and nth = 1 order by key
    on conflict (key) do nothing
    returning key, effect_id),
  stored as (
    insert into tailrace.effects (id, version_id, raw_id, rerun, kind, key, target, body, body_hash, verdict, reason, created_at)
    overriding system value
    select r.id, p_version, r.raw, r.rerun, r.kind, r.key, r.target, r.body, r.body_hash,
           case when s.effect_id = r.id or c.effect_id is not null then 'released' else 'suppressed' end,
           case when s.effect_id = r.id or c.effect_id is not null then null
             when r.refused is not null then r.refused
             when case when s.key is not null then r.body_hash <> r.first_hash
               else exists (select from tailrace.deliveries d join tailrace.effects e on e.id = d.effect_id
                            where d.key = r.key and e.body_hash <> r.body_hash) end then 'changed'
             else 'duplicate' end, v_now
    from ranked r left join sent s on s.key = r.key left join edited c on c.effect_id = r.id
    returning verdict)
  select count(*) filter (where verdict = 'released'), count(*) filter (where verdict = 'suppressed') into released, suppressed from stored;
  return next;
end $$;

-- pending -> sending. One attempt begins with its line in the ledger. p_rate: at most so many a second of this kind, all processes
-- together (the count of the running second is kept in quotas). No rate: null.
create or replace function tailrace.claim_deliveries(
  p_token uuid, p_worker text, p_kind text, p_limit int, p_rate double precision, p_lease double precision)
returns table (key text, target text, body jsonb, attempt int, policy text, effect_id bigint, raw_id bigint, source text, external_id text, edits text)
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := tailrace.clock();
  v_limit int := p_limit;
  v_tokens float8;
  v_claimed int;
begin
  perform tailrace.durable();
  if p_rate is not null then
    insert into tailrace.quotas (name, remaining, limit_n, updated_at) values ('rate:' || p_kind, greatest(p_rate, 1), p_rate, v_now)
    on conflict (name) do nothing;
    select least(greatest(p_rate, 1), remaining + p_rate * greatest(extract(epoch from v_now - updated_at), 0)) into v_tokens
    from tailrace.quotas where name = 'rate:' || p_kind for update;
    v_limit := least(p_limit, floor(v_tokens)::int);
    if v_limit < 1 then return; end if;
  end if;
  return query
  with pick as materialized (
    select d.key from tailrace.deliveries d where d.kind = p_kind and d.state = 'pending' and d.next_at <= v_now and d.expires_at >= v_now
    order by d.next_at limit v_limit for update skip locked),
  mine as (
    update tailrace.deliveries d set state = 'sending', token = p_token, attempts = d.attempts + 1,
      lease_until = v_now + make_interval(secs => p_lease), updated_at = v_now
    from pick p where d.key = p.key
    returning d.key, d.target, d.attempts, d.policy, d.effect_id, d.edits),
  noted as (
    insert into tailrace.delivery_attempts (key, attempt, event, at, actor) select m.key, m.attempts, 'claimed', v_now, p_worker from mine m)
  select m.key, m.target, e.body, m.attempts, m.policy, m.effect_id, e.raw_id, coalesce(s.name, ''), coalesce(r.external_id, ''), o.remote_id
  from mine m join tailrace.effects e on e.id = m.effect_id
  left join tailrace.raw_records r on r.id = e.raw_id left join tailrace.sources s on s.id = r.source_id
  left join tailrace.deliveries o on o.key = m.edits;
  get diagnostics v_claimed = row_count;
  if p_rate is not null then
    update tailrace.quotas set remaining = v_tokens - v_claimed, limit_n = p_rate, updated_at = v_now where name = 'rate:' || p_kind;
  end if;
end $$;

-- Which of these kinds have pending deliveries, and in how many seconds the next of them is due.
create or replace function tailrace.due_deliveries(p_kinds text[]) returns table (kind text, seconds double precision) language sql stable
set enable_seqscan = off set enable_bitmapscan = off as $$
  select k, extract(epoch from d.next_at - tailrace.clock())::float8
  from unnest(p_kinds) k cross join lateral (
    select next_at from tailrace.deliveries d where d.kind = k and d.state = 'pending' and d.expires_at >= tailrace.clock()
    order by next_at limit 1) d
$$;

-- sending -> sent | pending (try again after p_after) | uncertain | failed. Only under the claim's token.
create or replace function tailrace.finish_delivery(
  p_key text, p_token uuid, p_outcome text, p_remote text, p_detail text, p_after double precision, p_worker text)
returns void language plpgsql as $$
declare
  v_now timestamptz := tailrace.clock();
  v_attempt int;
begin
  update tailrace.deliveries set state = case p_outcome when 'retry' then 'pending' else p_outcome end, token = null, lease_until = null,
    remote_id = coalesce(p_remote, remote_id), error = case when p_outcome = 'sent' then null else p_detail end,
    next_at = case when p_outcome = 'retry' then v_now + make_interval(secs => coalesce(p_after, 0)) else next_at end, updated_at = v_now
  where key = p_key and token = p_token and state = 'sending'
  returning attempts into v_attempt;
  if not found then
    raise exception 'delivery % is no longer ours', p_key
      using errcode = 'TR002', hint = 'the lease ran out while it was being sent; its policy decides what happens now';
  end if;
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor, remote_id, detail)
  values (p_key, v_attempt, p_outcome, v_now, p_worker, p_remote, p_detail);
end $$;

-- sending -> pending: claimed ahead and surely not sent. Costs no attempt.
create or replace function tailrace.give_back_deliveries(p_keys text[], p_tokens uuid[], p_worker text) returns int language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_now timestamptz := tailrace.clock();
  v_given int;
begin
  with given as (
    update tailrace.deliveries d set state = 'pending', token = null, lease_until = null, attempts = d.attempts - 1, updated_at = v_now
    from unnest(p_keys, p_tokens) u(key, token) where d.key = u.key and d.token = u.token and d.state = 'sending'
    returning d.key, d.attempts)
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor, detail)
  select key, attempts + 1, 'retry', v_now, p_worker, 'given back unsent' from given;
  get diagnostics v_given = row_count;
  return v_given;
end $$;

-- sending -> pending | uncertain: the sender went away between sending and saying so. Receivers that honour the key, and kinds that
-- may repeat, are tried again; the others wait for a person. pending -> failed: past `expires_at` (max_age of the kind, else three days).
create or replace function tailrace.rescue_deliveries(p_limit int) returns int language plpgsql
set enable_seqscan = off as $$
declare
  v_now timestamptz := tailrace.clock();
  v_lost int;
begin
  with pick as materialized (
    select key from tailrace.deliveries where state = 'pending' and expires_at < v_now order by expires_at limit p_limit for update skip locked),
  late as (
    update tailrace.deliveries d set state = 'failed', error = 'expired: it waited too long to be news', updated_at = v_now
    from pick p where d.key = p.key returning d.key, d.attempts)
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor, detail)
  select key, attempts, 'failed', v_now, 'watchdog', 'expired: it waited too long to be news' from late;
  with pick as materialized (
    select key from tailrace.deliveries where state = 'sending' and lease_until < v_now order by token limit p_limit for update skip locked),
  lost as (
    update tailrace.deliveries d set state = case when policy = 'never_twice' then 'uncertain' else 'pending' end,
      token = null, lease_until = null, next_at = v_now, error = 'the sender was lost while sending', updated_at = v_now
    from pick p where d.key = p.key returning d.key, d.attempts)
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor, detail)
  select key, attempts, 'lease lost', v_now, 'watchdog', 'the sender was lost while sending' from lost;
  get diagnostics v_lost = row_count;
  return v_lost;
end $$;

-- suppressed -> pending, by a person. A key that has a delivery already is refused: it was or will be sent. One that was cancelled or
-- failed goes on counting its attempts: a sink may look for traces of the earlier ones.
create or replace function tailrace.release_effect(p_effect bigint, p_policy text, p_actor text) returns text language plpgsql as $$
declare
  v_effect tailrace.effects;
  v_now timestamptz := tailrace.clock();
begin
  perform tailrace.durable();
  select * into v_effect from tailrace.effects where id = p_effect;
  if not found then
    raise exception 'there is no effect %', p_effect using errcode = 'TR030', hint = '`tailrace effects list` shows the ids';
  end if;
  insert into tailrace.deliveries as d (key, effect_id, kind, target, policy, next_at, expires_at, created_at, updated_at)
  values (v_effect.key, v_effect.id, v_effect.kind, v_effect.target, p_policy, v_now, v_now + interval '3 days', v_now, v_now)
  on conflict (key) do update set state = 'pending', effect_id = excluded.effect_id, kind = excluded.kind, target = excluded.target,
    next_at = v_now, expires_at = excluded.expires_at, error = null, updated_at = v_now, policy = excluded.policy
    where d.state in ('cancelled', 'failed');
  if not found then
    raise exception 'key % has a delivery already', v_effect.key using errcode = 'TR031', hint = '`tailrace effects explain KEY` shows it; one key is delivered once';
  end if;
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor, detail) values (v_effect.key, 0, 'released', v_now, p_actor, 'effect ' || p_effect);
  return v_effect.key;
end $$;

-- pending | uncertain | failed -> cancelled, by a person and in time.
create or replace function tailrace.cancel_delivery(p_key text, p_actor text) returns boolean language plpgsql as $$
declare v_attempts int;
begin
  perform tailrace.durable();
  update tailrace.deliveries set state = 'cancelled', updated_at = tailrace.clock()
  where key = p_key and state in ('pending', 'uncertain', 'failed') returning attempts into v_attempts;
  if not found then return false; end if;
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor) values (p_key, v_attempts, 'cancelled', tailrace.clock(), p_actor);
  return true;
end $$;

-- uncertain | failed -> sent | pending | cancelled: somebody looked at the receiver.
create or replace function tailrace.resolve_delivery(p_key text, p_state text, p_remote text, p_actor text) returns boolean language plpgsql as $$
declare v_attempts int;
begin
  perform tailrace.durable();
  if p_state not in ('sent', 'pending', 'cancelled') then
    raise exception 'a delivery is resolved to sent, pending or cancelled, not %', p_state using errcode = 'TR032';
  end if;
  update tailrace.deliveries set state = p_state, remote_id = coalesce(p_remote, remote_id), next_at = tailrace.clock(),
    error = case when p_state = 'sent' then null else error end, expires_at = tailrace.clock() + interval '3 days', updated_at = tailrace.clock()
  where key = p_key and state in ('uncertain', 'failed') returning attempts into v_attempts;
  if not found then return false; end if;
  insert into tailrace.delivery_attempts (key, attempt, event, at, actor, remote_id, detail)
  values (p_key, v_attempts, 'resolved', tailrace.clock(), p_actor, p_remote, 'to ' || p_state);
  return true;
end $$;
