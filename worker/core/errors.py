"""Every error of ours, drawn. Each branch is a decision, not a place in the code.

TailraceError
├── Misconfigured      stop now, exit 2: the message says what to change
├── Unavailable        the database or a service is away: wait and try again, nothing is lost
├── ClaimLost          the lease ran out (TR002): drop what was computed, another worker has the record
└── PositionMoved      another collector reads this source (TR021): read the position again
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TailraceError(Exception):
    """Base of all errors of ours. `hint` tells what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  {self.hint}" if self.hint else message


class Misconfigured(TailraceError):
    """A setting, option or schema is wrong; only a person can mend it."""


class Unavailable(TailraceError):
    """Something outside is away; trying again later is right."""


class ClaimLost(TailraceError):
    """The records are no longer ours to settle (SQL code TR002)."""


class PositionMoved(TailraceError):
    """Another collector moved the position of this source (SQL code TR021)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known names nearest to an unknown one."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(known)}" if known else "none is configured"
