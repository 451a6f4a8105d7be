"""What a statement costs where much work waits: buffers touched and rows read one after the other, of it and of all that its functions do."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psycopg

ROWS = int(os.environ.get("ROWS", "50000"))
SOURCES = 20
FEW = 200  # claims, suspects and deliveries in hand stay few, however much waits
FRESH = 5000  # what waits after all before it was done
OLD, BULK, LIVE, OTHER = 1, 2, 3, 4  # versions: retired of p, live of q with slices of 500, live of p with slices of 1, shadow of p

# Nobody analyses or vacuums anything behind our back.
_QUIET = """
do $$
declare r record;
begin
  for r in select c.oid::regclass as name from pg_class c where c.relnamespace = 'tailrace'::regnamespace and c.relkind = 'r' loop
    execute format('alter table %s set (autovacuum_enabled = off)', r.name);
  end loop;
end $$
"""

_SETTING = f"""
select tailrace.register_sources((select array_agg('files:s' || g order by g) from generate_series(1, {SOURCES}) g),
                                 (select array_agg('{{"silence": 60}}'::jsonb) from generate_series(1, {SOURCES})));
select tailrace.register_version('p', 'old', 'f', '{{}}', 1, '{{%}}', 'on_start', 'test');
select tailrace.register_version('q', 'bulk', 'f', '{{}}', 500, '{{%}}', 'on_start', 'test');
select tailrace.register_version('p', 'live', 'f', '{{}}', 1, '{{%}}', 'on_start', 'test');
select tailrace.register_version('p', 'other', 'f', '{{}}', 1, '{{%}}', 'shadow', 'test');
insert into tailrace.cursors (source_id, position, updated_at, caught_up_at) select id, '{{}}', now(), now() from tailrace.sources;
insert into tailrace.coverage (source_id, ids) select id, '{{[1,5),[7,9)}}' from tailrace.sources;
insert into tailrace.runs (kind, source_id, position, position_to) select 'backfill', id, 10, 100 from tailrace.sources;
insert into tailrace.chunks (run_id, no, size) select id, g, 100 from tailrace.runs, generate_series(1, 50) g where kind = 'backfill';
select tailrace.seen('w', 'worker', array[{BULK}, {LIVE}], '{{}}', '{{}}');
"""

_RAW = """
insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at, payload)
select g / 1000 %% 20 + 1, to_char(g, 'FM00000000'), 1, 'create', '\\x01', now(), now(), jsonb_build_object('i', g, 'pad', repeat('x', 176))
from generate_series(%(first)s::int, %(last)s::int) g
"""

# The last few are claimed (half of them by workers that are gone) or suspects; of the others one in twenty is delayed, half of those are due.
_WAITING = """
insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, state, crashes, run_at, token, worker, claimed_at, lease_until)
select 3, source_id, id, id, 1, case when id %% 10 < 6 then 0 when id %% 10 < 8 then 1 else 2 end,
       case when claimed then 'c' when id > %(last)s - 2 * %(few)s then 's' when id %% 20 = 7 then 'd' else 'r' end::"char",
       case when id > %(last)s - 2 * %(few)s and not claimed then 1 else 0 end,
       now() + case when id %% 40 = 7 then 3600 else -3600 end * interval '1 second',
       case when claimed then md5((id / 10)::text)::uuid end, 'w', now(),
       case when claimed then now() + case when id / 10 %% 2 = 0 then 60 else -60 end * interval '1 second' end
from (select *, id > %(last)s - %(few)s as claimed from tailrace.raw_records where id between %(first)s and %(last)s) r
"""

_SLICES = """
insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, lane, run_at)
select 2, min(source_id), min(id), max(id), count(*), 0, now() from tailrace.raw_records where id between %(first)s and %(last)s group by id / 500
"""

_DONE = """
insert into tailrace.results (version_id, raw_id, status, output, finished_at)
select 3, id, case when id %% 50 = 0 then 'failed' else 'ok' end, '{"a": 1}', now() from tailrace.raw_records where id between %(first)s and %(last)s
"""

_EFFECTS = """
insert into tailrace.effects (version_id, raw_id, rerun, kind, key, body, body_hash, verdict, created_at)
select 3, id, 0, case when id %% 2 = 0 then 'dm' else 'broadcast' end, 'k' || id, '{}', '\\x01', 'released', now()
from tailrace.raw_records where id between %(first)s and %(last)s
"""

_DELIVERIES = """
insert into tailrace.deliveries (key, effect_id, kind, policy, state, next_at, expires_at, token, lease_until, created_at, updated_at)
select key, id, kind, 'idempotent', case when sending then 'sending' when raw_id %% 3 = 0 then 'sent' else 'pending' end,
       now() - interval '1 minute', now() + case when raw_id %% 50 = 1 and not sending then -1 else 1 end * interval '1 day',
       case when sending then md5((id / 10)::text)::uuid end, case when sending then now() + case when id / 10 %% 2 = 0 then 60 else -60 end * interval '1 second' end,
       now(), now()
from (select *, raw_id > %(last)s - %(few)s as sending from tailrace.effects where raw_id between %(first)s and %(last)s) e
"""


def _run(connection: psycopg.Connection, statement: str, first: int, last: int) -> None:
    connection.execute(statement, {"first": first, "last": last, "few": FEW})


def fill(connection: psycopg.Connection, *, rows: int = ROWS) -> None:
    """`rows` records that wait in every lane, and a fifth as many that are done; as many effects and deliveries as are done."""
    connection.execute(_SETTING)
    connection.execute(_QUIET)
    done = rows // 5
    _run(connection, _RAW, 1, done + rows)
    for statement in (_DONE, _EFFECTS, _DELIVERIES):
        _run(connection, statement, 1, done)
    for statement in (_WAITING, _SLICES):
        _run(connection, statement, done + 1, done + rows)


def work_off(connection: psycopg.Connection, *, rows: int = ROWS) -> int:
    """All that waits is claimed and done, and some new work comes. Returns the first new raw id."""
    for statement in (
        "update tailrace.jobs set state = 'r', token = null, lease_until = null where state <> 'r'",
        "update tailrace.jobs set state = 's' where raw_id %% 10 = 0",
        "update tailrace.jobs set state = 'd' where raw_id %% 10 = 1",
        "update tailrace.jobs set state = 'c', token = md5((raw_id / 10)::text)::uuid, lease_until = now()",
        "delete from tailrace.jobs",
        "update tailrace.deliveries set state = 'sending', token = md5(effect_id::text)::uuid, lease_until = now() where state = 'pending'",
        "update tailrace.deliveries set state = 'sent', token = null, lease_until = null where state = 'sending'",
    ):
        connection.execute(statement.replace("%%", "%"))
    first = rows + rows // 5 + 1
    for statement in (_RAW, _WAITING, _SLICES, _EFFECTS, _DELIVERIES):
        _run(connection, statement, first, first + FRESH - 1)
    return first


@dataclass(frozen=True)
class Cost:
    """`rows`: read one after the other, without an index, from tables of ours."""

    buffers: int
    rows: int
    seconds: float
    returned: int

    def __str__(self) -> str:
        return f"{self.buffers:>8} buffers {self.rows:>8} rows {self.seconds * 1000:>9.1f} ms, {self.returned} returned"


_READ = "select coalesce(sum(seq_tup_read), 0) from pg_stat_xact_all_tables where schemaname = 'tailrace'"


def measure(connection: psycopg.Connection, statement: str, before: str = "", plans: str = "auto", *, warm: bool = True) -> Cost:
    """The cost of `statement` after `before`, both undone. `warm`: what a session's first call reads of the catalogue is not counted."""
    with connection.transaction(force_rollback=True):
        connection.execute(f"set local max_parallel_workers_per_gather = 0; set local jit = off; set local plan_cache_mode = {plans}")
        if before:
            connection.execute(before)
        if warm:
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
        (read,) = connection.execute(_READ).fetchone()
        (told,) = connection.execute(f"explain (analyze, buffers, format json) {statement}").fetchone()
        (now,) = connection.execute(_READ).fetchone()
    top = told[0]["Plan"]
    buffers = sum(top[f"Shared {what} Blocks"] for what in ("Hit", "Read"))
    return Cost(buffers, int(now - read), told[0]["Execution Time"] / 1000, int(top["Actual Rows"]))
