"""Agreement of versions beyond chance.

Sources: J. Cohen, "A coefficient of agreement for nominal scales", Educ. Psychol. Meas. 20 (1960). J. L. Fleiss, "Measuring nominal scale agreement among
many raters", Psychol. Bull. 76 (1971).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping


def beyond_chance(observed: float, expected: float) -> float | None:
    """Kappa from the share of equal pairs and the share that chance alone would give; None where chance explains everything."""
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def kappa(table: Mapping[tuple[Hashable, Hashable], int]) -> float | None:
    """Cohen's kappa of two versions, from the number of records by (what A says, what B says).

    None without records, and where both only ever say one and the same: then chance explains everything, and kappa is 0 / 0.
    """
    n = sum(table.values())
    first, second = Counter[Hashable](), Counter[Hashable]()
    for (a, b), count in table.items():
        first[a] += count
        second[b] += count
    by_chance = sum(count * second[value] for value, count in first.items())  # in units of n * n, as integers: no rounding before the end
    if by_chance == n * n:
        return None
    return (sum(count for (a, b), count in table.items() if a == b) * n - by_chance) / (n * n - by_chance)


def fleiss(patterns: Mapping[tuple[Hashable, ...], int]) -> float | None:
    """Fleiss' kappa of two or more versions, from the number of records by what each version says.

    None without records, for a single version, and where all only ever say one and the same. All patterns have the same length.
    """
    n, versions = sum(patterns.values()), len(next(iter(patterns), ()))
    pairs, said = 0, Counter[Hashable]()
    for pattern, count in patterns.items():
        for value, times in Counter(pattern).items():
            said[value] += times * count
            pairs += times * (times - 1) * count
    answers = n * versions
    by_chance = sum(count * count for count in said.values())
    if versions < 2 or by_chance == answers * answers:  # noqa: PLR2004  agreement takes two
        return None
    return beyond_chance(pairs / (answers * (versions - 1)), by_chance / (answers * answers))
