"""News of one chat as they come. Updates are only a hint: what they leave out is found by the catch-up, which is called when something is amiss."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from telethon import types

from collector.sources import Page
from collector.sources.answers import Limited
from collector.sources.telegram_heal import Heal
from collector.sources.telegram_history import History, Top, number_in
from collector.sources.telegram_line import Line
from collector.sources.telegram_news import NEW, News, message_of
from collector.sources.telegram_records import gone, record
from worker.core.models import RawRecord
from worker.core.service import rest_or_wake

PATIENCE = 300.0  # seconds without a connection after which the collector is told
LONGEST = 15.0  # seconds between two tries to connect
GRACE = 2.0  # seconds that an update may take to come after the service counts it
AWAY = (OSError, TimeoutError)


class Tail:
    """`position` holds `last`, the newest message that came, and `since`, the newest one when we first listened."""

    def __init__(self, source: str, line: Line, chat: str, heal: Heal, gap: asyncio.Event, verify: float, most: int) -> None:
        self.quiet = False  # connected, and nothing waits
        self._source, self._line, self._history = source, line, History(line, source, chat)
        self._heal, self._gap, self._verify, self._most = heal, gap, verify, most
        self._connected = False  # was it ever
        self._edge: int | None = None  # all messages from our first one to this one have come
        self._seen = self._last = 0  # the newest message that we know of, and the newest that came

    async def pages(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        """For ever. After each connection the catch-up is called; the news themselves go on at once."""
        while not stop.is_set():
            found = await self._tuned(position, stop)
            if found is None:
                return
            news, chat = found
            try:
                yield self._placed(Page([]), position, chat)
                async with aclosing(self._heard(news, stop)) as heard:
                    async for page in heard:
                        yield self._placed(page, position, chat)
            finally:
                self.quiet, self._heal.run = False, None
                self._line.leave(news)

    def _placed(self, page: Page, position: dict[str, Any], chat: dict[str, int]) -> Page:
        """With its position. While we do not know what was the newest message at our first look, it says neither."""
        if self._heal.since is None:
            before = number_in(position, "since")
            self._heal.since = self._heal.run if before is None else before
        before = number_in(position, "last")
        self._last = max(self._last, (self._heal.since or 0) if before is None else before, page.ids[1] - 1 if page.ids else 0)
        known = {} if self._heal.since is None else {"since": self._heal.since, "last": self._last}
        return replace(page, position=chat | known)

    async def _tuned(self, position: dict[str, Any], stop: asyncio.Event) -> tuple[News, dict[str, int]] | None:
        """Listening, and the chat. A connection that was lost is taken up again by itself."""
        begun, pause = time.monotonic(), 0.5
        while not stop.is_set():
            try:
                chat = await self._history.same(position)
                news = self._line.listen(await self._history.chat())
                try:
                    top = await self._begun(known=number_in(position, "since") is not None or self._heal.since is not None)
                except BaseException:
                    self._line.leave(news)
                    raise
            except AWAY:
                if not self._connected or time.monotonic() - begun > PATIENCE:
                    raise
                await rest_or_wake(pause, stop)
                pause = min(pause * 2, LONGEST)
            else:
                self._connected, self._edge, self._seen = True, top.number or None, top.number
                self._heal.run = self._edge if news.chat.member else None
                news.pts = max(news.pts, top.pts)
                self._amiss()
                return news, chat
        return None

    async def _begun(self, *, known: bool) -> Top:
        """The newest message. Where we know from when on to look and the service asks to wait: none, for news must not wait."""
        await self._line.ready(self._source)
        try:
            return await self._history.top()
        except Limited:
            if known:
                return Top(0, 0)
            raise

    async def _heard(self, news: News, stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        """Pages of what comes, until the connection is lost."""
        verifying = asyncio.create_task(self._verified(news, stop))
        verifying.add_done_callback(lambda _: news.arrived.set())
        try:
            while not stop.is_set() and not news.lost:
                news.arrived.clear()
                while news.waiting:
                    self.quiet = False
                    yield self._page(news)
                if verifying.done():
                    verifying.result()
                    return
                self.quiet = True
                await rest_or_wake(self._verify, news.arrived, stop)
        finally:
            verifying.cancel()
            await asyncio.gather(verifying, return_exceptions=True)

    def _page(self, news: News) -> Page:
        """What waits, as far as nothing is missing in between."""
        records: list[RawRecord] = []
        if news.waiting[0] is None:
            news.waiting.popleft()
            self._amiss()
            self._edge = self._heal.run = None
        first, before = None, self._edge
        while news.waiting and news.waiting[0] is not None and len(records) < self._most:
            update = news.waiting.popleft()
            records += self._records(news, update)
            number = getattr(message_of(update), "id", 0)
            if isinstance(update, NEW) and number > (self._edge or 0):
                if before is None and first is None and news.chat.member:
                    self._heal.run = number - 1
                first, self._edge = first or (before + 1 if before else number), number
                self._seen = max(self._seen, number)
        return Page(records, ids=(first, self._edge + 1) if first and self._edge else None)

    def _records(self, news: News, update: Any) -> list[RawRecord]:
        if isinstance(update, types.UpdateDeleteChannelMessages):
            now = dt.datetime.now(dt.UTC)
            return [gone(news.chat.peer, number, now) for number in update.messages]
        message = message_of(update)
        if message is None or isinstance(message, types.MessageEmpty):
            return []
        return [record(message, (getattr(update, "pts", 0) or news.pts) if news.chat.is_channel else 0)]

    async def _verified(self, news: News, stop: asyncio.Event) -> None:
        """Now and then: has everything come that the service counts? Ends when the connection does not answer."""
        while not stop.is_set():
            await rest_or_wake(self._verify, stop)
            try:
                top = await self._history.top()
            except (Limited, ValueError):
                continue
            except AWAY:
                return
            if self._behind(news, top):
                await rest_or_wake(GRACE, stop)
            if self._behind(news, top):
                news.pts, self._seen = max(news.pts, top.pts), max(self._seen, top.number)
                if news.chat.member:
                    news.take(None)
                else:  # nobody tells us: the catch-up brings it
                    self._gap.set()

    def _behind(self, news: News, top: Top) -> bool:
        return news.pts < top.pts if news.pts and top.pts else self._seen < top.number

    def _amiss(self) -> None:
        """Something may have been missed, edits and deletions too."""
        self._heal.holes += 1
        self._gap.set()
