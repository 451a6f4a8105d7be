"""What a stream says, one frame one Event: frames of subscribeRepos (DAG-CBOR) and lines of Jetstream (JSON)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import libipld

from collector.sources.bluesky_car import Incomplete, blocks_of
from collector.sources.bluesky_values import as_json, cid_text, loaded, text_of

FIREHOSE, JETSTREAM = "firehose", "jetstream"
STATES = ("identity", "account", "handle", "tombstone")  # kinds that say something about the account itself
_CURSORS = range(2**63)
_OTHERWISE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)  # what something else than expected raises
_ERROR = -1  # `op` of a frame that ends the stream


class Garbled(ValueError):
    """A frame that cannot be read."""


class Refused(Exception):
    """The stream ends with an error of its own, e.g. FutureCursor, ConsumerTooSlow."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"the stream ended with {name}: {message}"[:300])
        self.name = name


class Op(NamedTuple):
    """One change of one record. `record` is its JSON text; where that cannot be had, `why` says so and `block` is what there is."""

    action: str
    path: str
    cid: str | None = None
    record: str | None = None
    why: str = ""
    block: bytes = b""


@dataclass(slots=True)
class Event:
    """`kind` is commit, sync, info, or one of STATES; other kinds only move the cursor. `whole`: the ops are all that the commit changed."""

    kind: str
    did: str
    cursor: int | None
    time: Any
    rev: str | None = None
    since: str | None = None
    whole: bool = True
    body: dict[str, Any] = field(default_factory=dict)
    ops: Callable[[], Iterator[Op]] = lambda: iter(())


def of_frame(data: bytes | str) -> Event:
    """A frame of subscribeRepos. Raises Garbled, or Refused where it is an error."""
    try:
        header, body = libipld.decode_dag_cbor_multi(data if isinstance(data, bytes) else data.encode())
        kind = str(header.get("t", "")).removeprefix("#")
        if header["op"] == _ERROR:
            raise Refused(str(body.get("error")), str(body.get("message", "")))
        if kind == "info":
            return _sound(Event(kind, "", None, None, body=body))
        if kind != "commit":
            return _sound(Event(kind, body.get("did", ""), int(body["seq"]), body.get("time"), body.get("rev"), body=body))
        whole = not body.get("tooBig") and body["ops"] is not None
        named = [_named(op) for op in body["ops"] or ()]
        at = body["repo"], int(body["seq"]), body.get("time"), body["rev"], body.get("since")
        return _sound(Event(kind, *at, whole, body, lambda: _frame_ops(body.get("blocks"), named)))
    except _OTHERWISE as error:
        raise Garbled(f"a frame that cannot be read: {type(error).__name__}: {error}"[:300]) from error


def _sound(event: Event) -> Event:
    """Raises ValueError where a member is something else than it has to be."""
    texts = all(isinstance(text, str | None) for text in (event.rev, event.since)) and isinstance(event.did, str)
    if not texts or not isinstance(event.body, dict) or (event.cursor is not None and event.cursor not in _CURSORS):
        raise ValueError("a name, revision or number of it is something else")
    return event


def _named(op: dict[str, Any]) -> tuple[str, str, bytes | None, str]:
    """Action, path and CID of one op of a frame, and the CID as text."""
    cid = op.get("cid")
    return str(op["action"]), str(op["path"]), cid, "" if cid is None else cid_text(cid)


def _frame_ops(sent: Any, named: list[tuple[str, str, bytes | None, str]]) -> Iterator[Op]:
    try:
        blocks, broken = blocks_of(sent), ""
    except (Incomplete, TypeError) as error:
        blocks, broken = {}, str(error)
    for action, path, cid, text in named:
        if action == "delete" or cid is None:
            yield Op("delete", str(path))
            continue
        block = blocks.get(cid, b"")
        try:
            yield (
                Op(str(action), str(path), text, as_json(block)) if block else Op(str(action), str(path), text, why=broken or "its block is missing")
            )
        except ValueError as error:
            yield Op(str(action), str(path), text, why=f"not DAG-CBOR: {error}", block=block)


def of_line(data: bytes | str) -> Event:
    """A message of Jetstream. Raises Garbled, or Refused where it is an error."""
    try:
        event = loaded(data)
        if event.get("$type") == "error" or "error" in event:
            raise Refused(str(event.get("error")), str(event.get("message", "")))
        kind, cursor = str(event["kind"]), int(event["time_us"])
        body = event.get(kind)
        if kind != "commit":
            return _sound(Event(kind, event["did"], cursor, (body or {}).get("time"), body=body or {}))
        op = _line_op(body)
        return _sound(Event(kind, event["did"], cursor, None, body["rev"], body=body, ops=lambda: iter((op,))))
    except _OTHERWISE as error:
        raise Garbled(f"a message that cannot be read: {type(error).__name__}: {error}"[:300]) from error


def _line_op(body: dict[str, Any]) -> Op:
    path = f"{body['collection']}/{body['rkey']}"
    if body["operation"] == "delete":
        return Op("delete", path)
    if not isinstance(body.get("cid"), str) or not isinstance(body.get("record"), dict):
        return Op(body["operation"], path, None, why="it came without its record")
    return Op(body["operation"], path, body["cid"], text_of(body["record"]))
