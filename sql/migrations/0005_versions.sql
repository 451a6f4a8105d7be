-- Texts that versions are made of (prompts, code): each once, by its hash.
create table tailrace.texts (
  hash       text primary key,
  text       text not null,
  created_at timestamptz not null default tailrace.clock()
);
create trigger immutable before update or delete or truncate on tailrace.texts
  for each statement execute function tailrace.refuse_change();

-- What `tailrace plan` promised, by its hash; a replay names the plan that it carries out.
create table tailrace.plans (
  hash       text primary key,
  version_id int not null references tailrace.versions,
  spec       jsonb not null,
  facts      jsonb not null,
  created_at timestamptz not null default tailrace.clock()
);

-- What the work of a version may cost, in money and in time, and what it has cost since.
create table tailrace.budgets (
  version_id int primary key references tailrace.versions,
  run_id     bigint not null references tailrace.runs,
  most       double precision,
  spent      double precision not null default 0,
  records    bigint not null default 0,
  estimate   double precision not null default 0,  -- of one record, reserved when it is claimed
  until      timestamptz
) with (fillfactor = 50);

-- Who speaks for a record: the version whose job was opened as the one that counts. A shadow's jobs are quiet; beside a canary of p percent the live
-- version speaks for buckets from p on (share -p), the canary for those below (share p). Bucket: stable hash of source and external id, 0 to 99.
alter table tailrace.jobs add column share smallint;
alter table tailrace.versions add column quiet boolean not null default false;
alter table tailrace.versions add column share smallint;

-- What the regression gate said, on what; also of promotions that were forced, or had no gate.
create table tailrace.verdicts (
  id          bigint generated always as identity primary key,
  pipeline_id int not null references tailrace.pipelines,
  version_id  int not null references tailrace.versions,
  against_id  int references tailrace.versions,
  verdict     text not null check (verdict in ('pass', 'fail', 'not enough evidence', 'no gate')),
  forced      boolean not null default false,
  facts       jsonb not null,
  inputs_hash text not null,
  actor       text not null,
  at          timestamptz not null default tailrace.clock()
);
create trigger immutable before update or delete or truncate on tailrace.verdicts
  for each statement execute function tailrace.refuse_change();

-- Results of a retired version may be pruned: its partition goes, the version stays.
alter table tailrace.versions add column pruned_at timestamptz;

-- A delivery that changes what another one has sent.
alter table tailrace.deliveries add column edits text;

-- A wish that comes from no record: the report of a backfill that keeps failing.
alter table tailrace.effects alter column version_id drop not null;
alter table tailrace.effects alter column raw_id drop not null;
create index deliveries_edits on tailrace.deliveries (edits) where edits is not null;
