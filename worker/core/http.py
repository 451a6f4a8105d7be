"""The small HTTP server of every daemon: /healthz, /readyz, /metrics, and what the program adds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from worker.core.errors import Misconfigured
from worker.core.metrics import Metrics

USUAL = 9402  # where no port is set; a second process on the machine takes a free one


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the program has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _routes(metrics: Metrics, pool: Callable[[], asyncpg.Pool | None], unready: Callable[[], str | None]) -> list[BaseRoute]:
    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        why = unready() or (None if pool() else "no database yet")
        return JSONResponse({"status": "ready"} if why is None else {"status": "not ready", "why": why}, 200 if why is None else 503)

    async def scrape(_request: Request) -> Response:
        return Response(await metrics.scrape(pool()), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)]


def _bind(host: str, port: int | None, setting: str) -> socket.socket:
    if port is None:
        with contextlib.suppress(Misconfigured):
            return _bind(host, USUAL, setting)
        port = 0
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        hint = f"another process has the port; set {setting} to another one, or to 0" if taken else f"check {setting} and its HOST"
        raise Misconfigured(f"cannot listen on {host}:{port}: {error.strerror or error}", hint) from error
    return listener


@contextlib.asynccontextmanager
async def serving(
    host: str, port: int | None, routes: Sequence[BaseRoute], metrics: Metrics,
    pool: Callable[[], asyncpg.Pool | None], unready: Callable[[], str | None],
    setting: str = "TAILRACE_WORKER__PORT",
) -> AsyncIterator[int]:  # fmt: skip
    """Serves while the block runs; gives the bound port. Raises Misconfigured where the port is taken."""
    listener = _bind(host, port, setting)
    app = Starlette(routes=[*_routes(metrics, pool, unready), *routes])
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5, timeout_keep_alive=30)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task
        listener.close()
