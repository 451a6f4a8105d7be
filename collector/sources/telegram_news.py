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
        self.pts = max(self.pts, getattr(update, "pts", None) or 0)
        if isinstance(update, types.UpdateChannelTooLong):
            return
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.clear()
            update = None
        if update is None or isinstance(update, _WANTED):
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
