"""A repository as getRepo sends it: a CAR file of content-addressed blocks, and the tree in it that names the records."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from collector.sources.bluesky_values import cid_text, decoded

CID = 36  # bytes of a CID of this protocol: version 1, codec, SHA-256
LONGEST = 4_000_000  # bytes of a block; the protocol allows a quarter of it
AT_ONCE = 500  # blocks written in one statement
_HEADS = {b"\x01\x71\x12\x20", b"\x01\x55\x12\x20"}
_CACHE = "pragma cache_size = -16000"


class Incomplete(ValueError):
    """The CAR file is broken or lacks blocks: it says nothing about what the repository holds."""


class Entry(NamedTuple):
    """One record: `collection/rkey`, its CID, its block."""

    path: str
    cid: str
    block: bytes


def _length(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends; where it ends is 0 while bytes of it are missing."""
    number = 0
    for n in range(at, min(at + 5, len(data))):
        number |= (data[n] & 0x7F) << (7 * (n - at))
        if data[n] < 0x80:  # noqa: PLR2004  the last byte of a number
            return number, n + 1
    if len(data) - at >= 5:  # noqa: PLR2004  as above
        raise Incomplete("not a CAR file: a length of more than four gigabytes")
    return 0, 0


class Splitter:
    """Cuts a CAR file into blocks as its bytes come. `root` is known once the header has come."""

    def __init__(self) -> None:
        self.root = b""
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(cid, block) of what is complete, each checked by its hash. Raises Incomplete."""
        self._rest += data
        at = 0
        while at < len(self._rest):
            length, begin = _length(self._rest, at)
            if length > LONGEST:
                raise Incomplete(f"not a CAR file: a block of {length} bytes")
            if not begin or begin + length > len(self._rest):
                break
            section, at = bytes(self._rest[begin : begin + length]), begin + length
            if self.root:
                yield _checked(section)
            else:
                self.root = _root(section)
        del self._rest[:at]

    def end(self) -> None:
        """Raises Incomplete where the file ends in the middle of a block."""
        if self._rest or not self.root:
            raise Incomplete("the CAR file ends in the middle")


def _root(section: bytes) -> bytes:
    try:
        roots = decoded(section)["roots"]
        return bytes(roots[0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Incomplete(f"not a CAR file: {error!r}") from error


def _checked(section: bytes) -> tuple[bytes, bytes]:
    cid, block = section[:CID], section[CID:]
    if cid[:4] not in _HEADS:
        raise Incomplete("a block whose CID is not of this protocol")
    if hashlib.sha256(block).digest() != cid[4:]:
        raise Incomplete(f"the block {cid_text(cid)} is not what its CID says")
    return cid, block


class Repository:
    """The blocks of one repository, in a private temporary database that spills to the disk; the tree is walked in the order of keys."""

    def __init__(self) -> None:
        self.size = 0
        self._split = Splitter()
        self._db = sqlite3.connect("")
        self._db.executescript(f"{_CACHE}; pragma journal_mode = off; pragma synchronous = off; create table blocks (cid blob, block blob)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the CAR file. Raises Incomplete."""
        self.size += len(data)
        self._db.executemany("insert into blocks values (?, ?)", self._split.feed(data))

    def close(self) -> None:
        """All bytes have come. Raises Incomplete where they cannot be all."""
        self._split.end()
        self._db.execute("create index by_cid on blocks (cid)")
        self.commit: dict[str, Any] = self._node(self._split.root)

    def entries(self, after: str = "") -> Iterator[Entry]:
        """Records whose path comes after `after`, in the order of paths (as bytes). Raises Incomplete where a block is missing."""
        data = self.commit.get("data")
        last, skipped = b"", after.encode()
        for key, value in self._keys(data) if data else ():
            if key <= last:
                raise Incomplete(f"the tree is out of order at {key!r}")
            last = key
            if key > skipped:
                yield Entry(key.decode("utf-8", "replace"), cid_text(value), self._block(value))

    def _keys(self, root: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The keys of the tree and the CIDs of their records, from left to right."""
        waiting: list[Iterator[tuple[bytes, bytes] | bytes]] = [self._items(root)]
        while waiting:
            item = next(waiting[-1], None)
            if item is None:
                waiting.pop()
            elif isinstance(item, bytes):
                waiting.append(self._items(item))
            else:
                yield item

    def _items(self, cid: bytes) -> Iterator[tuple[bytes, bytes] | bytes]:
        """Of one node, in order: the CIDs of the nodes below it, and its keys with their values."""
        node, key = self._node(cid), b""
        try:
            if node["l"]:
                yield node["l"]
            for entry in node["e"]:
                key = key[: entry["p"]] + entry["k"]
                yield key, entry["v"]
                if entry["t"]:
                    yield entry["t"]
        except (KeyError, TypeError) as error:
            raise Incomplete(f"{cid_text(cid)} is no node of the tree: {error!r}") from error

    def _node(self, cid: bytes) -> dict[str, Any]:
        try:
            value = decoded(self._block(cid))
        except Incomplete:
            raise
        except ValueError as error:
            raise Incomplete(f"the block {cid_text(cid)} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise Incomplete(f"the block {cid_text(cid)} is no node")
        return value

    def _block(self, cid: bytes) -> bytes:
        row = self._db.execute("select block from blocks where cid = ?", (cid,)).fetchone()
        if row is None:
            raise Incomplete(f"the block {cid_text(cid)} is missing")
        return bytes(row[0])


def blocks_of(car: bytes) -> dict[bytes, bytes]:
    """The blocks of a small CAR file, as a frame of the firehose carries it. Raises Incomplete."""
    split = Splitter()
    found = dict(split.feed(car))
    split.end()
    return found
