"""The disturbances. Each does its harm, waits a while, and puts back what does not come back by itself."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

from feed import rest
from harm import clock_jump, clock_mended, clock_stands, crash, disk_full, exhaust, pooler_killed, server_restart, terminate
from programs import LEASE
from world import AWAY, World

Fault = Callable[[World], Awaitable[str]]


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


async def receiver_away(world: World) -> str:
    world.receiver.away = True
    await rest(world.chance.uniform(1, 4), world.stop)
    world.receiver.away = False
    return "503 for everything"


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
    chance, running = random.Random(world.seed), set()
    while not world.stop.is_set():
        await rest(chance.uniform(0.4, 2.6), world.stop)
        fault = chance.choices(list(weights), list(weights.values()))[0]
        running = {task for task in running if not task.done() or task.exception()}
        if len(running) < 3 and not world.stop.is_set():
            running.add(asyncio.create_task(once(world, fault)))
    await asyncio.gather(*running)
