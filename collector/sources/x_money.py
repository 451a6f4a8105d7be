"""What reading X costs: each post and each account once in a UTC day, however often it is read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Literal

from collector.sources.answers import Spent
from worker.core.settings import utcnow

NAME = "x:money"  # one budget for all sources of X: X bills an app, not an account that is read
_MOST = 200_000  # ids remembered in one day; what is read after them counts each time


def end_of(period: Literal["day", "month"], now: dt.datetime) -> dt.datetime:
    """When the budget of that period begins anew, in UTC."""
    midnight = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + dt.timedelta(days=1) if period == "day" else (midnight.replace(day=1) + dt.timedelta(days=32)).replace(day=1)


class Bill:
    """Of one source in this process. After a restart, what was read before counts again: too much rather than too little."""

    def __init__(self, post: float, user: float, most: float | None, period: Literal["day", "month"]) -> None:
        """Prices of a post and a user; `most` is the budget of a period, None: not limited. In USD."""
        self._prices = {"post": post, "user": user}
        self._most = most
        self._period = period
        self._day: dt.date | None = None
        self._read: set[tuple[str, str]] = set()
        self._open = 0.0

    def add(self, what: Literal["post", "user"], ids: Iterable[str]) -> None:
        """These were read now."""
        today = utcnow().date()
        if today != self._day:
            self._day, self._read = today, set()
        fresh = {(what, i) for i in ids} - self._read
        self._open += len(fresh) * self._prices[what]
        if len(self._read) < _MOST:
            self._read |= fresh

    def spent(self) -> tuple[Spent, ...]:
        """What was read since the last call of this."""
        amount, self._open = self._open, 0.0
        if self._most is None or not amount:
            return ()
        return (Spent(NAME, round(amount, 9), self._most, end_of(self._period, utcnow())),)
