"""What is slow is done less often: the views of the metrics, the look for ready work, the watchdog's round."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from worker.core import pace
from worker.core.metrics import Metrics
from worker.core.pace import SHARE, Pace
from worker.feeder import Feeder
from worker.watchdog import DUE, Watchdog


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is what time.monotonic() shows to a Pace."""
    hands = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: hands.now))
    return hands


def test_what_took_long_rests_so_many_times_as_long(clock):
    p = Pace()
    with p.timed("slow"):
        clock.now += 2
    with p.timed("quick"):
        clock.now += 0.01
    assert p.ready("quick")
    assert p.ready("never done")
    assert not p.ready("slow")
    clock.now += 2 * SHARE
    assert p.ready("slow")


def test_a_rest_has_an_end_and_is_left_out_where_there_is_more_to_do(clock):
    p = Pace(longest=10)
    for _ in range(2):
        with p.timed():
            clock.now += 100
        assert not p.ready()
        clock.now += 10
        assert p.ready()
    with p.timed():
        clock.now += 100
    p.again()
    assert p.ready()


def test_what_failed_slowly_rests_too(clock):
    p = Pace()
    with contextlib.suppress(ValueError), p.timed():
        clock.now += 1
        raise ValueError
    assert not p.ready()


class Views:
    """A pool whose queries take so many seconds; None: for ever."""

    def __init__(self, clock, **seconds):
        self._clock, self.seconds, self.read = clock, seconds, []

    @contextlib.asynccontextmanager
    async def acquire(self):
        yield self

    async def fetch(self, view):
        self.read.append(view)
        if self.seconds[view] is None:
            await asyncio.Event().wait()
        self._clock.now += self.seconds[view]
        return [(len(self.read),)]


def metrics(*views):
    made = Metrics("worker")
    made._gauges = [(f"tailrace_{view}", "", (), view) for view in views]
    return made


async def test_a_slow_view_keeps_its_values_while_it_rests(clock):
    views, m = Views(clock, slow=3.0, quick=0.001), metrics("slow", "quick")
    assert b"tailrace_slow 1.0" in await m.scrape(views)
    text = await m.scrape(views)
    assert views.read == ["slow", "quick", "quick"]
    assert b"tailrace_slow 1.0" in text
    assert b"tailrace_quick 3.0" in text
    clock.now += 3 * SHARE
    assert b"tailrace_slow 5.0" in await m.scrape(views)


async def test_a_view_that_never_answers_does_not_hide_the_others(clock):
    views, m = Views(clock, before=0.001, stuck=None, after=0.001), metrics("before", "stuck", "after")
    first = await m.scrape(views, seconds=0.05)
    assert b"tailrace_before 1.0" in first
    assert b"tailrace_database_up 1.0" in first
    assert b"tailrace_after" in await m.scrape(views, seconds=0.05)
    assert views.read[:3] == ["before", "stuck", "after"]


async def test_where_nothing_answers_the_database_is_away(clock):
    views, m = Views(clock, quick=0.001), metrics("quick")
    assert b"tailrace_quick" in await m.scrape(views)
    views.seconds["quick"] = None
    text = await m.scrape(views, seconds=0.05)
    assert b"tailrace_database_up 0.0" in text
    assert b"tailrace_quick" not in text


class Jobs:
    """Ready work is found slowly; the watchdog's round too."""

    def __init__(self, clock):
        self._clock, self.looks, self.rounds, self.due = clock, 0, 0, 0

    async def peek(self, versions):
        self.looks += 1
        self._clock.now += 1
        return []

    async def watch(self, max_crashes):
        self.rounds += 1
        self._clock.now += 1
        return {"rescued": 0, "due": self.due, "moved": 0, "dead_rows": 0, "runs": 0}


async def test_a_slow_look_for_work_is_repeated_later_unless_somebody_rings(clock):
    jobs = Jobs(clock)
    feeder = Feeder(jobs, [], poll=2.0)
    for _ in range(3):
        await feeder.step()
        feeder._looked = -1e9
    assert jobs.looks == 1
    clock.now += 5
    await feeder.step()
    assert jobs.looks == 2
    feeder.ring()
    await feeder.step()
    assert jobs.looks == 3


async def test_a_slow_round_of_the_watchdog_rests_unless_there_is_more_to_do(clock):
    jobs = Jobs(clock)
    watchdog = Watchdog(jobs, [], Feeder(jobs, [], poll=2.0), None, 1.0, 5, [], lambda _why: None)
    watchdog._seen = float("inf")
    for _ in range(3):
        await watchdog.step()
    assert jobs.rounds == 1
    clock.now += 10
    jobs.due = DUE
    for _ in range(3):
        await watchdog.step()
    assert jobs.rounds == 4
