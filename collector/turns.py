"""Whose turn it is: leases of this process on what only one may use (a session) and on polls. One statement a tick for all sources."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from typing import Any

import asyncpg

from worker.core.errors import Misconfigured

LEASE = 15.0
TICK = 0.5
HOLDER = f"{socket.gethostname()}:{os.getpid()}"
_TURNS = "select * from tailrace.take_turns($1, $2, $3, $4, $5)"


class Turns:
    """A dead holder's lease ends by itself, a living one's is renewed by its `step`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._held: Counter[str] = Counter()  # name: how many readers of this process use it
        self._asked: dict[str, asyncio.Future[float]] = {}
        self._over: dict[str, float] = {}
        self._renewed = 0.0

    async def take(self, name: str) -> str | None:
        """Takes or keeps a lease. Returns who else holds it, or None."""
        holder = await take(self._pool, name)
        if holder is None:
            self._held[name] += 1
        return holder

    async def drop(self, name: str) -> None:
        """Free for others once no reader of this process uses it."""
        self._held[name] -= 1
        if self._held[name] <= 0:
            del self._held[name]
            await drop(self._pool, name)

    async def begin(self, name: str, stop: asyncio.Event) -> float:
        """Asks for a poll: 0 when it is ours now, else seconds until somebody may begin it, or until we were asked to stop."""
        asked = self._asked[name] = asyncio.get_running_loop().create_future()
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((asked, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return asked.result() if asked.done() else TICK

    def over(self, name: str, seconds: float) -> None:
        """Our poll has ended; the next one, by whoever comes first, begins after `seconds`."""
        self._held.pop(name, None)
        self._over[name] = max(0.0, seconds)

    async def step(self) -> float:
        """Renews what is held, answers what was asked for, frees what is over. Raises Misconfigured where a lease was taken from us."""
        asked, over = self._asked, self._over
        now = asyncio.get_running_loop().time()
        renew = list(self._held) if now - self._renewed > LEASE / 3 else []
        if asked or over or renew:
            rows = await self._pool.fetch(_TURNS, [*renew, *asked], HOLDER, LEASE, list(over), list(over.values()))
            self._asked, self._over = {k: v for k, v in self._asked.items() if k not in asked}, {k: v for k, v in self._over.items() if k not in over}
            self._renewed = now if renew else self._renewed
            self._answer({row["name"]: row for row in rows}, asked, renew)
        return TICK

    def _answer(self, rows: dict[str, Any], asked: dict[str, asyncio.Future[float]], renewed: list[str]) -> None:
        for name, future in asked.items():
            ours = rows[name]["holder"] == HOLDER
            if ours:
                self._held[name] = 1
            if not future.done():
                future.set_result(0.0 if ours else max(0.05, rows[name]["seconds"]))
        for name in renewed:
            if rows[name]["holder"] != HOLDER and name in self._held and not name.startswith("poll:"):
                raise Misconfigured(f"{name} is now in use by {rows[name]['holder']}", "two collectors share a session: give each its own")


async def take(pool: asyncpg.Pool, name: str) -> str | None:
    """Takes or renews a lease for this process. Returns who else holds it, or None."""
    holder: Any = await pool.fetchval("select tailrace.take_lease($1, $2, $3)", name, HOLDER, LEASE)
    if holder != HOLDER and _gone(holder):
        await pool.execute("select tailrace.drop_lease($1, $2)", name, holder)
        holder = await pool.fetchval("select tailrace.take_lease($1, $2, $3)", name, HOLDER, LEASE)
    return None if holder == HOLDER else str(holder)


async def drop(pool: asyncpg.Pool, name: str) -> None:
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
