-- The tables of Tailrace. Everything lives in schema `tailrace`; functions follow in sql/functions (re-applied at each deploy).

create schema if not exists tailrace;

do $$
declare r text;
begin
  foreach r in array array['tailrace_collector', 'tailrace_worker', 'tailrace_operator', 'tailrace_reader'] loop
    if not exists (select from pg_roles where rolname = r) then
      execute format('create role %I nologin', r);
    end if;
  end loop;
end $$;

-- One clock, in the database. Tests turn it with `set tailrace.now = '...'`; `stable`, so that an index scan can stop at it.
create or replace function tailrace.clock() returns timestamptz language sql stable parallel safe as $$
  select coalesce(nullif(current_setting('tailrace.now', true), '')::timestamptz, clock_timestamp())
$$;

-- ---------------------------------------------------------------- what is read

create table tailrace.sources (
  id         int generated always as identity primary key,
  name       text not null unique check (name ~ '^[a-z][a-z0-9_]*:.+$'),
  kind       text not null,
  active     boolean not null default true,
  spec       jsonb not null default '{}',
  created_at timestamptz not null default tailrace.clock()
);

create table tailrace.raw_records (
  id          bigint generated always as identity primary key,
  source_id   int not null,
  external_id text not null,
  revision    int not null check (revision >= 1),
  op          text not null check (op in ('create', 'update', 'delete')),
  digest      bytea not null,
  occurred_at timestamptz not null,
  source_time timestamptz,
  observed_at timestamptz not null,
  payload     jsonb,
  body        bytea,
  meta        jsonb,
  xid         xid8 not null default pg_current_xact_id(),
  check (payload is null or body is null)
);
create unique index raw_records_revision on tailrace.raw_records (source_id, external_id, revision);
create index raw_records_source on tailrace.raw_records (source_id, id);
create index raw_records_xid on tailrace.raw_records (xid);

create or replace function tailrace.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception '% on %: this log is append-only', tg_op, tg_table_name
    using errcode = 'TR001', hint = 'an edit is a new revision, a deletion a tombstone revision; nothing is changed in place';
end $$;
create trigger immutable before update or delete or truncate on tailrace.raw_records
  for each statement execute function tailrace.refuse_change();
alter table tailrace.raw_records enable always trigger immutable;

create table tailrace.cursors (
  source_id   int not null references tailrace.sources,
  lane        smallint not null default 0,
  position    jsonb not null,
  records     bigint not null default 0,
  caught_up_at timestamptz,
  updated_at  timestamptz not null,
  primary key (source_id, lane)
) with (fillfactor = 50);

create table tailrace.coverage (
  source_id int primary key references tailrace.sources,
  times     tstzmultirange not null default '{}',
  ids       int8multirange not null default '{}'
) with (fillfactor = 50);

-- ---------------------------------------------------------------- who processes it

create table tailrace.pipelines (
  id              int generated always as identity primary key,
  name            text not null unique,
  live_version_id int,
  created_at      timestamptz not null default tailrace.clock()
);

create table tailrace.versions (
  id          int generated always as identity primary key,
  pipeline_id int not null references tailrace.pipelines,
  name        text not null,
  fingerprint text not null,
  spec        jsonb not null default '{}',
  state       text not null check (state in ('candidate', 'shadow', 'live', 'retired')),
  slice_size  int not null check (slice_size between 1 and 100000),
  wants       text[] not null default '{%}',
  created_at  timestamptz not null default tailrace.clock(),
  unique (pipeline_id, name)
);
create unique index versions_one_live on tailrace.versions (pipeline_id) where state = 'live';
alter table tailrace.pipelines add foreign key (live_version_id) references tailrace.versions;

create table tailrace.live_history (
  pipeline_id int not null references tailrace.pipelines,
  version_id  int not null references tailrace.versions,
  live_from   timestamptz not null,
  live_until  timestamptz,
  actor       text not null
);
create unique index live_history_open on tailrace.live_history (pipeline_id) where live_until is null;

-- ---------------------------------------------------------------- open work

-- states: r ready, s suspect (runs alone), c claimed, d delayed until run_at
create table tailrace.jobs (
  version_id  int      not null,
  source_id   int      not null,
  raw_id      bigint   not null,
  raw_id_to   bigint   not null,
  n_rows      int      not null,
  lane        smallint not null default 0 check (lane in (0, 1, 2)),
  rerun       smallint not null default 0,
  quiet       boolean  not null default false,
  state       "char"   not null default 'r' check (state in ('r', 's', 'c', 'd')),
  attempt     smallint not null default 0,
  crashes     smallint not null default 0,
  run_at      timestamptz not null,
  token       uuid,
  worker      text,
  claimed_at  timestamptz,
  lease_until timestamptz,
  error       jsonb,
  primary key (version_id, source_id, raw_id),
  check (raw_id_to >= raw_id and n_rows between 1 and raw_id_to - raw_id + 1),
  check ((state = 'c') = (token is not null)),
  check ((state = 'c') = (lease_until is not null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index jobs_ready   on tailrace.jobs (version_id, lane, source_id, raw_id) where state = 'r';
create index jobs_suspect on tailrace.jobs (version_id, raw_id) where state = 's';
create index jobs_delayed on tailrace.jobs (run_at)             where state = 'd';
create index jobs_claimed on tailrace.jobs (token)              where state = 'c';
-- lease_until is in no index on purpose: a heartbeat is a heap-only update

create table tailrace.results (
  version_id   int not null,
  raw_id       bigint not null,
  rerun        smallint not null default 0,
  status       text not null check (status in ('ok', 'skipped', 'failed')),
  output       jsonb,
  confidence   real,
  needs_review boolean not null default false,
  error        jsonb,
  meta         jsonb,
  token        uuid,
  started_at   timestamptz,
  finished_at  timestamptz not null,
  primary key (version_id, raw_id, rerun)
) partition by list (version_id);

create table tailrace.settled (
  finished_at timestamptz not null,
  version_id  int not null,
  source_id   int not null,
  lane        smallint not null,
  raw_id      bigint not null,
  raw_id_to   bigint not null,
  ok          int not null,
  skipped     int not null,
  failed      int not null,
  retried     int not null,
  due_at      timestamptz,
  claimed_at  timestamptz,
  token       uuid,
  worker      text
) partition by range (finished_at);
create table tailrace.settled_default partition of tailrace.settled default;
create index settled_version on tailrace.settled (version_id, finished_at);

-- ---------------------------------------------------------------- what leaves

create table tailrace.effects (
  id         bigint generated always as identity primary key,
  version_id int not null,
  raw_id     bigint not null,
  rerun      smallint not null,
  kind       text not null,
  key        text not null,
  target     text not null default '',
  body       jsonb not null,
  body_hash  bytea not null,
  verdict    text not null check (verdict in ('released', 'suppressed')),
  reason     text check (reason in ('gate closed', 'drain', 'shadow', 'replay', 'stale', 'duplicate', 'changed')),
  created_at timestamptz not null,
  check ((verdict = 'suppressed') = (reason is not null))
);
create index effects_raw on tailrace.effects (raw_id);
create index effects_key on tailrace.effects (key);
create trigger immutable before update or delete or truncate on tailrace.effects
  for each statement execute function tailrace.refuse_change();

create table tailrace.deliveries (
  key         text primary key,
  effect_id   bigint not null,
  kind        text not null,
  target      text not null default '',
  policy      text not null check (policy in ('never_twice', 'never_lost', 'idempotent')),
  state       text not null default 'pending' check (state in ('pending', 'sending', 'sent', 'uncertain', 'failed', 'cancelled')),
  attempts    int not null default 0,
  remote_id   text,
  next_at     timestamptz not null,
  expires_at  timestamptz not null,
  token       uuid,
  lease_until timestamptz,
  error       text,
  created_at  timestamptz not null,
  updated_at  timestamptz not null,
  check ((state = 'sending') = (token is not null)),
  check ((state = 'sending') = (lease_until is not null))
) with (fillfactor = 70);
create index deliveries_due on tailrace.deliveries (kind, next_at) where state = 'pending';
create index deliveries_expiring on tailrace.deliveries (expires_at) where state = 'pending';
create index deliveries_sending on tailrace.deliveries (token) where state = 'sending';

create table tailrace.delivery_attempts (
  id        bigint generated always as identity primary key,
  key       text not null,
  attempt   int not null,
  event     text not null check (event in ('claimed', 'sent', 'retry', 'uncertain', 'failed', 'cancelled', 'released', 'lease lost', 'resolved')),
  at        timestamptz not null,
  actor     text not null,
  remote_id text,
  detail    text
);
create index delivery_attempts_key on tailrace.delivery_attempts (key);
create trigger immutable before update or delete or truncate on tailrace.delivery_attempts
  for each statement execute function tailrace.refuse_change();

-- ---------------------------------------------------------------- what people decide

create table tailrace.reviews (
  id          bigint generated always as identity primary key,
  raw_id      bigint not null,
  pipeline_id int not null references tailrace.pipelines,
  decision    text not null check (decision in ('approve', 'edit', 'reject', 'undo')),
  value       jsonb,
  reviewer    text not null,
  version_id  int not null,
  at          timestamptz not null default tailrace.clock(),
  check ((decision = 'edit') = (value is not null))
);
create index reviews_raw on tailrace.reviews (pipeline_id, raw_id, id);
create trigger immutable before update or delete or truncate on tailrace.reviews
  for each statement execute function tailrace.refuse_change();

-- ---------------------------------------------------------------- long work and shared limits

create table tailrace.runs (
  id          bigint generated always as identity primary key,
  kind        text not null check (kind in ('cover', 'replay', 'backfill', 'catchup', 'export', 'experiment')),
  version_id  int,
  source_id   int,
  spec        jsonb not null default '{}',
  state       text not null default 'active' check (state in ('active', 'paused', 'done', 'failed', 'cancelled')),
  reason      text,
  resume_at   timestamptz,
  position    bigint not null default 0,
  position_to bigint not null default 0,
  records     bigint not null default 0,
  skipped     bigint not null default 0,
  error       text,
  created_at  timestamptz not null default tailrace.clock(),
  updated_at  timestamptz not null default tailrace.clock(),
  finished_at timestamptz
);
create index runs_open on tailrace.runs (id) where state in ('active', 'paused');

create table tailrace.chunks (
  id          bigint generated always as identity primary key,
  run_id      bigint not null references tailrace.runs,
  no          int not null,
  size        int not null,
  decision    jsonb not null default '{}',
  records     bigint not null default 0,
  started_at  timestamptz not null default tailrace.clock(),
  finished_at timestamptz,
  error       text,
  unique (run_id, no)
);

-- limits learned from answers, and breakers; shared by all processes, survives restarts
create table tailrace.quotas (
  name         text primary key,
  remaining    double precision,
  limit_n      double precision,
  resets_at    timestamptz,
  breaker      text not null default 'closed' check (breaker in ('closed', 'open', 'half-open')),
  open_until   timestamptz,
  reason       text,
  updated_at   timestamptz not null default tailrace.clock()
) with (fillfactor = 50);

create table tailrace.workers (
  name       text primary key,
  kind       text not null,
  versions   int[] not null default '{}',
  gates      text[] not null default '{}',
  started_at timestamptz not null,
  seen_at    timestamptz not null,
  info       jsonb not null default '{}'
) with (fillfactor = 50);
