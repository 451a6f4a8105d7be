"""Where sources stand, as the database holds it."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson

from worker.core.errors import Misconfigured


async def positions(pool: asyncpg.Pool, source_id: int, lane: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where this lane stands (0 live, 1 backfill), and where the other one does."""
    rows = await pool.fetch(
        "select c.lane, c.position, s.name from tailrace.cursors c join tailrace.sources s on s.id = $1 where source_id = $1", source_id
    )
    found = {row["lane"]: position_of(row["position"], row["name"]) for row in rows}
    return found.get(lane, {}), found.get(1 - lane, {})


def position_of(text: str, source: str) -> dict[str, Any]:
    """A stored position. What is in it is judged by the kind of source. Raises Misconfigured for what is no JSON object."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:  # jsonb holds numbers that nobody else reads
        found = None
    if not isinstance(found, dict):
        hint = "delete its rows in tailrace.cursors: it is then read from its beginning, and nothing is stored twice"
        raise Misconfigured(f"the stored position of {source} is no JSON object that can be read: {text[:80]}", hint)
    return found


def within(position: dict[str, Any], key: str) -> dict[str, Any]:
    """A position inside of another; none where there is something else."""
    found = position.get(key)
    return found if isinstance(found, dict) else {}
