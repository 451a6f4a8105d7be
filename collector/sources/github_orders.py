"""The two orders in which the pull requests of a repository are read: what was reached, what is covered, where to go on."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from collector.record import Defect, digest_of, moment
from collector.sources import Window
from collector.sources.answers import Quota
from collector.sources.github_client import Pulls
from worker.core.models import RawRecord

_NUMBERS = range(1, 2**62)
_YEARS = range(1970, 9000)  # spans are added and taken away
SECOND = dt.timedelta(seconds=1)  # GitHub's times have no finer grain


def time_of(value: Any) -> dt.datetime | None:
    """None where it is no time, or none that a pull request can have."""
    try:
        found = moment(value)
    except Defect:
        return None
    return found if found.year in _YEARS else None


def created(node: dict[str, Any]) -> dt.datetime | None:
    return time_of(node.get("createdAt"))


@dataclass
class Changes:
    """One pass from the newest change down to `mark`, before which all is complete.

    What changes meanwhile moves above `top`, where the pass began; the next pass ends there. What has the time of the mark, or `overlap`
    less, is read again: times are whole seconds, and a copy of GitHub's database may be behind another.
    """

    position: dict[str, Any]
    overlap: dt.timedelta
    lookback: dt.timedelta
    more: bool = True

    def __post_init__(self) -> None:
        """A position of another shape is none."""
        self._mark, self._top = time_of(self.position.get("mark")), time_of(self.position.get("top"))
        cursor = self.position.get("cursor")
        self.cursor: str | None = cursor if isinstance(cursor, str) and self._mark and self._top else None
        self._begun = self.cursor is not None  # by a pass that did not come to its end
        if not self._begun:
            self._top = None

    def anew(self) -> None:
        """From the newest on: the service does not know the cursor."""
        self.cursor, self._top = None, None

    def take(self, page: Pulls) -> list[dict[str, Any]]:
        """What of one more page belongs to the pass."""
        times = [time_of(n.get("updatedAt")) for n in page.nodes]
        self._top = self._top or max(filter(None, times), default=None)
        if self._mark is None and self._top:
            self._mark = min(self._top, page.at) - self.lookback
        floor = self._mark - self.overlap if self._mark else None
        nodes = [n for n, t in zip(page.nodes, times, strict=True) if t is None or floor is None or t >= floor]
        self.more = page.more and len(nodes) == len(page.nodes)
        self._begun, self.cursor = self.cursor is not None, page.cursor
        return nodes

    def reached(self, records: list[RawRecord]) -> dict[str, Any]:
        """The position after these. At the end of a pass of one page it holds a digest of what is read again if nothing happens."""
        if self._mark is None or self._top is None:
            return self.position
        if self.more:
            return {"mark": self._mark.isoformat(), "top": self._top.isoformat(), "cursor": self.cursor}
        mark = max(self._mark, self._top)
        again = [r for r in records if r.source_time is None or r.source_time >= mark - self.overlap]
        seen = digest_of(b"".join(r.external_id.encode() + r.digest for r in again)).hex()
        return {"mark": mark.isoformat()} | ({} if self._begun else {"seen": seen})

    def times(self) -> tuple[dt.datetime, dt.datetime] | None:
        """What a finished pass covers."""
        if self.more or not self._mark or not self._top or self._mark >= self._top:
            return None
        return self._mark, self._top


@dataclass
class History:
    """One chunk in the order of opening, begun at a position, moved by answers.

    That order never changes, whatever happens to a pull request, so a cursor in it stays right. The whole history is read oldest first: what
    is opened meanwhile comes at its end. A window that has a beginning is read newest first and ends there, because GitHub cannot begin in
    the middle.
    """

    position: dict[str, Any]
    window: Window
    more: bool = True
    total: int | None = None
    quotas: tuple[Quota, ...] = ()
    _at: dt.datetime | None = None  # the service's clock
    _numbers: list[int] = field(default_factory=list)
    _times: list[dt.datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        """A position of another shape is none."""
        self.direction = "DESC" if self.window.since else "ASC"
        cursor, number = self.position.get("cursor"), self.position.get("number")
        self.cursor = cursor if isinstance(cursor, str) else None
        self._number = number if self.cursor and type(number) is int and number in _NUMBERS else None
        self._met = time_of(self.position.get("at")) if self.cursor else None

    def anew(self) -> None:
        """From the beginning: the service does not know the cursor."""
        self.cursor = self._number = self._met = None
        self._numbers, self._times = [], []

    def take(self, page: Pulls) -> list[dict[str, Any]]:
        """What of one more page is in the window."""
        times = [t for n in page.nodes if (t := created(n))]
        since, until = self.window.since, self.window.until
        past = any(t < since for t in times) if since else any(t >= until for t in times) if until else False
        kept = [n for n in page.nodes if self.window.holds(created(n))]
        self._numbers += [n["number"] for n in kept if type(n.get("number")) is int and n["number"] in _NUMBERS]
        self._times += [t for n in kept if (t := created(n))]
        self.more, self.cursor, self._at, self.quotas = page.more and not past, page.cursor, page.at, page.quotas
        self.total = page.total if not (since or until) else None
        return kept

    def reached(self) -> dict[str, Any]:
        ends = [n for n in (self._number, *self._numbers) if n is not None]
        number = (max if self.direction == "ASC" else min)(ends, default=None)
        at = self._times[-1] if self._times else self._met
        return {"cursor": self.cursor, "number": number, "at": at.isoformat() if at else None} if self.cursor else {}

    def ids(self) -> tuple[int, int] | None:
        """Every pull request with such a number was seen; the numbers between them are issues."""
        if not self._numbers:
            return None
        low, high = min(self._numbers), max(self._numbers) + 1
        if self.direction == "ASC":
            return min(low, (self._number or 0) + 1), high
        return low, max(high, self._number or 0)

    def times(self) -> tuple[dt.datetime, dt.datetime] | None:
        """Every pull request that was opened then was seen."""
        ends = [t for t in (self._met, *self._times) if t]
        if not ends or self._at is None:
            return None
        if self.direction == "ASC":
            low, high = ends[0], ends[-1] if self.more else self.window.until or max(ends[-1] + SECOND, self._at)
        else:
            high = self._met + SECOND if self._met else self.window.until or max(ends[0] + SECOND, self._at)
            low = ends[-1] + SECOND if self.more else self.window.since or ends[-1]
        return (low, high) if low < high else None
