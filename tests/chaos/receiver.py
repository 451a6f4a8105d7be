"""The world: takes effects by HTTP, writes down every request, and is not always kind.

`/post` and `/single` honour the Idempotency-Key: a key that is known is a repeat and nothing is done. `/once` and `/lossy` do what they are told each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from pathlib import Path

HONOURS = {"post", "single"}
MOODS = {"ok": 86, "500": 3, "429": 3, "silent before": 2, "cut after": 3, "silent after": 2, "cut before": 1}
PATIENCE = 4.0  # longer than the sinks' timeout


class Receiver:
    """`calm`: always answers 200. `away`: refuses everything with 503, and does nothing."""

    def __init__(self, log: Path, seed: int) -> None:
        self._log = log.open("a", buffering=1)
        self._chance = random.Random(seed)
        self._known: set[str] = set()
        self.calm = self.away = False
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._log.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                await writer.drain()
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False where the connection ends."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        kind = head[0].split()[1].strip("/")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        key = headers.get("idempotency-key", "")
        mood = "ok" if self.calm else "503" if self.away else self._chance.choices(list(MOODS), list(MOODS.values()))[0]
        does = mood in ("ok", "cut after", "silent after")
        did = "refused" if not does else "repeat" if kind in HONOURS and key in self._known else "processed"
        if does:
            self._known.add(key)
        self._log.write(json.dumps({"at": time.time(), "kind": kind, "key": key, "did": did, "mood": mood, "body": json.loads(body)["body"]}) + "\n")
        if mood.startswith("silent"):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), PATIENCE)
        if mood.startswith(("silent", "cut")):
            writer.transport.abort()
            return False
        status = "200 OK" if mood == "ok" else {"500": "500 Broken", "429": "429 Slow down\r\nretry-after: 1", "503": "503 Away"}[mood]
        answer = json.dumps({"id": key}).encode()
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)
        return True
