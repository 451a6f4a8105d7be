"""Reading the last posts again, for edits and deletions. A position says how far down one such pass came; between two it says what to trust."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from collector.sources import Known
from collector.sources.x_posts import Sheet, snowflake
from collector.sources.x_reach import Reach, number
from worker.core.models import RawRecord
from worker.core.settings import utcnow


class Looked(NamedTuple):
    """What one answer of the service told about the ids from `lower` to `upper`, excluded."""

    records: list[RawRecord]
    gone: list[str]  # keys that raw has and the service has no more
    lower: int
    upper: int
    position: dict[str, Any]


class Recheck:
    """Of one source. `how` says what it asks for: when that changes, older posts may be missing without having been deleted."""

    def __init__(self, how: str, seconds: float, reach: Reach) -> None:
        self._how = how
        self._window = dt.timedelta(seconds=seconds)
        self._reach = reach

    async def run(
        self, position: dict[str, Any], newest: int, known: Known, read: Callable[[int, int], AsyncGenerator[Sheet, None]]
    ) -> AsyncGenerator[Looked, None]:
        """One pass over what is not newer than `newest`; `read(since, until)` gives the posts between these ids, newest first.

        What is newer is the tail's, but it may be a new edition of something older, which then is no deletion.
        A pass that finds nothing at all where there was something is believed the second time.
        """
        same = position.get("how", self._how) == self._how
        kept = {"how": self._how, "from": str(number(position, "from") if same else newest)}  # below `from`, something else was asked for
        going = number(position, "until") if same else 0
        newest = number(position, "newest") if going else newest
        low = number(position, "low") if going else self._lowest(newest, number(kept, "from"))
        upper, count = going or newest + 1, number(position, "count") if going else 0
        edited = _ids(position.get("edited")) if going else set()
        if not self._window:
            return
        if low >= upper:
            yield Looked([], [], upper, upper, kept)
            return
        async with aclosing(read(self._reach.since(max(low - 1, 0)), going)) as sheets:
            async for sheet in sheets:
                posts = [post for post in sheet.posts if post.id <= newest]
                count += len(posts)
                edited |= {post.record.external_id for post in sheet.posts if post.edited}
                whole = not sheet.next and self._reach.whole(low, newest, count)
                lower = low if whole else min((post.id for post in posts), default=upper)
                seen = edited | {post.record.external_id for post in posts}
                gone = [k for k in await known.between(str(lower), str(upper - 1)) if k not in seen] if lower < upper else []
                if gone and not count and not position.get("doubt"):
                    yield Looked([], [], upper, upper, kept | {"doubt": True})
                    return
                left = sorted(key for key in edited if int(key) < lower)
                further = {"low": str(low), "newest": str(newest), "until": str(lower), "count": count, "edited": left}
                yield Looked([post.record for post in posts], gone, lower, upper, kept | further if sheet.next else kept)
                upper = lower

    def _lowest(self, newest: int, beginning: int) -> int:
        """Ids of one length only, since keys are compared as text."""
        return max(snowflake(utcnow() - self._window), beginning + 1, int("1".ljust(len(str(newest)), "0")))


def _ids(found: Any) -> set[str]:
    """Those of a position that are ids."""
    return {str(number({"": key}, "")) for key in found} - {"0"} if isinstance(found, list) else set()
