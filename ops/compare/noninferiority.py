"""Is version B worse than version A on the same records, by no more than a margin?

With `psi` the rate of discordant records (only one version is right) and `theta` the share of them that only A has right, B is worse by psi (2 theta - 1).
`psi` is a nuisance: it gets an exact upper bound that fails with probability alpha / 5; below it, and given the number of discordant records, the number that
only A has right is binomial, and is tested exactly at the other 4/5 of alpha. The two errors add up to alpha at most, for each number of records and each psi:
no approximation is involved. Sources: R. L. Berger, D. D. Boos, "P values maximized over a confidence set for the nuisance parameter", JASA 89 (1994);
Clopper and Pearson (1934); the hypotheses are those of J.-M. Nam, Biometrics 53 (1997). Several fields that must all pass need no correction (intersection-union
test: R. L. Berger, Technometrics 24 (1982)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ops.compare.binomial import at_most, upper_bound

Judged = Literal["pass", "fail", "not enough evidence"]
_FOR_NUISANCE = 0.2  # of alpha


@dataclass(frozen=True, slots=True)
class Finding:
    """`difference`: by how much B was worse, as a rate; below 0 it was better. `bound`: it is worse by less than this with confidence 1 - alpha;
    0 where it is shown to be better, 1 without records. `p_worse`: one-sided p that B is not worse at all (exact McNemar).
    """

    verdict: Judged
    difference: float
    bound: float
    p_worse: float


def non_inferiority(only_a: int, only_b: int, n: int, margin: float, alpha: float = 0.05) -> Finding:
    """From `n` records judged for both versions, of which `only_a` only A has right and `only_b` only B; `margin` is a rate above 0.

    - "pass": the bound is below the margin. Where B is worse by the margin or more, this happens with probability alpha at most.
    - "fail": B is worse at level alpha, and was worse by more than the margin.
    - "not enough evidence": all else, as with few records, or where the truth lies near the margin.
    """
    if not (0 < margin <= 1 and 0 < alpha < 1 and min(only_a, only_b) >= 0 and only_a + only_b <= n):
        raise ValueError(f"no counts of paired records with a margin: {only_a=} {only_b=} {n=} {margin=} {alpha=}")
    discordant = only_a + only_b
    difference = (only_a - only_b) / n if n else 0.0
    bound = _bound(only_a, discordant, n, alpha) if n else 1.0
    p_worse = at_most(only_b, discordant, 0.5) if discordant else 1.0
    verdict: Judged = "not enough evidence"
    if bound < margin:
        verdict = "pass"
    elif p_worse <= alpha and difference > margin:
        verdict = "fail"
    return Finding(verdict, difference, bound, p_worse)


def _bound(only_a: int, discordant: int, n: int, alpha: float) -> float:
    psi = upper_bound(discordant, n, alpha * _FOR_NUISANCE)
    theta = upper_bound(only_a, discordant, alpha * (1 - _FOR_NUISANCE))
    return max(0.0, 2 * theta - 1) * psi
