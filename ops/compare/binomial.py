"""Exact and near-exact statements about counts of successes.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). C. J. Clopper, E. S. Pearson, "The use of
confidence or fiducial limits", Biometrika 26 (1934). Q. McNemar, Psychometrika 12 (1947), in its exact form. S. Holm, Scand. J. Statist. 6 (1979).
C. Loader, "Fast and accurate computation of binomial probabilities" (2000): by it counts in the millions lose no digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_EXACT_STIRLING = 15  # below, lgamma is exact enough; above, the series is
_NEAR = 0.1
_NEGLIGIBLE = 1e-18
_STEPS = 100
_CLOSE = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends belong to it."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Two-sided score interval of a rate; the whole of 0 to 1 where nothing was seen."""
    if n == 0:
        return Interval(0.0, 1.0)
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2) / (n + z2) * math.sqrt(successes * (n - successes) / n + z2 / 4)
    return Interval(0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p that two versions are right equally often, from the records that only one of them has right. 1.0 where there are none."""
    return min(1.0, 2 * at_most(min(only_a, only_b), only_a + only_b, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p values, in their order, corrected for being several."""
    adjusted, reached = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = reached
    return adjusted


def upper_bound(successes: int, n: int, alpha: float) -> float:
    """The rate is above this with probability `alpha` at most (Clopper-Pearson, one-sided)."""
    if successes >= n:
        return 1.0
    low, high, p = successes / n, 1.0, wilson(successes, n, 1 - 2 * min(alpha, 0.49)).high
    for _ in range(_STEPS):  # Newton's method for the logarithm of the tail, held between two ends
        tail = at_most(successes, n, p)
        low, high = (p, high) if tail > alpha else (low, p)
        slope = (n - successes) / (1 - p) * _probability(successes, n, p)
        better = p + math.log(tail / alpha) * tail / slope if tail and slope else high
        if abs(better - p) <= _CLOSE * p:
            break
        p = better if low < better < high else (low + high) / 2
    return min(p, 1.0)


def lower_bound(successes: int, n: int, alpha: float) -> float:
    """The rate is below this with probability `alpha` at most."""
    return 1.0 - upper_bound(n - successes, n, alpha)


def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) of X binomial(n, p), 0 < p < 1. Takes as many steps as a few standard deviations are wide."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    if k > n * p:
        return 1.0 - at_most(n - k - 1, n, 1 - p)
    term = total = _probability(k, n, p)
    odds = (1 - p) / p
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term <= total * _NEGLIGIBLE:
            break
    return min(1.0, total)


def _probability(k: int, n: int, p: float) -> float:
    """P(X = k), by Loader's saddle point."""
    if k == 0:
        return math.exp(n * math.log1p(-p))
    if k == n:
        return math.exp(n * math.log(p))
    log = _stirling(n) - _stirling(k) - _stirling(n - k) - _deviance(k, n * p) - _deviance(n - k, n * (1 - p))
    return math.exp(log) * math.sqrt(n / (2 * math.pi * k * (n - k)))


def _stirling(n: int) -> float:
    """What Stirling's formula lacks of log n!."""
    if n <= _EXACT_STIRLING:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - math.log(2 * math.pi) / 2
    square = n * n
    return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / square) / square) / square) / n


def _deviance(x: float, mean: float) -> float:
    """X log(x / mean) + mean - x, without cancellation where both are near."""
    if abs(x - mean) >= _NEAR * (x + mean):
        return x * math.log(x / mean) + mean - x
    v = (x - mean) / (x + mean)
    total, term, j = (x - mean) * v, 2 * x * v, 1
    while True:
        term *= v * v
        more = total + term / (2 * j + 1)
        if more == total:
            return total
        total, j = more, j + 1
