"""The client library behind one small seam: an account's session, a client that is connected, its errors in our words."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr
from telethon import TelegramClient, errors, events, functions, types
from telethon.crypto import AuthKey
from telethon.sessions import StringSession

from collector.sources.answers import Denied, Limited
from worker.core.errors import Misconfigured

CALL = 20.0  # seconds for one answer; longer means that the connection is dead
_DIFFERENCES = (functions.updates.GetDifferenceRequest, functions.updates.GetChannelDifferenceRequest)
_TOO_LONG = (types.updates.DifferenceTooLong, types.updates.ChannelDifferenceTooLong)
_NO_SESSION = (errors.UnauthorizedError, errors.AuthKeyError, errors.AuthKeyNotFound, errors.ApiIdInvalidError)
_NO_CHAT = (
    errors.ForbiddenError, errors.ChannelPrivateError, errors.ChannelInvalidError, errors.PeerIdInvalidError, errors.ChatIdInvalidError,
    errors.UsernameNotOccupiedError, errors.UsernameInvalidError, errors.InviteHashEmptyError, errors.InviteHashExpiredError,
    errors.InviteHashInvalidError, errors.UserBannedInChannelError, errors.BotMethodInvalidError,
)  # fmt: skip
_BROKEN = (EOFError, BufferError, errors.InvalidChecksumError, errors.SecurityError, errors.BadMessageError)


class Session(StringSession):  # type: ignore[misc]  # the library has no types
    """Data center and key. It remembers nobody: the library would keep each user that it ever saw."""

    def process_entities(self, tlo: Any) -> None:
        """Nothing: chats are remembered by telegram_line."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are towards Telegram. `label` names the session without telling it."""

    session: Session
    api_id: int
    api_hash: SecretStr
    label: str

    @property
    def limit(self) -> str:
        """Name of what only one process may use, and of its flood waits."""
        return f"telegram:session:{self.label}"


class Ear(Protocol):
    """Who listens to a client."""

    def hear(self, update: Any) -> None:
        """An update of the service, as TL object."""
        ...

    def reached(self, channel: int, pts: int) -> None:
        """The service has told of everything in this channel up to `pts`, or will not tell it any more."""
        ...

    def missed(self, channel: int | None) -> None:
        """The library has skipped updates of this channel, or (None) of all chats."""
        ...


def account(source: str, api_id: int | None, api_hash: SecretStr | None, text: SecretStr | None, path: str | None) -> Account | None:
    """From the options; None where no session is named. Raises Misconfigured."""
    if text is None and path is None:
        return None
    if api_id is None or api_hash is None:
        raise Misconfigured(f"sources.{source}: a session needs api_id and api_hash", "get them at https://my.telegram.org")
    try:
        session = Session(text.get_secret_value()) if text else _from_file(Path(str(path)).expanduser())
    except (ValueError, OSError, sqlite3.Error, struct.error, TypeError) as error:
        what = f"the session {path}" if path and not text else "the session"
        raise Misconfigured(f"sources.{source}: {what} cannot be read: {type(error).__name__}", "it must be a session of Telethon 1") from None
    if not session.auth_key or not session.auth_key.key:
        raise Misconfigured(f"sources.{source}: the session is not signed in", "sign in with Telethon once and save its session")
    return Account(session, api_id, api_hash, hashlib.blake2b(session.auth_key.key, digest_size=6).hexdigest())


def _from_file(path: Path) -> Session:
    """A session file of Telethon is only read: whoever else has it open is not disturbed."""
    file = path if path.exists() else path.with_name(path.name + ".session")
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        row = database.execute("select dc_id, server_address, port, auth_key from sessions").fetchone()
    session = Session()
    if row:
        session.set_dc(*row[:3])
        session.auth_key = AuthKey(row[3]) if row[3] else None
    return session


class Client(TelegramClient):  # type: ignore[misc]  # the library has no types
    """Tells its ear what the library takes in and keeps to itself: that a difference was too long, edits and deletions that came by one."""

    ear: Ear

    async def __call__(self, request: Any, ordered: Any = False, flood_sleep_threshold: Any = None) -> Any:
        if not isinstance(request, _DIFFERENCES):
            return await super().__call__(request, ordered, flood_sleep_threshold)
        channel = request.channel.channel_id if hasattr(request, "channel") else None
        try:
            answer = await super().__call__(request, ordered, flood_sleep_threshold)
        except Exception:
            self.ear.missed(channel)
            raise
        if isinstance(answer, _TOO_LONG):
            self.ear.missed(channel)
        if channel:
            self.ear.reached(channel, answer.dialog.pts if hasattr(answer, "dialog") else answer.pts)
        for update in getattr(answer, "other_updates", ()) if channel else ():
            self.ear.hear(update)
        return answer


async def connect(who: Account, ear: Ear, gone: Callable[[], None], *, news: bool) -> Any:
    """A connected client, which calls `gone` once when its connection has ended. It neither waits nor tries again by itself. Without
    `news` the service is asked to send no updates.
    """
    client = Client(
        who.session, who.api_id, who.api_hash.get_secret_value(), timeout=10, request_retries=0, connection_retries=0, retry_delay=0,
        auto_reconnect=False, sequential_updates=True, flood_sleep_threshold=0, raise_last_call_error=True, receive_updates=news,
    )  # fmt: skip
    client.ear = ear

    async def heard(update: Any) -> None:
        ear.hear(update)

    client.add_event_handler(heard, events.Raw())
    try:
        async with asyncio.timeout(CALL):
            await client.connect()
    except BaseException:
        await client.disconnect()
        raise
    client.disconnected.add_done_callback(_then(gone))
    return client


def _then(gone: Callable[[], None]) -> Callable[[asyncio.Future[Any]], None]:
    def ended(future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # looked at, so that nobody is told that it was not
        gone()

    return ended


def explained(error: Exception, source: str, limit: str) -> Exception:
    """An error of the library in our words; what is not known goes as it is."""
    seconds = getattr(error, "seconds", None)
    if isinstance(error, errors.FloodError) and seconds is not None:
        return Limited(limit, seconds, f"FLOOD_WAIT_{seconds} for session {limit.removeprefix('telegram:session:')}")
    said = getattr(error, "message", None) or type(error).__name__
    if isinstance(error, _NO_SESSION):
        return Denied(source, f"Telegram refuses session {limit.split(':')[2]}: {_code(error)}", "sign in anew and replace the session")
    if isinstance(error, _NO_CHAT):
        return Denied(source, f"Telegram refuses the chat: {_code(error)}", "is the name right, and is the account a member?")
    if isinstance(error, _BROKEN):
        return ConnectionError(f"the connection to Telegram broke: {type(error).__name__}")
    if isinstance(error, errors.TypeNotFoundError):
        return ValueError(f"an answer that telethon cannot read: constructor {error.invalid_constructor_id:08x}")
    return ConnectionError(f"Telegram: {said}") if isinstance(error, errors.RPCError) else error


def _code(error: Exception) -> str:
    """AuthKeyUnregisteredError as AUTH_KEY_UNREGISTERED."""
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(name)).upper()
