"""Progress of long work: one line that is rewritten on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

EVERY_TTY, EVERY_PLAIN = 0.2, 5.0


class Progress:
    """Rate and, where the total is known, the share and the time left. Writes to stderr."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._begun = self._shown = time.monotonic()
        self._tty = sys.stderr.isatty()

    def show(self, done: int, note: str = "", *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown < (EVERY_TTY if self._tty else EVERY_PLAIN):
            return
        self._shown = now
        rate = done / max(now - self._begun, 0.001)
        line = f"{self._what}: {done:,} at {rate:,.0f}/s"
        if self._total:
            left = (self._total - done) / rate if rate else 0
            bar = "#" * (20 * done // self._total)
            line += f" [{bar:<20}] {100 * done / self._total:.0f}%, {left:.0f} s left"
        text = f"{line} {note}".rstrip()
        sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if last else "") if self._tty else f"{text}\n")
        sys.stderr.flush()
