"""One message of an export of Telegram Desktop (`result.json`) as the record that the API would give."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import orjson

from collector.record import digest_of, short
from collector.sources.telegram_content import ACTIONS, UNSUPPORTED, Content, contact, digest, place
from collector.sources.telegram_records import storable
from worker.core.models import RawRecord

META = {"from": "export"}
_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\x([0-9A-F]{2})")  # how Desktop writes control characters, which JSON does not know
_LINKED = {"url", "auth", "web_view", "simple_web_view"}  # buttons whose data is a link
_MOMENT = dt.timedelta(microseconds=1)


def record(raw: bytes, before: dt.datetime | None) -> RawRecord:
    """`before`: when the message before it was sent, for one that has no time of its own. Never raises for what is in `raw`."""
    mended = _ESCAPE.sub(rb"\1\\u00\2", raw) if b"\\x" in raw else raw
    try:
        value = orjson.loads(mended)
        number, seen = int(value["id"]), digest(of_export(value))
        sent, edited = _time(value, "date", before), _time(value, "edited", None)
        at, missing = edited or sent, lacks(value)
        at = at - _MOMENT if at and missing else at
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError, RecursionError) as error:
        key = digest_of(raw)
        return RawRecord(key.hex(), key, body=raw, meta=META | {"defect": f"not a message of Telegram Desktop: {error!r}"[:200]})
    payload, body, meta = storable(mended)
    if "date_unixtime" not in value:
        meta["defect"] = "no time with zone: Desktop does not know this kind of message, or is older than 2021"
    return RawRecord(short(str(number)), seen, payload, body, "create", sent, at, META | meta)


def of_export(value: dict[str, Any]) -> Content:
    """Its content, as telegram_content tells it of the API's message."""
    if value.get("type") == "unsupported":
        return UNSUPPORTED
    if value.get("type") == "service":
        title = value.get("title") or value.get("new_title") or None
        return ["service", value.get("action"), title, value.get("duration") or value.get("duration_seconds") or None]
    text = value.get("text_entities") or value.get("text") or []
    parts = [_part(part) for part in ([text] if isinstance(text, str) else text)]
    return ["message", [p for p in parts if p[1]], _media(value), _buttons(value.get("inline_bot_buttons"))]


def lacks(value: dict[str, Any]) -> bool:
    """Whether it tells less than the API does: no sizes of files (older releases), an action that we have no name for. Such a record
    counts as a moment older than the API's: it never becomes a revision over it.
    """
    if value.get("type") == "service":
        return value.get("action") not in ACTIONS.values()
    sized = value.get("photo_file_size") if "photo" in value else value.get("file_size")
    return value.get("type") == "unsupported" or (("photo" in value or "file" in value) and not sized)


def _time(value: dict[str, Any], name: str, default: dt.datetime | None) -> dt.datetime | None:
    seconds = value.get(f"{name}_unixtime")
    return default if seconds is None else dt.datetime.fromtimestamp(int(seconds), dt.UTC)


def _part(part: Any) -> Content:
    if isinstance(part, str):
        return ["plain", part]
    return [part.get("type"), part.get("text"), *(v for key in ("href", "language", "user_id") if (v := part.get(key)))]


def _media(value: dict[str, Any]) -> Content | None:
    width, height, seconds = value.get("width"), value.get("height"), value.get("duration_seconds") or None
    if "photo" in value:
        return ["photo", value.get("photo_file_size") or None, width, height]
    if "file" in value or "media_type" in value:
        kind, emoji = value.get("media_type") or "file", value.get("sticker_emoji") or None
        return [kind, value.get("file_size") or None, value.get("mime_type"), seconds, width, height, emoji]
    return _shared(value)


def _shared(value: dict[str, Any]) -> Content | None:
    """People and places."""
    if person := value.get("contact_information"):
        return contact(person.get("first_name"), person.get("last_name"), person.get("phone_number"))
    if "live_location_period_seconds" in value:
        return ["live"]
    if "place_name" in value:
        return ["venue", value["place_name"], value.get("address", "")]
    if "location_information" in value:
        where = value["location_information"] or {}
        return place(where.get("latitude"), where.get("longitude"))
    return _asked(value)


def _asked(value: dict[str, Any]) -> Content | None:
    """Games, invoices, polls, lists."""
    if "game_title" in value:
        return ["game", value["game_title"]]
    if "invoice_information" in value:
        return ["invoice"]
    if poll := value.get("poll"):
        return ["poll", poll.get("question"), bool(poll.get("closed")), [a.get("text") for a in poll.get("answers", ())]]
    if todo := value.get("todo_list"):
        return ["todo", todo.get("title"), [a.get("text") for a in todo.get("answers", ())]]
    return None


def _buttons(rows: Any) -> Content | None:
    if not rows:
        return None
    return [[[b.get("text", ""), (b.get("data") or "") if b.get("type") in _LINKED else ""] for b in row] for row in rows]
