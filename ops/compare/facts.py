"""What is known of versions that are compared over the same records: counts only, gathered in the database. No judgement is made here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STATUS = "(status)"  # ok, skipped, failed: compared like a field
WHOLE = "(output)"  # the whole output: compared like a field


@dataclass(frozen=True, slots=True)
class Sums:
    """What a version noted in the `meta` of its results. `noted`: how many results have the figure. Median and `high`: by the sample."""

    noted: int
    total: float | None
    median: float | None
    high: float | None  # 95 of 100 are below


@dataclass(frozen=True, slots=True)
class Ending:
    """How many results ended so: `failed` by class of error, `skipped` by reason."""

    status: str
    reason: str
    records: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the versions. `results`: its records within the selection, of which the compared ones are those that all versions have."""

    id: int
    name: str
    state: str
    results: int
    statuses: dict[str, int] = field(default_factory=dict)
    cost: Sums | None = None
    tokens_in: Sums | None = None
    tokens_out: Sums | None = None
    latency: Sums | None = None
    endings: tuple[Ending, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A field within one source. The last five count where the truth is known."""

    source: str
    records: int
    equal: int
    truth: int = 0
    both: int = 0
    only_a: int = 0
    only_b: int = 0
    neither: int = 0


@dataclass(frozen=True, slots=True)
class Hits:
    """Of one version against the truth. A value given and true, a value given and not true, a true value not given."""

    tp: int
    fp: int
    fn: int


@dataclass(frozen=True, slots=True)
class Truth:
    """Over records whose true value is known for both versions: who is right. `both + only_a + only_b + neither == records`."""

    records: int
    both: int
    only_a: int
    only_b: int
    neither: int
    a: Hits
    b: Hits


@dataclass(frozen=True, slots=True)
class Change:
    """In so many records A has this value and B that one, as the beginning of their JSON text; None: absent."""

    a: str | None
    b: str | None
    records: int


@dataclass(frozen=True, slots=True)
class Field:
    """One top-level key of the outputs over all compared records. A result without it has the value "absent", like one that is not ok.

    `chance`: the share of records that would have equal values if both versions gave theirs independently of each other, over all values
    (by hash), so kappa = (equal / records - chance) / (1 - chance). It and the four figures before it are judged by `sampled` records.
    """

    name: str
    records: int
    equal: int
    only_a: int  # records in which only A has the field
    only_b: int
    sampled: int
    with_a: int  # records of the sample in which A has it
    with_b: int
    distinct_a: int
    distinct_b: int
    chance: float
    sources: tuple[Cluster, ...] = ()
    changes: tuple[Change, ...] = ()  # the most frequent ones
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """An effect, by its key, as each version wishes it."""

    group: str
    kind: str
    key: str
    target: str
    raw_id: int
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Effects:
    """Wishes by key. `changed`: the same key with another body or target."""

    same: int = 0
    changed: int = 0
    only_a: int = 0
    only_b: int = 0
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Different:
    """A record on which the two differ, with both outputs."""

    raw_id: int
    source: str
    external_id: str
    fields: tuple[str, ...]
    status_a: str
    status_b: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Pair:
    """Two of the versions over the compared records."""

    a: Side
    b: Side
    fields: tuple[Field, ...]
    effects: Effects
    different: tuple[Different, ...] = ()


@dataclass(frozen=True, slots=True)
class Agreement:
    """All versions on one field: mean share of equal pairs, and what chance alone would give (Fleiss)."""

    name: str
    observed: float
    chance: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Exactly the records that each version has a result of, by its newest rerun. Pairs: the first version with each of the others."""

    pipeline: str
    versions: tuple[Side, ...]
    records: int
    selection: dict[str, Any]
    judged_by: str | None  # "reviews", "gold" or None
    judged: int  # compared records of which the truth is known
    pairs: tuple[Pair, ...]
    among: tuple[Agreement, ...] = ()  # three versions or more
    left_out: int = 0  # fields beyond the most frequent ones, of which nothing is counted
    unmatched: int = 0  # rows of the gold file without a compared record

    @property
    def fields(self) -> tuple[Field, ...]:
        """Of the first pair."""
        return self.pairs[0].fields

    @property
    def effects(self) -> Effects:
        """Of the first pair."""
        return self.pairs[0].effects
