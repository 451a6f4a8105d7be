"""A comparison as one self-contained page: no script, nothing loaded, every text of others escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ops.compare.charts import COLOURS, Bar, bars, escaped, stack
from ops.compare.words import ends, figure, p_value, percent, said, value

Facts = dict[str, Any]
DIFFERS = ' class="differs"'
_STYLE = """
:root{color-scheme:light dark}body{font:14px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #8886}table{border-collapse:collapse;margin:.6rem 0;font-size:13px}
th,td{padding:.2rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid #8883}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
svg{max-width:100%;height:auto;font-size:12px}svg text{fill:currentColor}svg .tick{opacity:.6;font-size:10px}svg .grid{stroke:currentColor;opacity:.15}
svg .whisker{stroke:currentColor;fill:none;stroke-width:1.5}pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-width:26rem}
tr.differs{background:#e0a33e33}details{margin:.4rem 0}
"""


def page(facts: Facts) -> str:
    names = " and ".join(escaped(v["version"]) for v in facts["versions"])
    title = f"{escaped(facts['pipeline'])}: {names}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>Over the same {facts['records']:,} records.{_remarks(facts)}</p>{_versions(facts)}{''.join(_pair(p, facts) for p in facts['pairs'])}"
        f"{_among(facts)}</body></html>\n"
    )


def _remarks(facts: Facts) -> str:
    said_ = [f"{v['not_compared']:,} more have a result of {escaped(v['version'])} and not of all." for v in facts["versions"] if v["not_compared"]]
    if facts["selection"]:
        said_.append(f"Chosen by {escaped(value(facts['selection']))}.")
    if facts["fields_left_out"]:
        said_.append(f"{facts['fields_left_out']:,} rarer fields are left out.")
    if facts["unmatched"]:
        said_.append(f"{facts['unmatched']:,} rows of the gold file match no compared record.")
    return " " + " ".join(said_)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; those that begin with a digit are set to the right."""
    top = "".join(f"<th>{escaped(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(inside: str) -> str:
    return f'<td class="n">{inside}</td>' if inside[:1].isdigit() else f"<td>{inside}</td>"


def _versions(facts: Facts) -> str:
    figures = [[
        escaped(v["version"]), escaped(v["state"]), *(f"{v['statuses'].get(s, 0):,}" for s in ("ok", "skipped", "failed")),
        *(figure((v[n] or {}).get("per_record"), 4) for n in ("cost", "tokens_in", "tokens_out")),
        figure((v["latency"] or {}).get("median")), figure((v["latency"] or {}).get("high")),
    ] for v in facts["versions"]]  # fmt: skip
    endings = [[escaped(v["version"]), e["status"], escaped(e["reason"]), f"{e['records']:,}"] for v in facts["versions"] for e in v["endings"]]
    head = ("version", "state", "ok", "skipped", "failed", "cost a record", "tokens in", "tokens out", "latency, median", "95 of 100 below")
    return "<h2>Versions</h2>" + _table(head, figures) + (_table(("version", "status", "reason", "records"), endings) if endings else "")


def _pair(pair: Facts, facts: Facts) -> str:
    fields = pair["fields"]
    chart = bars([Bar(f["name"], f["agreement"], f["interval"]) for f in fields])
    rows = [[
        escaped(f["name"]), f"{f['equal']:,} of {f['records']:,}", percent(f["agreement"], 2), ends(f["interval"]), ends(f["interval_by_source"]),
        figure(f["kappa"]), f"{f['only_a']:,}", f"{f['only_b']:,}",
        "<br>".join(f"{escaped(said(c['a']))} &rarr; {escaped(said(c['b']))} ({c['records']:,})" for c in f["changes"][:3]),
    ] for f in fields]  # fmt: skip
    head = ("field", "equal", "agreement", "95 %", "95 %, by source", "kappa", "only A", "only B", "most often")
    truth = f"<h3>Against {escaped(facts['judged_by'])} of {facts['judged']:,} records</h3>{_truth(pair)}" if facts["judged_by"] else ""
    a, b = escaped(pair["a"]), escaped(pair["b"])
    return (
        f"<h2>Agreement: A = {a}, B = {b}</h2>{chart}{_table(head, rows)}{truth}{_effects(pair['effects'])}"
        f"<h3>Most different records</h3>{''.join(map(_different, pair['different'])) or '<p>None.</p>'}"
    )


def _truth(pair: Facts) -> str:
    found = [f for f in pair["fields"] if f["truth"]]
    rates = [
        Bar(f"{f['name']}, {what} {side.upper()}", (r := f["truth"][side][what])["value"], r["interval"], COLOURS[side])
        for f in found for what in ("precision", "recall") for side in "ab"
    ]  # fmt: skip
    rows = [[
        escaped(f["name"]), *(f"{t[n]:,}" for n in ("records", "both", "only_a", "only_b", "neither")), p_value(t["p"]), p_value(t["p_holm"]),
        ends(t["difference_by_source"]),
    ] for f in found if (t := f["truth"])]  # fmt: skip
    head = ("field", "records", "both right", "only A", "only B", "neither", "p (McNemar)", "p (Holm)", "B less A, 95 % by source")
    return bars(rates) + _table(head, rows)


def _effects(effects: Facts) -> str:
    names = {"same": "the same", "changed": "changed", "only_a": "lost (only A)", "only_b": "new (only B)"}
    chart = stack([(name, effects[key], COLOURS[key]) for key, name in names.items()])
    kinds = [[escaped(kind), *(f"{counts[key]:,}" for key in names)] for kind, counts in effects["kinds"].items()]
    samples = [[names[s["group"]], escaped(s["kind"]), escaped(s["key"]), _value(s["a"]), _value(s["b"])] for s in effects["samples"]]
    return (
        f"<h3>Effects, by key</h3>{chart}" + (_table(("kind", *names.values()), kinds) if kinds else "")
        + (_table(("", "kind", "key", "A", "B"), samples) if samples else "")
    )  # fmt: skip


def _value(found: Any) -> str:
    return "<pre>-</pre>" if found is None else f"<pre>{escaped(value(found))}</pre>"


def _different(record: Facts) -> str:
    sides = [record[s] if isinstance(record[s], dict) else {} if record[s] is None else {"(value)": record[s]} for s in "ab"]
    shown = [{"(status)": record[f"status_{s}"]} | side for s, side in zip("ab", sides, strict=True)]
    rows = "".join(
        f"<tr{DIFFERS if name in record['fields'] else ''}><td>{escaped(name)}</td>{''.join(f'<td>{_value(s.get(name))}</td>' for s in shown)}</tr>"
        for name in shown[0] | shown[1]
    )
    what = f"{record['raw_id']}: {escaped(record['source'])} {escaped(record['external_id'])}"
    return f"<details open><summary>{what}</summary><table><tr><th></th><th>A</th><th>B</th></tr>{rows}</table></details>"


def _among(facts: Facts) -> str:
    if not facts["among"]:
        return ""
    rows = [[escaped(a["name"]), percent(a["observed"]), figure(a["kappa"])] for a in facts["among"]]
    return "<h2>All versions together, by a sample</h2>" + _table(("field", "equal pairs", "Fleiss kappa"), rows)
