"""What is claimed next: no bell is lost, and live work waits for no claim of a replay."""

from __future__ import annotations

import asyncio

import pytest

from worker import Done
from worker.executor import Executor
from worker.feeder import FORGET, Feeder
from worker.jobs import Jobs
from worker.line import Line


@pytest.fixture
async def feeder(pool, register, feed):
    """A feeder over a version that has looked once and found nothing."""

    async def f(record, ctx):
        return Done()

    async def pause(runnable, outage):
        return None

    runnable = await register(f)
    line = Line(runnable, Executor(runnable, pause), 100, lambda: None)
    found = Feeder(Jobs(pool, "w", 15), [line], poll=60)
    await feed(0)
    await found.step()
    return found


def ringing(monkeypatch, name, feeder, feed, when):
    """The first call of `name` has its answer from before a record, whose bell rings while the answer is on its way."""
    real, calls = getattr(Jobs, name), []

    async def call(self, *arguments):
        answer = await real(self, *arguments)
        calls.append(arguments)
        if when(len(calls)):
            await feed(1)
            feeder.ring(1)
        return answer

    monkeypatch.setattr(Jobs, name, call)


async def claimed(feeder, steps):
    """What is held after so many steps, none of which looks anew because time went by."""
    for _ in range(steps):
        await feeder.step()
    return sum(line.records for line in feeder._lines)


async def test_a_bell_that_rings_while_the_feeder_looks_is_heard(feeder, feed, monkeypatch):
    ringing(monkeypatch, "peek", feeder, feed, when=lambda n: n == 1)
    feeder.ring()  # looks
    assert await claimed(feeder, 3) == 1


async def test_a_bell_that_rings_while_nothing_is_claimed_is_heard(feeder, feed, monkeypatch):
    ringing(monkeypatch, "claim", feeder, feed, when=lambda n: n == 1)
    feeder._looked += 100 * FORGET
    feeder.ring(1)
    assert await claimed(feeder, 3) == 1


async def test_live_work_waits_for_no_claim_of_a_replay(pool, feeder, feed, monkeypatch):
    """The claim of the replay is answered only after the live record is held."""
    await feed(1)
    await pool.execute("update tailrace.jobs set lane = 2")
    feeder.ring()
    real, held = Jobs.claim, asyncio.Event()

    async def claim(self, runnable, lane, *arguments):
        if lane == 2:
            await held.wait()
        return await real(self, runnable, lane, *arguments)

    monkeypatch.setattr(Jobs, "claim", claim)
    async with asyncio.timeout(20):
        await feeder.step()
        await feed(1, first=1)
        feeder.ring(1)
        assert await claimed(feeder, 2) == 1
    assert not feeder.exhausted
    held.set()
    await feeder.ended(20)
    assert await claimed(feeder, 2) == 2


@pytest.mark.parametrize(("lively", "mean", "more"), [(1e12, 0.0, False), (0.0, 0.0, True), (1e12, 1.0, True)], ids=["waits", "no live work", "slow"])
async def test_beside_live_work_a_quick_replay_is_settled_before_more_of_it_is_claimed(pool, feeder, feed, monkeypatch, lively, mean, more):
    monkeypatch.setattr("worker.feeder.GENTLE", 1)
    monkeypatch.setattr("worker.feeder.LIVELY", 1e12)
    await feed(3)
    await pool.execute("update tailrace.jobs set lane = 2")
    feeder.ring()
    await slowly(feeder)
    (line,) = feeder._lines
    (first,) = line.held
    await line._attempt(first, asyncio.current_task())
    monkeypatch.setattr("worker.feeder.LIVELY", lively)
    line._mean = mean
    await slowly(feeder)
    assert (line.records > 1) == more
    line.drop(first)
    await slowly(feeder)
    assert line.records > 0


async def slowly(feeder):
    """A step, and the end of the claim that it began, if any."""
    await feeder.step()
    await feeder.ended(20)


async def test_suspects_wait_for_no_claim_that_has_ended(pool, feeder, feed, monkeypatch, eventually):
    """The claim of a replay ends, empty, while the feeder looks and finds a suspect."""
    await feed(1)
    await pool.execute("update tailrace.jobs set lane = 2")
    feeder.ring()
    asked, told = asyncio.Event(), asyncio.Event()
    real_peek = Jobs.peek

    async def claim(self, *arguments):
        await asked.wait()
        return []

    async def peek(self, *arguments):
        answer = await real_peek(self, *arguments)
        asked.set()
        await told.wait()
        return answer

    monkeypatch.setattr(Jobs, "claim", claim)
    await feeder.step()
    monkeypatch.setattr(Jobs, "peek", peek)
    await pool.execute("update tailrace.jobs set state = 's', crashes = 1")
    feeder.ring()
    step = asyncio.create_task(feeder.step())
    await feeder.ended(20)
    told.set()
    async with asyncio.timeout(20):
        await eventually(lambda: any(line.records for line in feeder._lines))
        feeder.stopping = True
        feeder.wake.set()
        await step
