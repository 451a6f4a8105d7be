"""Records of files that are read as a whole: JSON arrays, CSV, packed lines. Bounded memory whatever the file's size."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

import orjson

from collector.sources.reading import CHUNK, HEAD, Piece, open_plain, stream

_DECODER = json.JSONDecoder(strict=False)  # a control character in a string is that record's defect, not the file's
_SPACE = " \t\r\n"
_CUT = {"", ".", *(e + sign for e in "eE" for sign in ("", "+", "-"))}  # what may follow in the text where a number goes on beyond it


class _Text:
    """A window of a JSON file's text. `at` is where we stand in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self.text = ""
        self.at = 0
        self.ended = False

    def more(self) -> None:
        """Drops what was read and takes at least as much again as is left."""
        left = len(self.text) - self.at
        data = self._file.read(max(CHUNK, left))
        self.text, self.at, self.ended = self.text[self.at :] + self._decode(data, final=not data), 0, not data

    def next(self, skipped: str = _SPACE) -> str:
        """The next character that is not skipped; empty at the end."""
        while True:
            text, at = self.text, self.at
            while at < len(text) and text[at] in skipped:
                at += 1
            self.at = at
            if at < len(text) or self.ended:
                return text[at : at + 1]
            self.more()

    def value(self, most: int) -> str | None:
        """The text of the value that begins here; None where it never ends, or is longer than `most` characters."""
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
                if self.ended or self.text[end : end + 3] not in _CUT:
                    found, self.at = self.text[self.at : end], end
                    return found
            except (ValueError, RecursionError):
                if self.ended or len(self.text) - self.at > most:
                    return None
            self.more()


def array(file: IO[bytes], most: int) -> Iterator[Piece]:
    """The elements of a JSON array, or the top-level values of a file without one, as they are written. `end` is their number."""
    text, count = _Text(file), 0
    inside = text.next() == "["
    text.at += inside
    closed = inside and text.next() == "]"
    while not closed and (inside or text.next()):
        text.next()
        found = text.value(most)
        if found is None:
            yield _rest(text, count + 1, f"the file is not readable from its value {count + 1} on: not JSON, cut off, or longer than max_line_bytes")
            return
        count += 1
        yield Piece(_bytes(found), count)
        if inside and (after := text.next()) != ",":
            closed = after == "]"
            if not closed:
                yield _rest(text, count + 1, f"the array is broken after its value {count}")
                return
        text.at += inside and not closed
    text.at += closed
    if text.next():
        yield _rest(text, count + 1, "there is more after the end of the array")


def _rest(text: _Text, count: int, why: str) -> Piece:
    rest = _bytes(text.text[text.at :])
    return Piece(rest[:HEAD], count, why, hashlib.blake2b(why.encode() + rest, digest_size=16).digest())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class _Lines:
    """The lines of a table for csv.reader. A row of more than `most` characters ends with csv.Error; the next one begins after that line."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._text, self._most = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""), most
        self._taken, self._size, self._digest = list[str](), 0, hashlib.blake2b(digest_size=16)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._most + 1)
        if not line:
            raise StopIteration
        self._taken.append(line)
        self._size += len(line)
        if self._size <= self._most:
            return line
        while not line.endswith(("\n", "\r")) and (line := self._text.readline(CHUNK)):
            self._digest.update(_bytes(line))
        raise csv.Error("a row longer than max_line_bytes")

    def written(self) -> tuple[bytes, bytes]:
        """What was taken since the last call, of a long row the beginning; and the digest of all of it."""
        head = _bytes("".join(self._taken))
        self._digest.update(head)
        told = head.rstrip(b"\r\n"), self._digest.digest()
        self._taken, self._size, self._digest = [], 0, hashlib.blake2b(digest_size=16)
        return told


def table(file: IO[bytes], most: int) -> Iterator[Piece]:
    """The rows of a CSV file with a header, as JSON objects of strings. `end` is the row's number."""
    csv.field_size_limit((1 << 31) - 1)  # _Lines knows the limit
    lines = _Lines(file, most)
    rows, names, count = csv.reader(lines), None, 0
    while True:
        try:
            row, why = next(rows, None), ""
        except csv.Error as error:
            row, why = [], f"not readable as CSV: {error}"
        if row is None:
            return
        written, digest = lines.written()
        count += names is not None or bool(why)
        if why:
            yield Piece(written[:HEAD], count, why, digest)
        elif names is not None and row:
            yield _row(names, row, count, written)
        names = _distinct(row) if names is None else names


def _row(names: list[str], row: list[str], count: int, written: bytes) -> Piece:
    value: dict[str, Any] = dict(zip(names, row, strict=False)) | dict.fromkeys(names[len(row) :])
    if len(row) > len(names):
        value["_more"] = row[len(names) :]
    try:
        return Piece(orjson.dumps(value), count)
    except TypeError:
        return Piece(written, count, "not UTF-8")


def _distinct(names: list[str]) -> list[str]:
    """A column name that comes again gets a number: no column is lost."""
    found: list[str] = []
    for name in names:
        again = found.count(name) + sum(f.rpartition("_")[0] == name and f.rpartition("_")[2].isdigit() for f in found)
        found.append(f"{name}_{again + 1}" if name in found else name)
    return found


def whole(path: Path, suffix: str, packed: str, most: int) -> Iterator[Piece]:
    """All records of a file that is read as a whole; numbered from 1 by `end`."""
    with open_plain(path, packed) as file:
        yield from {".json": array, ".csv": table}.get(suffix, stream)(file, most)
