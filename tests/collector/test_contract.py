"""The contract that every kind of source keeps: history, news, restart anywhere, edits, deletions, limits, an end when asked."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from collector import live
from collector.backfiller import Backfill
from collector.raw import register
from collector.sources import Fetched, Healing, Polled, Tailed
from collector.sources.building import build
from tests.collector.contract import SHARED, subjects
from worker.core.settings import Settings

NEWEST = """
select distinct on (external_id) external_id, revision, op, coalesce(payload::text, '') as payload
from tailrace.raw_records order by external_id, revision desc"""


@pytest.fixture(params=subjects(), ids=lambda s: f"{s.kind}{' at its stand-in' if s.shared else ''}")
async def subject(request, tmp_path):
    """Started, with records."""
    if request.param.shared and not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which is absent")
    (tmp_path / "subject").mkdir()
    made = request.param(tmp_path / "subject")
    await made.start()
    yield made
    await made.stop()


class World:
    """The source of the subject, read into a database by the programs themselves."""

    def __init__(self, subject, pool, url):
        self.subject, self.pool, self.url = subject, pool, url

    def settings(self, **collector):
        fast = {"port": 0, "poll_seconds": 0.05, "touch_seconds": 0.1, "heal_seconds": 1.0, "overlap": 86400 * 400}
        return Settings(sources={self.subject.name(): self.subject.spec()}, collector=fast | collector)

    async def backfill(self, **given):
        settings = self.settings(**({"page_records": given["chunk_size"]} if "chunk_size" in given else {}))
        source = build(settings)[self.subject.name()]
        ids = await register(self.pool, settings, [source.name])
        asked = {"max_records": None, "max_chunks": None, "chunk_size": None, "dry_run": False, "force_enqueue": False, "max_minutes": None} | given
        run = Backfill(self.pool, settings, SimpleNamespace(**asked), None, None)
        report = await run.run(source, ids[source.name])
        await run.close()
        assert not report.error, report
        return report

    @contextlib.asynccontextmanager
    async def live(self):
        settings = self.settings()
        program = live.Live(settings, build(settings))
        task = asyncio.create_task(program.run(self.url))
        try:
            yield program
        finally:
            program.stop.set()
            await asyncio.wait_for(task, 30)

    async def newest(self):
        return {r["external_id"]: r for r in await self.pool.fetch(NEWEST)}

    async def agrees(self):
        """Whether raw's newest revisions are what the source holds."""
        truth = await self.subject.truth()
        there = {k: r for k, r in (await self.newest()).items() if r["op"] != "delete"}
        return there.keys() == truth.keys() and all(text in there[key]["payload"] for key, text in truth.items())

    async def twice(self):
        """Records stored although nothing had changed."""
        return await self.pool.fetch(
            "select external_id from (select external_id, digest, lag(digest) over (partition by external_id order by revision) as before "
            "from tailrace.raw_records) r where digest = before"
        )


@pytest.fixture
def world(subject, pool, db_url):
    return World(subject, pool, db_url)


async def test_a_source_says_how_it_is_read(world):
    (source,) = build(world.settings()).values()
    assert isinstance(source, Tailed | Polled | Healing | Fetched) or hasattr(source, "routes")
    assert source.describe()
    assert isinstance(source.exclusive, tuple)
    assert isinstance(source.limits, tuple)


async def test_the_whole_history_is_read_once(world):
    if not world.subject.history:
        pytest.skip("has no history")
    await world.backfill()
    assert await world.agrees()
    again = await world.backfill()
    assert again.appended == 0


async def test_a_history_that_ends_anywhere_goes_on_from_there(world):
    if not world.subject.history:
        pytest.skip("has no history")
    for _ in range(100):
        report = await world.backfill(chunk_size=7, max_chunks=1)
        assert report.seen <= 7
        if report.finished:
            break
    assert await world.agrees()
    assert not await world.twice()


async def test_news_come_while_it_runs_and_after_a_restart(world, eventually):
    if world.subject.history:
        await world.backfill()
    async with world.live():
        await eventually(world.agrees, 40)
        await world.subject.post(3)
        await eventually(world.agrees, 40)
    await world.subject.post(5)
    async with world.live():
        await eventually(world.agrees, 40)
        await world.subject.post(1)
        await eventually(world.agrees, 40)
    assert not await world.twice()


async def test_an_edit_is_one_revision_and_a_deletion_one_tombstone(world, eventually):
    if world.subject.history:
        await world.backfill()
    async with world.live():
        edited, deleted, kept = (await world.subject.post(3))[:3]
        await eventually(world.agrees, 40)
        if world.subject.edits:
            await world.subject.edit(edited)
        if world.subject.deletions:
            await world.subject.delete(deleted)
        await eventually(world.agrees, 40)
    newest = await world.newest()
    assert newest[edited]["revision"] == 1 + world.subject.edits
    assert (newest[deleted]["revision"], newest[deleted]["op"]) == ((2, "delete") if world.subject.deletions else (1, "create"))
    assert newest[kept]["revision"] == 1


async def test_what_changed_while_nobody_looked_is_found(world, eventually):
    if world.subject.history:
        await world.backfill()
    async with world.live():
        edited, deleted, kept = (await world.subject.post(3))[:3]
        await eventually(world.agrees, 40)
    if world.subject.edits:
        await world.subject.edit(edited)
    if world.subject.deletions:
        await world.subject.delete(deleted)
    await world.subject.post(2)
    async with world.live():
        await eventually(world.agrees, 40)
    newest = await world.newest()
    assert newest[kept]["revision"] == 1
    assert not await world.twice()


async def test_a_limit_is_waited_out(world, eventually):
    if not world.subject.limits:
        pytest.skip("nobody limits it")
    if world.subject.history:
        await world.backfill()
    async with world.live():
        await eventually(world.agrees, 40)
        await world.subject.limit(2)
        await world.subject.post(2)
        held = "select max(reason) from tailrace.quotas where name in ($1, $1 || ' catch-up')"
        await eventually(lambda: world.pool.fetchval(held, f"source:{world.subject.name()}"), 40)
        await eventually(world.agrees, 40)


async def test_it_ends_when_asked(world):
    for _ in range(3):
        async with world.live():
            pass
    assert not await world.twice()
