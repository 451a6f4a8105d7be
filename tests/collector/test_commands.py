"""`python -m collector ...` as an operator runs it: messages, exit codes, what is opened."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(tmp_path, db_url):
    (tmp_path / "in").mkdir()
    (tmp_path / "tailrace.toml").write_text(
        f'[sources.inbox]\nkind = "files"\npath = "{tmp_path}/in"\nid_field = "id"\ntime_field = "at"\n[collector]\nport = 0\npoll_seconds = 0.02\n'
    )

    def run(*args, **environ):
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": db_url,
            "TAILRACE_CONFIG": str(tmp_path / "tailrace.toml"),
        } | environ
        return subprocess.run(
            [sys.executable, "-m", "collector", *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    run.folder = tmp_path / "in"
    run.env = {"PYTHONPATH": str(ROOT), "DATABASE_URL": db_url, "TAILRACE_CONFIG": str(tmp_path / "tailrace.toml")}
    return run


def write(folder, *numbers, **more):
    with (folder / "a.jsonl").open("a") as file:
        for n in numbers:
            file.write(json.dumps({"id": n, "at": f"2026-01-{n + 1:02}T00:00:00Z", **more}) + "\n")


@pytest.mark.parametrize(("args", "message"), [
    (["backfil"], "backfill"),
    (["backfill", "--sorce", "files:inbox"], "--source"),
    (["backfill", "--source", "files:inbx"], "files:inbox"),
    (["backfill", "--since", "2026-01-01T00:00:00"], "no time zone"),
    (["backfill", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"], "--since must be before --until"),
    (["backfill", "--chunk-size", "0"], "above 0"),
    (["enqueue", "--since", "yesterday"], "ISO 8601"),
    (["enqueue"], "a worker registers them"),
    ([], "required"),
])  # fmt: skip
def test_a_wrong_word_ends_with_what_to_write(command, args, message):
    done = command(*args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("environ", "message"), [
    ({"TAILRACE_COLLECTOR__PRT": "1"}, "port"),
    ({"TAILRACE_SOURCES__INBOX__PATHH": "x"}, "path"),
    ({"DATABASE_URL": "postgresql://postgres@127.0.0.1:1/x", "TAILRACE_DATABASE__CONNECT_SECONDS": "0.2"}, "no database at"),
    ({"DATABASE_URL": "nonsense"}, "DATABASE_URL"),
])  # fmt: skip
def test_a_wrong_setting_ends_with_what_to_change(command, environ, message):
    done = command("backfill", **environ)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_without_our_schema_is_said(command, empty_db_url):
    done = command("backfill", DATABASE_URL=empty_db_url)
    assert (done.returncode, "tailrace migrate" in done.stderr) == (2, True)


def test_backfill_says_what_it_would_do_then_does_it_once(command):
    write(command.folder, *range(10))
    assert json.loads(command("backfill", "--dry-run", "--json").stdout)[0] == facts(appended=10)
    assert json.loads(command("backfill", "--json").stdout)[0] == facts(appended=10)
    assert json.loads(command("backfill", "--json").stdout)[0] == facts(seen=0)
    assert "0 read, stored 0" in command("backfill").stdout


def test_backfill_says_which_last_line_it_leaves(command):
    write(command.folder, 1)
    with (command.folder / "a.jsonl").open("a") as file:
        file.write("12")
    done = command("backfill")
    said = json.loads(done.stderr.splitlines()[0])
    assert "1 read, stored 1" in done.stdout
    assert (said["event"], said["bytes"], said["level"]) == ("line.awaited", 2, "warning")


def facts(**some):
    base = {"source": "files:inbox", "seen": some.get("appended", 0), "appended": 0, "unchanged": 0, "stale": 0, "defects": 0, "jobs": 0, "error": "",
            "finished": True, "reopened": 0, "errors": [], "total": None, "run": None, "why": "its size is not known beforehand", "chunks": 1 if some.get("appended") else 0}  # fmt: skip
    return base | some


def test_backfill_obeys_window_most_records_and_chunk_size(command):
    write(command.folder, *range(10))
    window = ["--since", "2026-01-03T00:00:00Z", "--until", "2026-01-06T00:00:00Z"]
    assert json.loads(command("backfill", "--json", *window).stdout)[0]["appended"] == 3
    first = json.loads(command("backfill", "--json", "--max-records", "4", "--chunk-size", "2").stdout)[0]
    assert (first["seen"], first["chunks"], first["appended"]) == (4, 2, 2)
    rest = json.loads(command("backfill", "--json", "--chunk-size", "4").stdout)[0]
    assert (rest["seen"], rest["chunks"]) == (6, 2)


def test_a_broken_file_is_no_reason_to_stop(command):
    write(command.folder, 1)
    (command.folder / "b.json").write_text("[1, ")
    (command.folder / "c.jsonl.zst").write_text("not packed")
    done = command("backfill", "--json")
    report = json.loads(done.stdout)[0]
    assert (done.returncode, report["appended"], report["defects"]) == (3, 3, 2)
    assert "c.jsonl.zst" in report["error"]
    assert "c.jsonl.zst" in done.stderr


async def test_live_stops_at_once_when_asked_and_follows_until_then(command, pool, eventually):
    write(command.folder, 1)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "collector", "live", env=os.environ | command.env | {"TAILRACE_SOURCES__INBOX__SILENCE": "5m"}, stderr=subprocess.PIPE
    )
    await eventually(lambda: stored(pool, 1))
    write(command.folder, 2)
    await eventually(lambda: stored(pool, 2))
    program.send_signal(signal.SIGTERM)
    _, said = await asyncio.wait_for(program.communicate(), 20)
    assert program.returncode == 0
    assert b"reads files:inbox" in said
    assert b"makes jobs for live and shadow versions" in said


async def stored(pool, count):
    return await pool.fetchval("select count(*) from tailrace.raw_records") == count


async def test_a_taken_port_is_said(command):
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    done = await asyncio.to_thread(command, "live", TAILRACE_COLLECTOR__PORT=str(port))
    server.close()
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "TAILRACE_COLLECTOR__PORT" in done.stderr


class Queue:
    """Jobs of one version, and its results as a worker would leave them."""

    def __init__(self, pool, version):
        self.pool, self.version = pool, version

    async def open(self):
        return await self.pool.fetchval("select coalesce(sum(n_rows), 0) from tailrace.jobs where version_id = $1", self.version)

    async def settle(self, failed=0):
        await self.pool.execute("delete from tailrace.jobs")
        await self.pool.execute(
            "insert into tailrace.results (version_id, raw_id, status, finished_at) "
            "select $1, id, case when row_number() over (order by id) <= $2 then 'failed' else 'ok' end, now() from tailrace.raw_records",
            self.version, failed,
        )  # fmt: skip


@pytest.fixture
async def queue(pool, version):
    return Queue(pool, version)


async def run(command, *args):
    done = await asyncio.to_thread(command, *args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_enqueue_opens_what_is_asked_for_and_nothing_twice(command, queue):
    write(command.folder, *range(10))
    await run(command, "backfill")
    assert await queue.open() == 10
    assert (await run(command, "enqueue"))["opened"] == 0
    await queue.settle(failed=3)
    assert (await run(command, "enqueue", "--dry-run"))["would_open"] == 0
    assert (await run(command, "enqueue", "--failed", "--dry-run"))["would_open"] == 3
    assert await queue.open() == 0
    assert (await run(command, "enqueue", "--failed"))["opened"] == 3
    jobs = await queue.pool.fetch("select lane, quiet, rerun from tailrace.jobs")
    assert {tuple(j) for j in jobs} == {(1, False, 1)}
    window = ["--since", "2026-01-05T00:00:00Z", "--until", "2026-01-09T00:00:00Z"]
    forced = await run(command, "enqueue", "--force", *window, "--max-records", "2", "--source", "files:inbox")
    assert (forced["opened"], await queue.open()) == (2, 5)


async def test_enqueue_names_the_nearest_of_what_does_not_exist(command, queue):
    write(command.folder, 1)
    await run(command, "backfill")
    for args, message in ((["--pipeline", "q"], "p"), (["--version", "w"], "has no version"), (["--source", "files:inbx"], "files:inbox")):
        done = await asyncio.to_thread(command, "enqueue", *args)
        assert done.returncode == 2
        assert message in done.stderr


async def test_force_enqueue_works_again_on_what_is_known(command, queue):
    write(command.folder, *range(5))
    await run(command, "backfill")
    await queue.settle()
    assert (await run(command, "backfill", "--force-enqueue"))[0]["reopened"] == 5
    assert await queue.open() == 5
