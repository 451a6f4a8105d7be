"""Bytes of a file to raw records: lines, JSON arrays, CSV; plain, gzip or zstd. Bounded memory whatever the file's size."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import orjson

CHUNK = 1 << 20
HEAD = 65536
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")
PACKED = (".gz", ".zst")


class Piece(NamedTuple):
    """The bytes of one record; `end` is the offset after it (lines), `why` a defect found while cutting it out."""

    raw: bytes
    end: int
    why: str = ""


def shape_of(name: str) -> tuple[str, str] | None:
    """(`.jsonl`, `.gz`) of a file name; None for a file that we do not read. Rotated names (`x.jsonl.1`) count."""
    stem, packed = name, ""
    while True:
        base, suffix = Path(stem).stem, Path(stem).suffix
        if suffix in SUFFIXES:
            return suffix, packed
        if suffix in PACKED and not packed:
            packed = suffix
        elif not suffix[1:].isdigit():
            return None
        stem = base


def open_plain(path: Path, packed: str) -> IO[bytes]:
    if packed == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if packed == ".zst":
        import zstandard  # noqa: PLC0415  only for such files

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True))
    return path.open("rb")


def lines(file: IO[bytes], start: int, most: int, *, last: bool) -> Iterator[Piece]:
    """Whole lines from offset `start`. `last`: the file will not grow, so a last line without newline counts too.

    A line longer than `most` bytes is passed over; its head, length and digest remain as a defect.
    """
    size, offset = CHUNK, start
    file.seek(offset)
    while data := file.read(size):
        cut = data.rfind(b"\n")
        if cut < 0:
            if len(data) < size:
                if last:
                    yield Piece(data, offset + len(data))
                return
            if size > most:
                piece = _overlong(file, offset)
                if piece is None and not last:
                    return
                if piece is not None:
                    yield piece
                    offset = piece.end
                size = CHUNK
            else:
                size *= 2
            file.seek(offset)
            continue
        for line in data[:cut].split(b"\n"):
            offset += len(line) + 1
            yield Piece(line.removesuffix(b"\r"), offset)
        size = CHUNK
        file.seek(offset)


def _overlong(file: IO[bytes], start: int) -> Piece | None:
    """Passes over one line; None when its end has not been written yet."""
    file.seek(start)
    digest, head, length = hashlib.blake2b(digest_size=16), b"", 0
    while data := file.read(CHUNK):
        cut = data.find(b"\n")
        part = data if cut < 0 else data[:cut]
        digest.update(part)
        head = head or part[:HEAD]
        length += len(part)
        if cut >= 0:
            return Piece(head, start + length + 1, f"line of {length} bytes is longer than max_line_bytes; blake2b {digest.hexdigest()}")
    return None


def array(file: IO[bytes]) -> Iterator[Piece]:
    """The elements of a JSON array, or the top-level values of a file without one, as they are written. `end` is their number."""
    decoder, read = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    text, at, count, inside, want = "", 0, 0, None, CHUNK
    while True:
        data = file.read(want)
        text, at = text[at:] + read.decode(data, final=not data), 0
        while True:
            at = _skip(text, at, inside)
            if at >= len(text):
                break
            if inside is None:
                inside = text[at] == "["
                at += inside
                continue
            if inside and text[at] == "]":
                return
            try:
                _, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                if data:
                    break
                yield Piece(_bytes(text[at : at + HEAD]), count + 1, f"the file is broken JSON from its value {count + 1} on")
                return
            if end == len(text) and data:
                break
            count += 1
            yield Piece(_bytes(text[at:end]), count)
            at, want = end, CHUNK
        if not data:
            return
        want = max(CHUNK, len(text) - at)


def _skip(text: str, at: int, inside: bool | None) -> int:
    skipped = " \t\r\n," if inside else " \t\r\n"
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def table(file: IO[bytes]) -> Iterator[Piece]:
    """The rows of a CSV file with a header, as JSON objects of strings. `end` is the row's number."""
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""), restkey="_more")
    for count, row in enumerate(reader, 1):
        try:
            yield Piece(orjson.dumps(row), count)
        except (TypeError, orjson.JSONEncodeError):
            yield Piece(_bytes(",".join(str(v) for v in row.values())), count, "not UTF-8")


def whole(path: Path, suffix: str, packed: str, most: int) -> Iterator[Piece]:
    """All records of a file that is read as a whole; numbered from 1 by `end`."""
    with open_plain(path, packed) as file:
        if suffix == ".json":
            yield from array(file)
        elif suffix == ".csv":
            yield from table(file)
        else:
            for count, piece in enumerate(_stream(file, most), 1):
                yield Piece(piece.raw, count, piece.why)


def _stream(file: IO[bytes], most: int) -> Iterator[Piece]:
    """Lines of a stream that cannot seek."""
    while line := file.readline(most + 1):
        if len(line) > most and not line.endswith(b"\n"):
            length, digest = len(line), hashlib.blake2b(line, digest_size=16)
            while more := file.readline(CHUNK):
                length += len(more)
                digest.update(more)
                if more.endswith(b"\n"):
                    break
            yield Piece(line[:HEAD], 0, f"line of about {length} bytes is longer than max_line_bytes; blake2b {digest.hexdigest()}")
        else:
            yield Piece(line.rstrip(b"\r\n"), 0)


def head_digest(path: Path, length: int) -> str:
    """Tells a file from another one that took its inode."""
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(length), digest_size=8).hexdigest()


Entry = dict[str, Any]
