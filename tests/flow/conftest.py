"""Real processes, a receiver on a real socket, and a server of one's own that may be restarted."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from ops.migrate import migrate
from worker.core import embedded

ROOT = Path(__file__).resolve().parents[2]


class Receiver:
    """Remembers each POST by its Idempotency-Key and does nothing twice for one."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bodies: dict[str, Any] = {}
        self.answers = threading.Event()  # cleared: it takes what comes, and answers later
        self.answers.set()
        outer, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                length, key = int(self.headers.get("content-length", 0)), self.headers.get("Idempotency-Key", "")
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # the caller was killed in the middle
                with lock:
                    outer.calls[key] += 1
                    outer.bodies.setdefault(key, json.loads(body))
                outer.answers.wait()
                answer = json.dumps({"id": key}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def log_message(self, *_args: Any) -> None:
                """Quiet."""

        http.server.ThreadingHTTPServer.request_queue_size = 256
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Server:
    """An embedded Postgres that belongs to this test alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = embedded.start(folder)
        migrate(self.url)

    def restart(self) -> None:
        embedded.stop(self.folder)
        embedded.start(self.folder)


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="tailrace-flow-") as base:
        Path(base).chmod(0o755)
        made = Server(Path(base) / "data")
        yield made
        embedded.stop(made.folder)


def reached(url: str) -> dict[str, str]:
    """How programs reach the database: as the matrix says (TEST_POOLER, a PgBouncer before the same server; TEST_PREPARE=0), else directly."""
    env = {"DATABASE_URL": url}
    parts = urlsplit(url)
    if os.environ.get("TEST_POOLER") and parts.hostname == "127.0.0.1":
        pooled = parts._replace(netloc=f"{parts.username}@{os.environ['TEST_POOLER']}").geturl()
        env |= {"DATABASE_URL": pooled, "TAILRACE_DATABASE__POOLER": "transaction", "TAILRACE_DATABASE__SET_ROLE": "0"}
    if os.environ.get("TEST_PREPARE") == "0":
        env["TAILRACE_DATABASE__PREPARE"] = "0"
    return env


class Programs:
    """Starts programs as a user would and ends what is left of them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("TAILRACE_")}
        self.env |= reached(url) | {
            "PYTHONPATH": str(ROOT), "TAILRACE_WORKER__PORT": "0", "TAILRACE_COLLECTOR__PORT": "0",
        }  # fmt: skip
        self.started: list[subprocess.Popen[bytes]] = []

    def config(self, text: str) -> None:
        (self.folder / "tailrace.toml").write_text(text)

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"log-{len(self.started)}-{command[0]}.txt").open("wb")
        program = subprocess.Popen([sys.executable, "-m", *command], cwd=self.folder, env=self.env | env, stdout=log, stderr=log)
        log.close()
        self.started.append(program)
        return program

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=self.folder, env=self.env | env, capture_output=True, text=True, timeout=120, check=False
        )

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(self.folder.glob("log-*")))

    def end(self) -> None:
        for program in self.started:
            if program.poll() is None:
                program.send_signal(signal.SIGCONT)
                program.kill()
                program.wait()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Callable[[str], Programs]]:
    """`programs(url)`: programs on that database, in a folder of their own."""
    made: list[Programs] = []

    def make(url: str) -> Programs:
        made.append(Programs(tmp_path, url))
        return made[-1]

    yield make
    for p in made:
        p.end()


@pytest.fixture
def flow() -> SimpleNamespace:
    """`programs(folder, url)` and `receiver()`, where a test needs several; it ends them itself."""
    return SimpleNamespace(programs=Programs, receiver=Receiver)
