"""Disturbances of the server: sessions, processes, connections, disk, clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import asyncpg
from feed import rest
from programs import LEASE
from world import AWAY, World

_OURS = "select pid from pg_stat_activity where usename = 'chaos'"
CLOCK = """create or replace function tailrace.clock() returns timestamptz language sql stable parallel safe as $$
  select coalesce(nullif(current_setting('tailrace.now', true), '')::timestamptz, clock_timestamp() + interval '{} seconds') $$"""


async def terminate(world: World) -> str:
    pids = [row[0] for row in await world.ask(_OURS)]
    chosen = world.chance.sample(pids, min(len(pids), world.chance.choice([1, 3, 100])))
    await world.ask("select pg_terminate_backend(p) from unnest($1::int[]) p", chosen)
    return f"{len(chosen)} of {len(pids)} backends"


async def crash(world: World) -> str:
    """A backend is killed: the server throws all others out and recovers by itself."""
    pids = [
        row[0] for row in await world.ask("select pid from pg_stat_activity where usename = 'chaos' or backend_type in ('checkpointer', 'walwriter')")
    ]
    with contextlib.suppress(ProcessLookupError):
        os.kill(world.chance.choice(pids), signal.SIGKILL)
    return "a process of the server"


async def server_restart(world: World) -> str:
    mode = world.chance.choice(["fast", "immediate"])
    seconds = world.chance.choice([0.0, 1.0, LEASE + 1])
    await asyncio.to_thread(world.server.stop, mode)
    await rest(seconds, world.stop)
    await asyncio.to_thread(world.server.start)
    return f"{mode}, away for {seconds:g} s more"


async def exhaust(world: World) -> str:
    """All connections that the server gives are taken, after some of the programs' own were ended."""
    taken: list[asyncpg.Connection] = []
    try:
        await world.ask(f"select pg_terminate_backend(pid) from ({_OURS} order by random() limit 6) p")
        with contextlib.suppress(*AWAY):
            while len(taken) < 60:
                taken.append(await world.server.connect("chaos"))
        await rest(world.chance.uniform(1, 4), world.stop)
    finally:
        for connection in taken:
            connection.terminate()
    return f"{len(taken)} connections taken"


async def disk_full(world: World) -> str:
    size = await asyncio.to_thread(world.server.fill)
    await rest(world.chance.uniform(1, 4), world.stop)
    await asyncio.to_thread(world.server.empty)
    again = await asyncio.to_thread(world.server.ensure)
    return f"{size // 1_000_000} MB of ballast" + (", the server had to be started again" if again else "")


async def clock_jump(world: World) -> str:
    """The hands of all sessions jump, run on, and jump back."""
    seconds = world.chance.choice([-40, -5, 2 * LEASE, 50])
    await world.ask(CLOCK.format(seconds))
    await rest(world.chance.uniform(0.5, 3), world.stop)
    return f"{seconds:+g} s and back"


async def clock_stands(world: World) -> str:
    """Sessions that begin now have a clock that stands still, some seconds off; they are ended afterwards."""
    seconds, name = world.chance.choice([-4, 4]), "tailrace"
    await world.ask("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'chaos' and random() < 0.4")
    moment = (await world.ask("select (clock_timestamp() + make_interval(secs => $1))::text, clock_timestamp()", seconds))[0]
    await world.ask(f"alter database {name} set tailrace.now = '{moment[0]}'")
    await rest(1.5, world.stop)
    return f"new sessions at {seconds:+g} s for 1.5 s"


async def clock_mended(world: World) -> None:
    """The clock is right again in all sessions, also those that began while it was not."""
    await world.surely(CLOCK.format(0))
    await world.surely("alter database tailrace reset tailrace.now")
    await world.surely(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'chaos' and backend_start > clock_timestamp() - interval '6 s'"
    )


async def pooler_killed(world: World) -> str:
    await asyncio.to_thread(world.server.kill_pooler)
    await rest(0.5, world.stop)
    await asyncio.to_thread(world.server.start_pooler)
    return "and started again"
