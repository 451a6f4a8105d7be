"""Files of any bytes, cut anywhere, growing, rotated, truncated: no line is lost or doubled, and nothing hangs."""

from __future__ import annotations

import collections
import gzip
import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import assume, example, given
from hypothesis import strategies as st

from collector.sources import files as files_module
from collector.sources import reading, values
from collector.sources.building import build
from tests.fuzz.hostile import deep, often, texts
from tests.fuzz.hostile import values as any_value
from worker.core.settings import Settings

MOST = 1000  # max_line_bytes


def source(folder, **collector):
    made = build(Settings(sources={"f": {"kind": "files", "path": str(folder), "max_line_bytes": MOST}}, collector={"page_records": 3, **collector}))
    return made["files:f"]


async def passed(made, position, *, final):
    """The records of one pass, and the position after it as the database gives it back."""
    records = []
    async for page in made._pass(position, final=final):
        records += page.records
        position = orjson.loads(orjson.dumps(page.position))
    return records, position


def told(record):
    """What identifies the bytes of a line."""
    return record.digest if "longer than" in record.meta.get("defect", "") else record.payload.encode() if record.body is None else record.body


def wanted(content):
    """The same of what was written."""
    lines = content.removeprefix(reading.BOM).split(b"\n")
    return [hashlib.blake2b(n, digest_size=16).digest() if len(n) > MOST else n.removesuffix(b"\r") for n in lines if n.strip()]


def ended(line):
    """Whether no program that writes JSON lines goes on with this one: a value that is complete, and no number."""
    try:
        return type(json.loads(line.decode().removeprefix("\ufeff"))) in (dict, list, str)
    except (ValueError, RecursionError):
        return False


@pytest.fixture
def small_chunks():
    before, reading.CHUNK, values.CHUNK, files_module.CHUNK = reading.CHUNK, 16, 16, 16
    yield
    reading.CHUNK = values.CHUNK = files_module.CHUNK = before


pieces = (
    st.binary(max_size=30)
    | texts.map(lambda t: json.dumps({"v": t}).encode())
    | st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b"{", b'{"a":', b"1}\n", b"\xef\xbb\xbf", b"\x00", b"x" * 1500, b"12", b"34\n"])
)
steps = st.lists(st.tuples(st.just("write"), pieces) | st.sampled_from(["look", "look", "rotate", "restart", "truncate", "move out"]), max_size=14)


@often(60)
@given(steps)
@example([("write", b"\xef\xbb"), "look", ("write", b"\xbf1\n"), "look"])
@example([("write", b"x" * 1500), "look", "restart", ("write", b"y\n2"), "look", ("write", b"\n"), "rotate", "look"])
async def test_lines_of_a_file_that_grows_come_once_each(small_chunks, steps):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        await Growing(folder).run(steps)


class Growing:
    """A program that writes lines, and a collector that reads them."""

    def __init__(self, folder):
        self.folder, self.made, self.position = folder, source(folder), {}
        self.file, self.content, self.known = folder / "a.jsonl", b"", []
        self.found, self.numbers = [], itertools.count(1)

    async def look(self, *, final=False):
        records, self.position = await passed(self.made, self.position, final=final)
        self.found += map(told, records)
        assert self.made.unread == []

    def write(self, data):
        """After what is a whole JSON line but for its newline, the newline comes first."""
        if ended(self.content.rpartition(b"\n")[2]) and not data.startswith(b"\n"):
            data = b"\n" + data
        with self.file.open("ab") as file:
            file.write(data)
        self.content += data

    def ended(self):
        """The last line, if there is one."""
        if self.content and not self.content.endswith(b"\n"):
            self.write(b"\n")
        self.known += wanted(self.content)
        self.content = b""

    async def run(self, steps):
        for step in [*steps, "look"]:
            match step:
                case ("write", data):
                    self.write(data if self.content else b"%d\n" % next(self.numbers) + data)
                case "look":
                    await self.look()
                case "restart":
                    self.made = source(self.folder)
                case "rotate" | "move out" if self.file.exists():
                    await self.look()
                    self.ended()
                    self.file.rename(self.folder / f"{'a.jsonl' if step == 'rotate' else 'old'}.{next(self.numbers)}")
                    await self.look()
                case "truncate" if self.file.exists():
                    self.ended()
                    await self.look()
                    self.file.write_bytes(b"")
                    await self.look()
        self.ended()
        await self.look(final=True)
        assert collections.Counter(self.found) == collections.Counter(self.known)


SUFFIXES = {".jsonl": "", ".json": "", ".csv": ""}
PACK = {"": lambda data: data, ".gz": gzip.compress, ".zst": lambda data: zstandard.ZstdCompressor().compress(data)}
contents = st.binary(max_size=200) | st.lists(pieces, max_size=6).map(b"".join) | st.lists(any_value(), max_size=4).map(lambda v: json.dumps(v).encode()) | st.sampled_from([
    deep(5000).encode(), b"[" * 5000, b'{"a":' * 5000, b"[" + b"1," * 500, b'"' + b"\\" * 999, b'a,b\n"1' + b"x" * 3000, b"a\n\x00\n", b"a,a,a\n1\n", b'"\n', b"\r", b"a\r1\r", b"1" * 5000, b"[" + b"9" * 5000 + b"]",
    b"a\n" + b"x" * 3000 + b"\n1\n", b'a\n"' + b"x" * 3000 + b'"\n1\n',
])  # fmt: skip


@often(120)
@example(b"\xef\xbb\xbf" + b"x" * 1500, ".jsonl", ".gz", 0.0)
@example(b"\xef\xbb\xbf" + b"x" * 998 + b"\r\r\n1\r\r\n", ".jsonl", ".zst", 0.0)
@given(contents, st.sampled_from([".jsonl", ".json", ".csv"]), st.sampled_from(["", ".gz", ".zst"]), st.floats(0, 1))
async def test_any_file_is_read_to_its_end_and_what_is_cut_off_later(small_chunks, data, suffix, packed, share):
    with tempfile.TemporaryDirectory() as name:
        path, made = Path(name) / f"a{suffix}{packed}", source(name)
        whole = PACK[packed](data)
        torn = whole[: int(len(whole) * share)]
        goes_on = suffix == ".jsonl" and not packed and whole[len(torn) : len(torn) + 1] not in (b"", b"\n")
        assume(not (goes_on and ended(torn.rpartition(b"\n")[2])))
        path.write_bytes(torn)
        first, position = await passed(made, {}, final=True)
        assert packed or made.unread == []
        path.write_bytes(whole)
        made = source(name)
        second, position = await passed(made, position, final=True)
        assert made.unread == []
        fresh, _ = await passed(source(name), {}, final=True)
        assert {told(r) for r in fresh} <= {told(r) for r in first + second}
        assert (await passed(source(name), position, final=True))[0] == []
        if suffix == ".jsonl" and (data.endswith(b"\n") or packed):
            assert [told(r) for r in fresh] == wanted(data)


@often(60)
@given(st.lists(any_value().filter(lambda v: "\\ud" not in json.dumps(v)), max_size=8), st.sampled_from(["", ".gz", ".zst"]))
async def test_elements_of_an_array_are_all_there(small_chunks, elements, packed):
    with tempfile.TemporaryDirectory() as name:
        written = [json.dumps(e).encode() for e in elements]
        (Path(name) / f"a.json{packed}").write_bytes(PACK[packed](b"[" + b", ".join(written) + b"]"))
        found, _ = await passed(source(name), {}, final=True)
        if all(len(w) < MOST for w in written):
            assert [told(r) for r in found] == written
