"""`make soak`: what grows although it should not. MINUTES=10 of load at full speed (an hour's worth of a busy installation and more), then silence.

A Postgres of its own, a collector that follows files, two workers with a sink; every ten seconds each process is looked at from outside.
Exit code 0: memory, descriptors, connections and dead rows stay level, and idle programs ask little.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "chaos")]

from programs import environment  # noqa: E402  after the path
from server import DATABASE, Server  # noqa: E402  as above

from ops.migrate import migrate  # noqa: E402  as above
from worker.core.binaries import binaries  # noqa: E402  as above

EVERY, RATE, SOURCES = 10.0, 2000, 4
IDLE = 30.0
LIMITS = {"rss_mb": 2.0, "fds": 0, "connections": 0}  # how much more in the last quarter than in the second
DEAD_ROWS, IDLE_STATEMENTS = 50_000, 2.0
CONFIG = """
[collector]
poll_seconds = 0.2
[pipelines.soak]
processor = "./mine.py"
slice_size = 100
[effects.post]
sink = "jsonl"
path = "out.jsonl"
"""
PROCESSOR = """
from worker import Done, Effect, Record, Retry, processor

@processor("soak", executor="inline")
def soak(record: Record, ctx):
    n = record.payload["n"]
    if n % 997 == 0 and ctx.attempt == 0:
        return Retry("once", after=1.0)
    return Done({"n": n}, effects=[Effect("post", {"n": n})] if n % 50 == 0 else ())
"""
FACTS = """
select (select count(*) from pg_stat_activity where datname = current_database()) as connections,
  (select sum(n_dead_tup) from pg_stat_user_tables where schemaname = 'tailrace' and relname in ('jobs', 'deliveries', 'cursors', 'coverage', 'quotas')) as dead,
  pg_current_wal_lsn() - '0/0'::pg_lsn as wal, (select xact_commit from pg_stat_database where datname = current_database()) as commits,
  (select coalesce(sum(ok + skipped + failed), 0) from tailrace.settled) as settled, (select pg_total_relation_size('tailrace.jobs')) as jobs_bytes"""


class Process:
    """A program, and what the kernel says of it."""

    def __init__(self, folder: Path, env: dict[str, str], *command: str, name: str) -> None:
        self.name = name
        with (folder / f"log-{name}.txt").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=env, stdout=log, stderr=log)

    def look(self) -> tuple[float, int]:
        """(resident memory in MB, open descriptors)."""
        proc = Path(f"/proc/{self._process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list((proc / "fd").iterdir()))

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def feed(folder: Path, stop: threading.Event) -> None:
    """RATE lines a second into files that are rotated now and then."""
    n, files = 0, [folder / f"in-{k}.jsonl" for k in range(SOURCES)]
    while not stop.wait(0.25):
        for path in files:
            with path.open("a") as out:
                for _ in range(RATE // 4 // SOURCES):
                    n += 1
                    out.write(json.dumps({"id": n, "n": n, "text": "x" * 400}) + "\n")
            if path.stat().st_size > 30_000_000:
                path.rename(path.with_name(f"{path.name}.{n}"))
                for old in sorted(folder.glob(f"{path.name}.*"), key=lambda p: p.stat().st_mtime)[:-2]:
                    old.unlink()


def facts(session: psycopg.Connection[Any]) -> dict[str, float]:
    cursor = session.execute(FACTS)
    return {column.name: float(value or 0) for column, value in zip(cursor.description or [], cursor.fetchone() or (), strict=False)}


def level(samples: list[float]) -> float:
    """How much more the last quarter has than the second; the first is warming up."""
    quarter = max(1, len(samples) // 4)
    before, after = sorted(samples[quarter : 2 * quarter]), sorted(samples[-quarter:])
    return after[len(after) // 2] - before[len(before) // 2]


def run(folder: Path, server: Server, minutes: float) -> int:
    url = server.url()
    with psycopg.connect(url.replace(f"/{DATABASE}", "/postgres"), autocommit=True) as admin:
        admin.execute(f"create database {DATABASE}")
    migrate(url)
    inbox = folder / "inbox"
    inbox.mkdir()
    sources = "".join(f'[sources.in{k}]\nkind = "files"\npath = "{inbox}/in-{k}.jsonl*"\nid_field = "id"\n' for k in range(SOURCES))
    (folder / "tailrace.toml").write_text(CONFIG + sources)
    (folder / "mine.py").write_text(PROCESSOR)
    env = environment(url, pooler=False) | {"TAILRACE_COLLECTOR__PORT": "0", "TAILRACE_EFFECTS__POST": "1"}
    processes = [Process(folder, env, "collector", "live", name="collector")]
    processes += [Process(folder, env, "worker", name=f"worker-{n}") for n in (1, 2)]
    stop = threading.Event()
    feeding = threading.Thread(target=feed, args=(inbox, stop))
    feeding.start()
    with psycopg.connect(url, autocommit=True) as session:
        try:
            rows = watch(session, processes, minutes * 60)
        finally:
            stop.set()
            feeding.join()
        idle = quiet(session, processes, folder, env)
    return report(rows, idle)


def watch(session: psycopg.Connection[Any], processes: list[Process], seconds: float) -> list[dict[str, float]]:
    rows, begun, never = [], time.monotonic(), threading.Event()
    while time.monotonic() - begun < seconds:
        never.wait(EVERY)
        row = facts(session)
        for process in processes:
            row[f"{process.name} rss_mb"], row[f"{process.name} fds"] = process.look()
        rows.append(row)
        shown = "  ".join(f"{p.name} {row[f'{p.name} rss_mb']:.1f} MB {row[f'{p.name} fds']:.0f} fds" for p in processes)
        print(
            f"  {time.monotonic() - begun:5.0f} s  {row['settled']:,.0f} settled  {shown}  {row['connections']:.0f} connections  {row['dead']:,.0f} dead",
            flush=True,
        )
    return rows


def quiet(session: psycopg.Connection[Any], processes: list[Process], folder: Path, env: dict[str, str]) -> dict[str, float]:
    """Statements a second of a program that has nothing to do, alone with the database."""
    never = threading.Event()
    while facts(session)["settled"] < (session.execute("select count(*) from tailrace.raw_records").fetchone() or [0])[0]:
        never.wait(1.0)
    for process in processes:
        process.end()
    session.execute("alter role all set log_statement = 'all'")
    found = {}
    for name, command in (("collector", ("collector", "live")), ("worker", ("worker",))):
        alone = Process(folder, env, *command, name=f"idle-{name}")
        never.wait(15.0)
        before = asked(folder)
        never.wait(IDLE)
        found[name] = (asked(folder) - before) / IDLE
        alone.end()
    return found


def asked(folder: Path) -> int:
    """Statements in the server's log so far."""
    with (folder / "postgres.log").open(errors="replace") as log:
        return sum("LOG:  execute" in line or "LOG:  statement:" in line for line in log)


def report(rows: list[dict[str, float]], idle: dict[str, float]) -> int:
    bad = []
    print(
        f"\n{rows[-1]['settled']:,.0f} records settled, {(rows[-1]['wal'] - rows[0]['wal']) / max(rows[-1]['settled'] - rows[0]['settled'], 1):,.0f} bytes of WAL a record"
    )
    for name in [n for n in rows[0] if n.endswith(("rss_mb", "fds")) or n == "connections"]:
        grown, most = level([r[name] for r in rows]), LIMITS[name.rpartition(" ")[2]]
        print(f"{name:22} {rows[-1][name]:10.1f}   grown by {grown:+.1f}")
        if grown > most:
            bad.append(f"{name} grew by {grown:.1f}, {most} is allowed")
    dead = max(r["dead"] for r in rows[len(rows) // 4 :])
    print(f"{'dead rows, at most':22} {dead:10.0f}\n{'table jobs, MB':22} {rows[-1]['jobs_bytes'] / 1e6:10.1f}")
    if dead > DEAD_ROWS:
        bad.append(f"{dead:.0f} dead rows")
    for name, rate in idle.items():
        print(f"{'idle ' + name:22} {rate:10.2f} statements/s")
        if rate > IDLE_STATEMENTS:
            bad.append(f"an idle {name} asks {rate:.2f} times a second")
    print("\nlevel" if not bad else "\nNOT level: " + "; ".join(bad))
    return 1 if bad else 0


def main() -> int:
    minutes = float(os.environ.get("MINUTES") or 10)
    home = Path(tempfile.gettempdir()) / "tailrace-chaos"
    home.mkdir(mode=0o755, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="tailrace-soak-"))
    folder.chmod(0o755)
    named = os.environ.get("PGBIN")
    server = Server(folder, Path(named) if named else binaries(home / "data"), sync="on", pooler=False, megabytes=int(1500 + minutes * 500))
    try:
        server.create({"max_connections": "60", "max_wal_size": "1GB", "shared_buffers": "256MB"})
        return run(folder, server, minutes)
    finally:
        server.remove()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
