"""A program of its own: the bytes of a feed come on stdin, the feed and its entries go out as lines of JSON.

It is apart from the collector because feedparser takes hours over some texts (a hundred thousand letters as an author: half a minute; ten
times as many: a hundred times that). No thread can be ended meanwhile, and a regular expression lets nothing else of its process run.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from xml.parsers import expat

import feedparser

CPU_SECONDS, MEMORY = 60, 2 << 30  # of the whole program
WHOLE, ONE = 15.0, 1.0  # seconds of CPU time for a feed; for one entry, where the feed could not be read at once
DEEPEST = 1000  # elements within elements
HEAD = 65_536  # characters that are kept of an entry that cannot be read
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""")
_DECLARATION = re.compile(r"^\s*<\?xml.*?\?>", re.DOTALL)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_ENTRY = re.compile(rb"<((?:[\w.-]+:)?(?:item|entry))(?:\s[^>]*)?>.*?</\1\s*>", re.DOTALL)
_END = re.compile(rb"</\s*(?:[\w.-]+:)?(?:rss|feed|RDF|channel)\s*>\s*(?:<!--.*?-->\s*)*\Z", re.DOTALL)
_ID = re.compile(r"<(?:[\w.-]+:)?(?:guid|id)\b[^>]*>\s*(?:<!\[CDATA\[)?([^<\]]{1,500})")


class Late(BaseException):
    """The time is over. No Exception, so that nobody takes it for one of his own."""


class Cut(NamedTuple):
    """A document as UTF-8 without declaration, and where its entries are; `foot` closes what is open before the first. `sound`: it is XML."""

    text: bytes
    spans: list[tuple[int, int]]
    foot: bytes
    sound: bool


class _Marks:
    """Where the outermost entries of a well-formed document begin and end. Raises ValueError for what declares entities or is too deep."""

    def __init__(self, text: bytes) -> None:
        self.parser = expat.ParserCreate("utf-8")
        self.parser.UseForeignDTD(True)  # an entity that is not declared is passed over
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.EntityDeclHandler = self._refuse
        self.spans: list[tuple[int, int]] = []
        self.foot = b""
        self._text = text
        self._stack: list[str] = []
        self._inside = self._begin = 0  # depth and beginning of the entry that is open

    def _start(self, name: str, _attributes: Any) -> None:
        if len(self._stack) > DEEPEST:
            raise ValueError("nested too deeply")
        self._stack.append(name)
        if name.rpartition(":")[2] in {"item", "entry"} and not self._inside:
            self._inside, self._begin = len(self._stack), self.parser.CurrentByteIndex
            self.foot = self.foot or "".join(f"</{n}>" for n in reversed(self._stack[:-1])).encode()

    def _end(self, _name: str) -> None:
        if self._inside == len(self._stack):
            self.spans.append((self._begin, self._text.index(b">", self.parser.CurrentByteIndex) + 1))
            self._inside = 0
        self._stack.pop()

    def _refuse(self, *_declared: Any) -> None:
        raise ValueError("an entity of its own")


def within(seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns. Raises Late after so much CPU time."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return call(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def cut(data: bytes, said: str) -> Cut:
    """`said`: the content type. A document that is not well-formed is cut where it looks as if."""
    try:
        text = data.decode(_encoding(data, said))
    except (UnicodeError, LookupError):
        text = data.decode("utf-8", "replace")
    plain_text = _DECLARATION.sub("", text.lstrip("\ufeff"), count=1).encode("utf-8", "replace")
    marks = _Marks(plain_text)
    try:
        marks.parser.Parse(plain_text, True)
    except (expat.ExpatError, ValueError):
        return Cut(plain_text, [found.span() for found in _ENTRY.finditer(plain_text)], b"", sound=False)
    return Cut(plain_text, marks.spans, marks.foot, sound=True)


def _encoding(data: bytes, said: str) -> str:
    """As the bytes say themselves, else as their sender said."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if declared := _DECLARED.match(data):
        return declared[1].decode("ascii")
    charset = _CHARSET.search(said)
    return charset[1] if charset else "utf-8"


def parse(data: bytes, asked: dict[str, Any]) -> Any:
    headers = {"content-type": asked["type"], "content-location": asked["url"]}
    return feedparser.parse(io.BytesIO(data), response_headers=headers, sanitize_html=False, resolve_relative_uris=True)


def lines(data: bytes, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The feed, then its entries in its own order. Where it cannot be read at once, each of them apart: what is wrong with one is told."""
    found = within(WHOLE, cut, data, asked["type"])
    raw = [found.text[first:end] for first, end in found.spans]
    feed, recoded = None, {**asked, "type": "application/xml; charset=utf-8"}
    if all(len(piece) <= asked["most"] for piece in raw):
        with suppress(*((Exception, Late) if raw else ())):  # without entries to be read apart, it is what is wrong with the feed
            feed = within(WHOLE, parse, data, asked)
            if raw and not feed.entries:  # another encoding than it says
                feed = within(WHOLE, parse, found.text, recoded)
    if feed is None:
        before = found.text[: found.spans[0][0]]
        yield head(within(WHOLE, parse, before + found.foot, recoded), found, data)
        yield from (_apart(before, piece, found.foot, recoded) for piece in raw)
        return
    yield head(feed, found, data)
    paired = len(feed.entries) == len(raw)
    yield from ({"entry": plain(entry), "raw": raw[n].decode() if paired else None} for n, entry in enumerate(feed.entries))


def _apart(before: bytes, piece: bytes, foot: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """One entry as a feed of its own."""
    why = f"an entry of {len(piece)} bytes is larger than max_entry_bytes ({asked['most']})"
    if len(piece) <= asked["most"]:
        try:
            made = within(ONE, parse, before + piece + foot, asked).entries
            if len(made) == 1:
                return {"entry": plain(made[0]), "raw": piece.decode()}
            why = "it cannot be read apart from its feed, which cannot be read as a whole"
        except Late:
            why = f"reading it takes more than {ONE:g} s"
        except Exception as error:  # noqa: BLE001  whatever feedparser trips over
            why = f"it cannot be read: {error!r}"[:200]
    text = piece.decode()
    named = _ID.search(text)
    return {"raw": text[:HEAD], "why": why, "id": named[1].strip() if named else "", "digest": hashlib.blake2b(piece, digest_size=16).hexdigest()}


def head(feed: Any, found: Cut, data: bytes) -> dict[str, Any]:
    """What is said of the feed itself. `whole`: it was not cut off."""
    about = feed.feed
    links = {link.get("rel"): link.get("href") for link in reversed(about.get("links", []))}
    said = {name: about.get(key) for name, key in (("ttl", "ttl"), ("period", "sy_updateperiod"), ("frequency", "sy_updatefrequency"))}
    said |= {"version": feed.get("version", ""), "names": feed.get("namespaces", {}), "next": links.get("next") or links.get("prev-archive")}
    said |= {"whole": found.sound or bool(_END.search(data[-HEAD:])), "problem": repr(feed["bozo_exception"])[:200] if feed.get("bozo") else ""}
    return {name: plain(value) for name, value in said.items()}


def plain(value: Any) -> Any:
    """The value as JSON has it; times are UTC."""
    if isinstance(value, time.struct_time):
        return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z".format(*value[:6])
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _late(*_signal: Any) -> None:
    raise Late


def main() -> int:
    """0: all is told. 1: it is not, and stderr says why in one line."""
    for limit, most in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY)):
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))
    signal.signal(signal.SIGPROF, _late)
    try:
        for line in lines(sys.stdin.buffer.read(), json.loads(sys.argv[1])):
            sys.stdout.buffer.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    except (Exception, Late) as error:  # noqa: BLE001  this program has no other way to say it
        sys.stderr.write("it takes too long" if isinstance(error, Late) else repr(error)[:300])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
