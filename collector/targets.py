"""Which sources a backfill reads that names none: those that are large and not yet complete. Each choice has its reason."""

from __future__ import annotations

import asyncpg

from collector.breaker import Breaker, Breakers
from collector.sources import Chunked, Fetched, Source, Window
from worker.core.settings import CollectorSettings
from worker.core.texts import said

_STORED = """select (select count(*) from tailrace.raw_records r where r.source_id = s.id and r.revision = 1),
  coalesce(c.position -> 'history', '{}') <> '{}' or coalesce(c.position -> 'window', '{}') <> '{}'
from tailrace.sources s left join tailrace.cursors c on c.source_id = s.id and c.lane = 1 where s.name = $1"""


async def judge(source: Source, pool: asyncpg.Pool, settings: CollectorSettings) -> tuple[bool, str]:
    """(whether to read it, why)."""
    if not isinstance(source, Chunked):
        return (True, "its size is not known beforehand") if isinstance(source, Fetched) else (False, "it has no history that can be read")
    row = await pool.fetchrow(_STORED, source.name)
    stored, begun = tuple(row) if row else (0, False)
    if begun:
        return True, "its backfill was interrupted"
    return _weigh(stored, await _total(source, source, pool), settings)


def _weigh(stored: int, total: int | str | None, settings: CollectorSettings) -> tuple[bool, str]:
    if not isinstance(total, int):
        return True, f"it could not be asked for its size: {total}" if total else f"it does not tell its size; {stored} are stored"
    if total < settings.backfill_min_records:
        return False, f"it has {total} records, less than {settings.backfill_min_records} (collector.backfill_min_records)"
    share = f"{stored} of {total} are stored, {stored / max(total, 1):.0%}"
    if stored >= total * settings.backfill_complete:
        return False, f"{share} (collector.backfill_complete is {settings.backfill_complete:.0%})"
    return True, share


async def _total(source: Source, chunked: Chunked, pool: asyncpg.Pool) -> int | str | None:
    """How many records there are; a text where asking failed: the backfill itself then meets the same, and says so."""
    breaker = Breaker(Breakers(pool), source)
    if await breaker.wait() != 0:
        return "it is held back at present"
    try:
        page = await chunked.chunk({}, 1, Window())
    except Exception as error:  # noqa: BLE001  whatever a client library raises
        return said(error)
    await breaker.worked(page)
    return page.total
