"""How far back X shows posts, and what follows for what is certainly complete; and positions, which are ids."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any

from collector.sources.x_posts import snowflake, time_of
from worker.core.settings import utcnow

_WEEK = dt.timedelta(days=7) - dt.timedelta(minutes=5)  # of a search; a little less, for clocks that differ
_MOST, _WITHOUT_REPLIES = 3200, 800  # posts of an account
_A_DAY = 2400  # posts that one account may make in a day
_FULL = 100  # posts of one answer


def number(position: dict[str, Any], name: str) -> int:
    """An id or count of a position; 0 where it is not there or makes no sense."""
    told = position.get(name)
    found = str(told) if isinstance(told, str | int) and (isinstance(told, str) or told < 2**63) else ""
    return int(found) if found.isascii() and found.isdigit() and len(found) < 20 else 0  # noqa: PLR2004  64 bits have no more digits


class Reach:
    """Of an account or of a search."""

    def __init__(self, *, search: bool, exclude: Collection[str]) -> None:
        self._search = search
        self._excluded = bool(exclude)
        self._most = _WITHOUT_REPLIES if "replies" in exclude else _MOST
        self.least = 10 if search else 5  # posts of one answer

    def __str__(self) -> str:
        return "X shows the last 7 days" if self._search else f"X shows the last {self._most:,} posts"

    def of(self, posts: int | None) -> int | None:
        """How many of so many posts of an account are shown; None where nobody knows."""
        return None if posts is None or self._excluded else min(posts, self._most)

    def since(self, since: int) -> int:
        """The lower bound to ask for, excluded; 0: none, for a search refuses one that it does not reach."""
        return 0 if self._search and since < self._oldest() else since

    def ended(self, until: int) -> bool:
        """Nothing older than `until` is shown."""
        return self._search and 0 < until <= self._oldest()

    def whole(self, since: int, newest: int, count: int) -> bool:
        """Whether a list that has ended after `count` posts surely held all that there are from `since` to `newest`.

        What is excluded counts for how far the list goes and is not seen; then only the most that an account may post tells.
        """
        if self._search:
            return since >= self._oldest()
        if not self._excluded and count <= self._most - _FULL:
            return True
        first, last = time_of(since), time_of(newest)
        return bool(first and last and (last - first).total_seconds() < self._most / _A_DAY * 86_400)

    @staticmethod
    def _oldest() -> int:
        return snowflake(utcnow() - _WEEK)
