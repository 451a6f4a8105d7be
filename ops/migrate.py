"""Brings the schema to this program's state: migrations once and frozen, functions anew at each run, under one lock."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from worker.core.errors import Misconfigured
from worker.core.schema import SqlFile, files

LOCK = 7410


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a run of the migrator did."""

    applied: tuple[str, ...]
    functions: int
    number: int


def migrate(url: str, *, dry_run: bool = False, lock_seconds: float = 10.0) -> Migrated:
    """Applies what is missing, each migration in a transaction of its own. Safe to run from several processes at once.

    Raises Misconfigured where the database is newer than this program or an applied migration was edited since.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set client_min_messages = warning")
        connection.execute(f"set lock_timeout = '{int(lock_seconds * 1000)}ms'")
        connection.execute("select pg_advisory_lock(%s)", [LOCK])
        try:
            return _migrate(connection, dry_run)
        finally:
            connection.execute("select pg_advisory_unlock(%s)", [LOCK])


def _migrate(connection: psycopg.Connection, dry_run: bool) -> Migrated:
    done = _applied(connection)
    missing = _missing(done)
    if not dry_run:
        for file in missing:
            _apply(connection, file)
        with connection.transaction():
            try:
                with connection.transaction():
                    _create_functions(connection)
            except psycopg.errors.InvalidFunctionDefinition:  # one returns something else now
                _drop_functions(connection)
                _create_functions(connection)
    names = tuple(f"{f.number:04d}_{f.name}" for f in missing)
    return Migrated(names, len(files("functions")), files("migrations")[-1].number)


def _create_functions(connection: psycopg.Connection) -> None:
    for file in files("functions"):
        connection.execute(file.text)


def _drop_functions(connection: psycopg.Connection) -> None:
    """All but those that tables and views lean on; they are made anew in the same transaction, with their grants."""
    found = connection.execute(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'tailrace' "
        "and not exists (select from pg_depend d where d.refobjid = p.oid and d.deptype in ('n', 'a'))"
    ).fetchall()
    for (function,) in found:
        connection.execute(f"drop function {function}")


def _applied(connection: psycopg.Connection) -> dict[int, tuple[str, str]]:
    exists = connection.execute("select to_regclass('tailrace.schema_migrations') is not null").fetchone()
    if not exists or not exists[0]:
        return {}
    rows = connection.execute("select number, name, digest from tailrace.schema_migrations").fetchall()
    return {number: (name, digest) for number, name, digest in rows}


def _missing(done: dict[int, tuple[str, str]]) -> list[SqlFile]:
    known = {f.number: f for f in files("migrations")}
    if unknown := sorted(set(done) - set(known)):
        raise Misconfigured(f"the database has migration {unknown[-1]} ({done[unknown[-1]][0]}), which this program does not know",
                            "update this program: the database was migrated by a newer one")  # fmt: skip
    for number, (name, digest) in done.items():
        if known[number].digest != digest:
            raise Misconfigured(f"migration {number} ({name}) was edited after it was applied here",
                                "restore the file as it was and put the change into a new migration")  # fmt: skip
    return [f for number, f in sorted(known.items()) if number not in done]


def _apply(connection: psycopg.Connection, file: SqlFile) -> None:
    with connection.transaction():
        connection.execute(file.text)
        connection.execute(
            "create table if not exists tailrace.schema_migrations "
            "(number int primary key, name text not null, digest text not null, applied_at timestamptz not null default clock_timestamp())"
        )
        connection.execute("grant select on tailrace.schema_migrations to tailrace_collector, tailrace_worker, tailrace_operator, tailrace_reader")
        connection.execute("insert into tailrace.schema_migrations (number, name, digest) values (%s, %s, %s)", [file.number, file.name, file.digest])
