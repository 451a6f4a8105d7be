"""What may be claimed: as the database told it last, and as bells have rung since."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from worker.jobs import Slice

LIVE, REPLAY = 0, 2  # lanes; between them the one of catch-ups
SOURCES = 8  # per claim


class Ready:
    """Sources with ready work by version and lane, from which raw id on, and versions that have suspects."""

    def __init__(self, versions: Sequence[int]) -> None:
        self.known = False  # whether the database has answered since it was last asked
        self.suspects: dict[int, int] = {}  # version: lower bound
        self._versions = versions
        self._sources: dict[tuple[int, int], set[int]] = {}
        self._lows: dict[tuple[int, int, int], int] = {}
        self._afforded: dict[int, int] = {}  # version: records that the budget of its replay still allows
        self._rung: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._sources)

    def has(self, version: int, lane: int) -> bool:
        return (version, lane) in self._sources

    def ring(self, source: int) -> None:
        self._rung.add(source)
        self._expect({source})

    def _expect(self, sources: set[int]) -> None:
        for version in self._versions if sources else ():
            self._sources.setdefault((version, LIVE), set()).update(sources)

    def asking(self) -> None:
        """A question about live work is put now: what rings while it is under way, its answer may not know."""
        self._rung.clear()

    def told(self, found: Iterable[tuple[int, int, int, int | None, int]]) -> None:
        """The answer of `Jobs.peek`."""
        self._sources.clear()
        self.suspects.clear()
        self._afforded.clear()
        for version, lane, source, most, low in found:
            if lane < 0:
                self.suspects[version] = low
                continue
            self._sources.setdefault((version, lane), set()).add(source)
            self._lows[version, lane, source] = low
            if lane == REPLAY and most is not None:
                self._afforded[version] = most
        self._expect(self._rung)
        self.known = True

    def some(self, version: int, lane: int) -> list[tuple[int, int]]:
        """A few of the sources in random order, each with its lower bound: no source waits behind the backlog of another."""
        found = self._sources[version, lane]
        return [(s, self._lows.get((version, lane, s), 0)) for s in random.sample(sorted(found), min(SOURCES, len(found)))]

    def affordable(self, version: int, lane: int) -> int | None:
        """Records that may be claimed; None where no budget bounds them."""
        return self._afforded.get(version) if lane == REPLAY else None

    def unaffordable(self, version: int, lane: int) -> None:
        self._sources.pop((version, lane), None)

    def claimed(self, version: int, lane: int, pieces: list[Slice]) -> None:
        for piece in pieces:
            self._lows[version, lane, piece.source_id] = piece.raw_id + 1
        if lane == REPLAY and version in self._afforded:
            self._afforded[version] -= sum(len(piece.records) for piece in pieces)

    def exhausted(self, version: int, lane: int, sources: Iterable[int], pieces: list[Slice], each: int) -> None:
        """A claim got less than it asked for: the sources that gave less than `each` have no more, unless they have rung meanwhile."""
        got = Counter(piece.source_id for piece in pieces)
        left = self._sources.get((version, lane), set())
        left.difference_update(s for s in sources if got[s] < each and not (lane == LIVE and s in self._rung))
        if not left:
            self._sources.pop((version, lane), None)
