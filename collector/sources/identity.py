"""Which file is which, whatever its name: device, inode and the first bytes; and how far each was read."""

from __future__ import annotations

import os
from pathlib import Path

from collector.sources.reading import Entry, head_digest

REMEMBERED = 5000  # identities kept, also of files that are gone


class Found:
    """One file that was found: its identity is device and inode, checked by its first bytes, whatever its name."""

    __slots__ = ("identity", "mtime", "path", "shape", "size")

    def __init__(self, path: Path, shape: tuple[str, str]) -> None:
        found = path.stat()
        self.path, self.shape = path, shape
        self.size, self.mtime = found.st_size, found.st_mtime_ns
        self.identity = f"{found.st_dev:x}-{found.st_ino:x}"

    @property
    def grows(self) -> bool:
        """Lines of a plain file are read from an offset; every other file is read as a whole when it changes."""
        return self.shape in ((".jsonl", ""), (".ndjson", ""))


def moved(identity: str, entry: Entry) -> Found | None:
    """A file that was renamed while a part of it was unread, found in its folder by its inode."""
    try:
        with os.scandir(entry["folder"]) as around:
            for other in around:
                if other.inode() == int(identity.split("-")[1], 16) and other.is_file(follow_symlinks=False):
                    file = Found(Path(other.path), (".jsonl", ""))
                    return file if file.size > entry["offset"] and head_digest(file.path, entry["head_bytes"]) == entry["head"] else None
    except (OSError, KeyError):
        return None
    return None


def remember(entries: dict[str, Entry], identity: str, entry: Entry) -> dict[str, Entry]:
    """The newest last; the oldest beyond the bound are forgotten (their records would be known again by key)."""
    kept = {k: v for k, v in entries.items() if k != identity}
    while len(kept) >= REMEMBERED:
        del kept[next(iter(kept))]
    kept[identity] = entry
    return kept
