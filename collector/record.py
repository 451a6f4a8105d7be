"""From the bytes of one record to a RawRecord: its key, digest, times, and what is wrong with it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.models import RawRecord
from worker.core.settings import Names

MOST_KEY = 500
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_TOMBSTONE = b"deleted"


class RecordOptions(BaseModel):
    """How the records of a source are read. Every kind of source that takes JSON has these."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id_field: Names = Field(
        default_factory=list, description="field (or fields, joined by /) that names a record; dots go deeper; none: its content does"
    )
    time_field: str | None = Field(None, description="when it happened: ISO 8601 with zone, or epoch seconds or milliseconds")
    version_field: str | None = Field(None, description="when it was last edited; an older one never becomes a revision")
    ignore_fields: Names = Field(default_factory=list, description="fields whose change is no news, e.g. counters")
    delete_field: str | None = Field(None, description="a true value there makes the record a tombstone")


class Defect(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def digest_of(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def at_path(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def moment(value: Any) -> dt.datetime:
    """A time from ISO 8601 with zone, or from epoch seconds or milliseconds. Raises Defect."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return dt.datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, dt.UTC)  # noqa: PLR2004  above it, seconds are the year 5138
        found = dt.datetime.fromisoformat(value)
    except (ValueError, TypeError, OverflowError, OSError):
        raise Defect(f"not a time: {str(value)[:80]!r}") from None
    if found.tzinfo is None:
        raise Defect("naive time")
    return found


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Defect("duplicate keys")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise Defect(f"{name} is not JSON")


def _why_unstorable(raw: bytes, error: Exception) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except Defect as defect:
        return defect.why
    except RecursionError:
        return "nested too deeply"
    except ValueError:
        return f"not JSON: {error}"[:200]
    return "lone surrogate" if "surrogate" in str(error) or re.search(r"\\u[dD][89a-fA-F]", text) else f"refused: {error}"[:200]


def parse(raw: bytes) -> Any:
    """The JSON value, if jsonb can hold it without loss. Raises Defect with the reason."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Defect(_why_unstorable(raw, error)) from None
    if b"\\u0000" in raw and _NUL.search(raw):
        raise Defect("NUL character")
    if b"\\u0022" in raw or raw.count(b'":') != orjson.dumps(value).count(b'":'):
        json.loads(raw, object_pairs_hook=_refuse_twice)
    return value


class Builder:
    """Makes RawRecords by the options of one source."""

    def __init__(self, options: RecordOptions) -> None:
        self._o = options
        self._ids: list[Callable[[Any], Any]] = [self._getter(path) for path in options.id_field]

    @staticmethod
    def _getter(path: str) -> Callable[[Any], Any]:
        return (lambda v: at_path(v, path)) if "." in path else (lambda v: v.get(path) if isinstance(v, dict) else None)

    def build(self, raw: bytes, meta: dict[str, Any]) -> RawRecord:
        """Never raises for what is in `raw`: what cannot be stored as JSON is kept as bytes, with `defect` in meta."""
        try:
            value = parse(raw)
        except Defect as defect:
            return self.broken(raw, defect.why, meta)
        return self._sound(value, raw.decode(), meta)

    def broken(self, raw: bytes, why: str, meta: dict[str, Any]) -> RawRecord:
        digest = digest_of(raw)
        return RawRecord(digest.hex(), digest, body=raw, meta=meta | {"defect": why})

    def _sound(self, value: Any, text: str, meta: dict[str, Any]) -> RawRecord:
        o = self._o
        digest = digest_of(orjson.dumps(self._matters(value), option=orjson.OPT_SORT_KEYS))
        parts = [get(value) for get in self._ids]
        if parts and all(p is not None for p in parts):
            key = short("/".join(p if isinstance(p, str) else orjson.dumps(p).decode() for p in parts))
        else:
            key = digest.hex()
            if parts:
                meta = meta | {"defect": f"no {', '.join(o.id_field)}"}
        occurred, edited, meta = self._times(value, meta)
        if o.delete_field and at_path(value, o.delete_field):
            return RawRecord(key, _TOMBSTONE, text, op="delete", occurred_at=occurred, source_time=edited, meta=meta)
        return RawRecord(key, digest, text, occurred_at=occurred, source_time=edited, meta=meta)

    def _matters(self, value: Any) -> Any:
        if not self._o.ignore_fields or not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if k not in self._o.ignore_fields}

    def _times(self, value: Any, meta: dict[str, Any]) -> tuple[dt.datetime | None, dt.datetime | None, dict[str, Any]]:
        found: list[dt.datetime | None] = []
        for path in (self._o.time_field, self._o.version_field):
            given = at_path(value, path) if path else None
            try:
                found.append(None if given is None else moment(given))
            except Defect as defect:
                found.append(None)
                meta = meta | {"defect": defect.why}
        return found[0], found[1], meta


def short(key: str) -> str:
    """A key that fits into an index and has no NUL."""
    if len(key) <= MOST_KEY and "\x00" not in key:
        return key
    return key[:100].replace("\x00", "") + "#" + digest_of(key.encode("utf-8", "surrogatepass")).hex()
