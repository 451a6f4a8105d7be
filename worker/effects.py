"""The SQL functions of deliveries, one method each."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import asyncpg
import orjson

from worker.core.db import mapped
from worker.core.models import Delivery, Receipt

_CLAIM = "select * from tailrace.claim_deliveries($1, $2, $3, $4, $5, $6)"
_FINISH = "select tailrace.finish_delivery($1, $2, $3, $4, $5, $6, $7)"


class Effects:
    """The calls of one dispatcher."""

    def __init__(self, pool: asyncpg.Pool, worker: str) -> None:
        self._pool = pool
        self._worker = worker

    async def due(self, kinds: Sequence[str]) -> dict[str, float]:
        """Seconds until the next delivery of each kind is due; kinds without one are left out."""
        return dict(await self._pool.fetch("select * from tailrace.due_deliveries($1)", kinds))

    async def claim(self, kind: str, limit: int, rate: float | None, lease: float) -> tuple[uuid.UUID, list[Delivery]]:
        token = uuid.uuid4()
        rows = await self._pool.fetch(_CLAIM, token, self._worker, kind, limit, rate, lease)
        return token, [
            Delivery(r["key"], kind, r["target"], orjson.loads(r["body"]), r["attempt"], r["policy"], r["source"], r["external_id"]) for r in rows
        ]

    async def finish(self, key: str, token: uuid.UUID, receipt: Receipt) -> None:
        """Raises ClaimLost where the lease ran out meanwhile."""
        with mapped():
            await self._pool.execute(_FINISH, key, token, receipt.outcome, receipt.remote_id, receipt.detail, receipt.after, self._worker)
