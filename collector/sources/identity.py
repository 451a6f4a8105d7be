"""Which file is which, whatever its name: device and inode, proved by bytes that were read; and how far each was read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from collector.sources.reading import shape_of

GONE = 1000  # entries kept for files that are not there any more
HEAD_BYTES, TAIL_BYTES = 256, 128
Entry = dict[str, Any]


class Found:
    """One file that was found. Raises OSError with the reason where it cannot be read as a file."""

    __slots__ = ("gone", "identity", "mtime", "name", "path", "shape", "size")

    def __init__(self, path: Path, shape: tuple[str, str], *, gone: bool = False) -> None:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        self.path, self.shape, self.gone, self.name = path, shape, gone, shown(path.name)
        self.size, self.mtime = found.st_size, found.st_mtime_ns
        self.identity = f"{found.st_dev:x}-{found.st_ino:x}"

    @property
    def grows(self) -> bool:
        """Lines of a plain file are read from an offset; every other file is read as a whole when it changes."""
        return self.shape in ((".jsonl", ""), (".ndjson", ""))

    @property
    def finished(self) -> bool:
        """Renamed to a number or out of the path: written no more, so its last line counts even where it is a bare number without newline."""
        return self.gone or self.path.suffix[1:].isdigit()


def entries_of(position: dict[str, Any]) -> dict[str, Entry]:
    """What a position says of files. An entry that makes no sense is none: that file is read anew, and raw knows its records."""
    found = position.get("files")
    return {k: e for k, e in found.items() if _sound(e)} if isinstance(found, dict) else {}


def _sound(entry: Any) -> bool:
    if not isinstance(entry, dict) or any(
        type(entry.get(name, 0)) is not int or entry.get(name, 0) < 0 for name in ("size", "mtime", "offset", "index")
    ):
        return False
    texts = ("print", "folder") if "offset" in entry else ()
    return all(isinstance(entry.get(name), str) for name in texts) and {"size", "mtime"} <= entry.keys()


def shown(name: str) -> str:
    """A file name as text that JSON can hold, whatever its bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def fingerprint(descriptor: int, offset: int) -> str:
    """Of the first bytes and of the last ones before `offset`: tells a file from one that took its inode or was written anew."""
    tail = min(TAIL_BYTES, offset)
    data = os.pread(descriptor, min(HEAD_BYTES, offset), 0) + os.pread(descriptor, tail, offset - tail)
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def same(file: Found, entry: Entry) -> bool:
    """Whether what was read of this entry is what stands in the file now."""
    if file.size < entry["offset"] or (file.size == entry["offset"] == entry["size"] and entry["mtime"] != file.mtime):
        return False
    with file.path.open("rb") as handle:
        return bool(fingerprint(handle.fileno(), entry["offset"]) == entry["print"])


def moved(wanted: dict[str, Entry]) -> Iterable[Found]:
    """Files that were renamed out of the path, found by inode in the folders where they were."""
    for folder in {entry["folder"] for entry in wanted.values() if "folder" in entry}:
        try:
            with os.scandir(folder) as around:
                here = [o for o in around if any(i.endswith(f"-{o.inode():x}") for i in wanted)]
            for other in here:
                file = Found(Path(other.path), (".jsonl", ""), gone=True)
                if file.identity in wanted and shape_of(other.name) in (None, (".jsonl", ""), (".ndjson", "")):
                    yield file
        except (OSError, ValueError):  # the folder went with the file: there is nothing left to read
            continue


def trimmed(entries: dict[str, Entry], here: set[str]) -> dict[str, Entry]:
    """Without the oldest of the files that are gone: an entry of a file that is there is never forgotten."""
    gone = sorted((identity for identity in entries if identity not in here), key=lambda identity: entries[identity].get("mtime", 0))
    dropped = set(gone[: max(0, len(gone) - GONE)])
    return {k: v for k, v in entries.items() if k not in dropped} if dropped else entries


def further(one: dict[str, Entry], other: dict[str, Entry]) -> dict[str, Entry]:
    """Of two positions, per file the one that got further."""
    joined = dict(one)
    for identity, entry in other.items():
        mine = joined.get(identity, {})
        if (entry.get("mtime", 0), entry.get("offset", 0), "done" in entry) > (mine.get("mtime", -1), mine.get("offset", 0), "done" in mine):
            joined[identity] = entry
    return joined
