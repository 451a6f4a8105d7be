"""A source on a folder of the test, and its backfill in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from collector.backfiller import Backfill
from collector.history import Report
from collector.raw import register
from collector.sources.building import build
from worker.core.settings import Settings


class Inbox:
    """`[sources.inbox]` on a folder; `await inbox.read()` is one `collector backfill`."""

    def __init__(self, folder: Path, pool: asyncpg.Pool) -> None:
        self.folder = folder
        self.pool = pool
        self.options: dict[str, Any] = {"id_field": "id"}
        self.collector: dict[str, Any] = {}

    def settings(self) -> Settings:
        source = {"kind": "files", "path": str(self.folder), **self.options}
        return Settings(sources={"inbox": source}, collector=self.collector)

    async def read(self, **given: Any) -> Report:
        settings = self.settings()
        source = build(settings)["files:inbox"]
        source_id = (await register(self.pool, settings, ["files:inbox"]))["files:inbox"]
        asked = {"max_records": None, "max_chunks": None, "chunk_size": None, "dry_run": False, "force_enqueue": False, "max_minutes": None} | given
        return await Backfill(self.pool, settings, SimpleNamespace(**asked), None, None).run(source, source_id)

    async def raw(self) -> list[dict[str, Any]]:
        rows = await self.pool.fetch("select * from tailrace.raw_records order by id")
        return [dict(r) | {"payload": json.loads(r["payload"]) if r["payload"] else None, "meta": json.loads(r["meta"] or "{}")} for r in rows]

    def write(self, name: str, *records: Any, mode: str = "w") -> Path:
        path = self.folder / name
        with path.open(mode) as file:
            for record in records:
                file.write(json.dumps(record) + "\n")
        return path


@pytest.fixture
def inbox(tmp_path: Path, pool: asyncpg.Pool) -> Inbox:
    (tmp_path / "inbox").mkdir()
    return Inbox(tmp_path / "inbox", pool)


@pytest.fixture
async def version(pool: asyncpg.Pool) -> Callable[..., Any]:
    """A live version that wants everything: each new record makes a job."""
    row = await pool.fetchrow("select * from tailrace.register_version('p', 'v', 'f', '{}', 1, '{%}', 'on_start', 'test')")
    return row["version_id"]
