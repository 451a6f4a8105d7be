"""Which version is meant: one that the database knows, or one that only the configuration has yet, which is then registered as a candidate."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.db import Connection, one, rows
from worker import registry
from worker.core import db
from worker.core.config import Loaded
from worker.core.embedded import database_url
from worker.core.errors import Misconfigured, nearest
from worker.core.settings import Settings

_VERSIONS = """select v.*, p.name as pipeline, p.live_version_id from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id
where p.name = %s order by v.id"""


@dataclass(frozen=True, slots=True)
class Version:
    """A row of `versions`, with its pipeline."""

    id: int
    name: str
    pipeline: str
    pipeline_id: int
    state: str
    fingerprint: str
    spec: dict[str, Any]
    wants: list[str]
    live_id: int | None


def pipeline_of(connection: Connection, name: str | None) -> str:
    """The pipeline that is meant; the only one where none is named."""
    known = [r["name"] for r in rows(connection, "select name from tailrace.pipelines order by name")]
    if name is None:
        if len(known) != 1:
            raise Misconfigured("name the pipeline", nearest("", known) if known else "a worker registers them at its start")
        return str(known[0])
    if name not in known:
        raise Misconfigured(f"there is no pipeline {name!r} in the database", nearest(name, known))
    return name


def find(connection: Connection, pipeline: str, name: str | None) -> Version:
    """By name; the live one where none is named. Raises Misconfigured with the nearest name."""
    found = rows(connection, _VERSIONS, [pipeline])
    row = next((r for r in found if r["name"] == name or (name is None and r["id"] == r["live_version_id"])), None)
    if row is None:
        known = [r["name"] for r in found]
        what = f"pipeline {pipeline} has no version {name!r}" if name else f"pipeline {pipeline} has no live version"
        raise Misconfigured(what, nearest(name or "", known) if known else "a worker registers versions at its start")
    wanted = ("id", "name", "pipeline", "pipeline_id", "state", "fingerprint", "spec", "wants")
    return Version(**{k: row[k] for k in wanted}, live_id=row["live_version_id"])


def find_or_register(connection: Connection, settings: Settings, loaded: Loaded, pipeline: str, name: str | None) -> Version:
    """As `find`; a version that only the configuration has is registered as a candidate. No name: the configured one."""
    known = {r["name"] for r in rows(connection, _VERSIONS, [pipeline])}
    if (name is None or name not in known) and pipeline in settings.pipelines:
        made = asyncio.run(_register(settings, loaded, pipeline, name))
        if made is not None:
            return find(connection, pipeline, made)
    return find(connection, pipeline, name)


async def _register(settings: Settings, loaded: Loaded, pipeline: str, name: str | None) -> str | None:
    """The name under which it is registered now; None where the configuration has nothing of that name."""
    folder = loaded.path.parent if loaded.path else Path.cwd()
    async with await db.open_pool(database_url(settings), settings.database, "ops", "tailrace_worker", 2) as pool:
        for _, spec, override in registry.versions_of(settings, pipeline, None):
            quiet = spec.model_copy(update={"promote": "manual"})
            found = registry.find(pipeline, quiet, folder)
            if name in (None, registry.name_of(pipeline, quiet, found, folder)):
                runnable = await registry.register_one(pool, pipeline, quiet, found, override, "ops", folder)
                return runnable.version
    return None


def selection(connection: Connection, given: Any, window: tuple[dt.datetime | None, dt.datetime | None]) -> dict[str, Any]:
    """The records that are meant, as `open_run` takes them. Raises where a source or the set is unknown."""
    spec: dict[str, Any] = {
        "since": window[0], "until": window[1], "failed": given.failed or None, "sources": sources_of(connection, given.source), "set": given.set,
    }  # fmt: skip
    one(connection, "select tailrace.set_id(%s)", [given.set])
    return {k: v.isoformat() if isinstance(v, dt.datetime) else v for k, v in spec.items() if v is not None}


def sources_of(connection: Connection, names: list[str] | None) -> list[int] | None:
    if not names:
        return None
    known = {r["name"]: r["id"] for r in rows(connection, "select name, id from tailrace.sources")}
    for name in names:
        if name not in known:
            raise Misconfigured(f"there is no source {name!r} in the database", nearest(name, known))
    return [known[name] for name in names]


_SAMPLE = """(select coalesce(array_agg(id order by id), '{}') from (
    select r.id from tailrace.raw_records r join tailrace.sources s on s.id = r.source_id and s.name like any (%(wants)s)
    where (%(sources)s::int[] is null or r.source_id = any (%(sources)s)) and (%(since)s::timestamptz is null or r.occurred_at >= %(since)s)
      and (%(until)s::timestamptz is null or r.occurred_at < %(until)s)
      and (%(set)s::text is null or r.id in (select tailrace.set_members(%(set)s)))
    order by hashint8extended(r.id, 7) limit %(size)s::bigint) x)"""


def sample(connection: Connection, version: Version, spec: dict[str, Any], size: int) -> list[int]:
    """So many of the selected records, at random and the same each time."""
    return list(one(connection, f"select {_SAMPLE} as ids", _of_sample(version, spec, size))["ids"])


def freeze(connection: Connection, version: Version, spec: dict[str, Any], size: int | None, name: str, actor: str) -> int:
    """Stores the selected records (or the sample of them) as a set; returns how many. Raises where the name is taken by others (TR040)."""
    if spec.get("failed"):
        raise Misconfigured("which records are failed changes: a set cannot be chosen by that", "leave out --failed or --save-set")
    values = _of_sample(version, spec, size) | {"name": name, "spec": json.dumps(spec | {"sample": size}), "actor": actor}
    return int(one(connection, f"select tailrace.store_set(%(name)s, {_SAMPLE}, %(spec)s, %(actor)s) as n", values)["n"])


def _of_sample(version: Version, spec: dict[str, Any], size: int | None) -> dict[str, Any]:
    return {"wants": version.wants, "size": size} | {k: spec.get(k) for k in ("set", "sources", "since", "until")}
