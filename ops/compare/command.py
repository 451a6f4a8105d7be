"""`tailrace compare`: two versions or more over exactly the same records."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from ops import chosen
from ops.chosen import Version
from ops.compare import gold, page, shown
from ops.compare.collect import Chosen, collect
from ops.compare.judged import judged
from ops.db import Connection, connected, rows
from ops.promote import actor
from ops.table import as_json
from worker.core.errors import Misconfigured
from worker.core.settings import Settings


def compare(settings: Settings, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> int:
    """Exit code 1 where no record has a result of each version: there is nothing to compare."""
    expected, loose = gold.read(Path(given.gold)) if given.gold else (None, False)
    with connected(settings) as connection:
        versions = named(connection, given.words)
        sources = chosen.sources_of(connection, given.source)
        since, until = (moment.isoformat() if moment else None for moment in window)
        facts = judged(collect(connection, versions, Chosen(
            since, until, tuple(sources) if sources else None, given.set, _names(given.fields), given.samples, expected, loose, given.save_set, actor(),
        )))  # fmt: skip
    if given.source:
        facts["selection"]["sources"] = given.source
    if given.html:
        _write(Path(given.html), page.page(facts))
    if given.json:
        as_json(facts)
    elif facts["records"]:
        shown.show_all(facts)
    else:
        print(
            f"no record has a result of each of {', '.join(v.name for v in versions)}; `tailrace replay {versions[0].pipeline} {versions[-1].name}` makes them"
        )
    return 0 if facts["records"] else 1


def named(connection: Connection, words: list[str]) -> list[Version]:
    """[PIPELINE] A B [C ...]; A alone is compared with the live version. Raises Misconfigured with the nearest name."""
    known = {r["name"] for r in rows(connection, "select name from tailrace.pipelines")}
    pipeline = chosen.pipeline_of(connection, words[0] if words[0] in known and (len(words) > 1 or len(known) > 1) else None)
    names = words[1:] if words[0] == pipeline and len(words) > 1 else words
    versions = [chosen.find(connection, pipeline, name) for name in names]
    if len(versions) == 1:
        versions.insert(0, chosen.find(connection, pipeline, None))
    return versions


def _names(fields: str | None) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(name.strip() for name in fields.split(",") if name.strip())) if fields is not None else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
