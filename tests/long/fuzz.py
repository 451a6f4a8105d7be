"""`make fuzz`: all of tests/fuzz with ten times the examples, others in each round, until MINUTES=10 are over. Exit code 0 when every round passed.

Bounded on any machine: by MINUTES and one round, or by HUNG seconds where a test hangs, which is a finding too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HUNG = 1200.0  # seconds for one round, which takes a minute or a few


def main() -> int:
    minutes, rounds = float(os.environ.get("MINUTES") or 10), 0
    begun = time.monotonic()
    jobs = os.environ.get("JOBS") or "2"
    command = [sys.executable, "-m", "pytest", "-q", "-n", jobs, "-p", "no:cacheprovider", "tests/fuzz", "--hypothesis-profile=long",
               f"--override-ini=faulthandler_timeout={HUNG / 2:g}"]  # fmt: skip
    while not rounds or time.monotonic() < begun + minutes * 60:
        rounds += 1
        running = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            code = running.wait(HUNG)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(running.pid, signal.SIGINT)
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
            print(f"fuzz: round {rounds} was ended: {error!r}; the stack above tells where it hung")
            return 1
        if code:
            print(f"fuzz: round {rounds} found something, after {time.monotonic() - begun:.0f} s")
            return 1
    print(f"fuzz: {rounds} rounds in {time.monotonic() - begun:.0f} s found nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
