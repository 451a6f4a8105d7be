"""Raw records to work on, and workers that drain them in this process."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from worker import Done, Effect, processors, registry
from worker.core.models import Delivery
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
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
        return await registry.register_one(pool, pipeline, PipelineSpec(processor="f", **spec), found, None, "test")

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


OPEN = {"k": {"policy": "never_twice", "max_age": None, "hold": 0}}


async def wish(record, ctx):
    return Done(effects=[Effect("k", {"n": record.payload["n"]}, "t")])


@pytest.fixture
def wishing() -> Callable[..., Any]:
    """A processor that wants one effect of kind `k` per record."""
    return wish


@pytest.fixture
async def live(register: Callable[..., Any], feed: Callable[..., Any]) -> registry.Runnable:
    """A live version with id 1 and three records."""
    runnable = await register(wish)
    await feed(3)
    return runnable


@pytest.fixture
def decide(pool: asyncpg.Pool) -> Callable[..., Any]:
    """`await decide(key="b", gates=...)`: what the gate says about one effect, or about several: `await decide({...}, {...})`."""

    async def decide(*several: dict[str, Any], version: int = 1, mode: str = "run", gates: dict[str, Any] = OPEN, **effect: Any) -> asyncpg.Record:
        usual = {"raw": 1, "rerun": 0, "quiet": False, "kind": "k", "key": "a", "target": "t", "body": {"x": 1}, "occurred": None}
        wanted = [usual | effect | one for one in several or ({},)]
        return await pool.fetchrow("select * from tailrace.decide_effects($1, $2, $3, $4)", version, mode, json.dumps(gates), json.dumps(wanted))

    return decide


@pytest.fixture
def delivery() -> Callable[..., Delivery]:
    """A delivery as a sink gets it."""

    def delivery(policy: str = "idempotent", attempt: int = 1, target: str = "t", body: Any = None, key: str = "key-1") -> Delivery:
        return Delivery(key, "k", target, body or {"text": "hi"}, attempt, policy, "files:a", "x1")

    return delivery


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        receiver = self.server.receiver
        answer = receiver.answers.pop(0) if receiver.answers else (200, {}, b"{}")
        self.close_connection = not isinstance(answer, tuple)
        if answer == "drop before":
            return
        receiver.requests.append((self.path, dict(self.headers), self.rfile.read(int(self.headers.get("content-length", 0)))))
        if isinstance(answer, tuple):
            self._answer(*answer)
        elif isinstance(answer, bytes):
            self.wfile.write(answer)
        elif answer == "slow":
            receiver.release.wait(10)
        elif answer == "endless":
            self._endless(receiver.release)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _endless(self, release: threading.Event) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not release.is_set():
            self.wfile.write(b"x" * 65536)

    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().handle()

    def log_message(self, *_args: Any) -> None:
        """Quiet."""


class Receiver:
    """Answers as it is told, in turn: (status, headers, body); bytes as they are; `drop before` reading; `drop after` reading; `slow`;
    `endless`. When nothing more is told: 200.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.release = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.receiver = self  # type: ignore[attr-defined]  # the handler finds its answers there
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def keys(self) -> list[str]:
        return [headers["Idempotency-Key"] for _, headers, _ in self.requests]

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()
