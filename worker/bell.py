"""The doorbell: a listening session that wakes the feeder. Optional: polling always works."""

from __future__ import annotations

import asyncio

import asyncpg

from worker.core.settings import DatabaseSettings
from worker.feeder import Feeder

CHANNEL = "tailrace_jobs"
CHECK = 30.0


class Bell:
    """A step that listens and, every 30 seconds, proves by a round trip that it still would hear."""

    def __init__(self, url: str, settings: DatabaseSettings, feeder: Feeder) -> None:
        self._url = url
        self._settings = settings
        self._feeder = feeder
        self._connection: asyncpg.Connection | None = None

    async def step(self) -> float:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._url, timeout=10, command_timeout=10, server_settings={"application_name": "tailrace bell"}
                )
                await self._connection.add_listener(CHANNEL, self._heard)
                self._feeder.ring()
            await asyncio.wait_for(self._connection.fetchval("select 1"), 10)
        except BaseException:
            self.close()
            raise
        return CHECK

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        self._feeder.ring(int(payload) if payload.isdigit() else None)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
