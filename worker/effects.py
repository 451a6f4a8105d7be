"""The SQL functions of deliveries, one method each."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import orjson

from worker.core.db import AWAY, mapped
from worker.core.models import Delivery, Receipt
from worker.core.texts import fit

_CLAIM = "select * from tailrace.claim_deliveries($1, $2, $3, $4, $5, $6)"
_FINISH = "select tailrace.finish_delivery($1, $2, $3, $4, $5, $6, $7)"
_GIVE_BACK = "select tailrace.give_back_deliveries($1, $2, $3)"
_MOST = 2000


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is ours to send, by `token`, while its lease lasts."""

    token: uuid.UUID
    delivery: Delivery
    since: float = field(default_factory=time.monotonic)

    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.since


class Effects:
    """The calls of one dispatcher."""

    def __init__(self, pool: asyncpg.Pool, worker: str) -> None:
        self._pool = pool
        self._worker = worker

    async def due(self, kinds: Sequence[str]) -> dict[str, float]:
        """Seconds until the next delivery of each kind is due; kinds without one are left out."""
        return dict(await self._pool.fetch("select * from tailrace.due_deliveries($1)", kinds))

    async def claim(self, kind: str, limit: int, rate: float | None, lease: float) -> list[Claimed]:
        token, since = uuid.uuid4(), time.monotonic()
        rows = await self._pool.fetch(_CLAIM, token, self._worker, kind, limit, rate, lease)
        return [
            Claimed(
                token,
                Delivery(r["key"], kind, r["target"], orjson.loads(r["body"]), r["attempt"], r["policy"], r["source"], r["external_id"], r["edits"]),
                since,
            )
            for r in rows
        ]

    async def finish(self, claimed: Claimed, receipt: Receipt) -> None:
        """Raises ClaimLost where the lease ran out meanwhile."""
        said = receipt.outcome, _text(receipt.remote_id), _text(receipt.detail), receipt.after
        with mapped():
            await self._pool.execute(_FINISH, claimed.delivery.key, claimed.token, *said, self._worker)

    async def give_back(self, claimed: Sequence[Claimed]) -> None:
        """Those that were not sent, without an attempt. Where that fails they come back when their lease ends."""
        with contextlib.suppress(*AWAY, asyncpg.PostgresError):
            await self._pool.execute(_GIVE_BACK, [c.delivery.key for c in claimed], [c.token for c in claimed], self._worker)


def _text(value: str | None) -> str | None:
    """What a receiver said, as text that Postgres can keep."""
    return None if value is None else fit(value, _MOST)
