"""A chat, and what the service tells of it while we listen."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from telethon import types

MOST_WAITING = 10_000  # updates of one chat that may wait for the database; when there are more, the catch-up finds them
MESSAGES = (types.UpdateNewChannelMessage, types.UpdateEditChannelMessage, types.UpdateNewMessage, types.UpdateEditMessage)
NEW = (types.UpdateNewChannelMessage, types.UpdateNewMessage, types.UpdateShortChatMessage)
_WANTED = (*MESSAGES, types.UpdateDeleteChannelMessages, types.UpdateShortChatMessage)


@dataclass(frozen=True, slots=True)
class Chat:
    """A channel or group as this session sees it. `input` is what requests name it by, `number` its marked id."""

    input: Any
    peer: Any
    number: int
    member: bool

    @property
    def is_channel(self) -> bool:
        """Ids of its messages are its own and dense; those of a small group are shared by all chats of the account."""
        return isinstance(self.peer, types.PeerChannel)


class News:
    """Updates of one chat, in their order. None stands for some that are missing."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.waiting: deque[Any] = deque()
        self.arrived = asyncio.Event()
        self.pts = 0  # the service counts what happens in a channel; so far we know
        self.lost = False  # the connection has ended

    def take(self, update: Any) -> None:
        """`update` None: some are missing. A jump in the channel's count of events says so, too."""
        if self.chat.is_channel:  # the count of a small group is that of the whole account
            self._count(getattr(update, "pts", None) or 0, getattr(update, "pts_count", None) or 0, isinstance(update, types.UpdateChannelTooLong))
        if update is None or isinstance(update, _WANTED):
            self._keep(update)

    def _count(self, pts: int, events: int, told: bool) -> None:
        if self.pts and events and pts - events > self.pts:
            self._keep(None)
        if events or told:
            self.pts = max(self.pts, pts)

    def _keep(self, update: Any) -> None:
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.clear()
            update = None
        self.waiting.append(update)
        self.arrived.set()

    def lose(self) -> None:
        self.lost = True
        self.arrived.set()


def message_of(update: Any) -> Any:
    """The message of an update; short ones of small groups carry its parts."""
    if not isinstance(update, types.UpdateShortChatMessage):
        return getattr(update, "message", None)
    parts = {name: getattr(update, name) for name in (
        "id", "message", "date", "out", "mentioned", "media_unread", "silent", "fwd_from", "via_bot_id", "reply_to", "entities", "ttl_period",
    )}  # fmt: skip
    return types.Message(peer_id=types.PeerChat(update.chat_id), from_id=types.PeerUser(update.from_id), **parts)
