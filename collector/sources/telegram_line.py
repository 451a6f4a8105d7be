"""One line per session and process: a client that is connected when needed, shared by all chats of that session."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from telethon import types, utils

from collector.sources import telegram_client
from collector.sources.answers import Denied, Limited
from collector.sources.telegram_client import CALL, Account, explained
from collector.sources.telegram_names import LOOKED_UP, Names
from collector.sources.telegram_news import MESSAGES, Chat, News

LEAVE = 2.0  # seconds to take leave of the service


class Line:
    """Calls of one account, and who listens to it."""

    def __init__(self, who: Account) -> None:
        self.who = who
        self.users = 0
        self.news = False  # whether the service sends updates
        self._client: Any = None
        self._left: list[Any] = []  # clients whose connection has ended
        self._number = 0  # of the connection
        self._busy = 0
        self._lock = asyncio.Lock()
        self._held_until: dict[str, float] = {}
        self._known = Names(self.call, lambda source, asked: self.ask(source, asked, "GetDialogsRequest"))
        self._ears: dict[int, set[News]] = {}
        self._chats: dict[str, Chat] = {}

    async def call(self, source: str, request: Any) -> Any:
        """The answer to one request. Raises Limited, also where the service has asked to wait with such requests, Denied, ConnectionError."""
        return await self.ask(source, lambda client: client(request), type(request).__name__)

    async def ask(self, source: str, asked: Callable[[Any], Awaitable[Any]], kind: str) -> Any:
        """What `asked` makes of the connected client; the library's errors in our words. `kind`: what a flood wait is about."""
        if (left := self._held_until.get(kind, 0.0) - time.monotonic()) > 0:
            raise Limited(self._limit(kind), math.ceil(left), f"session {self.who.label} has been asked to wait")
        number = 0
        try:
            async with asyncio.timeout(CALL):
                client = await self._connected()
                number = self._number
                return await asked(client)
        except TimeoutError:
            self._end(number)
            raise ConnectionError(f"Telegram has not answered within {CALL:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            raise ConnectionError("the connection to Telegram ended under the call") from None  # the library cancels what waits
        except Exception as error:  # noqa: BLE001  each is raised again, in our words
            told = explained(error, source, self._limit(kind))
            if isinstance(told, Limited):
                self._held_until[kind] = time.monotonic() + told.seconds
            if isinstance(told, Denied):
                self._chats.clear()
                self._known.forget()
            raise told from None

    async def ready(self, source: str) -> None:
        """Connects, where it is not connected."""
        await self.ask(source, lambda _: asyncio.sleep(0), "")

    async def chat(self, source: str, name: str) -> Chat:
        """By user name, link, invitation or id. Raises Denied where it is no channel or group."""
        if name not in self._chats:
            self._chats[name] = await self._known.chat(source, name)
        return self._chats[name]

    def wants_news(self) -> None:
        """A connection that was made without is made anew."""
        if not self.news:
            self.news = True
            self._end(self._number)

    def listen(self, chat: Chat) -> News:
        news = News(chat)
        self._ears.setdefault(chat.number, set()).add(news)
        return news

    def leave(self, news: News) -> None:
        self._ears.get(news.chat.number, set()).discard(news)

    @asynccontextmanager
    async def used(self, *, stays: bool) -> AsyncIterator[None]:
        """While anybody is in here it is connected; afterwards, unless it `stays`, it takes leave: a later call connects anew."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy and not stays:
                await self.close()

    async def close(self) -> None:
        """Takes leave of the service."""
        self._number += 1
        client, self._client = self._client, None
        await self._tidy([*self._left, *([client] if client else [])])

    def hear(self, update: Any) -> None:
        channel = getattr(update, "channel_id", None)
        if isinstance(update, MESSAGES):
            self._tell(utils.get_peer_id(update.message.peer_id), update)
        elif isinstance(update, types.UpdateShortChatMessage):
            self._tell(-update.chat_id, update)
        elif isinstance(update, types.UpdateDeleteMessages):
            self.missed(None)  # of some chat that shares its ids with others
        elif channel:
            self._tell(utils.get_peer_id(types.PeerChannel(channel)), update)

    def reached(self, channel: int, pts: int) -> None:
        self._tell(utils.get_peer_id(types.PeerChannel(channel)), types.UpdateChannelTooLong(channel, pts))

    def missed(self, channel: int | None) -> None:
        numbers = [utils.get_peer_id(types.PeerChannel(channel))] if channel else [n for n in self._ears if n > -(10**12)]
        for number in numbers:
            self._tell(number, None)

    def _tell(self, number: int, update: Any) -> None:
        for news in self._ears.get(number, ()):
            news.take(update)

    def _limit(self, kind: str) -> str:
        """Names are looked up under a limit of their own: it can hold for hours, while history may be read."""
        return self.who.limit + (":names" if kind in LOOKED_UP else "")

    async def _connected(self) -> Any:
        async with self._lock:
            left, self._left = self._left, []
            await self._tidy(left)
            if self._client is None:
                self._number += 1
                number = self._number
                client = await telegram_client.connect(self.who, self, lambda: self._end(number), news=self.news)
                if number != self._number:
                    self._left.append(client)
                    raise ConnectionError("the connection to Telegram ended at once")
                self._client = client
            return self._client

    def _end(self, number: int) -> None:
        """This connection is no more; who listens is told."""
        if number == self._number:
            self._number += 1
            self._left += [self._client] if self._client else []
            self._client = None
            for news in [n for ears in self._ears.values() for n in ears]:
                news.lose()

    @staticmethod
    async def _tidy(clients: list[Any]) -> None:
        for client in clients:
            with suppress(Exception):
                async with asyncio.timeout(LEAVE):
                    await client.disconnect()


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Line]] = WeakKeyDictionary()


def take(who: Account, *, news: bool) -> Line:
    """The line of this account, for one more source, for `news` or only for history."""
    line = _lines.setdefault(asyncio.get_running_loop(), {}).setdefault(who.label, Line(who))
    line.users += 1
    if news:
        line.wants_news()
    return line


async def give_back(line: Line) -> None:
    """The last source that gives it back ends it."""
    line.users -= 1
    if line.users <= 0:
        _lines.get(asyncio.get_running_loop(), {}).pop(line.who.label, None)
        await line.close()
