"""What takes long is done less often."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

SHARE = 20  # at rest so many times as long as it took
QUICK = 0.05  # seconds that need no rest


class Pace:
    """When things of different names may be done again: one that took long is left alone for `SHARE` times as long, at most `longest` seconds."""

    def __init__(self, longest: float = math.inf) -> None:
        self._longest = longest
        self._due: dict[str, float] = {}

    def due(self, name: str = "") -> float:
        """On the clock of time.monotonic(); before everything else what was never done."""
        return self._due.get(name, -math.inf)

    def ready(self, name: str = "") -> bool:
        return time.monotonic() >= self.due(name)

    def again(self, name: str = "") -> None:
        """There is more to do: it needs no rest."""
        self._due.pop(name, None)

    @contextlib.contextmanager
    def timed(self, name: str = "") -> Iterator[None]:
        """Around the doing, also where it fails or is cancelled."""
        begun = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            took = now - begun
            self._due[name] = now + min(SHARE * took, self._longest) if took > QUICK else begun
