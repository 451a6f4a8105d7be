"""A backfill that keeps failing is reported to a tracker, as an effect like any other: kept always, let out only by an open gate."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import orjson

from collector.history import Report
from worker.core.settings import Settings
from worker.core.texts import as_json

_WISH = "select tailrace.wish_report($1, $2, $3, $4, $5)"
_OPEN = "select tailrace.open_report($1, $2)"


class Reporter:
    """One open issue per source: opened by the first failed run, told of the next ones, closed by one that works. Off without `collector.report`."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self._pool = pool
        self._kind = settings.collector.report
        self._spec = settings.effects.get(self._kind) if self._kind else None

    async def tell(self, report: Report) -> None:
        """What came of one run; nothing is said of runs that were only interrupted."""
        if self._kind is None or report.run is None or not (report.error or report.finished):
            return
        name, title = f"backfill:{report.source}", f"The backfill of {report.source} fails"
        if report.error:
            errors = json.dumps(report.errors[-10:], indent=1)
            text = f"{report.error}\n\nRun {report.run} stopped after {report.seen} records. Its last errors:\n\n```json\n{errors}\n```"
            last = report.errors[-1]["chunk"] if report.errors else 0
            await self._wish(f"{name}:run-{report.run}:chunk-{last}", {"title": title, "body": text, "fingerprint": name})
        elif await self._pool.fetchval(_OPEN, self._kind, name):
            text = f"Run {report.run} came to its end: {report.seen} records read, {report.appended} of them new."
            await self._wish(f"{name}:run-{report.run}:works", {"title": title, "body": text, "fingerprint": name, "close": True})

    async def _wish(self, key: str, body: dict[str, Any]) -> None:
        gate = {"policy": self._spec.policy or "never_twice", "hold": self._spec.hold} if self._spec and self._spec.open else None
        told = None if gate is None else orjson.dumps(gate).decode()
        await self._pool.fetchval(_WISH, self._kind, key, "", as_json(body), told)
