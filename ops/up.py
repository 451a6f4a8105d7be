"""`tailrace up`: the embedded database where none is named, migrations, one collector, some workers; restarted when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO

from ops.db import connected, one
from ops.migrate import migrate
from worker.core import embedded
from worker.core.db import shown
from worker.core.http import USUAL
from worker.core.options import INTERRUPTED, OK, PARTLY
from worker.core.settings import Settings

STEADY = 10.0  # a program that ran this long is restarted at once
CONFIGURATION = 2


@dataclass(slots=True)
class Program:
    """A child and its command; `failures` in a row make the pause before the next start longer."""

    name: str
    command: list[str]
    env: dict[str, str]
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0
    given_up: bool = field(default=False)

    def start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603  our own programs
            [sys.executable, "-u", "-m", *self.command], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None  # noqa: S101  asked for above
        threading.Thread(target=_copy, args=(self.name, self.process.stdout), daemon=True).start()

    def look(self) -> None:
        """Restarts a program that ended; one that refuses its configuration is not tried again."""
        if self.process is None or self.given_up:
            return
        code = self.process.poll()
        if code is None:
            if time.monotonic() - self.started > STEADY:
                self.failures = 0
            return
        if not self.due:
            self.given_up = code == CONFIGURATION
            self.failures += 1
            pause = min(30.0, 0.5 * 2 ** (self.failures - 1))
            self.due = time.monotonic() + pause
            _say(
                "up",
                f"{self.name} ended with code {code}; " + ("not restarted: mend the configuration" if self.given_up else f"restarted in {pause:g} s"),
            )
        elif time.monotonic() >= self.due:
            self.due = 0.0
            self.start()

    def send(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


_printing = threading.Lock()


def _say(name: str, line: str) -> None:
    with _printing:
        print(f"{name:10} | {line}", flush=True)


def _copy(name: str, lines: IO[str]) -> None:
    for line in lines:
        _say(name, line.rstrip("\n"))


def _programs(settings: Settings, url: str, workers: int) -> list[Program]:
    env = os.environ | {"DATABASE_URL": url}
    base = settings.worker.port if settings.worker.port is not None else USUAL
    return [Program("collector", ["collector", "live"], env)] + [
        Program(f"worker-{n}", ["worker"], env | {"TAILRACE_WORKER__PORT": str(base + n - 1 if base else 0)}) for n in range(1, workers + 1)
    ]


def up(settings: Settings, *, workers: int, once: bool) -> int:
    """Runs until Ctrl-C or SIGTERM; with `once` until nothing is open any more."""
    ours = settings.database_url is None and not embedded.is_running(settings.data_dir)
    url = embedded.database_url(settings)
    done = migrate(url)
    print(f"database   {shown(url)}" + (f" (embedded, in {settings.data_dir})" if settings.database_url is None else ""))
    print(f"schema     migration {done.number}" + (f", applied {', '.join(done.applied)}" if done.applied else ", up to date"))
    print(
        f"metrics    http://{settings.collector.host}:{settings.collector.port}/metrics; each worker says its own",
        flush=True,
    )
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _frame: stopping.append(n))
    programs = _programs(settings, url, workers)
    try:
        for program in programs:
            program.start()
        _until(settings, programs, stopping, once=once)
    finally:
        _stop(settings, programs, stopping)
        if ours:
            embedded.stop(settings.data_dir)
    if once and not stopping:
        return PARTLY if any(p.given_up for p in programs) else OK
    return INTERRUPTED if stopping and stopping[0] == signal.SIGINT else PARTLY if any(p.given_up for p in programs) else OK


def _until(settings: Settings, programs: list[Program], stopping: list[int], *, once: bool) -> None:
    looked, quiet = time.monotonic(), 0
    while not stopping and not all(p.given_up for p in programs):
        for program in programs:
            program.look()
        time.sleep(0.2)
        if once and time.monotonic() - looked > 1:
            looked = time.monotonic()
            quiet = quiet + 1 if _settled(settings) else 0
            if quiet >= 3:  # noqa: PLR2004  looks, a second apart
                return


def _settled(settings: Settings) -> bool:
    """All sources were seen to have nothing more, and nothing is open."""
    wanted = [name for name, spec in settings.sources.items() if spec.active]
    with connected(settings) as connection:
        row = one(connection, """select (select count(*) from tailrace.jobs) + (select count(*) from tailrace.runs where state = 'active') as open,
          (select count(*) from tailrace.cursors c join tailrace.sources s on s.id = c.source_id where s.name = any (%s) and c.caught_up_at is not null) as read""",
          [wanted])  # fmt: skip
    return bool(row["open"] == 0 and row["read"] >= len(wanted))


def _stop(settings: Settings, programs: list[Program], stopping: list[int]) -> None:
    """Politely first; a second Ctrl-C or SIGTERM, or the end of the grace time, at once."""
    for program in programs:
        program.send(signal.SIGTERM)
    asked, until = len(stopping), time.monotonic() + settings.worker.grace_seconds + 10
    while any(p.process and p.process.poll() is None for p in programs):
        if len(stopping) > max(asked, 1) or time.monotonic() > until:
            for program in programs:
                program.send(signal.SIGKILL)
        time.sleep(0.05)
