"""Exports of Telegram Desktop as a source of history."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import IO, Any

from collector.record import Defect, moment
from collector.sources import Page
from collector.sources.telegram_exported import record
from collector.sources.telegram_scan import Cut, Scan, elements, messages
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings

BREATH = 64  # messages between two looks at what else the program has to do


class Export:
    """History from a file. The position is an offset in it; a file that has changed is read from its beginning."""

    def __init__(self, name: str, path: str, chat: str, settings: CollectorSettings, most: int) -> None:
        self.name = name
        self.caught_up = False
        self.exclusive: tuple[str, ...] = ()
        self.exclusive_history: tuple[str, ...] = ()
        self.limits: tuple[str, ...] = ()
        self.unread: list[str] = []
        self._path, self._chat, self._settings, self._most = Path(path).expanduser(), chat, settings, most

    def describe(self) -> str:
        return f"history from the export {self._path}"

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return position

    async def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        try:
            file = self._path.open("rb")
        except OSError as error:
            self.unread = [f"{self._path} ({error.strerror})"]
            return
        self.unread = []
        with file:
            async for page in self._read(file, position.get("export")):
                yield page

    async def _read(self, file: IO[bytes], told: Any) -> AsyncGenerator[Page, None]:
        state, before = os.fstat(file.fileno()), told if isinstance(told, dict) else {}
        here: dict[str, Any] = {"size": state.st_size, "mtime": state.st_mtime_ns}
        resumed = {k: before.get(k) for k in here} == here and type(before.get("offset")) is int and 0 <= before["offset"] <= state.st_size
        if resumed and before.get("done"):
            return
        scan = Scan(file, before["offset"] if resumed else 0, self._most)
        found = elements(scan, inside=True) if resumed else messages(scan, self._chat)
        sent = _moment(before.get("sent")) if resumed else None
        broken: list[Cut] = []
        while batch := await self._batch(found, broken):
            records: list[RawRecord] = []
            for raw in batch:
                records.append(record(raw, sent))
                sent = records[-1].occurred_at or sent
            yield Page(records, {"export": here | {"offset": scan.offset, "sent": sent.timestamp() if sent else None}})
        if broken:
            raise broken[0]
        yield Page([], {"export": here | {"offset": scan.offset, "done": True}})

    async def _batch(self, found: Iterator[bytes], broken: list[Cut]) -> list[bytes]:
        """As much as goes into a page; what comes before a break is taken."""
        batch: list[bytes] = []
        size = 0
        try:
            for raw in found:
                batch.append(raw)
                size += len(raw)
                if len(batch) >= self._settings.page_records or size >= self._settings.page_bytes:
                    break
                if len(batch) % BREATH == 0:
                    await asyncio.sleep(0)
        except Cut as cut:
            broken.append(cut)
        return batch


def _moment(found: Any) -> dt.datetime | None:
    """A time of a position; None where it is none."""
    try:
        return None if found is None else moment(found)
    except Defect:
        return None
