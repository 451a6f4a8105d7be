"""The disturbances. Each does its harm, waits a while, and puts back what does not come back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable

import asyncpg
from feed import rest
from programs import LEASE
from world import AWAY, World

Fault = Callable[[World], Awaitable[str]]
_OURS = "select pid from pg_stat_activity where usename = 'chaos'"
CLOCK = """create or replace function tailrace.clock() returns timestamptz language sql stable parallel safe as $$
  select coalesce(nullif(current_setting('tailrace.now', true), '')::timestamptz, clock_timestamp() + interval '{} seconds') $$"""


async def sigkill(world: World) -> str:
    victim = world.chance.choice(world.programs)
    victim.send(signal.SIGKILL)
    return victim.name


async def sigterm(world: World) -> str:
    victim = world.chance.choice(world.programs)
    victim.send(signal.SIGTERM)
    return victim.name


async def restart(world: World) -> str:
    """Gates and version are drawn anew."""
    victim = world.chance.choice(world.workers)
    world.restart(victim, kill=world.chance.random() < 0.3)
    closed = sorted(k[18:].lower() for k, v in victim.env.items() if k.startswith("TAILRACE_EFFECTS__") and v == "0")
    return f"{victim.name} as {victim.env['CHAOS_VERSION']}, gates closed: {', '.join(closed) or 'none'}"


async def sigstop(world: World) -> str:
    victim, seconds = world.chance.choice(world.programs), world.chance.choice([0.5, LEASE * 1.4, LEASE * 2])
    victim.send(signal.SIGSTOP)
    await rest(seconds, world.stop)
    victim.send(signal.SIGCONT)
    return f"{victim.name} for {seconds:g} s"


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


async def stall(world: World) -> str:
    """Half-open: nothing comes through, nobody is told. Later it goes on, or is cut."""
    links, seconds = world.proxy.some(world.chance, world.chance.choice([0.3, 1.0])), world.chance.choice([1.0, LEASE, 12.0])
    for link in links:
        link.to_server.clear()
        link.to_client.clear()
    await rest(seconds, world.stop)
    resumed = world.chance.random() < 0.5
    for link in links:
        if resumed:
            link.to_server.set()
            link.to_client.set()
        else:
            link.cut()
    return f"{len(links)} connections for {seconds:g} s, then {'on' if resumed else 'cut'}"


async def deaf(world: World) -> str:
    """Requests arrive and are committed; the answers are lost."""
    links, seconds = world.proxy.some(world.chance, world.chance.choice([0.5, 1.0])), world.chance.choice([0.3, 1.5])
    for link in links:
        link.to_client.clear()
    await rest(seconds, world.stop)
    for link in links:
        link.cut()
    return f"answers of {len(links)} connections for {seconds:g} s"


async def refuse(world: World) -> str:
    seconds, links = world.chance.uniform(0.5, 4), world.proxy.some(world.chance, 0.7)
    world.proxy.refusing = True
    for link in links:
        link.cut()
    await rest(seconds, world.stop)
    world.proxy.refusing = False
    return f"{len(links)} connections cut, none let in for {seconds:.1f} s"


async def half_close(world: World) -> str:
    links = world.proxy.some(world.chance, 0.5)
    for link in links:
        link.half_close()
    return f"{len(links)} connections"


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


async def receiver_away(world: World) -> str:
    world.receiver.away = True
    await rest(world.chance.uniform(1, 4), world.stop)
    world.receiver.away = False
    return "503 for everything"


async def pooler_killed(world: World) -> str:
    await asyncio.to_thread(world.server.kill_pooler)
    await rest(0.5, world.stop)
    await asyncio.to_thread(world.server.start_pooler)
    return "and started again"


PROCESSES: dict[Fault, int] = {sigkill: 14, sigterm: 6, restart: 6, sigstop: 10}
NETWORK: dict[Fault, int] = {stall: 6, deaf: 6, refuse: 3, half_close: 3, receiver_away: 3}
SERVER: dict[Fault, int] = {terminate: 7, crash: 3, server_restart: 4, exhaust: 4, disk_full: 3, clock_jump: 5, clock_stands: 3}
AFTER = {clock_jump: clock_mended, clock_stands: clock_mended}


async def once(world: World, fault: Fault) -> None:
    """One disturbance, said and counted. Those of the server do not overlap; where one finds no server it is over."""
    try:
        if fault in SERVER or fault is pooler_killed:
            async with world.database:
                told = await fault(world)
        else:
            told = await fault(world)
        world.say(f"{fault.__name__.replace('_', ' ')}: {told}")
    except AWAY as error:
        told = f"came to nothing: {type(error).__name__}"
    finally:
        if mend := AFTER.get(fault):
            await mend(world)
    world.counts[fault.__name__.replace("_", " ")] += not told.startswith("came to")


async def disturb(world: World) -> None:
    """Disturbances at random moments until `stop`, at most three at a time."""
    weights = PROCESSES | NETWORK | SERVER
    if world.server.pooler_port is not None:
        weights |= {pooler_killed: 3}
    if world.server.bounded:
        del weights[disk_full]
        print(f"  no disk is filled: {world.server.bounded}", flush=True)
    running: set[asyncio.Task[None]] = set()
    while not world.stop.is_set():
        await rest(world.chance.uniform(0.4, 2.6), world.stop)
        running = {task for task in running if not task.done() or task.result()}
        if len(running) < 3 and not world.stop.is_set():
            running.add(asyncio.create_task(once(world, world.chance.choices(list(weights), list(weights.values()))[0])))
    await asyncio.gather(*running)
