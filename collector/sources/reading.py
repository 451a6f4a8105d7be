"""Bytes of a file to the bytes of its records: lines; plain, gzip or zstd. Bounded memory whatever the file's size."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

CHUNK = 1 << 20
HEAD = 65536
BOM = b"\xef\xbb\xbf"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")
PACKED = (".gz", ".zst")
CLOSING = {b"{": b"}", b"[": b"]", b'"': b'"'}


class Piece(NamedTuple):
    """The bytes of one record; `end` is the offset after it (lines) or its number. `why`: a defect found while cutting it out,
    `digest` then covers all of it where `raw` is only its beginning.
    """

    raw: bytes
    end: int
    why: str = ""
    digest: bytes = b""


def shape_of(name: str) -> tuple[str, str] | None:
    """(`.jsonl`, `.gz`) of a file name; None for a file that we do not read. Rotated names (`x.jsonl.1`) count."""
    stem, packed = name, ""
    while True:
        base, suffix = Path(stem).stem, Path(stem).suffix.lower()
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
        try:
            import zstandard  # noqa: PLC0415  only for such files
        except ImportError:
            raise OSError("reading .zst needs: pip install 'tailrace[zstd]'") from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True))
    return path.open("rb")


def lines(file: IO[bytes], start: int, most: int, *, finished: bool) -> Iterator[Piece]:
    """Whole lines from offset `start`; a last one without newline where nothing can follow it: see `_ended`.

    A line longer than `most` bytes is passed over; its head, length and digest remain as a defect.
    """
    size, offset = CHUNK, start
    file.seek(offset)
    while data := file.read(size):
        short = len(data) < size
        if not offset and data.startswith(BOM):
            data, offset = data[len(BOM) :], len(BOM)
        cut = data.rfind(b"\n")
        if cut >= 0:
            for line in data[:cut].split(b"\n"):
                offset += len(line) + 1
                yield _line(line, offset, most)
            size = CHUNK
        elif short:
            if _ended(data, finished=finished):
                yield _line(data, offset + len(data), most)
            return
        elif size > most:
            piece = _pass_over(file, offset)
            if piece is None:
                return
            yield piece
            offset, size = piece.end, CHUNK
        else:
            size = min(size * 2, most + 1)
        file.seek(offset)


def _ended(data: bytes, *, finished: bool) -> bool:
    """Whether these bytes without newline are a whole line: a JSON object, array or string, which nothing can follow. Any other value, such as
    a number, which is complete at every digit, only where the file is `finished`.
    """
    text = data.strip()
    if not finished and CLOSING.get(text[:1]) != text[-1:]:
        return False
    try:
        json.loads(data.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _line(line: bytes, end: int, most: int) -> Piece:
    return Piece(line.removesuffix(b"\r"), end) if len(line) <= most else _too_long(line, end)


def _long(length: int, digest: bytes) -> str:
    return f"line of {length} bytes is longer than max_line_bytes; blake2b {digest.hex()}"


def _too_long(line: bytes, end: int) -> Piece:
    digest = hashlib.blake2b(line, digest_size=16).digest()
    return Piece(line[:HEAD], end, _long(len(line), digest), digest)


def _pass_over(file: IO[bytes], start: int) -> Piece | None:
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
            return Piece(head, start + length + 1, _long(length, digest.digest()), digest.digest())
    return None


def stream(file: IO[bytes], most: int) -> Iterator[Piece]:
    """Lines of a stream that cannot seek and does not grow; numbered from 1."""
    count = 0
    while line := file.readline(most + 1):
        count += 1
        if count == 1 and line.startswith(BOM):
            line = line[len(BOM) :] + (b"" if line.endswith(b"\n") else file.readline(len(BOM)))
        if len(line) <= most or line.endswith(b"\n"):
            yield _line(line.removesuffix(b"\n"), count, most)
            continue
        digest, length, end = hashlib.blake2b(line, digest_size=16), len(line), False
        while not end and (more := file.readline(CHUNK)):
            end = more.endswith(b"\n")
            digest.update(more.removesuffix(b"\n"))
            length += len(more) - end
        yield Piece(line[:HEAD], count, _long(length, digest.digest()), digest.digest())
