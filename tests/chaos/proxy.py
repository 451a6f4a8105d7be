"""Every connection of the programs goes through here: it can stall, lose the answers only, refuse, cut, half-close."""

from __future__ import annotations

import asyncio
import contextlib
import random


class Link:
    """One connection. A cleared event holds back what goes in that direction; nothing is told to either side."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.to_server, self.to_client = asyncio.Event(), asyncio.Event()
        self.to_server.set()
        self.to_client.set()

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()
        self.to_server.set()
        self.to_client.set()

    def half_close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.client.write_eof()


class Proxy:
    """Listens on a port of its own and leads to `target`."""

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self.refusing = False
        self.links: set[Link] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, target: int) -> None:
        self.target = target
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server)
        self.links.add(link)
        pumps = [asyncio.create_task(self._pump(reader, server, link.to_server)), asyncio.create_task(self._pump(answers, writer, link.to_client))]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
                self._tasks.discard(pump)
            self.links.discard(link)
            for end in (writer, server):
                with contextlib.suppress(OSError, RuntimeError):
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()

    def some(self, chance: random.Random, share: float) -> list[Link]:
        return [link for link in sorted(self.links, key=id) if chance.random() < share]

    def heal(self) -> None:
        """What was held back is cut: an answer that comes after minutes helps nobody."""
        self.refusing = False
        for link in list(self.links):
            if not (link.to_server.is_set() and link.to_client.is_set()):
                link.cut()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.cut()
