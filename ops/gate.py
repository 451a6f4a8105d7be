"""The regression gate of a promotion: pass, fail, or not enough evidence."""

from __future__ import annotations

from typing import Any

from ops.chosen import Version
from ops.db import Connection, one


def judge(connection: Connection, live: Version | None, version: Version) -> dict[str, Any]:
    """What is said to `version` in place of `live`; here only how many records of it are there, for people."""
    found = one(connection, "select count(*) as results from tailrace.results where version_id = %s", [version.id])
    return {"verdict": "no gate", "lines": [f"{version.name} has {found['results']:,} results"] if live else []}
