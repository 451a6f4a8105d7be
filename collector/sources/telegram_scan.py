"""The JSON of an export of Telegram Desktop (`result.json`), of one chat or of many, as a stream: its size does not matter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

import orjson

CHUNK = 1 << 20
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_BETWEEN = re.compile(rb"[\s,:]*+")
_PLAIN = re.compile(rb"[^\s,\]}]++")


class Cut(ValueError):
    """The file is not an export, or is cut off."""


class Scan:
    """Where we stand in a JSON file. `offset` is that of the file."""

    def __init__(self, file: IO[bytes], offset: int, most: int) -> None:
        self._file, self._most = file, most
        self._data, self._at, self._base, self._ended = b"", 0, offset, False
        file.seek(offset)

    @property
    def offset(self) -> int:
        return self._base + self._at

    def peek(self) -> bytes:
        """The first byte of what comes next; empty at the end of the file."""
        while True:
            between = _BETWEEN.match(self._data, self._at)
            self._at = between.end() if between else self._at
            if self._at < len(self._data) or not self._more():
                return self._data[self._at : self._at + 1]

    def step(self) -> None:
        """Over one bracket."""
        self._at += 1

    def value(self, *, keep: bool = True) -> bytes:
        """The bytes of the value that comes next; none where it is only passed over. Raises Cut."""
        if self.peek() not in (b"{", b"[", b'"'):
            return self._plain()
        depth, look = 0, self._at
        while True:
            for token in _TOKEN.finditer(self._data, look):
                kind = token.group()
                if kind == b'"':
                    break
                look = token.end()
                depth += (kind in (b"{", b"[")) - (kind in (b"}", b"]"))
                if depth == 0:
                    found, self._at = self._data[self._at : look] if keep else b"", look
                    return found
            else:
                look = len(self._data)
            if not keep:
                self._at = look
            look -= self._at
            if look > self._most or not self._more():
                raise Cut(f"no end of the value at byte {self.offset}: cut off, not JSON, or longer than max_message_bytes")

    def key(self) -> str | None:
        """The next key of an object; None at its end."""
        found = self.peek()
        if found == b"}":
            self.step()
            return None
        if found != b'"':
            raise Cut(f"a key of an object is missing at byte {self.offset}")
        return str(orjson.loads(self.value()))

    def _plain(self) -> bytes:
        while True:
            found = _PLAIN.match(self._data, self._at)
            if found and (found.end() < len(self._data) or not self._more()):
                self._at += len(found.group())
                return found.group()
            if not found:
                raise Cut(f"a value is missing at byte {self.offset}")

    def _more(self) -> bool:
        """Drops what was read and takes more; False at the end of the file."""
        data = self._file.read(max(CHUNK, len(self._data) - self._at))
        self._data, self._base, self._at = self._data[self._at :] + data, self.offset, 0
        return bool(data)


def messages(scan: Scan, chat: str) -> Iterator[bytes]:
    """Of the only chat, or of the one that has this name or id."""
    if scan.peek() != b"{":
        raise Cut("not an export of Telegram Desktop")
    yield from _object(scan, chat, many=False)


def _object(scan: Scan, chat: str, *, many: bool) -> Iterator[bytes]:
    """A chat, or what holds chats. `many`: the chat must be the one that is wanted."""
    scan.step()
    head: dict[str, Any] = {}
    while (key := scan.key()) is not None:
        if key in ("chats", "left_chats"):
            yield from _inside(scan, chat)
        elif key == "messages" and (not many or _is(head, chat)):
            yield from elements(scan)
        elif key in ("name", "id"):
            head[key] = orjson.loads(scan.value())
        elif key == "list" and many:
            yield from _inside(scan, chat)
        else:
            scan.value(keep=False)


def _inside(scan: Scan, chat: str) -> Iterator[bytes]:
    if scan.peek() == b"{":
        yield from _object(scan, chat, many=True)
    elif scan.peek() == b"[":
        scan.step()
        while scan.peek() == b"{":
            yield from _object(scan, chat, many=True)
        scan.step()


def elements(scan: Scan, *, inside: bool = False) -> Iterator[bytes]:
    """Of an array, or of the rest of one."""
    if not inside:
        scan.peek()
        scan.step()
    while scan.peek() != b"]":
        yield scan.value()
    scan.step()


def _is(head: dict[str, Any], chat: str) -> bool:
    number = str(head.get("id", "")).lstrip("-").removeprefix("100")
    return chat.casefold() == str(head.get("name", "")).casefold() or (bool(number) and chat.lstrip("-").removeprefix("100") == number)
