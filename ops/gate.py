"""The regression gate of a promotion: pass, fail, or not enough evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg

from ops.chosen import Version
from ops.compare import facts, gold
from ops.compare.collect import Chosen, collect
from ops.compare.noninferiority import non_inferiority
from ops.db import Connection, one
from worker.core.errors import Misconfigured
from worker.core.specs import GateSpec

Judged = Literal["pass", "fail", "not enough evidence"]
_ORDER: tuple[Judged, ...] = ("pass", "not enough evidence", "fail")
_FAULTS = """select case when count(*) > 0 then coalesce(array_agg(raw_id order by raw_id) filter (where fault), '{}') end as differing,
count(*) filter (where lacking) as lacking from tailrace.set_faults(%s, %s, %s, %s)"""


@dataclass(frozen=True, slots=True)
class TruthCounts:
    """Records of which the right value of a field is known: how many both versions, only live (a), only the new one (b), neither have right."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def records(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither


@dataclass(frozen=True, slots=True)
class EffectCounts:
    """Wished effects by key: with the same body, with another, only by live (a), only by the new one (b)."""

    same: int
    changed: int
    only_a: int
    only_b: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of two versions on the same records; a is live, b the one that wants to be. None: nothing is known."""

    records: int
    fields: Mapping[str, TruthCounts] = field(default_factory=dict)
    effects: EffectCounts | None = None
    cost_a: float | None = None
    cost_b: float | None = None
    differing: tuple[int, ...] | None = None  # raw ids of the frozen set that differ or are wrong
    lacking: int = 0  # records of the frozen set that not both have done


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    wanted: str
    found: str
    verdict: Judged

    @property
    def line(self) -> str:
        return f"{self.verdict}: {self.name}: {self.found}; wanted {self.wanted}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst of its checks: fail, then not enough evidence, then pass."""

    verdict: Literal[Judged, "no gate"]
    lines: tuple[str, ...]
    checks: tuple[Check, ...] = ()


def judge(gate: GateSpec, evidence: Evidence) -> Verdict:
    checks = (
        Check("records", f"at least {gate.min_records:,}", f"{evidence.records:,} done by both", _enough(evidence.records >= gate.min_records)),
        *(_field(name, margin, gate.alpha, evidence.fields.get(name)) for name, margin in gate.fields.items()),
        *_effects(gate, evidence.effects),
        *_cost(gate, evidence),
        *_zero_tolerance(gate, evidence),
    )
    return Verdict(max((c.verdict for c in checks), key=_ORDER.index), tuple(c.line for c in checks), checks)


def no_gate(pipeline: str, version: str, results: int | None) -> Verdict:
    """`results`: how many the version has, for people; None where no version is live, so that there is nothing to compare it with."""
    if results is None:
        return Verdict("no gate", ())
    return Verdict(
        "no gate", (f"{version} has {results:,} results; a table [pipelines.{pipeline}.gate] in the configuration would have them judged",)
    )


def _enough(yes: bool) -> Judged:
    return "pass" if yes else "not enough evidence"


def _field(name: str, margin: float, alpha: float, counts: TruthCounts | None) -> Check:
    wanted = f"shown with {1 - alpha:.0%} confidence to be right at most {margin:.2%} less often than live"
    if counts is None or not counts.records:
        return Check(f"field {name}", wanted, "no record with a known right value that both have done", "not enough evidence")
    found = non_inferiority(counts.only_a, counts.only_b, counts.records, margin, alpha)
    right_a, right_b = counts.both + counts.only_a, counts.both + counts.only_b
    text = f"right {right_b:,} against {right_a:,} of {counts.records:,}, only one right in {counts.only_a + counts.only_b:,}; less often by {found.bound:.2%} at most"
    return Check(f"field {name}", wanted, text, found.verdict)


def _effects(gate: GateSpec, effects: EffectCounts | None) -> Iterator[Check]:
    limits = (("new", gate.most_new_effects, "only_b"), ("lost", gate.most_lost_effects, "only_a"), ("changed", gate.most_changed_effects, "changed"))
    for name, most, counted in limits:
        if most is None:
            continue
        wanted = f"at most {most:.2%} of live's effects"
        if effects is None:
            yield Check(f"{name} effects", wanted, "no effects were compared", "not enough evidence")
            continue
        count, live = getattr(effects, counted), effects.same + effects.changed + effects.only_a
        yield Check(f"{name} effects", wanted, f"{count:,} beside {live:,} of live", "pass" if count <= most * live else "fail")


def _cost(gate: GateSpec, evidence: Evidence) -> Iterator[Check]:
    if gate.most_cost is None:
        return
    wanted, a, b = f"at most {gate.most_cost:g} times live's", evidence.cost_a, evidence.cost_b
    if a is None or b is None:
        yield Check("cost per record", wanted, "the cost of one or both is not known", "not enough evidence")
    else:
        yield Check("cost per record", wanted, f"{b:.6g} against {a:.6g}", "pass" if b <= gate.most_cost * a else "fail")


def _zero_tolerance(gate: GateSpec, evidence: Evidence) -> Iterator[Check]:
    if gate.zero_tolerance is None:
        return
    name, wanted, ids = f"record set {gate.zero_tolerance}", "no record that differs or is wrong", evidence.differing
    if ids:
        shown = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")  # noqa: PLR2004  enough to begin with
        yield Check(name, wanted, f"{len(ids):,}: {shown}", "fail")
    elif ids is None or evidence.lacking:
        yield Check(name, wanted, f"{evidence.lacking:,} of it were not done by both" if evidence.lacking else "it is empty", "not enough evidence")
    else:
        yield Check(name, wanted, "none", "pass")


def of(found: facts.Comparison, differing: tuple[int, ...] | None = None, lacking: int = 0) -> Evidence:
    """The evidence in a comparison of live with the new version. Cost: a record that notes none while others of its version do cost nothing."""
    pair = found.pairs[0]
    truths = {f.name: f.truth for f in pair.fields if f.truth and _said(f.truth)}
    costs = [side.cost.total / found.records if side.cost and side.cost.total is not None and found.records else None for side in (pair.a, pair.b)]
    return Evidence(
        found.records,
        {name: TruthCounts(t.both, t.only_a, t.only_b, t.neither) for name, t in truths.items()},
        EffectCounts(pair.effects.same, pair.effects.changed, pair.effects.only_a, pair.effects.only_b) if found.records else None,
        costs[0],
        costs[1],
        differing,
        lacking,
    )


def _said(truth: facts.Truth) -> bool:
    """Whether anybody, truth or version, ever gave the field a value: where its name is misspelt, all agree that there is none."""
    return any(hits.tp + hits.fp + hits.fn for hits in (truth.a, truth.b))


def evidence(connection: Connection, live: Version, version: Version, gate: GateSpec, folder: Path) -> Evidence:
    """What the database and the gold file (`gate.gold`, relative to `folder`) say of both versions, in one snapshot. Raises Misconfigured."""
    expected, loose = gold.read(folder / gate.gold) if gate.gold else (None, False)
    differing, lacking = None, 0
    try:
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            found = collect(connection, [live, version], Chosen(fields=tuple(gate.fields), samples=0, expected=expected, loose=loose))
            if gate.zero_tolerance:
                faults = one(connection, _FAULTS, [gate.zero_tolerance, live.id, version.id, gate.zero_tolerance_fields or None])
                differing, lacking = None if faults["differing"] is None else tuple(faults["differing"]), faults["lacking"]
    except psycopg.Error as error:
        if error.sqlstate != "TR040":
            raise
        raise Misconfigured(f"zero_tolerance: {error.diag.message_primary}", error.diag.message_hint or "") from error
    return of(found, differing, lacking)
