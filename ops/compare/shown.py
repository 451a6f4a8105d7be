"""A comparison on a terminal, from what `judged` says."""

from __future__ import annotations

from typing import Any

from ops.compare.words import ends, figure, p_value, percent, said, value, visible
from ops.table import show

Facts = dict[str, Any]


def show_all(facts: Facts) -> None:
    names = [v["version"] for v in facts["versions"]]
    print(f"{facts['pipeline']}: the same {facts['records']:,} records by {' and '.join(names)}")
    for v in facts["versions"]:
        if v["not_compared"]:
            print(f"  {v['not_compared']:,} more have a result of {v['version']} and not of all")
    if facts["fields_left_out"]:
        print(f"  {facts['fields_left_out']:,} rarer fields are left out; --fields names others")
    if facts["unmatched"]:
        print(f"  {facts['unmatched']:,} rows of the gold file match no compared record")
    for pair in facts["pairs"]:
        _pair(pair, facts)
    if facts["among"]:
        print(f"\nall {len(names)} versions (by a sample)")
        show([{"field": visible(a["name"]), "equal pairs": percent(a["observed"]), "Fleiss kappa": figure(a["kappa"])} for a in facts["among"]])
    _versions(facts)


def _pair(pair: Facts, facts: Facts) -> None:
    print(f"\nagreement of A = {pair['a']} and B = {pair['b']}")
    show([{
        "field": visible(f["name"]), "equal": f["equal"], "agreement": percent(f["agreement"]), "95 %": ends(f["interval"]),
        "by source": ends(f["interval_by_source"]), "kappa": figure(f["kappa"]), "only A": f["only_a"], "only B": f["only_b"],
        "most often": _change(f["changes"]),
    } for f in pair["fields"]])  # fmt: skip
    if facts["judged_by"]:
        print(f"against {facts['judged_by']} of {facts['judged']:,} records")
        _truth(pair)
    effects = pair["effects"]
    print(f"effects by key: {effects['same']:,} the same, {effects['changed']:,} changed, {effects['only_a']:,} lost, {effects['only_b']:,} new")
    for s in effects["samples"]:
        word = {"only_a": "lost", "only_b": "new"}.get(s["group"], "changed")
        print(f"  {word:8}{visible(s['key'])}: " + " -> ".join(value(body)[:200] for body in (s["a"], s["b"]) if body is not None))
    for d in pair["different"]:
        print(f"record {d['raw_id']} ({visible(d['source'])} {visible(d['external_id'])}) differs in {', '.join(map(visible, d['fields']))}")
        for side in "ab":
            print(f"  {side.upper()} {d[f'status_{side}']}: {value(d[side])[:400]}")


def _change(changes: list[Facts]) -> str:
    return f"{said(changes[0]['a'])} -> {said(changes[0]['b'])} ({changes[0]['records']:,})" if changes else ""


def _truth(pair: Facts) -> None:
    show([{
        "field": visible(f["name"]), "records": t["records"], "both right": t["both"], "only A": t["only_a"], "only B": t["only_b"], "neither": t["neither"],
        "p": p_value(t["p"]), "p (Holm)": p_value(t["p_holm"]), **{
            f"{what} {side.upper()}": percent(t[side][what]["value"]) for what in ("precision", "recall") for side in "ab"},
    } for f in pair["fields"] if (t := f["truth"])])  # fmt: skip


def _versions(facts: Facts) -> None:
    print("\nper record")
    show([{
        "version": v["version"], **{s: v["statuses"].get(s, 0) for s in ("ok", "skipped", "failed")},
        **{n: figure((v[n] or {}).get("per_record"), 4) for n in ("cost", "tokens_in", "tokens_out")},
        "latency": figure((v["latency"] or {}).get("median")), "95 of 100 below": figure((v["latency"] or {}).get("high")),
    } for v in facts["versions"]])  # fmt: skip
    endings = [{"version": v["version"], **e, "reason": visible(e["reason"])} for v in facts["versions"] for e in v["endings"]]
    if endings:
        show(endings)
