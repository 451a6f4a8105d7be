"""The nouns, in the order data flows: Record -> Outcome (with Effects) -> Delivery."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

from worker.core.times import from_binary

Op = Literal["create", "update", "delete"]


class RawRecord(NamedTuple):
    """One thing a source showed us, on its way into the raw log.

    `payload` is JSON text that jsonb can hold; what it cannot hold goes into `body` as the bytes that came.
    `digest` covers the content that matters: an equal digest is no new revision. `source_time` orders edits.
    """

    external_id: str
    digest: bytes
    payload: str | None = None
    body: bytes | None = None
    op: Op = "create"
    occurred_at: dt.datetime | None = None
    source_time: dt.datetime | None = None
    meta: Mapping[str, Any] | None = None


class Record:
    """A raw record as a processor sees it. Read-only; payload and times are decoded when they are asked for."""

    __slots__ = ("_payload", "_row", "source")

    def __init__(self, row: Any, source: str) -> None:
        """`row` has the columns of tailrace.claim_jobs."""
        self._row = row
        self._payload: Any = None
        self.source = source

    @property
    def id(self) -> int:
        return self._row["id"]  # type: ignore[no-any-return]

    @property
    def external_id(self) -> str:
        return self._row["external_id"]  # type: ignore[no-any-return]

    @property
    def revision(self) -> int:
        return self._row["revision"]  # type: ignore[no-any-return]

    @property
    def op(self) -> Op:
        """create, update or delete (a tombstone, without payload)."""
        return self._row["op"]  # type: ignore[no-any-return]

    @property
    def occurred_at(self) -> dt.datetime:
        return from_binary(self._row["occurred_at"])

    @property
    def source_time(self) -> dt.datetime | None:
        sent = self._row["source_time"]
        return from_binary(sent) if sent is not None else None

    @property
    def observed_at(self) -> dt.datetime:
        return from_binary(self._row["observed_at"])

    @property
    def payload(self) -> Any:
        """The JSON value, or None where only `body` could be kept."""
        if self._payload is None and self._row["payload"] is not None:
            self._payload = orjson.loads(self._row["payload"])
        return self._payload

    @property
    def body(self) -> bytes | None:
        return self._row["body"]  # type: ignore[no-any-return]

    @property
    def meta(self) -> dict[str, Any]:
        return orjson.loads(self._row["meta"]) if self._row["meta"] else {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (dict(self._row), self.source)

    def __repr__(self) -> str:
        return f"<Record {self.id} {self.source} {self.external_id} r{self.revision} {self.op}>"


@dataclass(frozen=True, slots=True)
class Effect:
    """A wish to act outside. Whether it leaves is decided by the gate alone.

    `key` names the act, not the version that asks for it: one key is delivered once. Left out, it is
    kind, target and the record's source and external id, so that an edit does not announce a thing twice.
    """

    kind: str
    body: Any
    target: str = ""
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The record is processed. `output` is any JSON value; `confidence` is 0 to 1."""

    output: Any = None
    confidence: float | None = None
    needs_review: bool = False
    effects: tuple[Effect, ...] | list[Effect] = ()
    meta: Mapping[str, Any] | None = None
    input: str | None = None  # what a model was asked: its hash is kept with the result, and now and then the text itself


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing to say about this record; it counts as done."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again: after `after` seconds, or by the version's back-off. `counts=False` uses up no attempt, and waits a second at least."""

    reason: str = ""
    after: float | None = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Fail:
    """Give up on this record now; it waits for `tailrace retry`."""

    reason: str


Outcome = Done | Skip | Retry | Fail


class Outage(Exception):
    """Raise it in a processor when what it depends on is away: nothing of this version is claimed for `seconds`
    (1 at least), no attempt is used up.
    """

    def __init__(self, reason: str, seconds: float = 30.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Delivery:
    """One claimed delivery: a released effect on its way out. `key` is the idempotency key."""

    key: str
    kind: str
    target: str
    body: Any
    attempt: int
    policy: str
    source: str
    external_id: str
    edits: str | None = None  # the remote id of what was sent before and is to be changed


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a sink knows after sending: sent, retry (surely not sent), failed (never will be) or uncertain (nobody knows)."""

    outcome: Literal["sent", "retry", "failed", "uncertain"]
    remote_id: str | None = None
    detail: str | None = None
    after: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
