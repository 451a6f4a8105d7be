"""What a configured path names at this moment, and which of its files failed."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path

from collector.sources.identity import Entry, Found, moved
from collector.sources.reading import shape_of
from worker.core.events import emit

MISSED = 60.0  # seconds in which a file that went away is looked for under another name
LONGEST = 60.0  # seconds between two tries of a file that fails


class Folder:
    """The files of one path. Links are followed, each file and folder is taken once, so a loop of links ends."""

    def __init__(self, source: str, path: str) -> None:
        self._source = source
        self._path = path
        self._failing: dict[str, tuple[float, float, tuple[int, int] | None]] = {}  # path: when to try again, pause, state of the file
        self._missed: dict[str, float] = {}

    def look(self, entries: dict[str, Entry]) -> list[Found]:
        """The files that can be read, oldest first, and unread rests of files that were renamed out of the path."""
        found: dict[str, Found] = {}
        for path in self._paths():
            shape = shape_of(path.name)
            try:
                if shape is not None:
                    file = Found(path, shape)
                    found.setdefault(file.identity, file)
            except FileNotFoundError as error:
                if path.is_symlink():
                    self.failed(path, error)
            except OSError as error:
                self.failed(path, error)
        for file in moved(self._lately_gone(entries, found)):
            found[file.identity] = file
        return sorted(found.values(), key=lambda f: (f.mtime, f.path.name))

    def _lately_gone(self, entries: dict[str, Entry], found: dict[str, Found]) -> dict[str, Entry]:
        now = time.monotonic()
        self._missed = {i: self._missed.get(i, now) for i, e in entries.items() if i not in found and "offset" in e}
        return {i: entries[i] for i, since in self._missed.items() if now - since < MISSED}

    def _paths(self) -> Iterator[Path]:
        base = Path(self._path).expanduser()
        if base.is_dir():
            self.mended(base)
            yield from self._below(base, set())
        elif any(c in self._path for c in "*?["):
            yield from (Path(p) for p in sorted(glob.glob(str(base), recursive=True)) if not os.path.isdir(p))  # noqa: PTH207, PTH112  absolute patterns
        elif os.path.lexists(base):
            yield base
        else:
            self.failed(base, FileNotFoundError("there is no such file or folder yet"))

    def _below(self, folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
        """Files below a folder. A folder that is reached a second time, by a link, is passed over."""
        try:
            here = folder.stat()
            if (here.st_dev, here.st_ino) in visited:
                return
            visited.add((here.st_dev, here.st_ino))
            names = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.failed(folder, error)
            return
        for entry in names:
            if os.path.isdir(entry.path):  # noqa: PTH112  False for a loop of links
                yield from self._below(Path(entry.path), visited)
            else:
                yield Path(entry.path)

    def due(self, file: Found) -> bool:
        """Whether a file is to be read now: one that failed waits, unless it changed."""
        again, _, state = self._failing.get(str(file.path), (0.0, 0.0, None))
        return time.monotonic() >= again or state != (file.size, file.mtime)

    @property
    def unread(self) -> list[str]:
        """Files that were opened and could not be read to their end."""
        return [path for path, (_, _, state) in self._failing.items() if state]

    def failed(self, path: Path, error: Exception, file: Found | None = None) -> None:
        """Said once per failure, not once per look; the pause before the next try grows to a minute."""
        key = str(path)
        pause = min(LONGEST, self._failing[key][1] * 2) if key in self._failing else 0.5
        if key not in self._failing:
            emit("source.failed", source=self._source, file=key, error=f"{type(error).__name__}: {error}",
                 hint="mend or move it; it is tried again by itself, the other files are read meanwhile")  # fmt: skip
        self._failing[key] = (time.monotonic() + pause, pause, (file.size, file.mtime) if file else None)

    def mended(self, path: Path) -> None:
        """It could be read."""
        if self._failing.pop(str(path), None):
            emit("source.recovered", source=self._source, file=str(path))
