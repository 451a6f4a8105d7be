"""A websocket that is read ahead: frames wait here, within bounds, while those before them are stored."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from collector.sources.answers import Limited
from collector.sources.bluesky_client import host_of, limit_of, pause_of
from collector.sources.bluesky_events import Refused
from worker.core.errors import Unavailable
from worker.core.service import rest_or_wake

LARGEST = 8_000_000  # bytes of a frame; the protocol allows 5,000,000
WAITING = 8_000_000  # bytes of frames that wait; then the host has to
BEAT = 20.0  # seconds between pings, and for which an answer may take


class Wire:
    """One connection. `hello` is sent first."""

    def __init__(self, url: str, hello: str = "") -> None:
        self._url, self._hello = url, hello
        self._frames: deque[bytes | str] = deque()
        self._size = 0
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._connection: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._connection = await connect(
                self._url, max_size=LARGEST, open_timeout=BEAT, close_timeout=1, ping_interval=BEAT, ping_timeout=BEAT, user_agent_header="tailrace"
            )
            if self._hello:
                await self._connection.send(self._hello)
        except InvalidStatus as error:
            raise self._refusal(error) from error
        except (WebSocketException, OSError, EOFError) as error:
            raise Unavailable(f"the stream of {host_of(self._url)} cannot be opened: {error!r}"[:300]) from error
        self._reading = asyncio.create_task(self._read(self._connection), name=f"frames of {host_of(self._url)}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._reading
        if self._connection is not None:
            await self._connection.close()

    async def take(self, seconds: float, stop: asyncio.Event) -> list[bytes | str]:
        """The frames that wait; none where none comes within `seconds`. Raises Unavailable when the stream has ended and all were taken."""
        if not self._frames and self._reading is not None and not self._reading.done():
            self._news.clear()
            await rest_or_wake(seconds, self._news, stop)
        if not self._frames and self._reading is not None and self._reading.done():
            self._reading.result()
        taken, self._size = list(self._frames), 0
        self._frames.clear()
        self._room.set()
        return taken

    async def _read(self, connection: ClientConnection) -> None:
        try:
            while True:
                frame = await connection.recv()
                self._frames.append(frame)
                self._size += len(frame)
                self._news.set()
                while self._size > WAITING:
                    self._room.clear()
                    await self._room.wait()
        except ConnectionClosed as error:
            raise Unavailable(f"the stream of {host_of(self._url)} ended: {error}"[:300]) from error
        finally:
            self._news.set()

    def _refusal(self, error: InvalidStatus) -> Exception:
        answer = error.response
        said = bytes(answer.body or b"")[:200].decode("utf-8", "replace")
        if answer.status_code == 429:  # noqa: PLR2004  too many requests
            return Limited(limit_of(self._url), pause_of(answer.headers), f"{host_of(self._url)} limits streams: {said}")
        if answer.status_code == 400 and "cursor" in said.lower():  # noqa: PLR2004  bad request
            return Refused("Cursor", said)
        return Unavailable(f"{host_of(self._url)} refuses the stream: {answer.status_code} {said}")
