"""The running collector: follows, survives, shares, stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import BaseModel

from collector import live
from collector.record import Builder, RecordOptions
from collector.sources import Page, source
from collector.sources.building import build
from worker.core.settings import Settings

FAST = {"port": 0, "poll_seconds": 0.02, "touch_seconds": 0.05}


class Options(BaseModel):
    pass


@source("broken", Options)
class Broken:
    caught_up, exclusive, exclusive_history, limits = False, (), (), ()

    def __init__(self, name, _options, _settings):
        self.name = name

    def describe(self):
        return "fails"

    async def tail(self, position, _stop):
        if position is not None:
            raise RuntimeError("dead")
        yield Page([])


@contextlib.asynccontextmanager
async def running(settings, url):
    program = live.Live(settings, build(settings))
    task = asyncio.create_task(program.run(url))
    try:
        yield program
    finally:
        program.stop.set()
        await asyncio.wait_for(task, 20)


@pytest.fixture
def settings(inbox):
    def make(**more):
        collector = FAST | more.pop("collector", {})
        own = inbox.settings()
        return own.model_copy(update={"collector": own.collector.model_copy(update=collector), **more})

    return make


@pytest.fixture
def ids(inbox):
    async def read():
        return sorted(int(r["external_id"]) for r in await inbox.raw())

    return read


async def test_lines_are_followed_through_growth_rotation_and_truncation(inbox, settings, db_url, ids, eventually):
    path = inbox.folder / "a.jsonl"
    inbox.options["path"] = str(path)
    async with running(settings(), db_url):
        inbox.write("a.jsonl", {"id": 1})
        await eventually(lambda: has(ids, 1))
        with path.open("a") as file:
            file.write('{"id": 2}\n{"id": 3')
            file.flush()
            await eventually(lambda: has(ids, 2))
            path.rename(inbox.folder / "old.1")
            inbox.write("a.jsonl", {"id": 4})
            await eventually(lambda: has(ids, 3))
            file.write("33}\n")
        await eventually(lambda: has(ids, 4))
        with path.open("r+") as file:
            file.truncate(0)
        inbox.write("a.jsonl", {"id": 5}, mode="a")
        await eventually(lambda: has(ids, 5))
    assert await ids() == [1, 2, 4, 5, 333]


async def has(ids, count):
    return len(await ids()) == count


async def test_a_database_that_drops_every_session_loses_and_repeats_nothing(inbox, settings, db_url, pool, ids, seen, eventually):
    name = urlsplit(db_url).path[1:]
    async with running(settings(collector={"page_records": 50}), db_url):
        for part in range(5):
            inbox.write("a.jsonl", *({"id": part * 1000 + n} for n in range(1000)), mode="a")
            await eventually(lambda part=part: at_least(ids, part * 1000 + 100))
            await pool.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and application_name = 'tailrace collector'", name
            )
        await eventually(lambda: has(ids, 5000))
    assert await ids() == list(range(5000))


async def at_least(ids, count):
    return len(await ids()) >= count


async def test_two_collectors_of_one_source_store_each_record_once(inbox, settings, db_url, ids, eventually):
    many = settings(collector={"page_records": 20})
    async with running(many, db_url), running(many, db_url):
        for part in range(4):
            inbox.write("a.jsonl", *({"id": part * 300 + n} for n in range(300)), mode="a")
            await eventually(lambda part=part: has(ids, part * 300 + 300))
    assert await ids() == list(range(1200))


async def test_a_dead_source_holds_up_no_other_and_says_so(inbox, settings, db_url, ids, seen, eventually):
    own = settings()
    both = Settings(sources={"dead": {"kind": "broken"}, **{n: s.model_dump() for n, s in own.sources.items()}}).sources
    async with running(own.model_copy(update={"sources": both}), db_url):
        inbox.write("a.jsonl", {"id": 1})
        await eventually(lambda: has(ids, 1))
        await eventually(lambda: [f for name, f in seen if name == "source.failed" and "dead" in f["error"]])


async def test_asked_to_stop_it_finishes_the_page_and_goes_on_from_there(inbox, settings, db_url, ids, eventually):
    inbox.write("a.jsonl", *({"id": n} for n in range(2000)))
    small = settings(collector={"page_records": 10})
    async with running(small, db_url):
        await eventually(lambda: at_least(ids, 10))
    stored = len(await ids())
    assert stored < 2000
    assert stored % 10 == 0
    async with running(small, db_url):
        await eventually(lambda: has(ids, 2000))


async def test_raw_only_makes_no_jobs(inbox, settings, db_url, version, pool, ids, eventually):
    inbox.write("a.jsonl", {"id": 1})
    async with running(settings(enqueue=False), db_url):
        await eventually(lambda: has(ids, 1))
    assert await pool.fetchval("select count(*) from tailrace.jobs") == 0


async def test_the_bell_rings_for_the_last_page_of_a_burst(inbox, settings, db_url, version, pool, ids, eventually):
    heard = []
    async with pool.acquire() as connection:
        await connection.add_listener("tailrace_jobs", note := lambda *args: heard.append(args[3]))
        async with running(settings(collector={"page_records": 5, "bells_per_second": 4.0}), db_url) as program:
            inbox.write("a.jsonl", *({"id": n} for n in range(100)))
            await eventually(lambda: has(ids, 100))
            before = len(heard)
            await eventually(lambda: not program._appender._owed and program._appender._ringing.done())
            await eventually(lambda: len(heard) > before or before >= 1)
        await connection.remove_listener("tailrace_jobs", note)
    assert 1 <= len(heard) <= 20


async def test_a_source_that_has_no_more_is_seen_to_have_no_more(inbox, settings, db_url, pool, eventually):
    inbox.write("a.jsonl", {"id": 1})
    async with running(settings(), db_url):
        first = await eventually(lambda: pool.fetchval("select caught_up_at from tailrace.cursors where lane = 0"))
        await eventually(lambda: later(pool, first))


async def later(pool, first):
    return (await pool.fetchval("select caught_up_at from tailrace.cursors where lane = 0")) > first


async def test_health_is_served_also_while_the_database_is_away(inbox, settings, eventually, capsys):
    away = settings(database=Settings().database.model_copy(update={"connect_seconds": 60.0}))
    async with running(away, "postgresql://nobody@127.0.0.1:1/none"):
        port = await eventually(lambda: port_of(capsys))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/healthz")).status_code == 200
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["why"]) == (503, "no database yet")
            assert "tailrace_database_up 0.0" in (await client.get("/metrics")).text


def port_of(capsys):
    text = capsys.readouterr().err
    return text.rpartition(":")[2].strip() if "serves" in text else None


async def test_webhooks_are_served_and_metrics_tell(inbox, settings, db_url, pool, ids, eventually, capsys):
    own = settings()
    both = Settings(
        sources={"orders": {"kind": "webhook", "insecure": True, "id_field": "id"}, **{n: s.model_dump() for n, s in own.sources.items()}}
    )
    async with running(own.model_copy(update={"sources": both.sources}), db_url):
        port = await eventually(lambda: port_of(capsys))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await eventually(lambda: ready(client))
            assert (await client.post("/webhook/orders", content=json.dumps({"id": 9}))).status_code == 202
            assert await ids() == [9]
            text = (await client.get("/metrics")).text
            assert 'tailrace_raw_records_total{source="webhook:orders"} 1.0' in text
            assert "tailrace_source_lag_seconds" in text


async def ready(client):
    return (await client.get("/readyz")).status_code == 200


async def test_what_the_backfill_read_is_not_read_again(inbox, settings, db_url, ids, seen, eventually):
    inbox.options["id_field"] = "id"
    inbox.write("a.jsonl", {"id": 1, "text": "first"}, {"id": 1, "text": "edited"})
    await inbox.read()
    async with running(settings(), db_url):
        inbox.write("a.jsonl", {"id": 2}, mode="a")
        await eventually(lambda: has(ids, 3))
    assert await ids() == [1, 1, 2]
    assert (await inbox.read()).seen == 0


def test_records_of_options_are_the_same_for_all_kinds():
    assert Builder(RecordOptions(id_field="a, b")).build(b'{"a": 1, "b": true}', {}).external_id == "1/true"
