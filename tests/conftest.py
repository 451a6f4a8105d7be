"""A real Postgres for every test: one server a process, one migrated template, one clone of it a test."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
from hypothesis import settings as hypothesis_settings

from ops.migrate import migrate
from worker.core import embedded, events
from worker.core.service import rest_or_wake

ROOT = Path(__file__).resolve().parents[1]
SERVER = "TAILRACE_TEST_DATABASE_URL"
_LOCK = 7499  # roles belong to the whole server: only one process at a time migrates


hypothesis_settings.register_profile("long", deadline=None)  # --hypothesis-profile=long: many more runs, each time others


def pytest_configure(config: pytest.Config) -> None:
    """Takes our variables out of the environment, which programs under test would refuse as unknown settings."""
    given = getattr(config, "workerinput", {}).get(SERVER) or os.environ.get(SERVER)
    config.stash[_server_key] = given
    for name in [n for n in os.environ if n.startswith("TAILRACE_") or n == "DATABASE_URL"]:
        del os.environ[name]


def pytest_configure_node(node) -> None:  # xdist
    node.workerinput[SERVER] = node.config.stash[_server_key]


_server_key = pytest.StashKey[str | None]()


def _database(server: str, name: str) -> str:
    return urlsplit(server)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A superuser's URL: the server named by TAILRACE_TEST_DATABASE_URL, else an embedded one of this test process."""
    if given := request.config.stash[_server_key]:
        yield given
        return
    base = Path(tempfile.mkdtemp(prefix="tailrace-tests-"))
    base.chmod(0o755)
    try:
        yield embedded.start(base / "data", fsync=False)
    finally:
        embedded.stop(base / "data")
        shutil.rmtree(embedded._socket_dir((base / "data").resolve()), ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database that is only ever copied."""
    name = f"tr_template_{os.getpid()}_{secrets.token_hex(3)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("select pg_advisory_lock(%s)", [_LOCK])
        admin.execute(f"create database {name}")
        migrate(_database(server_url, name))
        admin.execute("select pg_advisory_unlock(%s)", [_LOCK])
    yield name
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture
def empty_db_url(server_url: str) -> Iterator[str]:
    """The superuser's URL of a fresh database without our schema; dropped after the test."""
    name = f"tr_test_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"create database {name} strategy file_copy")
        yield _database(server_url, name)
        admin.execute(f"drop database if exists {name} with (force)")


@pytest.fixture
def db_url(server_url: str, template: str) -> Iterator[str]:
    """The superuser's URL of a fresh migrated database; dropped after the test, whoever is still connected."""
    name = f"tr_test_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"create database {name} template {template} strategy file_copy")  # four times as fast as the default
    yield _database(server_url, name)
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)")


@pytest.fixture
async def pool(db_url: str) -> AsyncIterator[asyncpg.Pool]:
    """Sessions of the superuser, under no role; without prepared statements where the matrix says so (TEST_PREPARE=0)."""
    kept = 0 if os.environ.get("TEST_PREPARE") == "0" else 100
    pool = await asyncpg.create_pool(db_url, min_size=1, max_size=5, statement_cache_size=kept, server_settings={"client_min_messages": "warning"})
    yield pool
    pool.terminate()


class Clock:
    """The hands of the database's clock. Sessions opened from now on, and those of the pool, see the time that was set."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def now(self) -> dt.datetime:
        return await self._pool.fetchval("select tailrace.clock()")

    async def set(self, moment: dt.datetime | None) -> None:
        """Stops the clock at `moment`; None lets it run again."""
        name = await self._pool.fetchval("select current_database()")
        await self._pool.execute(f"alter database {name} " + (f"set tailrace.now = '{moment.isoformat()}'" if moment else "reset tailrace.now"))
        await self._pool.expire_connections()

    async def advance(self, seconds: float) -> None:
        """Stops the clock `seconds` after what it shows now."""
        await self.set(await self.now() + dt.timedelta(seconds=seconds))


@pytest.fixture
def clock(pool: asyncpg.Pool) -> Clock:
    """Turns the database's clock: `await clock.advance(60)`, `await clock.set(moment)`."""
    return Clock(pool)


@pytest.fixture
def shared() -> Path:
    """Real inputs beside the repository, where they are."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is absent")
    return folder


@pytest.fixture
def seen() -> Iterator[list[tuple[str, dict]]]:
    """The events emitted in this process during the test."""
    collected: list[tuple[str, dict]] = []
    unsubscribe = events.subscribe(lambda name, fields: collected.append((name, fields)))
    yield collected
    unsubscribe()


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Waits until `condition()`, plain or async, is true, and returns it. Fails after `seconds`: the bound, not a pause."""
    until = asyncio.get_running_loop().time() + seconds
    never = asyncio.Event()
    while True:
        value = condition()
        value = await value if asyncio.iscoroutine(value) else value
        if value:
            return value
        assert asyncio.get_running_loop().time() < until, f"not true within {seconds:g} s: {condition}"
        await rest_or_wake(0.02, never)


@pytest.fixture(name="eventually")
def _eventually() -> Callable:
    """`await eventually(lambda: ..., seconds=20)`: the only way in which a test waits."""
    return eventually
