"""A service of the test's own, in its process and its event loop."""

from __future__ import annotations

import asyncio
import socket

import uvicorn


class Local:
    """A Starlette application on a free port of this machine; `url` is where."""

    def __init__(self, app):
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        self._server.install_signal_handlers = lambda: None
        self._task = None

    async def start(self):
        self._socket.listen(128)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        return self

    async def stop(self):
        self._server.should_exit = True
        await asyncio.wait_for(self._task, 20)

    async def __aenter__(self):
        return await self.start()

    async def __aexit__(self, *_):
        await self.stop()
