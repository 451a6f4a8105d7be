"""`collector backfill`: chooses sources, reads their histories side by side under what they may use together, and says what came of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import signal
import sys
from dataclasses import asdict
from typing import Any

import asyncpg

from collector.backfiller import Backfill
from collector.history import Report
from collector.raw import ROLE, register
from collector.sources import Closing, Source
from collector.sources.building import build
from collector.targets import judge
from worker.core import db, options, service
from worker.core.settings import Settings

LARGEST = 256_000_000  # bytes of a page whose records were counted by --chunk-size


async def backfill(settings: Settings, url: str, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> int:
    """Exit code 0, or 3 when a source failed; 130 when it was interrupted: the next run goes on from there."""
    if given.chunk_size:
        size = {"page_records": given.chunk_size, "page_bytes": max(settings.collector.page_bytes, LARGEST)}
        settings = settings.model_copy(update={"collector": settings.collector.model_copy(update=size)})
    sources = build(settings, given.source)
    async with await db.open_pool(url, settings.database, "backfill", ROLE, 4 + given.parallel, read_only=given.dry_run) as pool:
        ids = await _ids(pool, settings, given, sources)
        run = Backfill(pool, settings, given, *window)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, run.stop.set)
        reports = await _all(run, settings, pool, sources, ids, given)
        await run.close()
    return _print(reports, given, stopped=run.stop.is_set())


async def _ids(pool: asyncpg.Pool, settings: Settings, given: Any, sources: dict[str, Source]) -> dict[str, int]:
    if given.dry_run:
        return dict(await pool.fetch("select name, id from tailrace.sources"))
    return await register(pool, settings, list(sources))


async def _all(
    run: Backfill, settings: Settings, pool: asyncpg.Pool, sources: dict[str, Source], ids: dict[str, int], given: Any
) -> list[Report]:  # fmt: skip
    """Those that are named, else those that need it, `--parallel` at a time."""
    reports: list[Report] = []
    places = asyncio.Semaphore(given.parallel)

    async def one(source: Source) -> None:
        async with places:
            if run.stop.is_set():
                return
            chosen, why = (True, "it was named") if given.source else await judge(source, pool, settings.collector)
            if not chosen:
                print(f"{source.name} is left out: {why}", file=sys.stderr)
                if isinstance(source, Closing):
                    await source.aclose()
                reports.append(Report(source.name, finished=True, why=f"left out: {why}"))
                return
            run.allowed.sharers += 1
            report = await run.run(source, ids.get(source.name))
            run.allowed.sharers -= 1
            report.why = why
            reports.append(report)
            if given.force_enqueue and not given.dry_run:
                report.reopened = await run.reopen(ids[source.name])

    done = asyncio.Event()
    renewing = asyncio.create_task(service.run("turns", run.turns.step, done))
    try:
        await asyncio.gather(*(one(source) for source in sources.values()))
    finally:
        done.set()
        await renewing
    return reports


def _print(reports: list[Report], given: Any, *, stopped: bool) -> int:
    if given.json:
        print(json.dumps([asdict(r) for r in reports]))
    else:
        for r in reports:
            if not r.why.startswith("left out"):
                print(_line(r, "would store" if given.dry_run else "stored"))
    if stopped:
        return options.INTERRUPTED
    return options.PARTLY if any(r.error for r in reports) else options.OK


def _line(r: Report, stored: str) -> str:
    of = f" of {r.total}" if r.total is not None else ""
    again = f", {r.reopened} opened again" if r.reopened else ""
    tried = f", {len(r.errors)} chunks tried again" if r.errors and not r.error else ""
    end = f"; FAILED: {r.error}" if r.error else "" if r.finished else "; there is more to read"
    return (
        f"{r.source}: {r.seen}{of} read, {stored} {r.appended}, {r.unchanged} known, {r.stale} outdated, {r.defects} with a defect, "
        f"{r.jobs} jobs{again}{tried}{end}"
    )
