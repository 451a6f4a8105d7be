"""History of one chat, asked for by message id: at most 100 messages a call, and never an empty answer believed where there must be some."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from telethon import functions, types

from collector.sources import Page, Window
from collector.sources.answers import Denied, Limited
from collector.sources.telegram_line import Line
from collector.sources.telegram_news import Chat
from collector.sources.telegram_records import gone, record
from worker.core.models import RawRecord

MOST = 100  # messages in one answer
_NUMBERS, _YEARS = range(2**31), range(2013, 2038)  # Telegram counts messages and seconds in 31 bits


@dataclass(frozen=True, slots=True)
class Top:
    """The newest message; `pts` counts all that ever happened in a channel (0 in a group without such a count)."""

    number: int
    pts: int


def number_in(position: dict[str, Any], name: str) -> int | None:
    """A number of a position; None where it is absent or makes no sense."""
    found = position.get(name)
    return found if type(found) is int and found in _NUMBERS else None


def time_in(position: dict[str, Any], name: str) -> dt.datetime | None:
    """The same for a time."""
    try:
        found = dt.datetime.fromisoformat(position[name])
    except (KeyError, TypeError, ValueError):
        return None
    return found if found.tzinfo and found.year in _YEARS else None


class History:
    """Over one line; `name` is the chat's."""

    def __init__(self, line: Line, source: str, name: str) -> None:
        self._line, self._source, self._name = line, source, name

    async def chat(self) -> Chat:
        return await self._line.chat(self._source, self._name)

    async def same(self, position: dict[str, Any]) -> dict[str, int]:
        """What a position says of the chat. Raises Denied where the name is another chat's now: its ids would be taken for those of the old."""
        number, before = (await self.chat()).number, position.get("chat")
        if before not in (None, number):
            hint = "name the chat by its id (chat = ...), or give the new one a source of its own"
            raise Denied(self._source, f"{self._name} was chat {before} and is {number} now", hint)
        return {"chat": number}

    async def top(self) -> Top:
        answer = await self._get(limit=1)
        found = _messages(answer)
        if not found and _count(answer):
            raise self._partial()
        return Top(found[0].id if found else 0, pts_of(answer))

    async def older(self, when: dt.datetime) -> int:
        """Id of the newest message before `when`; 0: there is none."""
        if found := _messages(await self._get(offset_date=when, limit=1)):
            return int(found[0].id)
        first = _messages(await self._get(offset_id=1, add_offset=-1, limit=1))
        if first and first[0].date < when:
            raise self._partial()
        return 0

    async def after(self, number: int) -> tuple[list[Any], int]:
        """The next messages after `number`, oldest first, and the channel's count of events. None: there are no newer ones."""
        answer = await self._get(offset_id=number + 1, add_offset=-MOST, limit=MOST)
        found = sorted((m for m in _messages(answer) if m.id > number), key=lambda m: m.id)
        if not found and (await self.top()).number > number:
            raise self._partial()
        return found, pts_of(answer)

    async def before(self, number: int, most: int, until: dt.datetime | None) -> tuple[list[Any], int, int]:
        """The next messages before `number` (0: the newest, or those before `until`), newest first; the count of events; how many
        messages there are in all.
        """
        answer = await self._get(offset_id=number, offset_date=None if number else until, limit=most)
        found = _messages(answer)
        if not found and _count(answer) and (number or not until):
            beside = _messages(await self._get(offset_id=number, add_offset=-1, limit=2)) if number else []
            if not beside or beside[-1].id < number:
                raise self._partial()
        return sorted(found, key=lambda m: -m.id), pts_of(answer), _count(answer)

    async def by_number(self, numbers: Sequence[int]) -> list[RawRecord]:
        """Records of those of `numbers` (at most 100) that are there, tombstones of those that the service says are gone. What it does not
        mention is neither.
        """
        chat, ids = await self.chat(), [types.InputMessageID(n) for n in numbers]
        request = functions.channels.GetMessagesRequest(chat.input, ids) if chat.is_channel else functions.messages.GetMessagesRequest(ids)
        answer = await self._line.call(self._source, request)
        told = {m.id: m for m in answer.messages if isinstance(m, types.MessageEmpty) or m.peer_id == chat.peer}
        now, pts = dt.datetime.now(dt.UTC), pts_of(answer)
        return [gone(chat.peer, n, now) if isinstance(m, types.MessageEmpty) else record(m, pts) for n, m in told.items() if n in numbers]

    async def chunk(self, position: dict[str, Any], size: int, window: Window) -> Page:
        """The next `size` messages, newest first. A flood in the middle ends the chunk; the next one tells it."""
        chat, lowest, oldest = await self.same(position), number_in(position, "before") or 0, time_in(position, "at")
        records: list[RawRecord] = []
        top, newest, total, more = lowest, oldest, 0, True
        while more and len(records) < size:
            try:
                found, pts, total = await self.before(lowest, min(MOST, size - len(records)), window.until)
            except Limited:
                if not records:
                    raise
                break
            kept = list(takewhile(lambda m: not window.since or m.date >= window.since, found))
            more = bool(found) and len(kept) == len(found)
            if kept:
                top, newest = top or kept[0].id + 1, newest or kept[0].date
                lowest, oldest = kept[-1].id, kept[-1].date
            records += [record(m, pts) for m in kept if window.holds(m.date)]
        first = lowest if more or window.since else 1
        at = chat | {"before": lowest or 1} | ({"at": oldest.isoformat()} if oldest else {})
        times = (oldest, newest) if oldest and newest and oldest < newest else None
        return Page(records, at, times, (first, top) if 0 < first < top else None, more=more, total=total)

    async def _get(self, **asked: Any) -> Any:
        chat = await self.chat()
        given = {"offset_id": 0, "offset_date": None, "add_offset": 0, "limit": MOST, "max_id": 0, "min_id": 0, "hash": 0} | asked
        return await self._line.call(self._source, functions.messages.GetHistoryRequest(peer=chat.input, **given))

    def _partial(self) -> ValueError:
        return ValueError(f"{self._source}: an answer without messages where there must be some")


def _messages(answer: Any) -> list[Any]:
    return [m for m in answer.messages if not isinstance(m, types.MessageEmpty)]


def pts_of(answer: Any) -> int:
    return getattr(answer, "pts", None) or 0


def _count(answer: Any) -> int:
    return int(getattr(answer, "count", None) or len(answer.messages))
