"""Raw records to work on, and workers that drain them in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from worker import processors, registry
from worker.core.settings import PipelineSpec, Settings
from worker.processors import Processor
from worker.run import Worker

APPEND = "select * from tailrace.append_raw($1, '{}', 0, true, null, null, null, $2, $3, $4, null, null, $5, null, null)"


async def append(pool: asyncpg.Pool, source: str, payloads: list[Any], keys: list[str] | None = None) -> asyncpg.Record:
    rows = await pool.fetch("select * from tailrace.register_sources($1, array['{}'::jsonb])", [source])
    keys = keys or [f"k{p['n']}" if isinstance(p, dict) and "n" in p else json.dumps(p) for p in payloads]
    digests = [json.dumps(p).encode() for p in payloads]
    return await pool.fetchrow(APPEND, rows[0]["id"], keys, ["create"] * len(keys), digests, [json.dumps(p) for p in payloads])


@pytest.fixture
def feed(pool: asyncpg.Pool) -> Callable[..., Any]:
    """`await feed(10)`: ten records {"n": 0..9} of files:a, with job slices for the registered versions."""

    async def feed(count: int, source: str = "files:a", first: int = 0) -> asyncpg.Record:
        return await append(pool, source, [{"n": n} for n in range(first, first + count)])

    return feed


@pytest.fixture
def register(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`await register(function, slice_size=...)`: a version of pipeline `p`, as a worker registers it."""
    registered: dict[str, Processor] = {}
    monkeypatch.setattr(processors, "_registered", registered)

    async def register(function: Any, version: str = "1", pipeline: str = "p", **how: Any) -> registry.Runnable:
        spec = {k: how.pop(k) for k in list(how) if k in PipelineSpec.model_fields and k not in ("slice_size", "concurrency", "deadline")}
        found = Processor("f", function, version, **how)
        return await registry._register(pool, pipeline, PipelineSpec(processor="f", **spec), found, None, "test")

    return register


@pytest.fixture
def drain(pool: asyncpg.Pool) -> Callable[..., Any]:
    """`await drain(runnable, ...)` works until nothing is due; gives back the worker."""

    async def drain(*runnables: registry.Runnable, mode: str = "drain", gates: dict[str, Any] | None = None, **worker: Any) -> Worker:
        settings = Settings(worker={"watch_seconds": 0.05, "settle_seconds": 0.05, "poll_seconds": 0.2, **worker})
        running = Worker(settings, pool, list(runnables), "drain", gates or {})
        running.settler._mode = mode
        await running.run()
        return running

    return drain


@pytest.fixture
def statuses(pool: asyncpg.Pool) -> Callable[..., Any]:
    """Records by status, as users see them."""

    async def statuses() -> dict[str, int]:
        return dict(await pool.fetch("select status, count(*) from tailrace.job_status group by 1"))

    return statuses


@pytest.fixture
def processor_file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a processor file and gives its path."""

    def write(code: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text("from worker import Done, Effect, Fail, Outage, Retry, Skip, processor\nimport os, time, asyncio\n" + code)
        return str(path)

    return write
