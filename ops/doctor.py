"""`tailrace doctor`: what is wrong or soon will be, and what to do about it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

from ops.db import Connection, check_schema, open_url, rows
from ops.table import as_json
from worker.core.db import shown
from worker.core.embedded import database_url
from worker.core.errors import TailraceError
from worker.core.schema import files
from worker.core.settings import Settings

ROLES = ("tailrace_collector", "tailrace_worker", "tailrace_operator", "tailrace_reader")
Finding = tuple[str, str, str]  # ok | warn | fail, what, what to do


def _server(connection: Connection, _settings: Settings) -> Iterator[Finding]:
    major = connection.info.server_version // 10000
    if not 15 <= major <= 18:  # noqa: PLR2004  the supported range
        yield "fail", f"PostgreSQL {major} is not supported", "use 15 to 18"
    else:
        yield "ok", f"PostgreSQL {connection.info.server_version / 10000:.1f}", ""
    skew = abs(time.time() - rows(connection, "select extract(epoch from clock_timestamp())::float8 as t")[0]["t"])
    yield ("warn", f"this machine's clock and the database's differ by {skew:.1f} s", "run NTP on both") if skew > 2 else ("ok", "clocks agree", "")  # noqa: PLR2004


def _schema(connection: Connection, _settings: Settings) -> Iterator[Finding]:
    check_schema(connection)
    applied = {r["number"]: r["digest"] for r in rows(connection, "select number, digest from tailrace.schema_migrations")}
    for file in files("migrations"):
        if applied.get(file.number) != file.digest:
            yield "fail", f"migration {file.number} ({file.name}) here and in the database differ", "restore the file as it was applied"
    yield "ok", f"schema at migration {max(applied)}", ""
    missing = [role for role in ROLES if not rows(connection, "select 1 from pg_roles where rolname = %s", [role])]
    yield (
        ("fail", f"roles missing: {', '.join(missing)}", "run `tailrace migrate` as a user that may create roles")
        if missing
        else ("ok", "roles present", "")
    )


def _tables(connection: Connection, _settings: Settings) -> Iterator[Finding]:
    for row in rows(connection, "select c.relname as name from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace "
                    "where not i.indisvalid and n.nspname = 'tailrace'"):  # fmt: skip
        yield "fail", f"index {row['name']} is invalid", f"reindex index concurrently tailrace.{row['name']}"
    dead = rows(connection, "select n_dead_tup as n, n_live_tup as live from pg_stat_user_tables where relid = 'tailrace.jobs'::regclass")
    if dead and dead[0]["n"] > max(100_000, 10 * dead[0]["live"]):
        yield (
            "warn",
            f"{dead[0]['n']} dead rows in tailrace.jobs",
            "look for an old snapshot below; a worker that logs in as the owner vacuums by itself",
        )
    else:
        yield "ok", "few dead rows in tailrace.jobs", ""
    held = rows(connection, "select * from tailrace.xmin_holders where seconds > 600 order by seconds desc limit 3")
    for row in held:
        yield "warn", f"{row['holder']} {row['name']} holds a snapshot for {row['seconds']:.0f} s", "end it: dead rows cannot be removed meanwhile"
    if not held:
        yield "ok", "no old snapshot", ""


def _work(connection: Connection, _settings: Settings) -> Iterator[Finding]:
    stuck = rows(connection, "select count(*) as n from tailrace.jobs where state = 'c' and lease_until < tailrace.clock() - interval '30 seconds'")[
        0
    ]["n"]
    yield ("fail", f"{stuck} claims past their lease", "start a worker, or `tailrace stale reset`") if stuck else ("ok", "no stuck claims", "")
    for row in rows(connection, "select * from tailrace.unrunnable"):
        yield (
            "warn",
            f"{row['records']} open records of {row['pipeline']} {row['version']} that no worker which is up can run",
            "start a worker with that version",
        )
    for row in rows(connection, "select kind, deliveries from tailrace.delivery_depth where state = 'uncertain'"):
        yield "warn", f"{row['deliveries']} uncertain deliveries of {row['kind']}", "look at the receiver, then `tailrace effects resolve KEY`"
    late = rows(connection, "select pipeline, version, lane, seconds from tailrace.queue_lag where lane = 0 and seconds > 300")
    for row in late:
        yield "warn", f"{row['pipeline']} {row['version']} is {row['seconds']:.0f} s behind", "add workers, or raise its concurrency"


def _config(_connection: Connection, settings: Settings) -> Iterator[Finding]:
    if not settings.sources:
        yield "warn", "no sources are configured", "`tailrace init` writes a first tailrace.toml"
    if not settings.enqueue:
        yield "warn", "TAILRACE_ENQUEUE=0: raw only, no jobs", "unset it when the pipelines are to run"
    yield "ok", f"gates open: {', '.join(sorted(settings.open_gates)) or 'none'}", ""
    if settings.database_url is None:
        free = shutil.disk_usage(settings.data_dir).free / 1e9
        yield ("warn" if free < 2 else "ok"), f"{free:.1f} GB free for the embedded database in {settings.data_dir}", "free some space"  # noqa: PLR2004


_CHECKS: tuple[Callable[[Connection, Settings], Iterator[Finding]], ...] = (_server, _schema, _tables, _work, _config)


def examine(settings: Settings) -> list[Finding]:
    """All findings. What makes the rest impossible is the last one."""
    found: list[Finding] = []
    try:
        url = database_url(settings)
        with open_url(url) as connection:
            found.append(("ok", f"reached {shown(url)}", ""))
            for check in _CHECKS:
                found += check(connection, settings)
    except TailraceError as error:
        message = str(error).partition("\n")[0]
        found.append(("fail", message, error.hint))
    return found


def doctor(settings: Settings, *, json: bool) -> int:
    found = examine(settings)
    if json:
        as_json([{"level": level, "what": what, "do": do} for level, what, do in found])
    for level, what, do in [] if json else found:
        print(f"{level:4}  {what}" + (f"\n      -> {do}" if do and level != "ok" else ""))
    return 1 if any(level == "fail" for level, *_ in found) else 0
