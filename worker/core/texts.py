"""What came from outside, on its way into Postgres, whose text and JSON have no NUL and no lone surrogate."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # in JSON text; behind an odd number of backslashes it is text about one
_DEEPEST = 50  # of what is only told: positions, reasons, facts
_INTEGERS = range(-(2**63), 2**64)  # what orjson writes


def storable(text: str) -> bool:
    """Whether Postgres can hold it as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def fit(text: object, most: int | None = None) -> str:
    """The same where it is storable, else with marks in place of what is not; at most `most` characters."""
    return str(text)[:most].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def said(error: BaseException, most: int = 500) -> str:
    """What an error says, without its hint."""
    return fit(error.args[0] if error.args else repr(error), most)


def as_json(value: Any) -> str:
    """JSON text that jsonb can hold, of any value; what it cannot hold is marked as `fit` marks it. Not for payloads: these stay as they are."""
    try:
        text = orjson.dumps(value, default=str)
        if not NUL.search(text):
            return text.decode()
    except TypeError:  # a lone surrogate, a number of more than 64 bits, deeper than orjson writes
        pass
    return json.dumps(_plain(value, 0), ensure_ascii=False)


def _plain(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, dict):
        return {fit(k): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value]
    if value is None or isinstance(value, bool) or (isinstance(value, int) and value in _INTEGERS):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return f"a number of {value.bit_length()} bits" if isinstance(value, int) else fit(value)
