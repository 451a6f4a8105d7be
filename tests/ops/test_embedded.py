"""The Postgres inside: started once, shared, surviving what kills it, and clear about what it cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from worker.core import embedded
from worker.core.errors import Misconfigured


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tailrace-embedded-") as base:
        Path(base).chmod(0o755)
        yield Path(base) / "data"
        embedded.stop(Path(base) / "data")


def test_it_is_started_once_shared_and_survives_a_kill(folder):
    url = embedded.start(folder, fsync=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table kept (x int)")
    pid = int((folder / "postmaster.pid").read_text().split()[0])
    assert embedded.start(folder) == url
    assert int((folder / "postmaster.pid").read_text().split()[0]) == pid
    children = [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout.split()]
    for victim in (pid, *children):
        os.kill(victim, signal.SIGKILL)
    assert embedded.start(folder, fsync=False) == url
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    embedded.stop(folder)
    assert not embedded.is_running(folder)


@pytest.mark.parametrize(("name", "text", "says"), [("PG_VERSION", "9\n", "was made by PostgreSQL 9"), ("letters.txt", "mine", "holds no database")])
def test_a_folder_of_something_else_is_left_alone(folder, name, text, says):
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(Misconfigured, match=says):
        embedded.start(folder)
    assert (folder / name).read_text() == text


def test_a_full_disk_is_one_clear_message(folder):
    folder.parent.joinpath("small").mkdir()
    small = folder.parent / "small"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        with pytest.raises(Misconfigured, match="no space left") as refused:
            embedded.start(small / "data")
        assert "TAILRACE_DATA_DIR" in refused.value.hint
    finally:
        subprocess.run(["umount", str(small)], check=True)
