"""What is done is settled in the end, whatever becomes of one attempt to settle it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from worker import Done
from worker.core.errors import ClaimLost
from worker.jobs import Jobs


@pytest.mark.parametrize("first", [ClaimLost("one of them is lost"), asyncpg.NotNullViolationError("one of them is wrong")])
async def test_a_database_that_goes_away_while_slices_are_settled_one_by_one_leaves_none_behind(pool, register, feed, drain, monkeypatch, first):
    async def f(record, ctx):
        return Done({"n": record.payload["n"]})

    runnable = await register(f, concurrency=4)
    await feed(12)
    errors = []
    real = Jobs.settle

    async def settle(self, version_id, mode, gates, columns):
        slices = len(columns[1])
        if not errors and slices > 2:
            errors.append(first)
            raise first
        if len(errors) == 1:
            errors.append(ConnectionError("the database went away"))
            raise errors[-1]
        return await real(self, version_id, mode, gates, columns)

    monkeypatch.setattr(Jobs, "settle", settle)
    async with asyncio.timeout(20):
        await drain(runnable)
    assert len(errors) == 2
    assert await pool.fetchval("select count(*) from tailrace.results") == 12
    assert await pool.fetchval("select count(*) from tailrace.jobs") == 0
