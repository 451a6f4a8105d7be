"""files: a folder, file or glob of .jsonl (followed as they grow), .json, .csv, and .gz or .zst of each."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator
from typing import IO, Any

from pydantic import Field

from collector.record import Builder, RecordOptions
from collector.sources import Page, source
from collector.sources.folder import Folder
from collector.sources.identity import Entry, Found, entries_of, fingerprint, further, same, shown, trimmed
from collector.sources.reading import CHUNK, Piece, lines
from collector.sources.values import whole
from worker.core.events import emit
from worker.core.models import RawRecord
from worker.core.service import rest_or_wake
from worker.core.settings import CollectorSettings

SETTLED = 1_000_000_000  # ns without a change: a file that is read as a whole is left alone while it is being written
BREATH = 64  # records between two looks at what else the program has to do


class FilesOptions(RecordOptions):
    """`[sources.NAME]` of kind files."""

    path: str = Field(min_length=1, description="a file, a folder (searched to the bottom) or a glob")
    max_line_bytes: int = Field(64_000_000, ge=1000, description="a longer line is passed over and recorded as a defect")


class Reading:
    """One file in one pass: where to go on, and how far it came."""

    def __init__(self, file: Found, entry: Entry | None, most: int) -> None:
        self.file = file
        self.end = -1
        self._entry = entry
        self._most = most
        self._handle: IO[bytes] | None = None

    def pieces(self) -> Iterator[Piece]:
        """What has not been read yet; `end` is moved by who takes the pieces."""
        entry, file = self._entry, self.file
        if file.grows:
            self._handle = file.path.open("rb")
            self.end = entry["offset"] if entry and "offset" in entry and same(file, entry) else 0
            return lines(self._handle, self.end, self._most, finished=file.finished)
        unchanged = entry is not None and (entry.get("size"), entry.get("mtime")) == (file.size, file.mtime)
        if unchanged and "done" in (entry or {}):
            return iter(())
        self.end = entry.get("index", 0) if entry and unchanged else 0
        return (piece for piece in whole(file.path, *file.shape, self._most) if piece.end > self.end)

    def entry(self, *, done: bool = False) -> dict[str, Entry]:
        """The position of this file, for what was taken so far."""
        file = self.file
        if self.end < 0:
            return {file.identity: self._entry} if self._entry else {}
        if self._handle is None:
            far = {"done": True} if done else {"index": self.end}
            return {file.identity: {"name": file.name, "size": file.size, "mtime": file.mtime, **far}}
        now = os.fstat(self._handle.fileno())
        return {file.identity: {
            "name": file.name, "folder": shown(str(file.path.parent)), "size": now.st_size, "mtime": now.st_mtime_ns,
            "offset": self.end, "print": fingerprint(self._handle.fileno(), self.end),
        }}  # fmt: skip

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()


@source("files", FilesOptions)
class Files:
    """The files of one configured path. The position holds, per file identity, how far it was read."""

    def __init__(self, name: str, options: FilesOptions, settings: CollectorSettings) -> None:
        self.name = name
        self.exclusive: tuple[str, ...] = ()
        self.exclusive_history: tuple[str, ...] = ()
        self.limits: tuple[str, ...] = ()
        self.caught_up = False
        self._o = options
        self._settings = settings
        self._builder = Builder(options)
        self._folder = Folder(name, options.path)
        self._stats: dict[str, tuple[int, int]] = {}  # what the last look saw
        self._ends: dict[str, tuple[int, int, bool]] = {}  # the state in which a file had nothing more

    def describe(self) -> str:
        return f"{self._o.path} (key: {'/'.join(self._o.id_field) or 'content'})"

    async def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        self._ends.clear()
        while not stop.is_set():
            async for page in self._pass(position, final=False):
                self.caught_up = False
                yield page
                position = page.position
            self.caught_up = True
            await rest_or_wake(self._settings.poll_seconds, stop)

    async def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        self._ends.clear()
        async for page in self._pass(position, final=True):
            yield page

    @property
    def unread(self) -> list[str]:
        return self._folder.unread

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """What the other lane has read needs no second reading."""
        return {"files": further(entries_of(position), entries_of(other))}

    async def _pass(self, position: dict[str, Any], *, final: bool) -> AsyncGenerator[Page, None]:
        """Everything that is new, in pages that may hold records of several files."""
        before = entries_of(position)
        found = await asyncio.to_thread(self._folder.look, before)
        same_inode = {identity.partition("-")[2]: entry for identity, entry in before.items()}  # a device's number changes with a restart
        entries, records, size, taken = dict(before), [], 0, 0
        for file in found:
            known = before.get(file.identity) or same_inode.get(file.identity.partition("-")[2])
            reading = Reading(file, known, self._o.max_line_bytes)
            try:
                for piece in self._new(reading, final=final):
                    if piece.why or piece.raw.strip():
                        records.append(self._record(file.name, piece))
                    reading.end, size, taken = piece.end, size + len(piece.raw), taken + 1
                    if len(records) >= self._settings.page_records or size >= self._settings.page_bytes:
                        yield Page(records, {"files": entries | reading.entry()})
                        records, size = [], 0
                    elif taken % BREATH == 0 or len(piece.raw) > CHUNK:
                        await asyncio.sleep(0)
                self._read(reading, final=final)
                entries |= reading.entry(done=True)
            except Exception as error:  # noqa: BLE001  whatever is wrong with one file, the others are read
                self._folder.failed(file.path, error, file)
                entries |= reading.entry() if reading.end > 0 else {}
            finally:
                reading.close()
        self._stats = {f.identity: (f.size, f.mtime) for f in found}
        entries = trimmed(entries, set(self._stats))
        if records or entries != before:
            yield Page(records, {"files": entries})

    def _new(self, reading: Reading, *, final: bool) -> Iterator[Piece]:
        """The pieces of a file that have not been taken; none where nothing changed since the last look."""
        file = reading.file
        state = (file.size, file.mtime, file.finished)
        settled = final or self._stats.get(file.identity) == state[:2] or abs(time.time_ns() - file.mtime) > SETTLED
        if self._ends.get(file.identity) == state or not self._folder.due(file) or not (file.grows or settled):
            return iter(())
        return reading.pieces()

    def _read(self, reading: Reading, *, final: bool) -> None:
        file = reading.file
        if final and file.grows and 0 <= reading.end < file.size:
            emit("line.awaited", source=self.name, file=str(file.path), bytes=file.size - reading.end,
                 hint="the file ends in a line that is neither ended by a newline nor complete JSON; it is read when its newline comes")  # fmt: skip
        if reading.end >= 0:
            self._ends[file.identity] = (file.size, file.mtime, file.finished)
            self._folder.mended(file.path)

    def _record(self, name: str, piece: Piece) -> RawRecord:
        meta = {"file": name, "at": piece.end}
        return self._builder.broken(piece.raw, piece.why, meta, piece.digest) if piece.why else self._builder.build(piece.raw, meta)
