"""The gate of a promotion: what it makes of evidence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ops.compare import facts
from ops.gate import EffectCounts, Evidence, TruthCounts, judge, of
from worker.core.errors import Misconfigured
from worker.core.settings import read
from worker.core.specs import GateSpec

GOOD = TruthCounts(both=1900, only_a=10, only_b=12, neither=78)
WORSE = TruthCounts(both=1700, only_a=150, only_b=10, neither=140)
FEW = TruthCounts(both=30, only_a=1, only_b=1, neither=0)
UNSURE = "not enough evidence"
ALL = {
    "fields": {"category": 0.02},
    "most_new_effects": 0.01,
    "most_lost_effects": 0.0,
    "most_changed_effects": 0.05,
    "most_cost": 1.5,
    "zero_tolerance": "golden",
}
FINE = {
    "records": 2000,
    "fields": {"category": GOOD},
    "effects": EffectCounts(same=950, changed=50, only_a=0, only_b=10),
    "cost_a": 0.01,
    "cost_b": 0.015,
    "differing": (),
}


def verdict(gate, **evidence):
    return judge(GateSpec(**gate), Evidence(**(FINE | evidence)))


def named(found):
    return {c.name: c.verdict for c in found.checks}


def test_all_checks_pass_at_their_limits():
    found = verdict(ALL)
    assert found.verdict == "pass"
    assert named(found) == dict.fromkeys(
        ("records", "field category", "new effects", "lost effects", "changed effects", "cost per record", "record set golden"), "pass"
    )
    assert len(found.lines) == 7
    assert "right 1,912 against 1,910 of 2,000, only one right in 22" in found.lines[1]


@pytest.mark.parametrize(
    ("evidence", "check", "expected"),
    [
        ({"records": 99}, "records", UNSURE),
        ({"fields": {}}, "field category", UNSURE),
        ({"fields": {"category": TruthCounts(0, 0, 0, 0)}}, "field category", UNSURE),
        ({"fields": {"category": FEW}}, "field category", UNSURE),
        ({"fields": {"category": WORSE}}, "field category", "fail"),
        ({"effects": None}, "new effects", UNSURE),
        ({"effects": EffectCounts(950, 50, 0, 11)}, "new effects", "fail"),
        ({"effects": EffectCounts(999, 0, 1, 0)}, "lost effects", "fail"),
        ({"effects": EffectCounts(949, 51, 0, 0)}, "changed effects", "fail"),
        ({"effects": EffectCounts(0, 0, 0, 1)}, "new effects", "fail"),
        ({"effects": EffectCounts(0, 0, 0, 0)}, "new effects", "pass"),
        ({"cost_a": None}, "cost per record", UNSURE),
        ({"cost_b": None}, "cost per record", UNSURE),
        ({"cost_b": 0.0151}, "cost per record", "fail"),
        ({"cost_a": 0.0, "cost_b": 0.0}, "cost per record", "pass"),
        ({"cost_a": 0.0, "cost_b": 0.1}, "cost per record", "fail"),
        ({"differing": None}, "record set golden", UNSURE),
        ({"differing": (7,)}, "record set golden", "fail"),
        ({"lacking": 3}, "record set golden", UNSURE),
        ({"differing": (7,), "lacking": 3}, "record set golden", "fail"),
    ],
)
def test_one_check_decides(evidence, check, expected):
    found = verdict(ALL, **evidence)
    assert named(found)[check] == expected
    assert found.verdict == expected


def test_fail_is_worse_than_not_enough_evidence():
    assert verdict(ALL, cost_a=None, differing=(7,)).verdict == "fail"
    assert verdict(ALL, records=0, fields={}, effects=None, cost_a=None, differing=None).verdict == UNSURE


def test_only_what_is_asked_is_checked():
    found = verdict({"most_cost": 2}, fields={}, effects=None, differing=None)
    assert (found.verdict, list(named(found))) == ("pass", ["records", "cost per record"])
    assert verdict({"most_cost": 2, "min_records": 3000}).verdict == UNSURE


def test_many_differing_records_are_cut_short():
    line = verdict(ALL, differing=tuple(range(500))).lines[-1]
    assert "0, 1, 2" in line
    assert len(line) < 150


maybe = st.one_of(st.none(), st.floats(0, 2))
small = st.integers(0, 60)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.builds(TruthCounts, small, small, small, small), st.one_of(st.none(), st.builds(EffectCounts, small, small, small, small)), maybe, maybe)
def test_the_verdict_is_the_worst_of_the_checks(counts, effects, cost_a, cost_b):
    found = verdict(ALL, records=counts.records, fields={"category": counts}, effects=effects, cost_a=cost_a, cost_b=cost_b)
    said = [c.verdict for c in found.checks]
    assert found.verdict == ("fail" if "fail" in said else UNSURE if UNSURE in said else "pass")
    assert found == verdict(ALL, records=counts.records, fields={"category": counts}, effects=effects, cost_a=cost_a, cost_b=cost_b)


def test_a_gate_has_to_ask_something_and_to_ask_it_right():
    for wrong in ({}, {"alpha": 0.05}, {"fields": {"x": 0}}, {"fields": {"x": -0.1}}, {"most_cost": 1, "alpha": 0.9}, {"most_cost": -1}, {"most": 1}):
        with pytest.raises(ValidationError):
            GateSpec(**wrong)


def test_the_configuration_of_a_gate(tmp_path):
    file = tmp_path / "tailrace.toml"
    file.write_text('[pipelines.p]\nprocessor = "echo"\n[pipelines.p.gate]\nfields = { category = 0.02 }\nmost_cost = 2\n')
    settings, _ = read({"TAILRACE_PIPELINES__P__GATE__ALPHA": "0.01"}, tmp_path)
    asked = settings.pipelines["p"].gate
    assert (asked.fields, asked.alpha, asked.most_cost) == ({"category": 0.02}, 0.01, 2)
    assert settings.pipelines["p"].promote == "manual"
    file.write_text('[pipelines.p]\nprocessor = "echo"\n[pipelines.p.gate]\nmost_costs = 2\n')
    with pytest.raises(Misconfigured) as refused:
        read({}, tmp_path)
    assert "most_cost" in refused.value.hint
    file.write_text('[pipelines.p]\nprocessor = "echo"\n[pipelines.p.gate]\nalpha = 0.01\n')
    with pytest.raises(Misconfigured, match="lets everything through"):
        read({}, tmp_path)
    file.write_text('[pipelines.p]\nprocessor = "echo"\npromote = "on_start"\n[pipelines.p.gate]\nmost_cost = 1\n')
    with pytest.raises(Misconfigured, match="goes around the gate"):
        read({}, tmp_path)
    file.write_text('[pipelines.p]\nprocessor = "echo"\npromote = "shadow"\n[pipelines.p.gate]\nmost_cost = 1\n')
    assert read({}, tmp_path)[0].pipelines["p"].promote == "shadow"


def compared(records, cost_a, cost_b):
    hits, none = facts.Hits(1910, 50, 90), facts.Hits(0, 0, 0)
    misspelt = facts.Truth(2000, 2000, 0, 0, 0, none, none)
    truth = facts.Truth(2000, 1900, 10, 12, 78, hits, hits)
    fields = tuple(
        facts.Field(n, records, records, 0, 0, records, 0, 0, 1, 1, 1.0, truth=t)
        for n, t in (("category", truth), ("other", None), ("categry", misspelt))
    )
    a, b = (facts.Side(i, f"v{i}", "live", records, cost=c) for i, c in ((1, cost_a), (2, cost_b)))
    return facts.Comparison("p", (a, b), records, {}, "gold", 2000, (facts.Pair(a, b, fields, facts.Effects(950, 50, 0, 10)),))


def test_the_evidence_in_a_comparison():
    found = of(compared(2000, facts.Sums(2000, 20.0, 0.01, 0.01), facts.Sums(1500, 30.0, 0.02, 0.02)), ())
    assert found == Evidence(**FINE)
    unknown = of(compared(2000, None, facts.Sums(3, None, None, None)))
    assert (unknown.cost_a, unknown.cost_b, unknown.differing) == (None, None, None)
    nothing = of(compared(0, facts.Sums(0, 0.0, None, None), None))
    assert (nothing.records, nothing.effects, nothing.cost_a) == (0, None, None)


def test_config_shows_a_gate_as_it_is(tailrace, tmp_path):
    (tmp_path / "tailrace.toml").write_text('[pipelines.p]\nprocessor = "echo"\n[pipelines.p.gate]\nfields = { category = 0.02 }\nmost_cost = 1.25\n')
    shown = {line.split()[0]: line.split() for line in tailrace("config").out.splitlines() if ".gate." in line}
    assert shown["pipelines.p.gate.alpha"][1:3] == ["0.05", "default"]
    assert shown["pipelines.p.gate.most_cost"][1] == "1.25"
    origins = {row["setting"]: row["origin"] for row in tailrace("config", "--json").value}
    assert origins["pipelines.p.gate.fields"] == str(tmp_path / "tailrace.toml")
