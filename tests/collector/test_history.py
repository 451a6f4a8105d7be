"""A backfill in chunks: sizes, pauses, failures, refusals, an end at any moment, windows, targets, one budget for all."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
from pydantic import BaseModel

from collector.backfill import _all
from collector.backfiller import Backfill
from collector.raw import Appender, register
from collector.sources import Page, Window, source
from collector.sources.answers import Denied, Limited, Quota
from collector.sources.building import build
from worker.core.models import RawRecord
from worker.core.settings import Settings

ALL = Window()
DAY = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


class Options(BaseModel):
    records: int = 500
    tells: bool = True


@source("booked", Options)
class Booked:
    """A history of numbered records, one an hour. What stands in `answers` is raised instead of the next chunks."""

    made: ClassVar[dict[str, Booked]] = {}
    answers: ClassVar[list] = []
    units: ClassVar[float | None] = None

    def __init__(self, name, options, _settings):
        self.name, self.caught_up, self.exclusive, self.exclusive_history, self.limits = name, False, (), (), ("api",)
        self._records, self._tells, self.sizes = options.records, options.tells, []
        Booked.made[name] = self

    def describe(self):
        return "booked"

    async def chunk(self, position, size, window):
        at = position.get("at", 0)
        if size != 1:
            self.sizes.append(size)
            if Booked.answers and (answer := Booked.answers.pop(0)):
                raise answer
        numbers = [n for n in range(at, self._records) if window.holds(DAY + dt.timedelta(hours=n))][:size]
        records = [RawRecord(str(n), str(n).encode(), f'{{"n": {n}}}', occurred_at=DAY + dt.timedelta(hours=n)) for n in numbers]
        quotas = ()
        if Booked.units is not None:
            Booked.units -= len(records)
            quotas = (Quota("api", Booked.units, 1000, None),)
        end = numbers[-1] + 1 if numbers else at
        more = any(window.holds(DAY + dt.timedelta(hours=n)) for n in range(end, self._records))
        return Page(records, {"at": end}, more=more, total=self._records if self._tells else None, quotas=quotas)


@pytest.fixture(autouse=True)
def _fresh():
    Booked.made, Booked.answers, Booked.units = {}, [], None


class Runner:
    def __init__(self, pool):
        self.pool, self.effects = pool, {}

    async def __call__(self, *names, source=None, window=ALL, parallel=2, collector=None, options=None, **given):
        names = names or ("a",)
        settings = Settings(
            sources={f"booked:{n}": {"kind": "booked", **(options or {})} for n in names},
            collector={"chunk_floor": 1, **(collector or {})},
            effects=self.effects,
        )
        asked = {"max_records": None, "max_chunks": None, "chunk_size": None, "dry_run": False, "force_enqueue": False, "max_minutes": None,
                 "parallel": parallel, "source": source or [f"booked:{n}" for n in names]} | given  # fmt: skip
        sources = build(settings)
        ids = await register(self.pool, settings, list(sources))
        asked = SimpleNamespace(**(asked | ({"source": None} if source == [] else {})))
        self.run = Backfill(self.pool, settings, asked, window.since, window.until)
        reports = await _all(self.run, settings, self.pool, sources, ids, asked)
        return sorted(reports, key=lambda r: r.source)

    async def stored(self, **more):
        return [int(r[0]) for r in await self.pool.fetch("select external_id from tailrace.raw_records order by id")]

    async def chunks(self):
        return [tuple(r) for r in await self.pool.fetch("select size, records, error from tailrace.chunks order by id")]

    async def state(self):
        return await self.pool.fetchrow("select state, reason, position, position_to, records, resume_at from tailrace.runs order by id desc limit 1")


@pytest.fixture
def backfill(pool):
    return Runner(pool)


async def test_the_answer_of_a_probe_counts_before_its_records_are_stored(backfill, pool, monkeypatch):
    """Killed between the two, a process leaves no probe behind that would hold the source for a minute."""
    stored, seen = Appender.append, []

    async def append(self, *arguments):
        seen.append(await pool.fetchval("select breaker from tailrace.quotas where name = 'source:booked:a catch-up'"))
        return await stored(self, *arguments)

    monkeypatch.setattr(Appender, "append", append)
    held = "insert into tailrace.quotas (name, breaker, failures, open_until) values ('source:booked:a catch-up', 'open', 5, tailrace.clock())"
    await pool.execute(held)
    (report,) = await backfill()
    assert (report.finished, seen) == (True, ["closed"] * 3)


async def test_sizes_adapt_and_are_written_down_with_their_reason(backfill, pool):
    (report,) = await backfill()
    assert (report.appended, report.finished, report.total) == (500, True, 500)
    assert await backfill.chunks() == [(100, 100, None), (201, 201, None), (403, 199, None)]
    reasons = [json.loads(r[0])["because"] for r in await pool.fetch("select decision from tailrace.chunks order by id")]
    assert reasons == ["the first one", "the last one went well", "the last one went well"]
    row = await backfill.state()
    assert tuple(row)[:5] == ("done", None, 500, 500, 500)
    (again,) = await backfill()
    assert (again.appended, again.unchanged) == (0, 500)


async def test_an_explicit_size_is_obeyed_to_the_letter(backfill):
    await backfill(chunk_size=25, max_chunks=3)
    assert await backfill.chunks() == [(25, 25, None)] * 3


async def test_what_is_left_of_a_limit_decides(backfill):
    Booked.units = 1000
    await backfill(options={"records": 850}, collector={"chunk_ceiling": 400})
    assert [c[0] for c in await backfill.chunks()] == [100, 201, 400, 199]  # a tenth of 1,000 is left to others


async def test_a_limit_pauses_the_run_and_it_goes_on_by_itself(backfill, pool, eventually):
    Booked.answers = [None, Limited("api", 0.3, "FLOOD_WAIT_0.3")]
    running = asyncio.create_task(backfill())
    paused = await eventually(lambda: pool.fetchrow("select reason, resume_at from tailrace.runs where state = 'paused'"))
    assert paused["reason"] == "FLOOD_WAIT_0.3"
    assert paused["resume_at"]
    (report,) = await running
    assert (report.appended, report.finished) == (500, True)
    assert [e["error"] for e in report.errors] == ["FLOOD_WAIT_0.3"]
    assert await backfill.stored() == list(range(500))


async def test_two_failures_halve_the_chunks_and_lose_nothing(backfill, monkeypatch):
    monkeypatch.setattr("collector.history.Breaker.failed", _quick)
    Booked.answers = [None, OSError("502"), OSError("502")]
    (report,) = await backfill()
    assert report.finished
    assert [c[0] for c in await backfill.chunks()][:4] == [100, 201, 100, 50]
    assert await backfill.stored() == list(range(500))


async def _quick(_breaker, _error):
    return 0.01


async def test_failures_without_end_are_given_up_and_another_backfill_goes_on(backfill, monkeypatch):
    monkeypatch.setattr("collector.history.Breaker.failed", _quick)
    Booked.answers = [None, *[OSError("502")] * 5]
    (report,) = await backfill()
    assert "5 chunks in a row failed" in report.error
    assert (await backfill.state())["state"] == "failed"
    (report,) = await backfill()
    assert (report.finished, report.appended) == (True, 400)
    assert await backfill.stored() == list(range(500))


async def test_a_refusal_waits_for_a_person(backfill):
    Booked.answers = [Denied("api", "401", "give it a new token")]
    (report,) = await backfill()
    assert "401" in report.error
    assert "give it a new token" in report.error
    row = await backfill.state()
    assert (row["state"], row["resume_at"]) == ("paused", None)
    assert "tailrace sources retry booked:a" in row["reason"]


async def test_a_run_that_a_person_cancels_ends(backfill, pool):
    Booked.answers = [None, Limited("api", 0.2, "wait")]
    running = asyncio.create_task(backfill())
    while not await pool.fetchval("select count(*) from tailrace.runs where state = 'paused'"):
        await asyncio.wait([running], timeout=0.02)
    await pool.execute("select tailrace.set_run_state(id, 'cancelled', 'by hand') from tailrace.runs")
    (report,) = await running
    assert "was cancelled by hand" in report.error


async def test_an_interrupted_run_goes_on_from_its_cursor(backfill, pool):
    for _ in range(3):
        await backfill(max_chunks=1, chunk_size=60)
    (report,) = await backfill(chunk_size=400)
    assert (report.appended, report.finished) == (320, True)
    assert await backfill.stored() == list(range(500))
    assert await pool.fetchval("select count(*) from tailrace.runs") == 1


async def test_a_chunk_whose_collector_was_lost_is_said_and_read_again(backfill, pool):
    await backfill(max_chunks=1)
    run = await pool.fetchval("update tailrace.runs set state = 'active' returning id")
    await pool.execute("select tailrace.begin_chunk($1, 100, '{}')", run)
    (report,) = await backfill()
    assert report.finished
    assert (await backfill.chunks())[1] == (100, 0, "the collector was lost; what it read is read again")
    assert await backfill.stored() == list(range(500))


async def test_a_window_has_a_cursor_of_its_own(backfill):
    window = Window(DAY + dt.timedelta(hours=200), DAY + dt.timedelta(hours=300))
    await backfill(max_chunks=1, chunk_size=10)
    await backfill(window=window, max_chunks=1, chunk_size=40)
    (report,) = await backfill(window=window)
    assert (report.appended, report.finished) == (60, True)
    assert await backfill.stored() == [*range(10), *range(200, 300)]
    (report,) = await backfill()
    assert (report.finished, report.appended) == (True, 390)


async def test_several_share_what_they_may_read(backfill):
    reports = await backfill("a", "b", "c", max_records=350, chunk_size=100)
    assert sum(r.seen for r in reports) == 350
    assert len(await backfill.stored()) == 350


async def test_without_a_name_only_large_and_incomplete_ones_are_read(backfill, pool, capsys):
    await backfill("a", chunk_size=450, max_chunks=1)
    await pool.execute("update tailrace.cursors set position = '{}'")
    reports = await backfill("a", "b", source=[])
    assert [(r.source, r.appended, r.why) for r in reports] == [
        ("booked:a", 0, "left out: 450 of 500 are stored, 90% (collector.backfill_complete is 80%)"), ("booked:b", 500, "0 of 500 are stored, 0%"),
    ]  # fmt: skip
    assert "booked:a is left out: 450 of 500 are stored, 90%" in capsys.readouterr().err
    (small,) = await backfill("c", source=[], options={"records": 60})
    assert small.why == "left out: it has 60 records, less than 100 (collector.backfill_min_records)"
    (told,) = await backfill("d", source=[], options={"tells": False})
    assert (told.appended, told.why) == (500, "it does not tell its size; 0 are stored")


async def test_one_backfill_of_a_source_at_a_time(backfill, pool):
    await pool.execute("select tailrace.take_lease('backfill:booked:a', 'other-host:7', 600)")
    (report,) = await backfill()
    assert "backfill:booked:a is in use by other-host:7" in report.error


async def test_a_dry_run_reads_little_and_changes_nothing(backfill, pool):
    await register(pool, Settings(sources={"booked:a": {"kind": "booked"}}), ["booked:a"])
    (report,) = await backfill(dry_run=True)
    assert (report.seen, report.appended, report.total) == (100, 100, 500)
    assert await pool.fetchval("select count(*) from tailrace.raw_records") == 0
    assert await pool.fetchval("select count(*) from tailrace.runs") == 0


async def test_the_time_allowed_also_ends_a_pause(backfill):
    Booked.answers = [None, Limited("api", 3600, "FLOOD_WAIT_3600")]
    (report,) = await backfill(max_minutes=0.005)
    assert not report.finished
    assert (await backfill.state())["state"] == "paused"


async def test_after_a_limit_the_source_is_free_again_and_one_failure_is_only_one(backfill, pool):
    Booked.answers = [None, Limited("api", 0.2, "flood"), None, RuntimeError("once")]
    (report,) = await asyncio.wait_for(backfill(chunk_size=100), 30)
    assert (report.appended, report.finished) == (500, True)
    assert {tuple(r) for r in await pool.fetch("select breaker, failures from tailrace.quotas where name not like 'lease:%'")} == {("closed", 0)}


async def test_what_another_holds_is_not_called(backfill, pool, eventually):
    await pool.execute("select tailrace.hold_calls(array['api'], 1, 'a flood that the tail met')")
    running = asyncio.create_task(backfill())
    await eventually(lambda: pool.fetchval("select 1 from tailrace.runs where reason = 'it is held at present'"))
    assert Booked.made["booked:a"].sizes == []
    (report,) = await asyncio.wait_for(running, 30)
    assert report.appended == 500


async def test_what_waits_for_a_person_is_not_called(backfill, pool):
    await pool.execute("select tailrace.hold_calls(array['source:booked:a'], null, 'no permission')")
    (report,) = await backfill()
    assert (report.error, report.finished) == ("it waits for a person: `tailrace sources retry booked:a`", False)
    assert Booked.made["booked:a"].sizes == []


async def test_a_backfill_that_keeps_failing_is_reported_once_told_again_and_closed_when_it_works(backfill, pool, monkeypatch):
    monkeypatch.setattr("collector.history.Breaker.failed", _quick)
    backfill.effects = {"tracker": {"sink": "github_issue", "open": True}}
    for _ in range(2):
        Booked.answers = [None, *[OSError("502")] * 5]
        await backfill(collector={"report": "tracker"}, chunk_size=50)
    (report,) = await backfill(collector={"report": "tracker"})
    assert report.finished
    await backfill(collector={"report": "tracker"})
    rows = [(r["verdict"], json.loads(r["body"])) for r in await pool.fetch("select verdict, body from tailrace.effects order by id")]
    assert [(verdict, body.get("close", False)) for verdict, body in rows] == [("released", False), ("released", False), ("released", True)]
    assert {body["fingerprint"] for _, body in rows} == {"backfill:booked:a"}
    assert "502" in rows[0][1]["body"]
    (claimed, *_) = await pool.fetch("select * from tailrace.claim_deliveries(gen_random_uuid(), 'w', 'tracker', 9, null, 20)")
    assert (claimed["source"], json.loads(claimed["body"])["title"]) == ("", "The backfill of booked:a fails")


async def test_a_report_with_its_gate_closed_is_kept_and_stays(backfill, pool, monkeypatch):
    monkeypatch.setattr("collector.history.Breaker.failed", _quick)
    backfill.effects = {"tracker": {"sink": "github_issue"}}
    Booked.answers = [OSError("502")] * 5
    await backfill(collector={"report": "tracker"})
    assert await pool.fetchval("select verdict || ': ' || reason from tailrace.effects") == "suppressed: gate closed"
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 0
