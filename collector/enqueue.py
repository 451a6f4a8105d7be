"""`collector enqueue`: open work for raw records that are stored already; never reads a source."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import asyncpg
import orjson

from collector.progress import Progress
from collector.raw import ROLE, Appender, finish_run
from worker.core import db
from worker.core.errors import Misconfigured, nearest
from worker.core.settings import Settings


async def _version(pool: asyncpg.Pool, pipeline: str | None, version: str | None) -> asyncpg.Record:
    """The version that is meant: of the only pipeline where none is named, the live one where no version is."""
    pipelines = [row["name"] for row in await pool.fetch("select name from tailrace.pipelines order by name")]
    if pipeline is None and len(pipelines) != 1:
        raise Misconfigured("name the pipeline with --pipeline", nearest("", pipelines) if pipelines else "a worker registers them at its start")
    pipeline = pipeline or pipelines[0]
    if pipeline not in pipelines:
        raise Misconfigured(f"there is no pipeline {pipeline!r} in the database", nearest(pipeline, pipelines))
    rows = await pool.fetch(
        "select v.* from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id where p.name = $1 and "
        "case when $2::text is null then v.id = p.live_version_id else true end", pipeline, version,
    )  # fmt: skip
    found = next((row for row in rows if version in (None, row["name"])), None)
    if found is None:
        if version is None:
            raise Misconfigured(f"pipeline {pipeline} has no live version", "name one with --version, or `tailrace promote` one")
        raise Misconfigured(f"pipeline {pipeline} has no version {version!r}", nearest(version, [row["name"] for row in rows]))
    return found


async def _sources(pool: asyncpg.Pool, names: list[str] | None) -> list[int] | None:
    if not names:
        return None
    known = dict(await pool.fetch("select name, id from tailrace.sources"))
    for name in names:
        if name not in known:
            raise Misconfigured(f"there is no source {name!r} in the database", nearest(name, known))
    return [known[name] for name in names]


async def enqueue(settings: Settings, url: str, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> int:
    """Opens the run, steps it to its end and says what it opened."""
    async with await db.open_pool(url, settings.database, "enqueue", ROLE, 2) as pool:
        version = await _version(pool, given.pipeline, given.version or settings.pipeline_version)
        # A retry does what live work would have done; a replay's effects stay intents.
        spec: dict[str, Any] = {
            "lane": 1 if given.failed else 2, "quiet": not given.failed, "failed": given.failed, "force": given.force,
            "since": window[0], "until": window[1],
            "max_records": given.max_records, "sources": await _sources(pool, given.source),
        }  # fmt: skip
        text = orjson.dumps({k: v for k, v in spec.items() if v is not None}).decode()
        if given.dry_run:
            return await _dry(pool, version, text, given)
        run = await pool.fetchval("select tailrace.open_run('replay', $1, $2)", version["id"], text)
        progress = Progress(f"enqueue for {version['name']}")
        row = await finish_run(pool, run, progress.show)
        progress.show(row["records"], last=True)
        appender = Appender(pool, enqueue=True, bells=1000)
        await appender.ring()
        await appender.close()
    facts = {"run": run, "version": version["name"], "opened": row["records"], "skipped": row["skipped"]}
    if given.json:
        print(json.dumps(facts))
    else:
        print(f"run {run}: opened {row['records']} records for version {version['name']}, {row['skipped']} need nothing (done, or open already)")
    return 0


async def _dry(pool: asyncpg.Pool, version: asyncpg.Record, spec: str, given: Any) -> int:
    rows = await pool.fetch("select * from tailrace.count_wanted($1, $2)", version["id"], spec)
    wanted = sum(row["wanted"] for row in rows)
    most = min(wanted, given.max_records) if given.max_records else wanted
    if given.json:
        print(json.dumps({"version": version["name"], "would_open": most, "sources": [dict(row) for row in rows]}))
        return 0
    for row in rows:
        print(f"{row['source']}: {row['matching']} match, {row['wanted']} would be opened")
    print(f"would open {most} records for version {version['name']}; nothing was changed")
    return 0
