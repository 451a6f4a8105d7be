-- Records that are kept together under a name: what is compared or replayed today can be compared or replayed again. Append-only.
create table tailrace.record_sets (
  id         int generated always as identity primary key,
  name       text not null unique check (name ~ '^[^\s].{0,99}$'),
  records    bigint not null,
  spec       jsonb not null default '{}',
  actor      text not null,
  created_at timestamptz not null default tailrace.clock()
);
create table tailrace.record_set_members (
  set_id int not null references tailrace.record_sets,
  raw_id bigint not null,
  primary key (set_id, raw_id)
);
create trigger immutable before update or delete or truncate on tailrace.record_sets
  for each statement execute function tailrace.refuse_change();
create trigger immutable before update or delete or truncate on tailrace.record_set_members
  for each statement execute function tailrace.refuse_change();
