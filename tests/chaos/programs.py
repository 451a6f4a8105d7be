"""The programs under test as a user would run them: started, watched, started again when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEASE = 2.0
KINDS = ("post", "once", "lossy", "single")


class Program:
    """One place for a process. It is filled again when its process ends, unless it is `held`."""

    def __init__(self, folder: Path, name: str, command: tuple[str, ...], env: dict[str, str], ends: Counter[str]) -> None:
        self.name, self.command, self.env = name, command, env
        self.process: asyncio.subprocess.Process | None = None
        self.held = False
        self.stopped = False
        self.starts = 0
        self._folder, self._ends = folder, ends
        self._free = asyncio.Event()
        self._free.set()

    async def keep(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._free.wait()
            if stop.is_set():
                return
            with (self._folder / f"log-{self.name}.txt").open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", *self.command, cwd=self._folder, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            self.starts += 1
            code = await self.process.wait()
            self.stopped = False
            self._ends[f"{self.command[0]} {code}"] += 1

    def send(self, number: int) -> bool:
        """False where there is no process to send it to."""
        if self.process is None or self.process.returncode is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
            self.stopped = (self.stopped or number == signal.SIGSTOP) and number not in (signal.SIGCONT, signal.SIGKILL)
            return True
        return False

    def hold(self) -> None:
        """Ends it and lets nothing take its place until `free`."""
        self._free.clear()
        self.send(signal.SIGKILL)

    def free(self) -> None:
        self._free.set()

    async def ended(self, seconds: float) -> int | None:
        """The exit code after a SIGTERM; None where it did not end in time."""
        self.send(signal.SIGCONT)
        if not self.send(signal.SIGTERM) or self.process is None:
            return 0
        try:
            return await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            self.send(signal.SIGKILL)
            return None


def gates(chance: random.Random | None) -> dict[str, str]:
    """Which gates a worker is started with; None: all of them open."""
    return {f"TAILRACE_EFFECTS__{k.upper()}": "1" if chance is None or chance.random() < 0.9 else "0" for k in KINDS}


def environment(url: str, *, pooler: bool) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TAILRACE_", "CHAOS_", "PG")) and k != "DATABASE_URL"}
    env |= {"DATABASE_URL": url, "PYTHONPATH": str(ROOT), "TAILRACE_WORKER__PORT": "0"}
    if pooler:
        env |= {"TAILRACE_DATABASE__POOLER": "transaction", "TAILRACE_DATABASE__SET_ROLE": "0"}
    return env
