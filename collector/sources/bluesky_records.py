"""From what a repository or a stream shows to RawRecords: the same record has the same key and digest, whichever way it came."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import orjson

from collector.record import TOMBSTONE, Defect, digest_of, moment, parse, short
from collector.sources.bluesky_car import Entry
from collector.sources.bluesky_events import Event, Op
from collector.sources.bluesky_values import as_json, text_of, tid_time
from worker.core.models import RawRecord
from worker.core.texts import as_json as fitting

_ESCAPES = ("\\u0000", "\\ud", "\\uD")  # what jsonb may refuse


def wanted(collections: Iterable[str], collection: str) -> bool:
    """Whether a collection is among those named; `app.bsky.*` names all below it, none at all names every one."""
    named = list(collections)
    return not named or any(collection == n or (n.endswith(".*") and collection.startswith(n[:-1])) for n in named)


class Maker:
    """Makes RawRecords. `whole`: of a stream of many accounts, whose keys begin with the account."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole

    def key(self, did: str, path: str) -> str:
        return short(f"{did}/{path}" if self._whole else path)

    def changed(self, event: Event, op: Op, meta: dict[str, Any]) -> RawRecord:
        """One op of a commit."""
        at = tid_time(event.rev)
        if op.action == "delete":
            payload = fitting({"uri": f"at://{event.did}/{op.path}", "rev": event.rev})
            return RawRecord(self.key(event.did, op.path), TOMBSTONE, payload, None, "delete", at, at, meta)
        if op.record is None or op.cid is None:  # what comes with it later must differ from this
            digest = digest_of(f"without {op.cid}".encode())
            return RawRecord(
                self.key(event.did, op.path),
                digest,
                None,
                op.block,
                _op(op.action),
                at,
                at,
                meta | {"defect": op.why, "cid": op.cid, "rev": event.rev},
            )
        return self._record(event.did, op.path, op.cid, op.record, event.rev, at, _op(op.action), meta)

    def listed(self, did: str, path: str, cid: str, record: str, rev: str | None, meta: dict[str, Any]) -> RawRecord:
        """A record as it stood when the repository was at `rev`."""
        return self._record(did, path, cid, record, None, tid_time(rev), "create", meta)

    def entry(self, did: str, entry: Entry, rev: str | None, meta: dict[str, Any]) -> RawRecord:
        """The same of a CAR file."""
        try:
            return self.listed(did, entry.path, entry.cid, as_json(entry.block), rev, meta)
        except ValueError as error:
            at = tid_time(rev)
            return RawRecord(
                self.key(did, entry.path), _digest(entry.cid), None, entry.block, "create", at, at, meta | {"defect": f"not DAG-CBOR: {error}"}
            )

    def gone(self, did: str, path: str, rev: str | None, meta: dict[str, Any]) -> RawRecord:
        """A record that the repository at `rev` no longer has."""
        at = tid_time(rev)
        return RawRecord(self.key(did, path), TOMBSTONE, fitting({"uri": f"at://{did}/{path}"}), None, "delete", at, at, meta)

    def _record(
        self, did: str, path: str, cid: str, record: str, rev: str | None, at: dt.datetime | None, op: Any, meta: dict[str, Any]
    ) -> RawRecord:
        head = text_of({"uri": f"at://{did}/{path}", "cid": cid} | ({"rev": rev} if rev else {}))
        text = f'{head[:-1]},"record":{record}}}'
        occurred = created_at(record) or tid_time(path.rpartition("/")[2]) or at
        if any(escape in text for escape in _ESCAPES):
            try:
                parse(text.encode())
            except Defect as defect:
                return RawRecord(self.key(did, path), _digest(cid), None, text.encode(), op, occurred, at, meta | {"defect": str(defect)})
        return RawRecord(self.key(did, path), _digest(cid), text, None, op, occurred, at, meta)


def stated(event: Event, meta: dict[str, Any]) -> RawRecord:
    """What became of an account. Its key has no number of the host: the newest revision is how the account stands."""
    at = instant(event.time)
    news = [event.body.get("active"), event.body.get("status")] if event.kind == "account" else [event.body.get("handle"), str(event.time)]
    payload = fitting({"kind": event.kind, event.kind: event.body})
    return RawRecord(short(f"{event.kind}/{event.did}"), digest_of(fitting(news).encode()), payload, None, "create", at, at, meta)


def informed(event: Event, host: str, cursor: int | None) -> RawRecord:
    """What a host says about the stream itself, e.g. that the cursor is older than what it keeps."""
    payload = fitting({"kind": "info", "host": host, "cursor": cursor, "info": event.body})
    return RawRecord(short(f"info/{host}/{cursor}"), digest_of(payload.encode()), payload)


def created_at(record: str) -> dt.datetime | None:
    """The time that a record claims for itself, where that is one."""
    if '"createdAt"' not in record:
        return None
    try:
        claimed = orjson.loads(record).get("createdAt")
    except (ValueError, AttributeError):
        return None
    return instant(claimed)


def instant(value: Any) -> dt.datetime | None:
    """A time as the protocol writes it; None where it is none."""
    if not isinstance(value, str) or "T" not in value:
        return None
    try:
        return moment(value)
    except Defect:
        return None


def _digest(cid: str) -> bytes:
    return digest_of(cid.encode())


def _op(action: str) -> Any:
    return action if action in ("create", "update") else "update"
