"""Progress of long work: one line that is rewritten on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

EVERY_TTY, EVERY_PLAIN = 0.2, 5.0


class Progress:
    """Rate and, where the total is known, the share and the time left. Writes to stderr.

    Those of one `board` share its line on a terminal.
    """

    def __init__(self, what: str, total: int | None = None, board: Board | None = None) -> None:
        self.what = what
        self._total = total
        self._begun = time.monotonic()
        self._board = board or Board()

    def show(self, done: int, note: str = "", *, last: bool = False, total: int | None = None) -> None:
        self._total = total or self._total
        rate = done / max(time.monotonic() - self._begun, 0.001)
        line = f"{self.what}: {done:,} at {rate:,.0f}/s"
        if self._total:
            share = min(1.0, done / self._total)
            left = (self._total - done) / rate if rate else 0
            line += f" [{'#' * int(20 * share):<20}] {share:.0%}, {max(left, 0):.0f} s left"
        self._board.write(self.what, f"{line} {note}".rstrip(), last=last)


class Board:
    """One line of the terminal for all that is under way."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._shown = time.monotonic()
        self._tty = sys.stderr.isatty()

    def write(self, what: str, text: str, *, last: bool) -> None:
        self._lines[what] = text
        now = time.monotonic()
        if not last and now - self._shown < (EVERY_TTY if self._tty else EVERY_PLAIN):
            return
        self._shown = now
        if last:
            del self._lines[what]
            sys.stderr.write(f"\r\x1b[K{text}\n" if self._tty else f"{text}\n")
        if self._tty:
            sys.stderr.write("\r\x1b[K" + " | ".join(self._lines.values()))
        elif not last:
            sys.stderr.write("".join(f"{line}\n" for line in self._lines.values()))
        sys.stderr.flush()
