"""Precision, recall and F1 of one field against what people say, with intervals.

Source: C. J. van Rijsbergen, "Information Retrieval" (1979), chapter 7. F1 is 2 j / (1 + j) of the rate j = tp / (tp + fp + fn), so the ends of Wilson's
interval of j, taken through the same formula, are those of F1.
"""

from __future__ import annotations

from dataclasses import dataclass

from ops.compare.binomial import Interval, wilson


@dataclass(frozen=True, slots=True)
class Rate:
    """`value` is None where nothing was counted; the interval is then all of 0 to 1."""

    value: float | None
    interval: Interval


@dataclass(frozen=True, slots=True)
class Score:
    """Of one field of one version."""

    precision: Rate
    recall: Rate
    f1: Rate


def score(tp: int, fp: int, fn: int, confidence: float = 0.95) -> Score:
    """From the records where the version says the right value (tp), a wrong one (fp), and where it misses the right one (fn)."""
    j = _rate(tp, tp + fp + fn, confidence)
    f1 = Rate(None if j.value is None else _f1(j.value), Interval(_f1(j.interval.low), _f1(j.interval.high)))
    return Score(_rate(tp, tp + fp, confidence), _rate(tp, tp + fn, confidence), f1)


def _rate(successes: int, n: int, confidence: float) -> Rate:
    return Rate(successes / n if n else None, wilson(successes, n, confidence))


def _f1(j: float) -> float:
    return 2 * j / (1 + j)
