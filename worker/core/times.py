"""Times with a zone, spans in seconds: one parser for options, settings and query strings."""

from __future__ import annotations

import datetime as dt
import math
import re
import sys

from worker.core.errors import Misconfigured

_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_FIRST, _LAST = dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_time(text: str) -> dt.datetime:
    """An ISO 8601 time with zone, e.g. 2026-11-24T10:00:00Z. A naive time is refused: it means another moment elsewhere."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise Misconfigured(f"{text!r} is not an ISO 8601 time", "write it as 2026-11-24T10:00:00Z") from error
    if moment.tzinfo is None:
        raise Misconfigured(f"{text!r} has no time zone", f"add one: {text}Z, or {text}+02:00")
    return moment


def parse_window(since: str | None, until: str | None) -> tuple[dt.datetime | None, dt.datetime | None]:
    """`since` inclusive, `until` exclusive; an empty or inverted window is refused."""
    first = parse_time(since) if since else None
    last = parse_time(until) if until else None
    if first and last and first >= last:
        raise Misconfigured(f"the window from {since} to {until} is empty", "--since must be before --until")
    return first, last


def parse_seconds(value: float | str) -> float:
    """Seconds, or a number with ms, s, m, h, d or w: 90, "90s", "1.5h"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        seconds = float(value)
    elif isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)?\s*", value)):
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
    else:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{str(value)[:40]!r} is not a span of time; write 90, '90s', '15m', '6h' or '2d'")
    return seconds


def from_binary(sent: bytes) -> dt.datetime:
    """Postgres's binary form of a timestamptz: microseconds since 2000. What Python cannot say (infinity, the year 10000) is its nearest."""
    micros = int.from_bytes(sent, "big", signed=True)
    try:
        return _EPOCH + dt.timedelta(microseconds=micros)
    except OverflowError:
        return _LAST if micros > 0 else _FIRST
