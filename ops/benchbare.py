"""The bare loops beside which `make bench` measures: the same durable work on the same tables, without a library."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import asyncpg
import orjson

from ops.benchwork import SOURCES

_CLAIM = """update tailrace.jobs set state = 'c', token = $1, lease_until = now() + interval '15 seconds', claimed_at = now() where version_id = $2 and source_id = $3 and raw_id = any (array(select raw_id from tailrace.jobs where version_id = $2
    and lane = 2 and source_id = $3 and state = 'r' and raw_id >= $4 order by raw_id limit $5 for update skip locked)) returning raw_id, raw_id_to"""
_READ = """select r.id, r.external_id, r.payload from unnest($1::bigint[], $2::bigint[]) s(a, b)
  cross join lateral (select * from tailrace.raw_records r where r.source_id = $3 and r.id between s.a and s.b) r"""
_READ_SINGLES = "select id, external_id, payload from tailrace.raw_records where id = any($1::bigint[])"
_RESULTS = "insert into tailrace.results (version_id, raw_id, status, token, finished_at) select $1, unnest($2::bigint[]), 'ok', $3, now()"
_DELETE = "delete from tailrace.jobs where version_id = $1 and source_id = $2 and raw_id = any($3::bigint[]) and token = $4"


async def drain(url: str, slice_size: int, wait: Callable[[], object]) -> None:
    """The same durable work without a library: claim, read, results and delete in a transaction; the next claim beside the last settle."""
    options = {"server_settings": {"enable_seqscan": "off", "enable_hashjoin": "off", "jit": "off"}}
    claims, settles = await asyncpg.connect(url, **options), await asyncpg.connect(url, **options)
    version = await claims.fetchval("select max(id) from tailrace.versions")
    limit = max(1, 1000 // slice_size)

    async def settle(source: int, token: uuid.UUID, firsts: list[int], ids: list[int]) -> None:
        async with settles.transaction():
            await settles.execute(_DELETE, version, source, firsts, token)
            await settles.execute(_RESULTS, version, ids, token)

    wait()
    pending: asyncio.Task[None] | None = None
    for source in range(1, SOURCES + 1):
        low = 0
        while True:
            token = uuid.uuid4()
            jobs = await claims.fetch(_CLAIM, token, version, source, low, limit)
            if not jobs:
                break
            low = max(j["raw_id"] for j in jobs) + 1
            firsts = [j["raw_id"] for j in jobs]
            if slice_size == 1:
                rows = await claims.fetch(_READ_SINGLES, firsts)
            else:
                rows = await claims.fetch(_READ, firsts, [j["raw_id_to"] for j in jobs], source)
            if pending:
                await pending
            pending = asyncio.create_task(settle(source, token, firsts, [r["id"] for r in rows]))
    if pending:
        await pending


async def intake(url: str, lines: list[bytes]) -> None:
    """The best bare way: COPY into a temporary table, insert what is new by its key; pages of 1,000."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "create table public.bare (id bigint generated always as identity primary key, source int, key text, payload jsonb, unique (source, key))"
    )
    await connection.execute("create temporary table stage (key text, payload jsonb) on commit delete rows")
    for first in range(0, len(lines), 1000):
        records = [(str(orjson.loads(line)["id"]), line.decode()) for line in lines[first : first + 1000]]
        async with connection.transaction():
            await connection.copy_records_to_table("stage", records=records)
            await connection.execute("insert into public.bare (source, key, payload) select 1, key, payload from stage on conflict do nothing")
    await connection.close()
