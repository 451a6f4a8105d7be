"""What was missed in one chat: read by message id beside the news, oldest first; then looked at again for edits and deletions."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from collector.sources import Known, Page
from collector.sources.telegram_history import MOST, History, number_in, time_in
from collector.sources.telegram_records import record
from worker.core.models import RawRecord
from worker.core.settings import CollectorSettings

ASKED = 10_000  # ids that raw is asked for at once


class Heal:
    """`position` holds `upto`: everything up to this id is in raw, `at`: when that was so, and `next`: where an unfinished pass goes on."""

    def __init__(self, history: History, settings: CollectorSettings, recheck: float, gap: asyncio.Event) -> None:
        self.since: int | None = None  # id of the newest message when news began to come
        self.run: int | None = None  # what is newer than this id comes as news, without a hole as far as we know
        self.holes = 0  # times that something was missed, which may have been edits and deletions too
        self.filled = 0  # of these, those whose messages have been read
        self._history, self._settings, self._gap = history, settings, gap
        self._recheck = dt.timedelta(seconds=recheck)
        self._checked = 0  # holes before the last recheck that came to its end
        self._checked_at = float("-inf")
        self._resume: tuple[list[tuple[int, int]], int] | None = None  # a recheck that was interrupted: what is left, holes before it

    async def pages(self, position: dict[str, Any], tail: dict[str, Any], known: Known) -> AsyncGenerator[Page, None]:
        """New messages first, so that they need not wait for the recheck; a gap that opens meanwhile goes before the rest of it."""
        holes, run, now, chat = self.holes, self.run, dt.datetime.now(dt.UTC), await self._history.same(position)
        until = now - dt.timedelta(seconds=self._settings.target_lag)
        top, last = (await self._history.top()).number, number_in(tail, "last") or 0
        reach = top if run is None else min(run, top)
        end = min(reach, await self._history.older(until) if until < now else top)
        upto, at = number_in(position, "upto"), time_in(position, "at") or now
        if upto is None:
            upto = await self._begin(top, tail, known)
        first = number_in(position, "next")  # what an unfinished pass has read again is not read once more: it would never come further
        if first is None:
            first = min(upto, await self._history.older(at - dt.timedelta(seconds=self._settings.overlap)))
        here: dict[str, Any] = chat | {"upto": upto, "at": at.isoformat()}
        covered = at
        async with aclosing(self._span(first, end, known)) as pages:
            async for page, through, when in pages:
                covered, before = max(covered, when or covered), covered
                here = chat | {"upto": max(upto, through), "at": covered.isoformat()}
                yield replace(page, position=here | {"next": through}, times=(before, covered) if before < covered else None)
        brought = last if run is not None and end == reach < last else 0  # as news, and stored
        here |= {"upto": brought, "at": now.isoformat()} if brought > here["upto"] else {}
        gone = await self._vanished(range(top + 1, max(upto, last) + 1), known)
        yield Page(gone, here, (covered, until) if covered < until else None)
        self.filled = max(self.filled, holes)
        async with aclosing(self._again([(-1, first), (max(first, end), brought)], now, known)) as again:
            async for page in again:
                yield replace(page, position=here)

    async def _begin(self, top: int, tail: dict[str, Any], known: Known) -> int:
        """Without a position: from the newest message that raw had before news came; what is older is a backfill's work."""
        told = number_in(tail, "since"), number_in(tail, "last"), self.since
        high = since = min([top, *(n for n in told if n is not None)])
        while high > 0:
            low = max(0, high - ASKED)
            if held := await known.among([str(n) for n in range(low + 1, high + 1)]):
                return max(int(key) for key in held)
            high = low
        return since

    async def _again(self, spans: list[tuple[int, int]], now: dt.datetime, known: Known) -> AsyncGenerator[Page, None]:
        """What was sent lately and not read just now: after a hole, and now and then. It goes on where it was interrupted."""
        due = time.monotonic() - self._checked_at >= self._settings.heal_seconds
        while self._resume or due or self._checked < self.holes:
            if self._resume is None:
                start = await self._history.older(now - self._recheck)
                self._resume = [(max(start, a), b) for a, b in spans if max(start, a) < b], self.holes
            left, holes = self._resume
            while left:
                async with aclosing(self._span(*left[0], known)) as pages:
                    async for page, through, _ in pages:
                        left[0] = (through, left[0][1])
                        yield page
                        if self._gap.is_set():
                            return
                left.pop(0)
            self._resume, self._checked, self._checked_at, due = None, holes, time.monotonic(), False

    async def _span(self, at: int, end: int, known: Known) -> AsyncGenerator[tuple[Page, int, dt.datetime | None], None]:
        """Messages with ids from `at` (exclusive) to `end`, and tombstones of those that raw has and the service has not; with each page
        the id that it reaches and the time of its last message.
        """
        while at < end:
            found, pts = await self._history.after(at)
            last = min(end, found[-1].id) if found else end
            for part, through in self._parts([m for m in found if m.id <= end], last):
                there = {m.id for m in part}
                records = [record(m, pts) for m in part]
                records += await self._vanished((n for n in range(at + 1, through + 1) if n not in there), known)
                yield Page(records, ids=(at + 1, through + 1)), through, part[-1].date if part else None
                at = through

    def _parts(self, found: list[Any], last: int) -> Iterator[tuple[list[Any], int]]:
        """An answer cut so that no page covers more than `chunk_hours`; with each, the id that it reaches."""
        hours = dt.timedelta(hours=self._settings.chunk_hours)
        part: list[Any] = []
        for message in found:
            if part and message.date - part[0].date >= hours:
                yield part, part[-1].id
                part = []
            part.append(message)
        yield part, last

    async def _vanished(self, numbers: Iterable[int], known: Known) -> list[RawRecord]:
        """Of ids that an answer left out: tombstones of those that raw has and that the service, asked again, says are gone."""
        records: list[RawRecord] = []
        for asked in batched(numbers, ASKED):
            held = sorted(int(key) for key in await known.among([str(n) for n in asked]))
            for some in batched(held, MOST):
                records += await self._history.by_number(some)
        return records


def batched(numbers: Iterable[int], size: int) -> Iterator[Sequence[int]]:
    part: list[int] = []
    for number in numbers:
        part.append(number)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
