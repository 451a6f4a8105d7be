"""From what a person calls a chat to what requests name it by."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from telethon import functions, types, utils

from collector.sources.answers import Denied
from collector.sources.telegram_news import Chat

LOOKED_UP = ("ResolveUsernameRequest", "CheckChatInviteRequest")  # Telegram allows few of these, and then asks to wait for hours


class Names:
    """Of one session. What it has joined is asked for once, for all chats; only other names are looked up one by one."""

    def __init__(self, call: Callable[[str, Any], Awaitable[Any]], ask: Callable[[str, Any], Awaitable[Any]]) -> None:
        self._call, self._ask = call, ask
        self._looking = asyncio.Lock()
        self._joined: dict[str, Chat] | None = None

    def forget(self) -> None:
        self._joined = None

    async def chat(self, source: str, name: str) -> Chat:
        """By user name, link, invitation or id. Raises Denied."""
        number = name.lstrip("-").isdigit()
        known, invited = (name, False) if number else utils.parse_username(name)
        if invited:
            entity = getattr(await self._call(source, functions.messages.CheckChatInviteRequest(known)), "chat", None)
            return _chat(entity) or self._refused(source, name)
        async with self._looking:
            if self._joined is None:
                self._joined = await self._ask(source, _joined)
        if found := self._joined.get((known or name).lower()):
            return found
        if number:
            return self._refused(source, name)
        answer = await self._call(source, functions.contacts.ResolveUsernameRequest(known or name))
        return _chat(next(iter(answer.chats), None)) or self._refused(source, name)

    @staticmethod
    def _refused(source: str, name: str) -> Chat:
        raise Denied(source, f"{name!r} is no channel or group that this account sees", "name it by its user name or its id, or join it")


def _chat(entity: Any) -> Chat | None:
    if entity is None or isinstance(entity, types.User):
        return None
    named = utils.get_input_peer(entity)
    peer = utils.get_peer(named)
    return Chat(named, peer, utils.get_peer_id(peer), not getattr(entity, "left", False))


async def _joined(client: Any) -> dict[str, Chat]:
    """Channels and groups by id, marked or not, and by user name."""
    found: dict[str, Chat] = {}
    async for dialog in client.iter_dialogs():
        entity = dialog.entity
        if chat := _chat(entity):
            names = [getattr(entity, "username", None), *(u.username for u in getattr(entity, "usernames", None) or ())]
            found |= dict.fromkeys([str(chat.number), str(entity.id), *(n.lower() for n in names if n)], chat)
    return found
