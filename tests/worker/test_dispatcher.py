"""What goes out, how often, and what is known afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from worker.core import service
from worker.core.models import Receipt
from worker.core.settings import Settings
from worker.core.specs import EffectSpec
from worker.dispatcher import AHEAD, AT_ONCE, LONGEST_REST, MARGIN, Dispatcher, Outlet

ROOT = Path(__file__).resolve().parents[2]
IDEMPOTENT = {"k": {"policy": "idempotent", "max_age": None, "hold": 0}}


class Fake:
    """A sink in this process. `answers`: receipts, or errors to raise; when none is left: sent. `hold`: sends wait for it."""

    timeout = 10.0

    def __init__(self):
        self.answers, self.sent, self.hold, self.now, self.most = [], [], None, 0, 0

    async def send(self, delivery):
        self.sent.append(delivery.key)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.hold:
                await self.hold.wait()
            answer = self.answers.pop(0) if self.answers else Receipt("sent")
        finally:
            self.now -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    monkeypatch.setattr("worker.dispatcher.build", lambda *_: made)
    return made


@pytest.fixture
async def dispatcher(pool, live):
    """`dispatcher(policy=...)`: one with kind `k` open, closed after the test."""
    made = []

    def make(wake=None, **spec):
        settings = Settings(effects={"k": {"sink": "webhook", "url": "http://127.0.0.1:1", "open": True} | spec}, worker={"grace_seconds": 5})
        made.append(Dispatcher(pool, settings, "w", wake or asyncio.Event()))
        return made[-1]

    yield make
    for one in made:
        await one.close(1)


@pytest.fixture
def states(pool):
    async def states(column="state"):
        return dict(await pool.fetch(f"select {column}, count(*) from tailrace.deliveries group by 1"))

    return states


def outlet(dispatcher):
    return dispatcher._outlets["k"]


def some(count):
    return [{"key": f"k{n:03}"} for n in range(count)]


async def test_each_key_is_delivered_once_and_each_outcome_is_written_down(pool, decide, receiver, dispatcher, eventually, seen, states):
    await decide(*some(60), gates=IDEMPOTENT)
    receiver.answers = [(500, {}, b"\x00"), "drop after", (400, {}, b"no"), (200, {}, b'{"id": "\\u0000"}')]
    one = dispatcher(url=receiver.url, timeout=5)

    async def done():
        await one.step()
        await pool.execute("update tailrace.deliveries set next_at = now() where state = 'pending'")
        return await pool.fetchval("select count(*) from tailrace.deliveries where state in ('sent', 'failed')") == 60

    await eventually(done)
    await one.close()
    assert await states() == {"sent": 59, "failed": 1}
    assert Counter(r[0] for r in await pool.fetch("select event from tailrace.delivery_attempts")) == {
        "claimed": 62,
        "sent": 59,
        "retry": 2,
        "failed": 1,
    }
    assert Counter(receiver.keys).total() == 62
    assert Counter(name for name, _ in seen) == {"delivery.sent": 59, "delivery.retried": 2, "delivery.failed": 1}
    assert {"kind", "key", "target", "attempt", "seconds", "remote_id"} <= set(seen[0][1])


async def test_a_closed_gate_is_never_claimed_and_its_sink_never_built(pool, live, decide, monkeypatch):
    await decide(gates=IDEMPOTENT)
    monkeypatch.setattr("worker.dispatcher.build", lambda *_: pytest.fail("a closed gate's sink was built"))
    closed = Dispatcher(pool, Settings(effects={"k": {"sink": "telegram"}}), "w", asyncio.Event())
    await closed.step()
    assert await pool.fetchval("select state from tailrace.deliveries") == "pending"


async def test_never_twice_is_claimed_no_further_than_it_is_sent(pool, decide, fake, dispatcher, eventually, states):
    await decide(*some(30))
    fake.hold = asyncio.Event()
    one = dispatcher(policy="never_twice")
    for _ in range(3):
        await one.step()
    await eventually(lambda: fake.now == AT_ONCE)
    assert await states() == {"sending": AT_ONCE, "pending": 30 - AT_ONCE}
    fake.hold.set()

    async def done():
        await one.step()
        return (await states()).get("sent") == 30

    await eventually(done)
    assert fake.most == AT_ONCE
    assert len(set(fake.sent)) == 30


@pytest.mark.parametrize(("policy", "state"), [("never_twice", "uncertain"), ("never_lost", "pending"), ("idempotent", "pending")])
async def test_what_a_sink_did_not_foresee_is_an_unknown_outcome(decide, fake, dispatcher, eventually, states, seen, policy, state):
    await decide(gates={"k": {"policy": policy, "hold": 0}})
    fake.answers = [ValueError("odd")]
    await dispatcher().step()
    await eventually(lambda: seen)
    assert await states() == {state: 1}
    assert seen[0][1]["detail"] == "ValueError: odd"


async def test_a_sending_that_never_ends_is_cut(decide, fake, dispatcher, eventually, states, seen):
    await decide()
    fake.hold = asyncio.Event()
    one = dispatcher()
    outlet(one).longest = 0.05
    await one.step()
    await eventually(lambda: seen)
    assert await states() == {"uncertain": 1}


async def test_tries_run_out_and_a_person_gives_as_many_again(pool, decide, fake, dispatcher, eventually, states):
    await decide(gates=IDEMPOTENT)
    fake.answers = [Receipt("retry", after=0.0)] * 4
    one = dispatcher(max_attempts=3)

    async def failed():
        await one.step()
        return (await states()).get("failed")

    await eventually(failed)
    assert len(fake.sent) == 3
    assert await pool.fetchval("select error from tailrace.deliveries") == "given up after 3 attempts: None"
    assert await pool.fetchval("select tailrace.resolve_delivery('a', 'pending', null, 'me')")

    async def sent():
        await one.step()
        return (await states()).get("sent")

    await eventually(sent)
    assert await states("attempts") == {5: 1}


async def test_pauses_grow_and_jitter(fake, dispatcher):
    judged = [outlet(dispatcher(max_attempts=99)).judged(Receipt("retry"), n).after for n in (1, 2, 8, 98)]
    assert [low <= j <= high for j, low, high in zip(judged, (1, 2, 128, 1800), (2, 4, 256, 3600), strict=True)] == [True] * 4


async def test_a_dead_receiver_costs_the_others_no_attempt(pool, decide, fake, dispatcher, eventually, states):
    await decide(*some(100), gates=IDEMPOTENT)
    fake.answers = [Receipt("retry")] * 1000
    one = dispatcher()
    await one.step()
    await eventually(lambda: outlet(one).resting and not outlet(one).running)
    tried = len(fake.sent)
    assert 5 <= tried < 5 + AT_ONCE
    assert await one.step() <= 2
    assert await states("attempts") == {0: 100 - tried, 1: tried}
    assert await states() == {"pending": 100}
    outlet(one).rests_until = 0.0
    await one.step()
    await eventually(lambda: outlet(one).resting and not outlet(one).running)
    assert len(fake.sent) == tried + 1
    fake.answers = []
    outlet(one).rests_until = 0.0

    async def done():
        await pool.execute("update tailrace.deliveries set next_at = now() where state = 'pending'")
        await one.step()
        return await states() == {"sent": 100}

    await eventually(done)


def test_rests_grow_to_five_minutes_and_an_answer_ends_them(fake):
    kind = Outlet("k", EffectSpec(sink="webhook", url="http://127.0.0.1:1", open=True))
    rests = []
    for _ in range(2000):
        kind.note(Receipt("retry"))
        rests.append(kind.rests_until - time.monotonic())
        kind.rests_until = 0.0
    assert [round(r) for r in rests[:9]] == [0, 0, 0, 0, 2, 4, 8, 16, 32]
    assert round(rests[-1]) == LONGEST_REST
    assert kind.wants == 1
    kind.note(Receipt("failed"))
    assert kind.wants == AT_ONCE * AHEAD
    kind.note(Receipt("retry", after=30.0))
    assert (kind.wants, round(kind.pause())) == (0, 30)


async def test_a_rate_is_not_asked_for_in_a_busy_loop(decide, fake, dispatcher, eventually):
    await decide(*some(10), gates=IDEMPOTENT)
    one = dispatcher(rate=0.5)
    rests = [await one.step() for _ in range(3)]
    await eventually(lambda: len(fake.sent) == 1)
    assert all(1 < rest <= 2 for rest in rests)


async def test_an_idle_dispatcher_asks_once_for_all_kinds(pool, live, fake, monkeypatch):
    settings = Settings(effects={f"k{n}": {"sink": "webhook", "url": "http://x", "open": True} for n in range(20)})
    one = Dispatcher(pool, settings, "w", asyncio.Event())
    asked = []
    due = one._effects.due
    monkeypatch.setattr(one._effects, "due", lambda kinds: asked.append(kinds) or due(kinds))
    assert await one.step() == 5.0
    assert [len(kinds) for kinds in asked] == [20]


async def test_what_is_released_wakes_it(pool, decide, fake, dispatcher, eventually):
    wake, stop = asyncio.Event(), asyncio.Event()
    one = dispatcher(wake)
    rests = []

    async def step():
        rests.append(await one.step())
        return 1e6

    running = asyncio.create_task(service.run("dispatch", step, stop, wake=wake))
    await eventually(lambda: rests)
    await decide(gates=IDEMPOTENT)
    wake.set()
    await eventually(lambda: fake.sent)
    stop.set()
    await running


async def test_a_stop_finishes_what_is_sent_and_gives_back_the_rest(decide, fake, dispatcher, eventually, states):
    await decide(*some(40), gates=IDEMPOTENT)
    fake.hold = asyncio.Event()
    one = dispatcher()
    await one.step()
    await eventually(lambda: fake.now == AT_ONCE)
    closing = asyncio.create_task(one.close())

    async def given_back():
        return (await states()).get("pending") == 40 - AT_ONCE

    await eventually(given_back)
    fake.hold.set()
    await closing
    assert await states() == {"sent": AT_ONCE, "pending": 40 - AT_ONCE}
    assert await states("attempts") == {1: AT_ONCE, 0: 40 - AT_ONCE}
    assert fake.closed


async def test_a_stop_that_takes_too_long_leaves_the_policy_to_decide(pool, decide, fake, dispatcher, eventually, states, clock):
    await decide()
    fake.hold = asyncio.Event()
    one = dispatcher()
    await one.step()
    await eventually(lambda: fake.now)
    await one.close(0.01)
    assert await states() == {"sending": 1}
    await clock.advance(outlet(one).lease + 1)
    await pool.execute("select tailrace.rescue_deliveries(10)")
    assert await states() == {"uncertain": 1}


async def test_what_waited_too_long_for_its_turn_is_given_back_unsent(decide, fake, dispatcher, eventually, states, monkeypatch):
    await decide(gates=IDEMPOTENT)
    monkeypatch.setattr("worker.effects.Claimed.age", lambda _self: MARGIN + 1)
    one = dispatcher()
    await one.step()
    await eventually(lambda: not outlet(one).running)
    assert (fake.sent, await states()) == ([], {"pending": 1})


async def test_what_is_known_is_written_down_when_the_database_is_back(decide, fake, dispatcher, eventually, states, seen, monkeypatch):
    await decide()
    one = dispatcher()
    finish, failures = one._effects.finish, [ConnectionResetError("away"), asyncpg.ConnectionDoesNotExistError("away")]

    async def flaky(claimed, receipt):
        if failures:
            raise failures.pop()
        await finish(claimed, receipt)

    monkeypatch.setattr(one._effects, "finish", flaky)
    await one.step()
    await eventually(lambda: seen)
    assert ([name for name, _ in seen], await states()) == (["delivery.sent"], {"sent": 1})


async def test_a_lost_claim_is_dropped_with_an_event(pool, decide, fake, dispatcher, eventually, states, seen):
    await decide()
    fake.hold = asyncio.Event()
    one = dispatcher()
    await one.step()
    await eventually(lambda: fake.now)
    await pool.execute("update tailrace.deliveries set state = 'uncertain', token = null, lease_until = null")
    fake.hold.set()
    await eventually(lambda: seen)
    assert seen[0][0] == "delivery.uncertain"
    assert "sent, but it could not be written down" in seen[0][1]["detail"]
    assert await states() == {"uncertain": 1}


CRASH = """
import asyncio, os, sys
import asyncpg
from worker.core.settings import Settings
from worker.dispatcher import Dispatcher
async def main(url, receiver):
    pool = await asyncpg.create_pool(url, min_size=1, max_size=2)
    settings = Settings(effects={"k": {"sink": "webhook", "url": receiver, "open": True}})
    dispatcher = Dispatcher(pool, settings, "doomed", asyncio.Event())
    async def die(*_):
        os._exit(9)
    dispatcher._effects.finish = die
    await dispatcher.step()
    await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(("policy", "state", "sendings"), [("never_twice", "uncertain", 1), ("never_lost", "sent", 2), ("idempotent", "sent", 2)])
async def test_a_crash_between_sending_and_writing_down(
    db_url, pool, decide, live, receiver, clock, dispatcher, eventually, states, policy, state, sendings
):
    await decide(gates={"k": {"policy": policy, "hold": 0}})
    doomed = await asyncio.create_subprocess_exec(sys.executable, "-c", CRASH, db_url, receiver.url, cwd=ROOT)
    assert await asyncio.wait_for(doomed.wait(), 30) == 9
    assert (receiver.keys, await states()) == (["a"], {"sending": 1})
    await pool.execute("select tailrace.rescue_deliveries(10)")
    assert await states() == {"sending": 1}
    await clock.advance(3600)
    await pool.execute("select tailrace.rescue_deliveries(10)")
    assert await states() == {("uncertain" if policy == "never_twice" else "pending"): 1}
    one = dispatcher(url=receiver.url)
    await one.step()
    await eventually(lambda: len(receiver.keys) == sendings and not outlet(one).running)
    assert (receiver.keys, await states()) == (["a"] * sendings, {state: 1})
    story = [r[0] for r in await pool.fetch("select event from tailrace.delivery_attempts order by id")]
    assert story == ["claimed", "lease lost", *(["claimed", "sent"] if sendings == 2 else [])]


DRAIN = """
import sys
from worker.cli import main
code = main(["drain"])
loaded = [m for m in sys.modules if m.startswith(("worker.sinks", "worker.dispatcher", "httpx"))]
sys.exit(f"a drain loaded {loaded}" if loaded else code)
"""


async def test_a_drain_with_open_gates_sends_nothing_and_loads_no_sink(db_url, pool, feed, processor_file, tmp_path, receiver):
    code = "@processor('mine', version='1')\nasync def go(record, ctx): return Done(effects=[Effect('post', 1, 't'), Effect('tell', 'x', '5')])\n"
    await feed(3)
    (tmp_path / "tailrace.toml").write_text(f"""
        [pipelines.p]
        processor = {json.dumps(processor_file(code))}
        [effects.post]
        sink = "webhook"
        url = "{receiver.url}"
        open = true
        [effects.tell]
        sink = "telegram"
    """)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TELEGRAM")} | {
        "DATABASE_URL": db_url, "TAILRACE_CONFIG": str(tmp_path / "tailrace.toml"), "TAILRACE_EFFECTS__TELL": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    drained = await asyncio.create_subprocess_exec(sys.executable, "-c", DRAIN, cwd=tmp_path, env=env, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(drained.communicate(), 60)
    assert drained.returncode == 0, errors.decode()
    assert receiver.requests == []
    assert [tuple(r) for r in await pool.fetch("select distinct verdict, reason from tailrace.effects")] == [("suppressed", "drain")]
    assert await pool.fetchval("select count(*) from tailrace.effects") == 6
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 0
