"""What one run consists of, and the moves that several disturbances share."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import asyncpg
from feed import Feed, rest
from programs import Program, environment, gates
from proxy import Proxy
from receiver import Receiver
from server import DATABASE, LOGIN, Server, free_port
from subject import CONFIG, PROCESSOR

from worker.core.binaries import binaries

AWAY = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a session that the server is just ending
    TimeoutError,
)
WORKERS = 3


class World:
    """Server, proxy, receiver, programs and feed of one run; `counts` of what was done to them."""

    def __init__(self, seed: int, minutes: float, *, sync: str, pooler: bool) -> None:
        self.seed, self.minutes = seed, minutes
        self.chance = random.Random(seed)
        home = Path(tempfile.gettempdir()) / "tailrace-chaos"
        home.mkdir(mode=0o755, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"run-{seed}-", dir=home))
        self.folder.chmod(0o755)
        bin_dir = Path(os.environ["PGBIN"]) if os.environ.get("PGBIN") else binaries(home / "data")
        self.server = Server(self.folder, bin_dir, sync=sync, pooler=pooler, megabytes=int(300 + 40 * minutes))
        self.proxy, self.receiver = Proxy(), Receiver(self.folder / "received.jsonl", seed + 1)
        self.port = free_port()
        self.feed = Feed(self.folder, seed + 2, f"http://127.0.0.1:{self.port}/webhook/orders")
        self.ends: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.stop, self.ended, self.give_up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.database = asyncio.Lock()  # one disturbance of the server at a time
        self.versions = ["v1"]
        self.collector: Program
        self.workers: list[Program] = []
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"  {time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    async def start(self) -> None:
        """Everything is made and started; nothing is disturbed yet."""
        await asyncio.to_thread(self.server.create)
        admin = await asyncpg.connect(self.server.url().replace(f"/{DATABASE}", "/postgres"))
        await admin.execute(f"create database {DATABASE}")
        await admin.execute(f"create role {LOGIN} login")
        await admin.close()
        env = environment(self.server.url(), pooler=False)
        code, text = await self.command("ops", "migrate", env=env)
        if code:
            raise RuntimeError(f"migrate ended with {code}: {text}")
        for statement in self.server.prepare():
            await self.server.ask(statement)
        await asyncio.to_thread(self.server.start_pooler)
        await self.proxy.start(self.server.entry)
        await self.receiver.start()
        (self.folder / "tailrace.toml").write_text(CONFIG.format(url=f"http://127.0.0.1:{self.receiver.port}", port=self.port))
        (self.folder / "mine.py").write_text(PROCESSOR)
        self.env = environment(self.server.url(LOGIN, self.proxy.port), pooler=self.server.pooler_port is not None)
        self.collector = Program(self.folder, "collector", ("collector", "live"), dict(self.env), self.ends)
        for n in range(WORKERS):
            env = self.env | {"TAILRACE_WORKER__NAME": f"w{n}", "CHAOS_VERSION": "v1"} | gates(None)
            self.workers.append(Program(self.folder, f"w{n}", ("worker", "run"), env, self.ends))

    @property
    def programs(self) -> list[Program]:
        return [self.collector, *self.workers]

    async def command(self, *command: str, env: dict[str, str] | None = None, seconds: float = 60) -> tuple[int | None, str]:
        """Runs a program to its end: exit code (None: it did not end in time) and what it printed."""
        import sys  # noqa: PLC0415  the only place

        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, cwd=self.folder, env=env or self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), seconds)
        except TimeoutError:
            process.kill()
            await process.wait()
            return None, f"{' '.join(command)} did not end within {seconds:g} s"
        return process.returncode, out.decode(errors="replace")

    async def ask(self, query: str, *args: object) -> list[asyncpg.Record]:
        return await self.server.ask(query, *args)

    async def surely(self, query: str, seconds: float = 60) -> list[asyncpg.Record]:
        """Asks until the server answers."""
        until = time.monotonic() + seconds
        while True:
            try:
                return await self.ask(query)
            except AWAY:
                if time.monotonic() > until:
                    raise
                await rest(0.3, self.ended)

    def restart(self, worker: Program, *, kill: bool = False) -> None:
        """With gates and a version of their own choice from the next start on."""
        worker.env |= gates(self.chance) | {"CHAOS_VERSION": self.chance.choice(self.versions)}
        worker.send(signal.SIGCONT)
        worker.send(signal.SIGKILL if kill else signal.SIGTERM)

    async def new_version(self) -> None:
        """One worker comes with a new version, which takes over; then the whole history is replayed as that version."""
        self.versions.append("v2")
        while not self.ended.is_set():
            if self.workers[0].env.get("CHAOS_VERSION") != "v2":  # also where a restart has chosen another meanwhile
                self.workers[0].env["CHAOS_VERSION"] = "v2"
                self.workers[0].send(signal.SIGCONT)
                self.workers[0].send(signal.SIGTERM)
            await rest(1.0, self.ended)
            code, text = await self.command("collector", "enqueue", "--pipeline", "chaos", "--version", "v2", "--json", seconds=30)
            if code == 0:
                self.feed.note(complete="v2", pipeline="chaos")
                self.say(f"version v2 is live, its replay is open: {json.loads(text.splitlines()[-1])['opened']} records")
                return
