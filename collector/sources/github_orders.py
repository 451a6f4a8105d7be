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

SECOND = dt.timedelta(seconds=1)  # GitHub's times have no finer grain


def time_of(value: Any) -> dt.datetime | None:
    """None where it is no time."""
    try:
        return moment(value)
    except Defect:
        return None


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

    That order never changes, whatever happens to a pull request, so a cursor in it stays right. The whole history is read oldest first: new
    ones come at its end, and the next run goes on there. A window that has a beginning is read newest first and ends there, because GitHub
    cannot begin in the middle.
    """

    position: dict[str, Any]
    window: Window
    more: bool = True
    total: int | None = None
    at: dt.datetime | None = None  # the service's clock
    quotas: tuple[Quota, ...] = ()
    kept: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """What a position of another shape, or of another window, says is nothing: it begins anew."""
        self.name, self.direction = ("window", "DESC") if self.window.since else ("history", "ASC")
        self._key = [self._iso(self.window.since), self._iso(self.window.until)] if self.window.since else []
        found = self.position.get(self.name)
        fits = isinstance(found, dict) and isinstance(found.get("cursor"), str) and found.get("of", []) == self._key
        self._begin: dict[str, Any] = found if fits and isinstance(found, dict) else {}
        self.cursor: str | None = self._begin.get("cursor")

    @staticmethod
    def _iso(when: dt.datetime | None) -> str | None:
        return when.astimezone(dt.UTC).isoformat() if when else None

    def anew(self) -> None:
        """From the beginning: the service does not know the cursor."""
        self.cursor, self._begin, self.kept = None, {}, []

    def take(self, page: Pulls) -> None:
        """One more page. The cursor never passes a record that was left out because it is too young for the window."""
        times = [t for n in page.nodes if (t := created(n))]
        since, until = self.window.since, self.window.until
        past = any(t < since for t in times) if since else any(t >= until for t in times) if until else False
        self.kept += [n for n in page.nodes if self.window.holds(created(n))]
        self.more, self.at, self.quotas = page.more and not past, page.at, page.quotas
        self.total = page.total if not (since or until) else None
        if since or not past:
            self.cursor = page.cursor

    def reached(self) -> dict[str, Any]:
        """The position after it. A window that was read to its end begins anew the next time."""
        if self.cursor is None or (self._key and not self.more):
            return self.position | {self.name: {}}
        numbers, times = self._numbers(), self._times()
        number = (max(numbers) if self.direction == "ASC" else min(numbers)) if numbers else self._begin.get("number")
        at = self._iso(times[-1]) if times else self._begin.get("at")
        return self.position | {self.name: {"cursor": self.cursor, "number": number, "at": at} | ({"of": self._key} if self._key else {})}

    def ids(self) -> tuple[int, int] | None:
        """Every pull request with such a number was seen; the numbers between them are issues."""
        numbers, met = self._numbers(), self._begin.get("number")
        if not numbers:
            return None
        low, high = min(numbers), max(numbers)
        if self.direction == "ASC":
            return min(low, (met or 0) + 1), high + 1
        return low, max(high + 1, met or 0)

    def times(self) -> tuple[dt.datetime, dt.datetime] | None:
        """Every pull request that was opened then was seen."""
        times, met, now = self._times(), time_of(self._begin.get("at")), self.at
        ends = [t for t in (met, *times) if t]
        if not ends or now is None:
            return None
        if self.direction == "ASC":
            low, high = ends[0], ends[-1] if self.more else self.window.until or max(ends[-1] + SECOND, now)
        else:
            high = met + SECOND if met else self.window.until or max(ends[0] + SECOND, now)
            low = ends[-1] + SECOND if self.more else self.window.since or ends[-1]
        return (low, high) if low < high else None

    def _numbers(self) -> list[int]:
        return [n["number"] for n in self.kept if type(n.get("number")) is int]

    def _times(self) -> list[dt.datetime]:
        return [t for n in self.kept if (t := created(n))]
