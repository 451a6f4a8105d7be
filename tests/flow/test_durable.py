"""`synchronous_commit = off`: what was promised to somebody outside is on the disk nevertheless; only work that is done again by itself may be lost."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from worker.core import embedded

OPEN = '{"k": {"policy": "never_twice", "max_age": null, "hold": 0}}'
RAW = "select * from tailrace.append_raw(1, '{}', 0, true, null, null, null, array['a'], array['create'], array['x'::bytea], null, null, array['1'::jsonb], null, null)"
WISH = """select * from tailrace.decide_effects(1, 'run', $1, '[{"raw": 1, "rerun": 0, "quiet": false, "kind": "k", "key": "a", "target": "", "body": 1}]')"""
VERSION = "select * from tailrace.register_version('p', '1', 'f', '{}', 1, '{%}', 'on_start', 'test')"
SOURCE = "select * from tailrace.register_sources(array['files:a'], array['{}'::jsonb])"


@pytest.fixture
async def crashing(server):
    """`await crashing(query, ...)`: runs statements without waiting for the disk, crashes the server at once, and gives a session after its recovery."""
    opened: list[asyncpg.Connection] = []

    async def session() -> asyncpg.Connection:
        opened.append(await asyncpg.connect(server.url))
        return opened[-1]

    async def run(*queries: tuple[str, ...]) -> asyncpg.Connection:
        connection = await session()
        await connection.execute("alter system set wal_writer_delay = '10s'")
        await connection.execute("select pg_reload_conf()")
        await connection.execute("checkpoint")
        await connection.execute("set synchronous_commit = off")
        for query, *given in queries:
            await connection.execute(query, *given)
        connection.terminate()
        embedded._run(server.folder, "pg_ctl", "-D", str(server.folder), "-m", "immediate", "-w", "stop", account=embedded._account())
        embedded.start(server.folder)
        return await session()

    yield run
    for connection in opened:
        connection.terminate()


@pytest.mark.slow
async def test_what_others_rely_on_survives_a_crash(crashing):
    after = await crashing((SOURCE,))
    assert await after.fetchval("select count(*) from tailrace.sources") == 1, "the collector goes on with its id"
    after = await crashing((VERSION,))
    assert await after.fetchval("select count(*) from tailrace.versions") == 1, "the worker goes on with its id"
    after = await crashing((RAW,))
    assert await after.fetchval("select count(*) from tailrace.raw_records") == 1, "the caller of a webhook was told 202"
    after = await crashing(("select tailrace.open_run('replay', 1, '{}')",))
    assert await after.fetchval("select count(*) from tailrace.runs where kind = 'replay'") == 1, "the operator was told that it is open"
    after = await crashing((WISH, OPEN), ("select * from tailrace.claim_deliveries($1, 'w', 'k', 1, null, 30)", uuid.uuid4()))
    assert await after.fetchval("select state from tailrace.deliveries") == "sending", (
        "it may have been sent; under never_twice it must not be pending again"
    )
