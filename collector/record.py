"""From the bytes of one record to a RawRecord: its key, digest, times, and what is wrong with it."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.models import RawRecord
from worker.core.specs import Names
from worker.core.texts import NUL, fit, storable

MOST_KEY = 500
_EPOCH = re.compile(r"-?\d{9,}(\.\d+)?")
TOMBSTONE = b"deleted"
_DIGITS = bytes(48 if 48 <= i <= 57 else i for i in range(256))  # noqa: PLR2004  every digit as a zero
_LONG = b"0" * 16  # so many digits in a row may be a number that a double cannot hold


class RecordOptions(BaseModel):
    """How the records of a source are read. Every kind of source that takes JSON has these."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id_field: Names = Field(default_factory=list, description="field (or fields, joined by /) that names a record; none: its content does")
    time_field: str | None = Field(None, description="when it happened: ISO 8601 with zone, or epoch seconds or milliseconds")
    version_field: str | None = Field(None, description="when it was last edited; an older one never becomes a revision")
    ignore_fields: Names = Field(default_factory=list, description="fields whose change is no news, e.g. counters; dots go deeper")
    delete_field: str | None = Field(None, description="a true value there makes the record a tombstone")


class Defect(Exception):
    """Why a record, or a part of it, cannot be taken as it is."""


def digest_of(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def at_path(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def without(value: Any, path: str) -> Any:
    """The value without the field at `path`; what was given is not changed."""
    name, _, deeper = path.partition(".")
    if not isinstance(value, dict) or name not in value:
        return value
    rest = {k: v for k, v in value.items() if k != name}
    return rest | {name: without(value[name], deeper)} if deeper else rest


def moment(value: Any) -> dt.datetime:
    """A time from ISO 8601 with zone, or from epoch seconds or milliseconds. Raises Defect."""
    try:
        value = float(value) if isinstance(value, str) and _EPOCH.fullmatch(value) else value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return dt.datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, dt.UTC)  # noqa: PLR2004  above it, seconds are the year 5138
        found = dt.datetime.fromisoformat(value)
        if found.tzinfo is None:
            raise Defect("naive time")
        return found.astimezone(dt.UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        raise Defect(f"not a time: {str(value)[:80]!r}") from None


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
        if "infinity" in str(error):
            return "number out of range"
        json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return "not UTF-8"
    except Defect as defect:
        return str(defect)
    except RecursionError:
        return "nested too deeply"
    except ValueError:
        return f"not JSON: {error}"[:200]
    return "lone surrogate" if "surrogate" in str(error) or re.search(r"\\u[dD][89a-fA-F]", text) else f"refused: {error}"[:200]


def parse(raw: bytes) -> tuple[Any, bytes]:
    """The JSON value and its canonical bytes, if jsonb can hold it without loss. Raises Defect with the reason."""
    try:
        value = orjson.loads(raw)
        canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError as error:
        raise Defect(_why_unstorable(raw, error)) from None
    except TypeError:  # deeper than orjson writes
        canonical = raw
    escapes = b"\\u00" in raw
    if escapes and NUL.search(raw):
        raise Defect("NUL character")
    # Outside of strings, a colon belongs to a key: a key that came twice is one colon less afterwards.
    if raw.count(b":") != canonical.count(b":") or (escapes and b"\\u003" in raw) or canonical is raw:
        try:
            json.loads(raw, object_pairs_hook=_refuse_twice, parse_int=str)
        except RecursionError:
            raise Defect("nested too deeply") from None
    return value, canonical


def verbatim(raw: bytes) -> Any:
    """The value with its numbers as they are written, where a double would lose digits."""
    return json.loads(raw, parse_int=lambda digits: "\0" + digits, parse_float=lambda digits: "\0" + digits)


class Builder:
    """Makes RawRecords by the options of one source."""

    def __init__(self, options: RecordOptions) -> None:
        self._o = options
        self._ids = [self._getter(path) for path in options.id_field]
        self._time = self._getter(options.time_field) if options.time_field else None
        self._version = self._getter(options.version_field) if options.version_field else None
        self._deleted = self._getter(options.delete_field) if options.delete_field else None

    @staticmethod
    def _getter(path: str) -> Callable[[Any], Any]:
        return (lambda v: at_path(v, path)) if "." in path else (lambda v: v.get(path) if isinstance(v, dict) else None)

    def build(self, raw: bytes, meta: dict[str, Any]) -> RawRecord:
        """Never raises for what is in `raw`: what cannot be stored as JSON is kept as bytes, with `defect` in meta."""
        try:
            value, canonical = parse(raw)
            exact = _LONG in raw.translate(_DIGITS)
            source = verbatim(raw) if exact else value
            if exact or self._o.ignore_fields:
                canonical = _sorted(functools.reduce(without, self._o.ignore_fields, source))
            digest = digest_of(canonical)
            key, meta = self._key(source, digest, meta)
        except (Defect, RecursionError) as defect:
            return self.broken(raw, str(defect) if isinstance(defect, Defect) else "nested too deeply", meta)
        occurred, meta = _time(self._time, value, meta) if self._time else (None, meta)
        edited, meta = _time(self._version, value, meta) if self._version else (None, meta)
        if self._deleted and self._deleted(value):
            return RawRecord(key, TOMBSTONE, raw.decode(), None, "delete", occurred, edited, meta)
        return RawRecord(key, digest, raw.decode(), None, "create", occurred, edited, meta)

    def broken(self, raw: bytes, why: str, meta: dict[str, Any], digest: bytes = b"") -> RawRecord:
        """Bytes that are no JSON record. `digest`: of all of it, where `raw` is only its beginning."""
        digest = digest or digest_of(raw)
        return RawRecord(digest.hex(), digest, body=raw, meta=meta | {"defect": why})

    def _key(self, value: Any, digest: bytes, meta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if not self._ids:
            return digest.hex(), meta
        parts = [get(value) for get in self._ids]
        if len(parts) == 1 and type(parts[0]) is int:
            return str(parts[0]), meta
        if None in parts or "" in parts:
            return digest.hex(), meta | {"defect": f"no {', '.join(self._o.id_field)}"}
        return short("/".join(map(_written, parts)).replace("\0", "")), meta


def _sorted(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # deeper than orjson writes
        return json.dumps(value, sort_keys=True).encode()


def _written(part: Any) -> str:
    return part if isinstance(part, str) else str(part) if type(part) is int else _sorted(part).decode()


def _time(get: Callable[[Any], Any], value: Any, meta: dict[str, Any]) -> tuple[dt.datetime | None, dict[str, Any]]:
    try:
        return (moment(given) if (given := get(value)) is not None else None), meta
    except Defect as defect:
        return None, meta | {"defect": str(defect)}


def short(key: str) -> str:
    """A key that Postgres can hold, also in an index."""
    if len(key) <= MOST_KEY and storable(key):
        return key
    return fit(key, 100) + "#" + digest_of(key.encode("utf-8", "surrogatepass")).hex()
