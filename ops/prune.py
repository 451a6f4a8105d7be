"""`tailrace prune`: results of versions that nobody needs any more, partition by partition. Raw, effects, deliveries and decisions stay."""

from __future__ import annotations

from ops.db import connected, one, rows
from ops.table import as_json, show
from worker.core.settings import Settings

_COLUMNS = ("pipeline", "version", "state", "megabytes", "retired_at", "kept_because")


def prune(settings: Settings, pipeline: str | None, *, json: bool, dry_run: bool) -> int:
    """Drops what `prunable` gives no reason to keep; --dry-run shows all versions with sizes and reasons."""
    with connected(settings) as connection:
        found = rows(
            connection, "select * from tailrace.prunable where %s::text is null or pipeline = %s order by pipeline, version_id", [pipeline] * 2
        )
        for row in found:
            row["megabytes"] = round((row["bytes"] or 0) / 1e6, 1)
            row["pruned"] = False
            if not dry_run and row["kept_because"] is None:
                one(connection, "select tailrace.prune_version(%s) as bytes", [row["version_id"]])
                row["pruned"] = True
    if json:
        as_json(found)
        return 0
    show(found, (*_COLUMNS, "pruned"), indent="")
    freed = sum(row["megabytes"] for row in found if row["kept_because"] is None)
    print(f"{freed:,.1f} MB {'would be' if dry_run else 'were'} freed")
    return 0
