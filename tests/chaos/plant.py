"""A planted bug, which the checker has to find: the fence taken down.

Settling asks no longer for the claim's token nor for the number of slices and records, and the heartbeat says that every claim is held, so a worker that
was stopped beyond its lease does not know and settles what went to others. The key of `results` stays: where the others were quicker, the late settle is
an error; so the scene below keeps them away until the late worker has settled. Then the records are done, and their jobs are open.
"""

from __future__ import annotations

import re
import signal
import time

from feed import rest
from programs import LEASE, Program
from world import World

CHANGES = {
    "settle": [
        (r"j\.token = any \(p_tokens\) and j\.state = 'c' and ", ""),
        (r" and j\.token = u\.token", ""),
        (r"if v_slices <> [^;]*? then", "if false then"),
        (r"if v_rows <> .*? then", "if false then"),
    ],
    "beat": [(r"select distinct token from beaten", "select distinct t from unnest(p_tokens) t")],
}
SCENES = 3


async def plant(world: World) -> None:
    """Rewrites the functions in the database. Raises where a text to be changed is not there."""
    for name, changes in CHANGES.items():
        text = (
            await world.ask(
                "select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'tailrace'::regnamespace and p.proname = $1", name
            )
        )[0][0]
        for pattern, put in changes:
            text, found = re.subn(pattern, put, text, flags=re.DOTALL)
            if not found:
                raise RuntimeError(f"the bug cannot be planted: tailrace.{name} holds nothing like {pattern!r}; correct CHANGES in {__file__}")
        await world.ask(text)
    world.say("planted: the fence is down")


async def _held(world: World, name: str) -> int:
    return (await world.surely(f"select coalesce(sum(n_rows), 0) from tailrace.jobs where worker = '{name}' and state = 'c' and n_rows > 1"))[0][0]


async def _both(world: World) -> int:
    return (await world.surely(
        "select count(*) from tailrace.jobs j join tailrace.raw_records r on r.source_id = j.source_id and r.id between j.raw_id and j.raw_id_to "
        "join tailrace.results x on x.version_id = j.version_id and x.raw_id = r.id and x.rerun >= j.rerun"))[0][0]  # fmt: skip


async def late_worker(world: World, late: Program) -> bool:
    """One worker alone is stopped with slices in its hands until they are rescued, and goes on. True: it settled them late."""
    others = [worker for worker in world.workers if worker is not late]
    before = await _both(world)
    late.send(signal.SIGKILL)  # a fresh one: the bug has spoiled what an older one holds
    for other in others:
        other.hold()
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if await _held(world, late.name) and late.send(signal.SIGSTOP):
                await rest(0.3, world.ended)  # what was on its way is through
                if await _held(world, late.name):
                    break
                late.send(signal.SIGCONT)
            await rest(0.02, world.ended)
        until = time.monotonic() + LEASE + 2
        while await _held(world, late.name) and time.monotonic() < until:
            await rest(0.2, world.ended)
        late.send(signal.SIGCONT)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            if (await _both(world)) > before:
                return True
            await rest(0.1, world.ended)
        return False
    finally:
        for other in others:
            other.free()


async def scenes(world: World) -> None:
    """Three late workers, whatever else goes on; the server is left alone meanwhile."""
    seen = tried = 0
    while seen < SCENES and not (seen and world.stop.is_set()) and tried < 4 * SCENES:
        await rest(2.0, world.stop)
        async with world.database:
            seen += await late_worker(world, world.workers[tried % len(world.workers)])
        tried += 1
        world.say(f"late worker {seen} of {SCENES}")
    world.counts["late workers"] = seen
