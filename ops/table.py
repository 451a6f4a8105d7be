"""What commands print: a table for people, JSON for programs."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

WIDEST = 60


def text(value: Any) -> str:
    """One value as people read it."""
    match value:
        case None:
            found = "-"
        case bool():
            found = "yes" if value else "no"
        case float():
            found = f"{value:,.1f}"
        case int():
            found = f"{value:,}"
        case dt.datetime():
            found = value.isoformat(timespec="seconds")
        case dict() | list():
            found = json.dumps(value, ensure_ascii=False, default=str)
        case _:
            found = str(value)
    return found


def show(found: Sequence[dict[str, Any]], columns: Sequence[str] = (), *, indent: str = "  ") -> None:
    """Rows under their names; long values are cut."""
    if not found:
        print(f"{indent}none")
        return
    names = list(columns or found[0])
    cells = [[text(row[n]).replace("\n", " ") for n in names] for row in found]
    cells = [[c if len(c) <= WIDEST else c[: WIDEST - 1] + "…" for c in line] for line in cells]
    widths = [max(len(n), *(len(line[i]) for line in cells)) for i, n in enumerate(names)]
    right = [all(isinstance(row[n], (int, float)) and not isinstance(row[n], bool) for row in found) for n in names]
    for line in [names, *cells]:
        print((indent + "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))).rstrip())


def as_json(value: Any) -> None:
    print(json.dumps(value, default=str, ensure_ascii=False))
