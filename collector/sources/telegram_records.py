"""From what Telegram says to raw records: messages as the API has them, and that one is gone."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any

import orjson
from telethon import types

from collector.record import TOMBSTONE, Builder, RecordOptions
from collector.sources.telegram_content import digest, of_message
from worker.core.models import RawRecord

SECOND = 1_000_000  # microseconds
_BUILDER = Builder(RecordOptions())


def record(message: Any, pts: int) -> RawRecord:
    """The whole message; an edit is known by its time, a change of counters alone makes no revision.

    Telegram's times are whole seconds. `pts`, the channel's count of events when this was read (0: it has none), orders what was read within
    one: it is added in microseconds, so that an answer of history that is stored late never undoes an edit that came as news.
    """
    payload, body, meta = storable(written(message))
    edited = (getattr(message, "edit_date", None) or message.date) + dt.timedelta(microseconds=pts % SECOND)
    return RawRecord(str(message.id), digest(of_message(message)), payload, body, "create", message.date, edited, meta)


def gone(peer: Any, number: int, when: dt.datetime) -> RawRecord:
    """A message that the service does not have any more; `when` we learned of it: what was read before is older."""
    payload = written(types.MessageEmpty(number, peer)).decode()
    return RawRecord(str(number), TOMBSTONE, payload, None, "delete", None, when)


def written(thing: Any) -> bytes:
    """All fields of a TL object as JSON: bytes in base64, times with zone."""
    value = thing.to_dict()
    try:
        return orjson.dumps(value, default=_plain)
    except TypeError:  # a whole number of more than 64 bits
        return json.dumps(value, default=_plain, ensure_ascii=False).encode()


def storable(raw: bytes) -> tuple[str | None, bytes | None, dict[str, Any]]:
    """Payload, body and meta of JSON: what jsonb cannot hold is kept as the bytes that it is, with its defect."""
    if b"\\u00" in raw:
        built = _BUILDER.build(raw, {})
        return built.payload, built.body, dict(built.meta or {})
    return raw.decode(), None, {}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)
