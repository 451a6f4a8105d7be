"""Intervals that know that records of one source resemble each other: whole sources are drawn, never records.

Sources: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 8 and 13 (percentile interval). A. C. Davison, D. V. Hinkley,
"Bootstrap Methods and their Application" (1997), 3.8 (clusters). Below some twenty sources such an interval is too narrow (A. C. Cameron, J. B. Gelbach,
D. L. Miller, Rev. Econ. Stat. 90 (2008)); of a single source there is none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from ops.compare.binomial import Interval

DRAWS = 2000
_MOST_WORK = 20_000_000  # sources drawn in all: with more than 10,000 sources there are fewer draws
_LEAST_DRAWS = 400


def agreement(sources: Sequence[tuple[int, int]], confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """Of the share of equal records, from (records, equal) of each source. None: fewer than two sources, so it is not available."""
    return _percentile([s for s in sources if s[0]], lambda sums: sums[1] / sums[0], confidence, seed)


def difference(sources: Sequence[tuple[int, int, int]], confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """Of the rate of B less the rate of A on the same records, from (records, A's, B's) of each source. None as above."""
    return _percentile([s for s in sources if s[0]], lambda sums: (sums[2] - sums[1]) / sums[0], confidence, seed)


def _percentile(sources: Sequence[tuple[int, ...]], rate: Callable[[list[int]], float], confidence: float, seed: int) -> Interval | None:
    if len(sources) < 2:  # noqa: PLR2004  one source says nothing of how sources differ
        return None
    chance = random.Random(seed)  # noqa: S311  the same interval at each call
    draws = max(_LEAST_DRAWS, min(DRAWS, _MOST_WORK // len(sources)))
    rates = sorted(rate([sum(column) for column in zip(*chance.choices(sources, k=len(sources)), strict=True)]) for _ in range(draws))
    return Interval(quantile(rates, (1 - confidence) / 2), quantile(rates, (1 + confidence) / 2))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest (type 7 of R. J. Hyndman, Y. Fan, Am. Stat. 50 (1996))."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
