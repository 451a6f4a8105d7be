"""The statistics of comparisons and gates, beside scipy, statsmodels and simulated truths."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import contingency_tables, inter_rater, multitest, proportion

from ops.compare import bootstrap
from ops.compare.agreement import fleiss, kappa
from ops.compare.binomial import at_most, holm, lower_bound, mcnemar, upper_bound, wilson
from ops.compare.noninferiority import non_inferiority
from ops.compare.truth import score

near = pytest.approx
CLOSE = {"rel": 1e-9, "abs": 1e-12}
counts = st.one_of(st.integers(0, 60), st.integers(0, 1_000_000))
some = settings(max_examples=60, deadline=None, derandomize=True)


@some
@given(counts, counts, st.sampled_from([0.8, 0.95, 0.99]))
@example(0, 1, 0.95)
@example(1_000_000, 0, 0.95)
def test_wilson(successes, failures, confidence):
    n = successes + failures
    found = wilson(successes, n, confidence)
    if n == 0:
        assert (found.low, found.high) == (0, 1)
        return
    assert (found.low, found.high) == near(proportion.proportion_confint(successes, n, 1 - confidence, "wilson"), **CLOSE)
    assert 0 <= found.low <= successes / n <= found.high <= 1


@some
@given(counts, counts)
@example(0, 0)
@example(7, 7)
@example(1_000_000, 1_000_000)
@example(998_000, 1_000_000)
@example(1_000_000, 0)
def test_mcnemar(only_a, only_b):
    expected = contingency_tables.mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == near(expected, **CLOSE)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


@some
@given(st.integers(0, 300_000), st.integers(1, 300_000), st.floats(1e-6, 1 - 1e-6))
def test_binomial_tails(k, n, p):
    assert at_most(min(k, n), n, p) == near(stats.binom.cdf(min(k, n), n, p), rel=1e-9, abs=1e-11)


@some
@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([0.01, 0.05, 0.2]))
@example(0, 0, 0.05)
@example(0, 5, 0.05)
@example(5, 0, 0.05)
def test_clopper_pearson(successes, failures, alpha):
    n = successes + failures
    assert upper_bound(successes, n, alpha) == near(stats.beta.ppf(1 - alpha, successes + 1, failures) if failures else 1, **CLOSE)
    assert lower_bound(successes, n, alpha) == near(stats.beta.ppf(alpha, successes, failures + 1) if successes else 0, **CLOSE)


@settings(max_examples=5, deadline=None, derandomize=True)  # statsmodels takes a third of a second
@given(st.lists(st.floats(0, 1), max_size=12))
@example([0.01, 0.01, 0.9, 0.02])
def test_holm(p_values):
    expected = multitest.multipletests(p_values, method="holm")[1] if p_values else []
    assert holm(p_values) == near(list(expected), **CLOSE)


tables = st.integers(2, 4).flatmap(lambda k: st.lists(st.lists(counts, min_size=k, max_size=k), min_size=k, max_size=k))


@some
@given(tables)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # statsmodels' variance of it
def test_cohens_kappa(table):
    found = kappa({(a, b): n for a, row in enumerate(table) for b, n in enumerate(row)})
    said_once = sum(any(row) for row in table) == 1 and sum(any(column) for column in zip(*table, strict=True)) == 1
    if not np.sum(table) or (said_once and np.trace(table)):
        assert found is None
    else:
        assert found == near(inter_rater.cohens_kappa(np.array(table, dtype=float)).kappa, rel=1e-9, abs=1e-9)


@some
@given(st.integers(2, 4).flatmap(lambda v: st.dictionaries(st.tuples(*[st.sampled_from("abc")] * v), st.integers(0, 40), max_size=12)))
def test_fleiss_kappa(patterns):
    found = fleiss(patterns)
    subjects = [[pattern.count(c) for c in "abc"] for pattern, n in patterns.items() for _ in range(n)]
    if sum(any(column) for column in zip(*subjects, strict=True)) < 2:
        assert found is None
    else:
        assert found == near(inter_rater.fleiss_kappa(np.array(subjects)), rel=1e-9, abs=1e-9)


def test_kappa_of_extremes():
    assert kappa({("x", "x"): 5, ("y", "y"): 5}) == 1.0
    assert kappa({("x", "y"): 5, ("y", "x"): 5}) == -1.0
    assert kappa({("x", "y"): 5}) == 0.0
    assert kappa({("x", "x"): 5}) is None
    assert fleiss({}) is None
    assert fleiss({("x",): 3}) is None


@some
@given(counts, counts, counts)
@example(0, 0, 0)
def test_truth(tp, fp, fn):
    found = score(tp, fp, fn)
    assert (found.precision.value, found.recall.value) == (tp / (tp + fp) if tp + fp else None, tp / (tp + fn) if tp + fn else None)
    assert found.precision.interval == wilson(tp, tp + fp)
    assert found.f1.value == (near(2 * tp / (2 * tp + fp + fn), **CLOSE) if tp + fp + fn else None)
    assert 0 <= found.f1.interval.low <= (found.f1.value or 0) <= found.f1.interval.high <= 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(0, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_quantile(values, share):
    assert bootstrap.quantile(sorted(values), share) == near(np.quantile(values, share), abs=1e-12)


def test_the_bootstrap_of_sources_is_the_same_each_time_and_wider_where_sources_differ():
    alike, apart = [(100, 90)] * 30, [(100, 100)] * 27 + [(100, 0)] * 3
    assert bootstrap.agreement([(100, 90)]) is None
    assert bootstrap.agreement([(100, 90), (0, 0)]) is None
    assert bootstrap.agreement(alike) == bootstrap.Interval(0.9, 0.9)
    found = bootstrap.agreement(apart)
    assert found == bootstrap.agreement(apart)
    assert found.high - found.low > 3 * (wilson(2700, 3000).high - wilson(2700, 3000).low)
    paired = bootstrap.difference([(100, 90, 92)] * 10 + [(50, 40, 40)] * 10)
    assert 0 < paired.low < 20 / 1500 < paired.high
    assert bootstrap.difference([(1, 1, 1)]) is None


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    """40 sources of 50 records, each with a rate of its own around 0.8. 95 % is asked for; a percentile interval of 40 clusters keeps a little less."""
    chance, covered, trials = np.random.default_rng(5), 0, 60
    for _ in range(trials):
        equal = chance.binomial(50, chance.beta(8, 2, 40))
        found = bootstrap.agreement([(50, int(e)) for e in equal], seed=1)
        covered += found.low <= 0.8 <= found.high
    assert covered / trials > 0.85


MARGIN, ALPHA, DRAWS = 0.02, 0.05, 2000


@pytest.mark.parametrize("n", [100, 500, 3000])
@pytest.mark.parametrize("discordant", [0.02, 0.05, 0.3])
def test_a_version_worse_by_the_margin_is_hardly_ever_promoted(n, discordant):
    """At most alpha of the draws: the method is exact and conservative, so no allowance for the simulation is made (about 2 % are expected, 5 % allowed)."""
    only_a = (discordant + MARGIN) / 2
    drawn = np.random.default_rng(20261127).multinomial(n, [only_a, discordant - only_a, 1 - discordant], DRAWS)
    found = [_verdict(int(a), int(b), n) for a, b, _ in drawn]
    assert found.count("pass") <= ALPHA * DRAWS


@pytest.mark.parametrize("n", [100, 500, 3000])
def test_a_version_that_is_as_good_is_hardly_ever_said_to_be_worse(n):
    drawn = np.random.default_rng(7).multinomial(n, [0.05, 0.05, 0.9], DRAWS)
    assert sum(_verdict(int(a), int(b), n) == "fail" for a, b, _ in drawn) <= ALPHA * DRAWS


def test_a_version_that_is_clearly_worse_fails():
    drawn = np.random.default_rng(8).multinomial(500, [0.09, 0.01, 0.9], 300)
    assert sum(_verdict(int(a), int(b), 500) == "fail" for a, b, _ in drawn) > 290


_known: dict[tuple[int, int, int], str] = {}


def _verdict(a: int, b: int, n: int) -> str:
    if (a, b, n) not in _known:
        _known[a, b, n] = non_inferiority(a, b, n, MARGIN, ALPHA).verdict
    return _known[a, b, n]


@pytest.mark.parametrize(("n", "margin"), [(25, 0.2), (40, 0.1), (60, 0.15)])
def test_the_error_is_at_most_alpha_without_simulation(n, margin):
    """Every outcome of n records, weighed by its probability, for many rates of discordant records."""
    passing = [(a, b) for a, b in itertools.product(range(n + 1), repeat=2) if a + b <= n and non_inferiority(a, b, n, margin).verdict == "pass"]
    assert passing
    counted = np.array([(a, b, n - a - b) for a, b in passing])
    for discordant in np.linspace(margin, 1, 60):
        only_a = (discordant + margin) / 2
        chance = stats.multinomial.pmf(counted, n, [only_a, discordant - only_a, 1 - discordant]).sum()
        assert chance <= 0.05 + 1e-12, discordant


def test_verdicts():
    assert non_inferiority(0, 0, 0, 0.02).verdict == "not enough evidence"
    assert non_inferiority(1, 1, 20, 0.02).verdict == "not enough evidence"
    assert non_inferiority(3, 0, 60, 0.02).verdict == "not enough evidence", "few discordant pairs"
    assert non_inferiority(0, 3, 60, 0.02).verdict == "not enough evidence", "few discordant pairs, all in its favour"
    assert non_inferiority(10, 10, 2000, 0.02).verdict == "pass"
    assert non_inferiority(0, 0, 1000, 0.02).verdict == "pass"
    assert non_inferiority(5, 60, 100, 0.02).verdict == "pass"
    assert non_inferiority(90, 10, 2000, 0.02).verdict == "fail"
    assert non_inferiority(30, 5, 2000, 0.02).verdict == "not enough evidence" or non_inferiority(30, 5, 2000, 0.02).bound < 0.02
    assert non_inferiority(250_000, 240_000, 1_000_000, 0.02).verdict == "pass"
    for wrong in ((-1, 0, 5, 0.1), (3, 3, 5, 0.1), (0, 0, 5, 0.0)):
        with pytest.raises(ValueError, match="counts"):
            non_inferiority(*wrong)


@some
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 3000), st.sampled_from([0.01, 0.05, 0.2]))
def test_more_in_favour_of_b_never_makes_its_verdict_worse(only_a, only_b, rest, margin):
    n = only_a + only_b + rest
    if only_a == 0:
        return
    order = ["fail", "not enough evidence", "pass"]
    before, after = non_inferiority(only_a, only_b, n, margin), non_inferiority(only_a - 1, only_b + 1, n, margin)
    assert order.index(after.verdict) >= order.index(before.verdict)
    assert before.difference <= before.bound or before.difference < 0


def test_enough_evidence_is_found_where_it_is():
    """Equally good versions, 5 % discordant: 2,000 records show it within two points nearly always."""
    drawn = np.random.default_rng(3).multinomial(2000, [0.025, 0.025, 0.95], 300)
    assert sum(_verdict(int(a), int(b), 2000) == "pass" for a, b, _ in drawn) > 240


def test_millions_are_counted():
    chance = random.Random(1)
    for _ in range(20):
        a, b = chance.randrange(900_000, 1_000_000), chance.randrange(900_000, 1_000_000)
        assert 0 <= mcnemar(a, b) <= 1
        assert wilson(a, a + b).low < a / (a + b) < wilson(a, a + b).high
    assert non_inferiority(100_000, 90_000, 1_000_000, 0.02).verdict == "pass"
