"""files: a folder, file or glob of .jsonl (followed as they grow), .json, .csv, and .gz or .zst of each."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from collector.record import Builder, RecordOptions
from collector.sources import Page, source
from collector.sources.identity import Found, moved, remember
from collector.sources.reading import Entry, Piece, head_digest, lines, shape_of, whole
from worker.core.events import emit
from worker.core.service import rest_or_wake
from worker.core.settings import CollectorSettings

HEAD_BYTES = 256


class FilesOptions(RecordOptions):
    """`[sources.NAME]` of kind files."""

    path: str = Field(description="a file, a folder (searched to the bottom) or a glob")
    max_line_bytes: int = Field(64_000_000, ge=1000, description="a longer line is passed over and recorded as a defect")


@source("files", FilesOptions)
class Files:
    """The files of one configured path. The position holds, per file identity, how far it was read."""

    def __init__(self, name: str, options: FilesOptions, settings: CollectorSettings) -> None:
        self.name = name
        self.caught_up = False
        self._o = options
        self._settings = settings
        self._builder = Builder(options)
        self._failed: set[str] = set()

    def describe(self) -> str:
        key = "/".join(self._o.id_field) or "content"
        return f"{self._o.path} (key: {key})"

    async def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        while not stop.is_set():
            async for page in self._pass(position, final=False):
                self.caught_up = False
                yield page
                position = page.position
            self.caught_up = True
            await rest_or_wake(self._settings.poll_seconds, stop)

    async def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        async for page in self._pass(position, final=True):
            yield page

    async def _pass(self, position: dict[str, Any], *, final: bool) -> AsyncGenerator[Page, None]:
        entries: dict[str, Entry] = dict(position.get("files", {}))
        for file in self._files(entries):
            try:
                for records, entry in self._pages(file, entries.get(file.identity), final=final or self._rotated(file)):
                    entries = remember(entries, file.identity, entry)
                    yield Page(records, {"files": entries})
                    await asyncio.sleep(0)
                self._failed.discard(str(file.path))
            except (OSError, EOFError, ValueError, ImportError) as error:
                self._report(file.path, error)

    def _report(self, path: Path | str, error: Exception) -> None:
        """Once per failure, not once per look; the other files go on."""
        if str(path) not in self._failed:
            self._failed.add(str(path))
            emit(
                "source.failed", source=self.name, file=str(path), error=repr(error), hint="mend or move the file; the other files are read meanwhile"
            )

    def _files(self, entries: dict[str, Entry]) -> list[Found]:
        """What the path names now, oldest first, and unread rests of files that were renamed out of it."""
        found: dict[str, Found] = {}
        for path in self._paths():
            shape = shape_of(path.name)
            if shape is None:
                continue
            try:
                if path.is_file():
                    file = Found(path, shape)
                    found.setdefault(file.identity, file)
            except OSError as error:
                self._report(path, error)
        for identity, entry in entries.items():
            if identity not in found and "offset" in entry and (elsewhere := moved(identity, entry)):
                found[identity] = elsewhere
        return sorted(found.values(), key=lambda f: (f.mtime, f.path.name))

    def _paths(self) -> Iterator[Path]:
        base = Path(self._o.path).expanduser()
        if base.is_dir():
            for folder, inner, names in os.walk(base, onerror=lambda e: self._report(self._o.path, e)):  # links to folders are not followed: no loops
                inner.sort()
                yield from (Path(folder) / n for n in sorted(names))
        elif any(c in self._o.path for c in "*?["):
            yield from (Path(p) for p in sorted(glob.glob(str(base), recursive=True)))  # noqa: PTH207  takes absolute patterns
        elif base.exists():
            yield base
        else:
            self._report(base, FileNotFoundError("there is no such file or folder yet"))

    def _rotated(self, file: Found) -> bool:
        """A file whose name ends in a number is written no more: its last line counts even without newline."""
        return file.path.suffix[1:].isdigit()

    def _pages(self, file: Found, entry: Entry | None, *, final: bool) -> Iterator[tuple[list[Any], Entry]]:
        if file.grows:
            yield from self._grown(file, entry, final=final)
        elif entry is None or (entry.get("size"), entry.get("mtime")) != (file.size, file.mtime) or not entry.get("done"):
            yield from self._changed(file, entry)

    def _grown(self, file: Found, entry: Entry | None, *, final: bool) -> Iterator[tuple[list[Any], Entry]]:
        offset = entry["offset"] if entry and "offset" in entry and self._same(file, entry) else 0
        if offset >= file.size:
            return
        with file.path.open("rb") as handle:
            for pieces in self._batches(p for p in lines(handle, offset, self._o.max_line_bytes, last=final)):
                end = pieces[-1].end
                length = min(HEAD_BYTES, end)
                head = {"head": head_digest(file.path, length), "head_bytes": length}
                yield self._records(file, pieces), {"name": file.path.name, "folder": str(file.path.parent), "offset": end, **head}

    def _same(self, file: Found, entry: Entry) -> bool:
        """Not another file under the old inode, nor one that was cut off and written anew."""
        return bool(file.size >= entry["offset"] and head_digest(file.path, entry["head_bytes"]) == entry["head"])

    def _changed(self, file: Found, entry: Entry | None) -> Iterator[tuple[list[Any], Entry]]:
        state = {"name": file.path.name, "size": file.size, "mtime": file.mtime}
        skip = entry.get("index", 0) if entry and (entry.get("size"), entry.get("mtime")) == (file.size, file.mtime) else 0
        pieces = (p for p in whole(file.path, *file.shape, self._o.max_line_bytes) if p.end > skip)
        for batch in self._batches(pieces):
            skip = batch[-1].end
            yield self._records(file, batch), state | {"index": skip}
        yield [], state | {"index": skip, "done": True}

    def _batches(self, pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
        """Bounded in records and in bytes: a page is what is held in memory."""
        batch: list[Piece] = []
        size = 0
        for piece in pieces:
            batch.append(piece)
            size += len(piece.raw)
            if len(batch) >= self._settings.page_records or size >= self._settings.page_bytes:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _records(self, file: Found, pieces: list[Piece]) -> list[Any]:
        name = file.path.name
        build, broken = self._builder.build, self._builder.broken
        return [
            broken(p.raw, p.why, {"file": name, "at": p.end}) if p.why else build(p.raw, {"file": name, "at": p.end}) for p in pieces if p.raw.strip()
        ]
