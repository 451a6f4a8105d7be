"""`make demo [INPUT=path]`: embedded Postgres, collector, two workers, gates closed; shows what would have left and why it did not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from ops import samples
from ops.migrate import migrate
from worker.core import embedded
from worker.core.errors import Misconfigured
from worker.core.options import guarded
from worker.core.settings import Settings

LINES = 1000  # per channel
WORKERS = 2
CONFIG = Path(__file__).parent / "pipelines" / "demo" / "tailrace.toml"
_OWN = """[collector]
port = 9411

[sources.input]
kind = "files"
path = {path!r}

[pipelines.echo]
processor = "echo"

[pipelines.echo.options]
effect = "broadcast"

[effects.broadcast]
sink = "jsonl"
path = "outbox/broadcast.jsonl"
"""


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return guarded(lambda: demo(Path(given[0]).resolve() if given else None))


def demo(source: Path | None) -> int:
    home = Settings().data_dir.parent / ("demo-input" if source else "demo")
    home.mkdir(parents=True, exist_ok=True)
    if source is None:
        config = CONFIG
        print(f"messages   {samples.write(home / 'inbox', LINES):,} made-up lines of {len(samples.CHANNELS)} channels in {home / 'inbox'}")
    else:
        if not source.exists():
            raise Misconfigured(f"{source} does not exist", "make demo INPUT=path takes a file or a folder")
        config = home / "tailrace.toml"
        config.write_text(_OWN.format(path=str(source)))
        print(f"messages   your files at {source}")
    url = embedded.start(home / "data")
    migrate(url)
    print(f"database   embedded PostgreSQL in {home / 'data'}")
    with psycopg.connect(url, autocommit=True) as connection:
        before = _count(connection, "select count(*) from tailrace.raw_records")
        programs = _start(home, config, url)
        print(f"programs   collector live and {WORKERS} workers; every gate is closed; logs in {home / 'logs'}")
        try:
            _watch(connection, programs)
        finally:
            _stop(programs)
        _summary(connection, before)
    embedded.stop(home / "data")
    _next(home, config)
    return 0


def _start(home: Path, config: Path, url: str) -> list[subprocess.Popen[bytes]]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TAILRACE_")}
    env = kept | {
        "DATABASE_URL": url,
        "TAILRACE_CONFIG": str(config),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "TAILRACE_WORKER__PORT": "0",
    }
    (home / "logs").mkdir(exist_ok=True)
    started = []
    for name, command in [("collector", ["collector", "live"]), *((f"worker-{i}", ["worker"]) for i in range(1, WORKERS + 1))]:
        with (home / "logs" / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen([sys.executable, "-m", *command], cwd=home, env=env, stdout=log, stderr=log))  # noqa: S603  our own programs
    return started


_STATE = """select (select count(*) from tailrace.raw_records), (select coalesce(sum(n_rows), 0) from tailrace.jobs), (select count(*) from tailrace.results),
  (select count(*) from tailrace.sources s join tailrace.cursors c on c.source_id = s.id where c.caught_up_at > s.created_at and c.position <> '{}'),
  (select count(*) from tailrace.sources), (select count(*) from tailrace.runs where state = 'active'), (select count(*) from tailrace.versions)"""


def _watch(connection: psycopg.Connection[Any], programs: list[subprocess.Popen[bytes]]) -> None:
    """Shows progress until nothing has moved for a second and all is settled."""
    begun, quiet, last = time.monotonic(), 0, None
    while quiet < 4 or time.monotonic() - begun < 4:  # noqa: PLR2004  a second of quiet; time to look at the files
        dead = next((p for p in programs if p.poll() is not None), None)
        if dead is not None:
            raise Misconfigured(f"a program ended by itself with code {dead.returncode}", "its log says why; the logs' folder is named above")
        state = connection.execute(_STATE).fetchone()
        assert state is not None  # noqa: S101  an aggregate gives a row
        raw, waiting, done, read, sources, runs, versions = state
        settled = raw and versions and not waiting and not runs and read == sources
        quiet = quiet + 1 if settled and state == last else 0
        last = state
        line = f"  {time.monotonic() - begun:4.1f} s   raw {raw:,}   waiting {waiting:,}   results {done:,}"
        print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)
        time.sleep(0.25 if sys.stdout.isatty() else 1.0)
    print()


def _stop(programs: list[subprocess.Popen[bytes]]) -> None:
    for program in programs:
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
    for program in programs:
        try:
            program.wait(30)
        except subprocess.TimeoutExpired:
            program.kill()


def _count(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _summary(connection: psycopg.Connection[Any], before: int) -> None:
    raw = _count(connection, "select count(*) from tailrace.raw_records")
    edits = _count(connection, "select count(*) from tailrace.raw_records where revision > 1")
    defects = _count(connection, "select count(*) from tailrace.raw_records where meta ? 'defect'")
    print(
        f"\nraw        {raw:,} records, {raw - before:,} of them new in this run; {edits:,} edits kept as revisions; {defects} broken lines kept as bytes"
    )
    rows = connection.execute("select pipeline, version, status, count(*) from tailrace.job_status group by 1, 2, 3 order by 1, 2, 3").fetchall()
    for pipeline, version, status, count in rows:
        print(f"results    {pipeline} {version}: {count:,} {status}")
    rows = connection.execute(
        "select kind, reason, count(*) from tailrace.effects where verdict = 'suppressed' group by 1, 2 order by 1, 2"
    ).fetchall()
    for kind, reason, count in rows:
        print(f"effects    {count:,} of kind {kind} would have been sent: suppressed, {reason}")
    sent = _count(connection, "select count(*) from tailrace.deliveries where state = 'sent'")
    print(f"sent       {sent}")
    rows = connection.execute("select kind, target, body ->> 'text' from tailrace.effects where body ? 'text' order by id desc limit 3").fetchall()
    for kind, target, text in rows:
        print(f"  e.g. {kind}{' to ' + target if target else ''}: {text[:100]}")


def _next(home: Path, config: Path) -> None:
    command = Path(sys.executable).with_name("tailrace")
    shown = command if command.exists() else shutil.which("tailrace") or "tailrace"
    print(f"""
Try next, in {home}:
  export TAILRACE_CONFIG={config} TAILRACE_DATA_DIR={home / "data"}
  {shown} status                         what is where
  {shown} explain 1                      one record, from raw to effects
  {shown} effects list                   what was not sent, and why
  TAILRACE_EFFECTS__DM=1 {shown} up      the same with one gate open; append lines to a file of inbox/ and watch
  make demo INPUT=path                   your own files""")


if __name__ == "__main__":
    sys.exit(main())
