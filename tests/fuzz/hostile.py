"""What nobody sends who means well, and how often we look at it."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

ROUND = 10  # times as many examples in a round of `make fuzz`


def often(examples):
    """Settings of one test: so many examples, the same each time; in a round of `make fuzz` more, each time others."""
    long = settings.get_current_profile_name() == "long"
    return settings(
        max_examples=examples * ROUND if long else examples,
        derandomize=not long, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink], report_multiple_bugs=long,
    )  # fmt: skip


def deep(levels, inner="1", opening="[", closing="]"):
    return opening * levels + inner + closing * levels


ODD = ["", "\x00", "a\x00b", "\ud800", "\udc00x", "\udcff", "\u202e", "\ufeff", "\ufffe", "e\u0301", "'", '"', "\\", "\\u0000", "%s", "{}", "../..", "\r\n", "\x1b[0m",
       "9" * 400, "-0", "1e999", "NaN", "null", "k" * 3000, "0000-00-00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]  # fmt: skip
NUMBERS = [0, -1, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 1e300, -1e300, 5e-324, 1e18, 253402300800, -62135596801]
SPECIAL = [*NUMBERS, 10**400, math.nan, math.inf, -math.inf]

texts = st.sampled_from(ODD) | st.text(max_size=12) | st.text(st.characters(), max_size=6)
numbers = st.sampled_from(SPECIAL) | st.integers() | st.floats()


def values(names=texts, leaves=10):
    """Anything that Python makes of JSON, and what JSON has no word for."""
    scalars = st.none() | st.booleans() | numbers | texts
    return st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(names, v, max_size=4), max_leaves=leaves)
