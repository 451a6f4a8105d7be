"""May this source be called? Answers of the service, failures and leases, kept in the database for all processes."""

from __future__ import annotations

import os
import socket
from typing import Any

import asyncpg
import orjson

from collector.sources import Page, Source
from collector.sources.answers import Denied, Limited
from worker.core.crashpoint import crashpoint
from worker.core.events import emit

PROBE = 60.0  # seconds that one probe of a half-open breaker may take
FAILURES = 5  # in a row, until the breaker opens
LEASE = 15.0
HOLDER = f"{socket.gethostname()}:{os.getpid()}"


class Breaker:
    """One source in this process; it also minds the shared limits that it has met."""

    def __init__(self, pool: asyncpg.Pool, source: Source) -> None:
        self._pool = pool
        self._source = source.name
        self._name = f"source:{source.name}"
        self._names = {self._name}
        self._clean = False  # nothing is written while all goes well

    async def wait(self) -> float | None:
        """Seconds until it may be called; None: a person has to act."""
        seconds = await self._pool.fetchval("select tailrace.may_call($1, $2)", sorted(self._names), PROBE)
        return None if seconds is None else max(0.0, float(seconds))

    async def worked(self, page: Page) -> None:
        if page.quotas:
            self._names |= {q.name for q in page.quotas}
            told = [{"name": q.name, "remaining": q.remaining, "limit_n": q.limit, "resets_at": q.resets_at} for q in page.quotas]
            await self._pool.execute("select tailrace.note_quotas($1)", orjson.dumps(told).decode())
        if not self._clean:
            await self._pool.execute("select tailrace.call_worked($1)", sorted(self._names))
            self._clean = True

    async def failed(self, error: Exception) -> float:
        """Writes down what happened; returns seconds until it makes sense to ask again."""
        self._clean = False
        if isinstance(error, Limited):
            self._names.add(error.name)
            await self._hold([self._name, error.name], error.seconds, error)
            crashpoint("after-limit-before-wait")
            emit("source.limited", source=self._source, limit=error.name, seconds=error.seconds, reason=error.args[0])
            return error.seconds
        if isinstance(error, Denied):
            await self._hold([self._name], None, error)
            emit("source.denied", source=self._source, reason=error.args[0], hint=f"{error.hint}; then `tailrace sources retry {self._source}`")
            return 5.0
        pause = float(await self._pool.fetchval("select tailrace.call_failed($1, $2, $3)", self._name, _said(error), FAILURES))
        emit("source.failed", source=self._source, error=repr(error), hint=f"tried again in {pause:g} s; the other sources go on")
        return pause

    async def _hold(self, names: list[str], seconds: float | None, error: Exception) -> None:
        await self._pool.execute("select tailrace.hold_calls($1, $2, $3)", names, seconds, _said(error))


def _said(error: Exception) -> str:
    return str(error.args[0] if error.args else repr(error)).replace("\x00", "")[:500]


async def lease(pool: asyncpg.Pool, name: str) -> str | None:
    """Takes or renews a lease for this process. Returns who else holds it, or None."""
    holder: Any = await pool.fetchval("select tailrace.take_lease($1, $2, $3)", name, HOLDER, LEASE)
    if holder != HOLDER and _gone(holder):
        await pool.execute("select tailrace.drop_lease($1, $2)", name, holder)
        holder = await pool.fetchval("select tailrace.take_lease($1, $2, $3)", name, HOLDER, LEASE)
    return None if holder == HOLDER else str(holder)


async def release(pool: asyncpg.Pool, name: str) -> None:
    await pool.execute("select tailrace.drop_lease($1, $2)", name, HOLDER)


def _gone(holder: str) -> bool:
    """A process of this machine that no longer runs."""
    host, _, pid = holder.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
