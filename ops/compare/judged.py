"""From counts to statements: intervals, kappa, tests. What `tailrace compare --json` prints, and what the other two forms show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ops.compare import bootstrap
from ops.compare.agreement import beyond_chance
from ops.compare.binomial import Interval, holm, mcnemar, wilson
from ops.compare.facts import Cluster, Comparison, Field, Hits, Pair, Side, Sums
from ops.compare.truth import Rate, score

_BUNDLES = 250  # more sources are drawn in so many bundles of sources


def judged(found: Comparison) -> dict[str, Any]:
    """All of a comparison as JSON can hold it. Rates are shares of 1, intervals [low, high] at 95 %."""
    return {
        "pipeline": found.pipeline, "records": found.records, "selection": found.selection,
        "versions": [_side(side, found.records) for side in found.versions],
        "judged_by": found.judged_by, "judged": found.judged, "unmatched": found.unmatched, "fields_left_out": found.left_out,
        "pairs": [_pair(pair) for pair in found.pairs],
        "among": [asdict(a) | {"kappa": beyond_chance(a.observed, a.chance)} for a in found.among],
    }  # fmt: skip


def _side(side: Side, records: int) -> dict[str, Any]:
    figures = {n: _sums(getattr(side, n), records) for n in ("cost", "tokens_in", "tokens_out", "latency")}
    return {
        "version": side.name, "state": side.state, "results": side.results, "not_compared": side.results - records,
        "statuses": side.statuses, **figures, "endings": [asdict(e) for e in side.endings],
    }  # fmt: skip


def _sums(sums: Sums | None, records: int) -> dict[str, Any] | None:
    if sums is None or not records:
        return None
    return asdict(sums) | {"per_record": None if sums.total is None else sums.total / records}


def _pair(pair: Pair) -> dict[str, Any]:
    fields = [_field(f) for f in pair.fields]
    tested = [f["truth"] for f in fields if f["truth"]]
    for truth, p in zip(tested, holm([t["p"] for t in tested]), strict=True):
        truth["p_holm"] = p
    return {
        "a": pair.a.name, "b": pair.b.name, "fields": fields, "effects": asdict(pair.effects), "different": [asdict(d) for d in pair.different],
    }  # fmt: skip


def _field(field: Field) -> dict[str, Any]:
    share = field.equal / field.records
    clusters = _bundled(field.sources)
    plain = asdict(field)
    del plain["sources"], plain["truth"]
    return plain | {
        "agreement": share, "interval": _ends(wilson(field.equal, field.records)), "sources": len(field.sources),
        "interval_by_source": _ends(bootstrap.agreement([(c.records, c.equal) for c in clusters])),
        "kappa": beyond_chance(share, field.chance), "truth": _truth(field, clusters),
    }  # fmt: skip


def _truth(field: Field, clusters: list[Cluster]) -> dict[str, Any] | None:
    truth = field.truth
    if truth is None or not truth.records:
        return None
    by_source = bootstrap.difference([(c.truth, c.both + c.only_a, c.both + c.only_b) for c in clusters])
    return {
        "records": truth.records, "both": truth.both, "only_a": truth.only_a, "only_b": truth.only_b, "neither": truth.neither,
        "right_a": (truth.both + truth.only_a) / truth.records, "right_b": (truth.both + truth.only_b) / truth.records,
        "difference_by_source": _ends(by_source), "p": mcnemar(truth.only_a, truth.only_b), "a": _score(truth.a), "b": _score(truth.b),
    }  # fmt: skip


def _score(hits: Hits) -> dict[str, Any]:
    found = score(hits.tp, hits.fp, hits.fn)
    return asdict(hits) | {"precision": _rate(found.precision), "recall": _rate(found.recall), "f1": _rate(found.f1)}


def _rate(rate: Rate) -> dict[str, Any]:
    return {"value": rate.value, "interval": _ends(rate.interval)}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _bundled(sources: tuple[Cluster, ...]) -> list[Cluster]:
    """Thousands of sources in bundles: their sums are what is drawn, which is as honest and bounded."""
    if len(sources) <= _BUNDLES:
        return list(sources)
    numbers = ("records", "equal", "truth", "both", "only_a", "only_b", "neither")
    return [Cluster(str(i), **{n: sum(getattr(c, n) for c in sources[i::_BUNDLES]) for n in numbers}) for i in range(_BUNDLES)]
