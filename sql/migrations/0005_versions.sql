-- Texts that versions are made of (prompts, code): each once, by its hash.
create table tailrace.texts (
  hash       text primary key,
  text       text not null,
  created_at timestamptz not null default tailrace.clock()
);
create trigger immutable before update or delete or truncate on tailrace.texts
  for each statement execute function tailrace.refuse_change();
