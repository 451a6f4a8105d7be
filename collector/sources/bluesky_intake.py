"""From frames to records: what is ours of a stream, how far it came, and whether something was missed on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from collector.sources.bluesky_events import FIREHOSE, STATES, Event, Garbled, Refused, of_frame, of_line
from collector.sources.bluesky_place import Place
from collector.sources.bluesky_records import Maker, informed, instant, stated, wanted
from worker.core.models import RawRecord

TRIES = 3  # connections that may end at the same garbled frame; then it is passed over
RECENT = 5.0  # seconds: what is younger has happened just now


class Intake:
    """Of one source, over all its connections. `dids`: whose events are taken, None: everybody's."""

    def __init__(self, transport: str, maker: Maker, collections: Sequence[str], dids: Sequence[str] | None) -> None:
        self.gap, self.news = asyncio.Event(), asyncio.Event()
        self.place = Place(transport, "")
        self.states: list[Event] = []  # of the accounts, taken by who cares
        self.collections, self.dids = list(collections), None if dids is None else set(dids)
        self._transport, self._maker = transport, maker
        self._read = of_frame if transport == FIREHOSE else of_line
        self._last: Event | None = None
        self._stuck: tuple[int | None, int] = (None, 0)  # the cursor before a garbled frame, and how often it was met

    @property
    def recent(self) -> bool:
        """Whether what came last has happened just now."""
        if self._last is None:
            return False
        at = instant(self._last.time)
        seconds = at.timestamp() if at else (self._last.cursor or 0) / 1e6
        return time.time() - seconds < RECENT

    def batches(self, frames: list[bytes | str], most: int) -> Iterator[list[RawRecord]]:
        """Records of these frames, about `most` at once; the last list may be empty. What a broken frame raises comes after what was before it."""
        records: list[RawRecord] = []
        for frame in frames:
            try:
                event = self._read(frame)
            except (Garbled, Refused) as error:
                if isinstance(error, Garbled) and self._passed_over():
                    continue
                yield records
                raise
            records += self._records(event)
            if len(records) >= most:
                yield records
                records = []
        yield records

    def _passed_over(self) -> bool:
        """Whether a garbled frame stood at this place on each of the last connections: then it will never be read."""
        self.gap.set()
        at, times = self._stuck
        self._stuck = (self.place.cursor, times + 1 if at == self.place.cursor else 1)
        return self._stuck[1] >= TRIES

    def _records(self, event: Event) -> list[RawRecord]:
        if event.kind == "info":
            self.gap.set()
            return [informed(event, self.place.host, self.place.cursor)]
        if event.cursor is not None:
            self._last = event
            back = event.cursor if self._transport == FIREHOSE else max(event.cursor, self.place.cursor or 0)
            self.place.cursor = back
        if self.dids is not None and event.did not in self.dids:
            return []
        meta: dict[str, object] = {"via": self._transport, "at": event.cursor}
        if event.kind in STATES:
            self.states.append(event)
            return [stated(event, meta)]
        if event.kind == "sync":
            self._followed(event, missed=True)
        return self._changes(event, meta) if event.kind == "commit" else []

    def _changes(self, event: Event, meta: dict[str, object]) -> list[RawRecord]:
        found, missed = [], not event.whole
        for op in event.ops():
            collection = op.path.partition("/")[0]
            missed = missed or bool(op.why)
            if wanted(self.collections, collection):
                self.place.mark(collection, event.rev if self.place.did else event.cursor)
                found.append(self._maker.changed(event, op, meta))
        self._followed(event, missed=missed)
        return found

    def _followed(self, event: Event, *, missed: bool) -> None:
        """Of one account: a revision that does not follow the one before it means that some were missed."""
        if self.place.did and event.rev:
            if self._transport == FIREHOSE:
                missed = self.place.follow(event.rev, event.since, whole=not missed) or missed
            else:
                self.place.rev = max(self.place.rev or "", event.rev)
            self.news.set()
        if missed:
            self.gap.set()
