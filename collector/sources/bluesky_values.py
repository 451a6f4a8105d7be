"""What records of the AT protocol are made of: TIDs, CIDs, and DAG-CBOR as the JSON that the protocol defines."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from typing import Any

import libipld
import orjson

_TID = re.compile("[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")
_DIGITS = str.maketrans("234567abcdefghijklmnopqrstuvwxyz", "0123456789abcdefghijklmnopqrstuv")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_TAG = b"\xd8\x2a"  # 42: what follows is a link
_BYTES = 0x40  # the kind of item that a string of bytes is
_INLINE = 24  # from here on the length of a string takes a byte of its own
DEEPEST = 400  # a record nested deeper is kept as bytes


def tid_time(tid: Any) -> dt.datetime | None:
    """When a TID (a revision, most record keys) was made; None where it is none."""
    if not isinstance(tid, str) or not _TID.fullmatch(tid):
        return None
    return _EPOCH + dt.timedelta(microseconds=int(tid.translate(_DIGITS), 32) >> 10)


def cid_text(cid: bytes) -> str:
    return str(libipld.encode_cid(cid))


def decoded(block: bytes) -> Any:
    """The value of a block, with links as the bytes of their CID. Raises ValueError, also where it is nested too deeply."""
    try:
        return libipld.decode_dag_cbor(block)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_json(block: bytes) -> str:
    """A block as JSON text: a link is {"$link": cid}, bytes are {"$bytes": base64}. Raises ValueError."""
    return text_of(_Plain(block).value(decoded(block), 0))


def loaded(data: bytes | str) -> Any:
    """The value of JSON text. Raises ValueError. A lone surrogate is let pass: it is a defect of one record, not of all that came with it."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def text_of(value: Any) -> str:
    """JSON text, also of whole numbers beyond 64 bits, and of what has no JSON."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"), default=repr)


class _Plain:
    """The decoder gives links and bytes alike as bytes; which is which is looked up in the block, in the order of its items."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0

    def value(self, value: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if isinstance(value, dict):
            return {k: self.value(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(v, depth + 1) for v in value]
        if isinstance(value, bytes):
            return {"$link": cid_text(value)} if self._is_link(value) else {"$bytes": base64.b64encode(value).decode().rstrip("=")}
        return value

    def _is_link(self, value: bytes) -> bool:
        if not value:
            return False
        found = self._block.index(value, self._at)
        self._at = found + len(value)
        length = len(value) + 1  # a NUL stands before the CID
        head = bytes((_BYTES + length,)) if length < _INLINE else bytes((_BYTES + _INLINE, length & 0xFF))
        return self._block.endswith(_TAG + head + b"\0", 0, found)
