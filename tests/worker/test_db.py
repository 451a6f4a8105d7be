"""A start waits for the database as a running program does."""

from __future__ import annotations

import pytest

from worker.core import db
from worker.core.errors import Unavailable
from worker.core.settings import DatabaseSettings


async def test_a_database_that_goes_away_between_the_first_connection_and_the_first_question_is_waited_for(db_url, monkeypatch):
    real, calls = db.check_schema, []

    async def check_schema(pool):
        calls.append(pool)
        if len(calls) == 1:
            raise ConnectionError("unexpected connection_lost() call")
        await real(pool)

    monkeypatch.setattr(db, "check_schema", check_schema)
    async with await db.open_pool(db_url, DatabaseSettings(), "test", "tailrace_worker", 2) as pool:
        assert await pool.fetchval("select 1") == 1
    assert len(calls) == 2


async def test_a_database_that_stays_away_is_said(db_url, monkeypatch):
    async def check_schema(pool):
        raise ConnectionError("unexpected connection_lost() call")

    monkeypatch.setattr(db, "check_schema", check_schema)
    with pytest.raises(Unavailable, match="start it, or correct DATABASE_URL"):
        await db.open_pool(db_url, DatabaseSettings(connect_seconds=0.1), "test", "tailrace_worker", 2)
