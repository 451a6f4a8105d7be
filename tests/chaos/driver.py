"""`make chaos`: real programs, a real Postgres, everything goes wrong; then it becomes quiet and check.py says what was lost or repeated.

    MINUTES=3 SEED=7 PGBIN=/usr/lib/postgresql/15/bin POOLER=1 SYNC=off PLANT=fence python tests/chaos/driver.py

Exit code 0: nothing lost, nothing repeated, quiet in the end. 1: not so, or the planted bug was found. 2: it could not be run.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from faults import disturb  # noqa: E402  after the path
from feed import POISON, rest  # noqa: E402  as above
from harm import clock_mended  # noqa: E402  as above
from plant import plant, scenes  # noqa: E402  as above
from programs import gates  # noqa: E402  as above
from world import World  # noqa: E402  as above

QUIET = 600.0
OPEN = """
  select (select count(*) from tailrace.jobs) as jobs, (select count(*) from tailrace.runs where state in ('active', 'paused')) as runs,
         (select count(*) from tailrace.deliveries where state in ('pending', 'sending')) as deliveries,
         (select count(*) from tailrace.raw_records) as raw"""
LEFT = """
  select 'job ' || version_id || '/' || raw_id || '-' || raw_id_to || ' ' || state::text || ' attempt ' || attempt || ' crashes ' || crashes || ' run_at ' || run_at
    || coalesce(' worker ' || worker, '') || coalesce(' lease ' || lease_until, '') || coalesce(' ' || left((error -> -1)::text, 200), '') from tailrace.jobs
  union all select 'delivery ' || key || ' ' || state || ' attempts ' || attempts || ' next ' || next_at || coalesce(' ' || error, '') from tailrace.deliveries
    where state in ('pending', 'sending')
  union all select 'run ' || id || ' ' || kind || ' ' || state from tailrace.runs where state in ('active', 'paused') limit 20"""


async def storm(world: World, bug: str) -> None:
    """Records come and disturbances happen for the given minutes; poison comes in the first half, a new version in the middle."""
    seconds = world.minutes * 60
    feeding = [asyncio.create_task(world.feed.files(world.stop, 30))]
    feeding += [asyncio.create_task(world.feed.calls(world.stop, world.give_up, 5)) for _ in range(2)]
    harm = [asyncio.create_task(disturb(world)), asyncio.create_task(_version_in_the_middle(world, seconds * 0.45))]
    if bug:
        harm.append(asyncio.create_task(scenes(world)))
    rounds = max(1, round(world.minutes / 2))
    for _ in range(rounds):
        for poison in POISON:
            await rest(seconds * 0.5 / rounds / len(POISON), world.stop)
            world.feed.poison.append(poison)
    await rest(world.began + seconds - time.monotonic(), world.stop)
    world.stop.set()
    world.receiver.calm = True
    await asyncio.gather(*harm)
    await _calm(world)
    _done, late = await asyncio.wait(feeding, timeout=60)
    world.give_up.set()
    await asyncio.gather(*late)


async def _version_in_the_middle(world: World, seconds: float) -> None:
    await rest(seconds, world.stop)
    await world.new_version()


async def _calm(world: World) -> None:
    """No more harm: all is put right, and every program is started again, one of them with the old version."""
    world.receiver.calm, world.receiver.away = True, False
    world.proxy.heal()
    await asyncio.to_thread(world.server.empty)
    await asyncio.to_thread(world.server.ensure)
    await clock_mended(world)
    for n, program in enumerate(world.programs):
        program.env |= gates(None) | {"CHAOS_VERSION": "v1" if n == len(world.workers) else "v2"}
        program.free()
        program.send(signal.SIGCONT)
        program.send(signal.SIGTERM)
    world.say("no more disturbances; everything starts again")


async def quiet(world: World, bound: float) -> float | None:
    """Seconds until nothing was open and nothing new came for two seconds; None: never within the bound."""
    began, since, before = time.monotonic(), None, None
    while time.monotonic() - began < bound:
        now = dict((await world.surely(OPEN))[0])
        if now != before or now["jobs"] or now["runs"] or now["deliveries"]:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > 2:
            return time.monotonic() - began
        await rest(0.5, world.ended)
    world.say(f"never became quiet within {bound:g} s: {before}")
    for row in await world.surely(LEFT):
        print(f"           {row[0]}")
    return None


async def finish(world: World) -> list[str]:
    """Every program stops in order. Returns what did not."""
    world.ended.set()
    codes = await asyncio.gather(*(p.ended(20) for p in world.programs))
    return [f"{p.name} ended with {code}" for p, code in zip(world.programs, codes, strict=True) if code not in (0, 70)]  # 70: a record hung in it


async def verdict(world: World, seconds: float | None, trouble: list[str]) -> int:
    files = ("--written", str(world.folder / "ledger.jsonl"), "--received", str(world.folder / "received.jsonl"))
    checker = await asyncio.create_subprocess_exec(sys.executable, str(HERE / "check.py"), "--database", world.server.url(), *files)
    code = await checker.wait()
    also, text = await world.command("ops", "verify", env=world.env | {"DATABASE_URL": world.server.url()})
    print("\n" + ", ".join(f"{n} {name}" for name, n in sorted(world.counts.items())))
    print("exits: " + ", ".join(f"{n} x {name}" for name, n in sorted(world.ends.items())))
    print(f"{world.feed.poisoned} poison records, {world.feed.refused} calls had to be repeated, {world.feed.unsure} never acknowledged; "
          f"{sum(p.starts for p in world.programs)} starts; quiet after {f'{seconds:.0f} s' if seconds is not None else 'NEVER'}")  # fmt: skip
    if also:
        print(f"`tailrace verify` ended with {also}:\n" + "\n".join(line for line in text.splitlines() if not line.startswith("ok ")))
    for line in trouble:
        print(f"FAIL {line}")
    return 1 if code or also or trouble or seconds is None else 0


async def main() -> int:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000))
    minutes, sync, bug = float(os.environ.get("MINUTES") or 3), os.environ.get("SYNC") or "on", os.environ.get("PLANT") or ""
    if bug not in ("", "fence") or sync not in ("on", "off"):
        print(f"PLANT={bug} SYNC={sync}: PLANT may be fence or unset, SYNC on or off", file=sys.stderr)
        return 2
    world = World(seed, minutes, sync=sync, pooler=os.environ.get("POOLER") == "1")
    again = f"make chaos SEED={seed} MINUTES={minutes:g}" + "".join(
        f" {k}={os.environ[k]}" for k in ("PGBIN", "POOLER", "SYNC", "PLANT") if os.environ.get(k)
    )
    print(f"chaos: seed {seed}; the same choices again: {again}", flush=True)
    keeping: list[asyncio.Task[None]] = []
    code = 2
    try:
        await world.start()
        print(
            f"  PostgreSQL {world.server.version()}, synchronous_commit {sync}, {'through PgBouncer, ' if world.server.pooler_port else ''}files in {world.folder}"
        )
        if bug:
            await plant(world)
        world.began = time.monotonic()
        world.feed.note(complete="s1", pipeline="single")
        keeping += [asyncio.create_task(p.keep(world.ended)) for p in world.programs]
        await storm(world, bug)
        seconds = await quiet(world, 40 if bug else QUIET)
        code = await verdict(world, seconds, await finish(world))
    finally:
        world.ended.set()
        for program in world.programs if world.workers else []:
            program.free()
            program.send(signal.SIGKILL)
        await asyncio.gather(*keeping, return_exceptions=True)
        await world.proxy.close()
        world.receiver.close()
        await asyncio.to_thread(world.server.remove)
        if code == 0:
            shutil.rmtree(world.folder, ignore_errors=True)
    print(
        f"\nchaos {'PASSED' if code == 0 else 'FAILED'}, seed {seed}"
        + ("" if code == 0 else f"; logs, ledger and receiver's log: {world.folder}; {again}")
    )
    return code


async def guarded() -> int:
    """Ctrl-C and SIGTERM leave nothing behind."""
    running = asyncio.ensure_future(main())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        return await running
    except asyncio.CancelledError:
        return 130


if __name__ == "__main__":
    sys.exit(asyncio.run(guarded()))
