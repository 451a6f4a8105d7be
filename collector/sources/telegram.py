"""telegram: a channel or group, read over the API of Telegram, or its history from an export of Telegram Desktop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from collector.sources import Known, Page, Window, source
from collector.sources.answers import Denied
from collector.sources.secrets import secret
from collector.sources.telegram_client import Account, account
from collector.sources.telegram_export import Export
from collector.sources.telegram_heal import Heal
from collector.sources.telegram_history import History
from collector.sources.telegram_line import Line, give_back, take
from collector.sources.telegram_tail import Tail
from worker.core.errors import Misconfigured
from worker.core.settings import CollectorSettings
from worker.core.specs import Seconds

NO_HISTORY = "history is not read: name a second session (catchup_session_file), or allow this one by share_session = true"


class TelegramOptions(BaseModel):
    """`[sources.NAME]` of kind telegram. NAME is the chat's user name, or `chat` says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chat: str | None = Field(None, description="user name, link, invitation or id (-100...) of the chat; default: the name of the source")
    api_id: int | None = Field(None, description="from https://my.telegram.org")
    api_hash_env: str | None = Field(None, description="environment variable that holds the api_hash")
    api_hash_file: str | None = Field(None, description="file that holds the api_hash")
    session_env: str | None = Field(None, description="environment variable that holds a StringSession of Telethon: for news")
    session_file: str | None = Field(None, description="file that holds a StringSession of Telethon")
    session_path: str | None = Field(None, description="a session file (SQLite) of Telethon; it is only read")
    catchup_session_env: str | None = Field(None, description="the same for history and for what was missed: another session")
    catchup_session_file: str | None = Field(None, description="the same in a file")
    catchup_session_path: str | None = Field(None, description="the same as a session file (SQLite)")
    share_session: bool = Field(False, description="without a session of its own, history is read over the session for news")
    recheck: Seconds = Field(172800.0, description="a catch-up looks again at messages of so long ago, for edits and deletions")
    verify: Seconds = Field(60.0, gt=0, description="how often the newest message is compared with what has come")
    export: str | None = Field(None, description="a result.json of Telegram Desktop: history is read from it instead")
    export_chat: str | None = Field(None, description="name or id of the chat in an export of several")
    max_message_bytes: int = Field(16_000_000, ge=1000, description="a longer message of an export is not read")


class Live:
    """News, and what was missed of them."""

    def __init__(self, name: str, options: TelegramOptions, settings: CollectorSettings, news: Account, old: Account | None) -> None:
        self.name = name
        self.gap = asyncio.Event()
        self._chat = options.chat or name.partition(":")[2]
        self._news, self._old = news, old
        self._options, self._settings = options, settings
        self._lines: dict[str, Line] = {}
        self._heal: Heal | None = None
        self._tail: Tail | None = None
        self.exclusive: tuple[str, ...] = (news.limit,)
        self.exclusive_history: tuple[str, ...] = (old.limit,) if old else ()
        self.limits: tuple[str, ...] = (news.limit,)  # a flood of the other one is that of the history alone, which tells it

    @property
    def caught_up(self) -> bool:
        """Connected, nothing waits, and no gap is known that has not been read."""
        return bool(self._tail and self._tail.quiet and self._heal and (self._old is None or self._heal.filled >= self._heal.holes))

    @caught_up.setter
    def caught_up(self, _: bool) -> None:
        """The tail knows it."""

    def describe(self) -> str:
        old = f"history over session {self._old.label}" if self._old else NO_HISTORY
        return f"{self._chat}, news over session {self._news.label}; {old}"

    def tail(self, position: dict[str, Any], stop: asyncio.Event) -> AsyncGenerator[Page, None]:
        o, most = self._options, self._settings.page_records
        self._tail = Tail(self.name, self._line(self._news), self._chat, self._healer(), self.gap, o.verify, most)
        return self._tail.pages(position, stop)

    async def heal(self, position: dict[str, Any], tail: dict[str, Any], known: Known) -> AsyncGenerator[Page, None]:
        """The connection ends with it, where it is not that of news: the lease on its session does, too."""
        if self._old is None:
            return
        stays = self._old is self._news
        async with self._line(self._old).used(stays=stays), aclosing(self._healer().pages(position, tail, known)) as pages:
            async for page in pages:
                yield page

    async def aclose(self) -> None:
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await give_back(line)

    def _line(self, who: Account) -> Line:
        if who.label not in self._lines:
            self._lines[who.label] = take(who, news=who is self._news)
        return self._lines[who.label]

    def _healer(self) -> Heal:
        if self._heal is None:
            history = History(self._line(self._old or self._news), self.name, self._chat)
            self._heal = Heal(history, self._settings, self._options.recheck, self.gap)
        return self._heal


class Telegram(Live):
    """One chat over the API. Its history is read in chunks."""

    async def chunk(self, position: dict[str, Any], size: int, window: Window) -> Page:
        if self._old is None:
            raise Denied(self.name, "there is no session for history", NO_HISTORY)
        line = self._line(self._old)
        async with line.used(stays=True):
            return await History(line, self.name, self._chat).chunk(position, size, window)


class LiveWithExport(Live):
    """News over the API, history from an export."""

    def __init__(self, name: str, options: TelegramOptions, settings: CollectorSettings, news: Account, old: Account | None) -> None:
        super().__init__(name, options, settings, news, old)
        self._export = _export(name, options, settings)

    def describe(self) -> str:
        return f"{super().describe()}; before: {self._export.describe()}"

    def fetch(self, position: dict[str, Any]) -> AsyncGenerator[Page, None]:
        return self._export.fetch(position)

    def joined(self, position: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return self._export.joined(position, other)

    @property
    def unread(self) -> list[str]:
        return self._export.unread


@source("telegram", TelegramOptions)
def telegram(name: str, options: TelegramOptions, settings: CollectorSettings) -> Live | Export:
    """The source that the options describe. Raises Misconfigured."""
    o, what = options, "a StringSession of Telethon"
    api_hash = secret(name, "the api_hash", o.api_hash_env, o.api_hash_file)
    news = account(name, o.api_id, api_hash, secret(name, what, o.session_env, o.session_file), o.session_path)
    old = account(name, o.api_id, api_hash, secret(name, what, o.catchup_session_env, o.catchup_session_file), o.catchup_session_path)
    if news is None:
        if o.export is None:
            raise Misconfigured(f"sources.{name}: there is neither a session nor an export", "name session_file, session_env, session_path or export")
        return _export(name, options, settings)
    if old is None and o.share_session:
        old = news
    return (LiveWithExport if o.export else Telegram)(name, options, settings, news, old)


def _export(name: str, options: TelegramOptions, settings: CollectorSettings) -> Export:
    return Export(name, str(options.export), options.export_chat or name.partition(":")[2], settings, options.max_message_bytes)
