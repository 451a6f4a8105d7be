"""One source among others: told to wait, refused, missing things, added and taken away while the collector runs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from typing import ClassVar

import pytest
from pydantic import BaseModel

from collector import live, turns
from collector.breaker import Breaker, Breakers
from collector.catchup import CatchUp, Means
from collector.raw import register
from collector.sources import Page, source
from collector.sources.answers import Denied, Limited, Quota, Spent
from collector.sources.building import build
from worker.core.errors import Misconfigured
from worker.core.models import RawRecord
from worker.core.service import rest_or_wake
from worker.core.settings import Settings

FAST = {"port": 0, "poll_seconds": 0.02, "touch_seconds": 0.05, "heal_seconds": 3600}


class Options(BaseModel):
    exclusive: list[str] = []


@source("scripted", Options)
class Scripted:
    """Yields what the test puts on its tail, or raises it."""

    scripts: ClassVar[dict[str, Scripted]] = {}

    def __init__(self, name, options, _settings):
        self.name, self.caught_up, self.limits = name, False, ()
        self.exclusive, self.exclusive_history = tuple(options.exclusive), ()
        self.calls, self.coming, self.missed = 0, asyncio.Queue(), []
        self.gap = asyncio.Event()
        Scripted.scripts[name] = self

    def describe(self):
        return "scripted"

    async def tail(self, position, stop):
        self.calls += 1
        while not stop.is_set():
            await rest_or_wake(0.02, stop)
            if not self.coming.empty():
                what = self.coming.get_nowait()
                if isinstance(what, Exception):
                    raise what
                yield what

    async def heal(self, position, tail, known):
        for page in list(self.missed):
            self.missed.remove(page)
            yield page


def page(number, **more):
    return Page([RawRecord(str(number), str(number).encode(), f'{{"id": {number}}}')], {"at": number}, **more)


def settings(*names, **options):
    return Settings(sources={n: {"kind": "scripted", **options} for n in names}, collector=FAST)


@contextlib.asynccontextmanager
async def running(config, url, again=None):
    program = live.Live(config, build(config), again)
    task = asyncio.create_task(program.run(url))
    try:
        yield program
    finally:
        program.stop.set()
        await asyncio.wait_for(task, 20)


@pytest.fixture
def keys(pool):
    async def of(lane=None):
        return [r[0] for r in await pool.fetch("select external_id from tailrace.raw_records order by id")]

    return of


async def state(pool, name="source:scripted:a"):
    row = await pool.fetchrow(
        "select breaker, reason, extract(epoch from open_until - tailrace.clock())::float8 as seconds from tailrace.quotas where name = $1", name
    )
    return tuple(row) if row else None


async def test_a_flood_is_waited_out_written_down_and_shared(db_url, pool, keys, eventually):
    async with running(settings("a", "b"), db_url):
        a, b = await eventually(lambda: both("a", "b"))
        a.coming.put_nowait(Limited("api:key", 5000, "FLOOD_WAIT_5000"))
        breaker_, reason, seconds = await eventually(lambda: state(pool))
        assert (breaker_, reason) == ("open", "FLOOD_WAIT_5000")
        assert 4900 < seconds <= 5000
        assert (await state(pool, "api:key"))[0] == "open"
        b.coming.put_nowait(page(1))
        await eventually(lambda: has(keys, ["1"]))
        assert a.calls == 1
    async with running(settings("a"), db_url):  # a restart does not forget it
        again = await eventually(lambda: Scripted.scripts["scripted:a"])
        again.coming.put_nowait(page(2))
        await eventually(lambda: pool.fetchval("select count(*) from tailrace.cursors"))
        assert again.calls == 0
        await pool.execute("select tailrace.reset_breaker('source:scripted:a')")
        await eventually(lambda: has(keys, ["1", "2"]), seconds=20)
    assert (await state(pool))[0] == "closed"


async def both(*names):
    found = [Scripted.scripts.get(f"scripted:{n}") for n in names]
    return found if all(found) else None


async def has(keys, wanted):
    return (await keys()) == wanted


async def test_no_permission_waits_for_a_person(db_url, pool, eventually):
    async with running(settings("a"), db_url):
        (a,) = await eventually(lambda: both("a"))
        a.coming.put_nowait(Denied("session", "AUTH_KEY_UNREGISTERED", "sign in again"))
        assert await eventually(lambda: state(pool)) == ("open", "AUTH_KEY_UNREGISTERED", None)


async def test_failures_open_the_breaker_one_probe_closes_it(pool):
    failed = "select tailrace.call_failed('source:x', 'boom', 3)"
    assert [await pool.fetchval(failed) for _ in range(3)] == [1.0, 2.0, 60.0]
    ask = "select tailrace.may_call('{source:x}', 60)"
    assert 59 < await pool.fetchval(ask) <= 60
    await pool.execute("update tailrace.quotas set open_until = tailrace.clock() - interval '1 second'")
    assert await pool.fetchval(ask) == 0
    assert await pool.fetchval(ask) > 59, "the probe is one"
    assert await pool.fetchval(failed) == 120.0
    await pool.execute("select tailrace.call_worked('{source:x}')")
    assert await pool.fetchval(ask) > 119, "a call that began before does not end what is held"
    await pool.execute("update tailrace.quotas set open_until = tailrace.clock() - interval '1 second'")
    assert await pool.fetchval(ask) == 0
    await pool.execute("select tailrace.call_worked('{source:x}')")
    assert await pool.fetchval(ask) == 0
    assert await pool.fetchval(failed) == 1.0


async def test_quotas_and_coverage_of_a_page_are_kept(db_url, pool, eventually):
    now = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    told = Quota("api:points", 4999, 5000, now)
    async with running(settings("a"), db_url):
        (a,) = await eventually(lambda: both("a"))
        a.coming.put_nowait(page(1, ids=(1, 2), times=(now, now + dt.timedelta(hours=1)), quotas=(told,)))
        a.coming.put_nowait(page(5, ids=(5, 6)))
        row = await eventually(lambda: pool.fetchrow("select remaining, limit_n, resets_at from tailrace.quotas where name = 'api:points'"))
        assert tuple(row) == (4999, 5000, now)
        await eventually(lambda: spans(pool, "{[1,2),[5,6)}"))


async def spans(pool, wanted):
    return await pool.fetchval("select ids::text from tailrace.coverage") == wanted


async def test_what_the_tail_missed_is_healed_in_the_lane_of_catch_up(db_url, pool, version, keys, eventually):
    async with running(settings("a"), db_url):
        (a,) = await eventually(lambda: both("a"))
        a.coming.put_nowait(page(9))
        await eventually(lambda: has(keys, ["9"]))
        a.missed.append(page(5))
        a.gap.set()
        await eventually(lambda: has(keys, ["9", "5"]))
    assert [tuple(r) for r in await pool.fetch("select lane, raw_id_to from tailrace.jobs order by raw_id")] == [(0, 1), (1, 2)]
    assert await pool.fetchval("select position -> 'heal' ->> 'at' from tailrace.cursors where lane = 1") == "5"


async def test_a_catch_up_that_finds_nothing_gives_the_probe_back(pool):
    config = settings("a")
    source = build(config)["scripted:a"]
    await pool.execute("insert into tailrace.quotas (name, breaker, failures, open_until) values ('source:scripted:a', 'open', 5, tailrace.clock())")
    means = Means(pool, None, called, Breakers(pool), None, config.collector)
    breaker = Breaker(means.breakers, source)
    assert await breaker.wait() == 0
    assert await breaker.wait() > 0, "the probe is one"
    await CatchUp(source, 1, means, asyncio.Event())._once(breaker)
    assert await state(pool) == ("closed", None, None)


async def called(call, *arguments, **named):
    return await call(*arguments, **named)


async def test_a_second_collector_of_one_session_is_refused_and_told_who_holds_it(db_url, pool, monkeypatch):
    monkeypatch.setattr(turns, "LEASE", 0.5)
    monkeypatch.setattr("collector.reader.LEASE", 0.5)
    monkeypatch.setattr("collector.reader.LOOK", 0.1)
    await pool.execute("select tailrace.take_lease('session:1', 'other-host:7', 600)")
    config = settings("a", exclusive=["session:1"])
    with pytest.raises(Misconfigured, match="session:1 is in use by other-host:7"):
        await asyncio.wait_for(live.Live(config, build(config)).run(db_url), 20)


async def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(pool):
    dead = f"{turns.HOLDER.rpartition(':')[0]}:4194305"
    await pool.execute("select tailrace.take_lease('session:1', $1, 600)", dead)
    assert await turns.take(pool, "session:1") is None
    await turns.drop(pool, "session:1")
    assert await pool.fetchval("select open_until from tailrace.quotas where name = 'lease:session:1'") is None


async def test_sources_come_and_go_on_reload(db_url, keys, eventually):
    now = {"config": settings("a")}
    async with running(now["config"], db_url, lambda: now["config"]) as program:
        (a,) = await eventually(lambda: both("a"))
        a.coming.put_nowait(page(1))
        await eventually(lambda: has(keys, ["1"]))
        now["config"] = settings("b")
        Scripted.scripts.clear()
        program.reload()
        await eventually(lambda: both("b"))
        Scripted.scripts["scripted:b"].coming.put_nowait(page(2))
        await eventually(lambda: has(keys, ["1", "2"]))
        a.coming.put_nowait(page(3))
    assert await keys() == ["1", "2"]


@source("asked", Options)
class Asked:
    """Counts how often it is asked; what the test puts on `coming` is news."""

    made: ClassVar[dict[str, Asked]] = {}

    def __init__(self, name, _options, _settings):
        self.name, self.caught_up, self.exclusive, self.exclusive_history, self.limits = name, False, (), (), ()
        self.every, self.polls, self.coming = 3600.0, 0, []
        Asked.made[name] = self

    def describe(self):
        return "asked"

    async def poll(self, position):
        self.polls += 1
        while self.coming:
            what = self.coming.pop(0)
            if isinstance(what, Exception):
                raise what
            yield what

    async def chunk(self, position, size, window):
        at = position.get("at", 0)
        records = [r for n in range(at, min(at + size, 40)) for r in page(n).records]
        return Page(records, {"at": at + len(records)}, more=at + len(records) < 40, total=40)


def asked(*names, **spec):
    return Settings(sources={f"asked:{n}": {"kind": "asked", **spec} for n in names}, collector=FAST)


async def test_a_poll_is_made_up_for_at_the_start_and_not_repeated_before_its_time(db_url, pool, keys, eventually):
    for news, polls in ([page(1)], 1), ([], 0):
        config = asked("a")
        made = build(config)
        Asked.made["asked:a"].coming += news
        program = live.Live(config, made)
        task = asyncio.create_task(program.run(db_url))
        await eventually(lambda: pool.fetchval("select count(*) from tailrace.quotas where name = 'lease:poll:asked:a' and reason = ''"))
        await eventually(lambda polls=polls: Asked.made["asked:a"].polls == polls)
        program.stop.set()
        await asyncio.wait_for(task, 20)
    assert await keys() == ["1"]
    left = await pool.fetchval("select extract(epoch from open_until - tailrace.clock()) from tailrace.quotas where name = 'lease:poll:asked:a'")
    assert 3500 < left <= 3600


async def test_one_process_polls_at_a_time_and_a_quiet_source_costs_no_statement_of_its_own(db_url, pool, eventually):
    config = asked(*[f"s{n}" for n in range(50)])
    async with running(config, db_url):
        await eventually(lambda: all(a.polls == 1 for a in Asked.made.values() if ":s" in a.name))
        await eventually(lambda: pool.fetchval("select count(*) = 50 from tailrace.cursors where caught_up_at is not null"))
    assert await pool.fetchval("select count(*) from tailrace.coverage") == 0
    assert await pool.fetchval("select max(seconds) from tailrace.source_lag") == 0


async def test_a_poll_that_fails_is_tried_again_after_the_pause_of_its_breaker(db_url, keys, eventually, seen):
    config = asked("a")
    made = build(config)
    Asked.made["asked:a"].coming += [RuntimeError("502"), page(4)]
    program = live.Live(config, made)
    task = asyncio.create_task(program.run(db_url))
    await eventually(lambda: has(keys, ["4"]))
    await eventually(lambda: any(name == "source.recovered" for name, _ in seen))
    program.stop.set()
    await asyncio.wait_for(task, 20)


async def test_every_is_for_sources_that_are_asked():
    assert build(asked("a", every="2h"))["asked:a"].every == 7200
    with pytest.raises(Misconfigured, match="not polled"):
        build(Settings(sources={"scripted:a": {"kind": "scripted", "every": "1h"}}))


async def test_a_backfill_that_was_left_behind_is_gone_on_with(db_url, pool, keys, eventually, monkeypatch):
    monkeypatch.setattr("collector.readers.ADOPT", 0.1)
    config = asked("a")
    (source_id,) = (await register(pool, config, ["asked:a"])).values()
    run = await pool.fetchval("select tailrace.open_backfill($1, '{}')", source_id)
    async with running(config, db_url):
        await eventually(lambda: pool.fetchval("select state = 'done' from tailrace.runs where id = $1", run))
    assert sorted(map(int, await keys())) == list(range(40))


async def test_a_budget_that_is_spent_holds_its_source_until_it_begins_anew(db_url, pool, keys, clock, eventually):
    until = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
    await clock.set(until - dt.timedelta(days=3))
    config = asked("a", every=0.2)
    made = build(config)
    a = Asked.made["asked:a"]
    a.coming += [page(1, spent=(Spent("x:money", 0.6, 1.0, until),)), page(2, spent=(Spent("x:money", 0.6, 1.0, until),))]
    program = live.Live(config, made)
    task = asyncio.create_task(program.run(db_url))
    await eventually(lambda: pool.fetchval("select open_until = $1 from tailrace.quotas where name = 'x:money'", until))
    program.stop.set()
    await asyncio.wait_for(task, 20)
    assert await keys() == ["1", "2"]
    assert await pool.fetchval("select tailrace.may_call('{x:money}', 60)") == 3 * 86400
    await clock.set(until + dt.timedelta(seconds=1))
    assert await pool.fetchval("select tailrace.may_call('{x:money}', 60)") == 0
    assert await pool.fetchval("select tailrace.spend('x:money', 0.1, 1.0, $1)", until + dt.timedelta(days=31))
