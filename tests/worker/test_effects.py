"""The gate, and what passes it."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.server
import json
import threading
from collections import Counter
from typing import Any

import asyncpg
import pytest

from worker import Done, Effect
from worker.core.models import Delivery, Receipt
from worker.core.settings import EffectSpec, Settings
from worker.dispatcher import Dispatcher, Outlet
from worker.effects import Effects
from worker.sinks import build, gates, policy_of

OPEN = {"k": {"policy": "never_twice", "max_age": None, "hold": 0}}


async def wish(record, ctx):
    return Done(effects=[Effect("k", {"n": record.payload["n"]}, "t")])


async def verdicts(pool):
    return [(r["verdict"], r["reason"]) for r in await pool.fetch("select verdict, reason from tailrace.effects order by id")]


async def decide(pool, version=1, mode="run", gates=OPEN, **effect):
    wanted = {"raw": 1, "rerun": 0, "quiet": False, "kind": "k", "key": "a", "target": "t", "body": {"x": 1}, "occurred": None} | effect
    return await pool.fetchrow("select * from tailrace.decide_effects($1, $2, $3, $4)", version, mode, json.dumps(gates), json.dumps([wanted]))


@pytest.fixture
async def live(pool, register, feed):
    await register(wish)
    await feed(3)


async def test_reasons_in_their_order(pool, live):
    old = "2020-01-01T00:00:00Z"
    await pool.execute("insert into tailrace.versions (pipeline_id, name, fingerprint, state, slice_size) values (1, 'c', 'x', 'shadow', 1)")
    aged = {"k": {"policy": "never_twice", "max_age": 60, "hold": 0}}
    for how in (
        {"mode": "drain", "version": 2, "quiet": True, "gates": {}}, {"version": 2, "quiet": True, "gates": {}}, {"quiet": True, "gates": {}},
        {"gates": {}, "occurred": old}, {"gates": aged, "occurred": old}, {}, {}, {"body": {"x": 2}},
    ):  # fmt: skip
        await decide(pool, **how)
    assert await verdicts(pool) == [
        ("suppressed", "drain"), ("suppressed", "shadow"), ("suppressed", "replay"), ("suppressed", "gate closed"), ("suppressed", "stale"),
        ("released", None), ("suppressed", "duplicate"), ("suppressed", "changed"),
    ]  # fmt: skip
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 1


async def test_two_workers_release_a_key_once(pool, live):
    many = [{"raw": 1, "rerun": 0, "quiet": False, "kind": "k", "key": f"k{n}", "target": "", "body": {}, "occurred": None} for n in range(50)]

    async def go(wanted):
        return await pool.fetchrow("select * from tailrace.decide_effects(1, 'run', $1, $2)", json.dumps(OPEN), json.dumps(wanted))

    found = await asyncio.gather(*(go(many if n % 2 else many[::-1]) for n in range(4)))
    assert sum(r["released"] for r in found) == 50
    assert sum(r["suppressed"] for r in found) == 150
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 50


async def test_a_drain_sends_nothing_and_builds_no_sink(pool, register, feed, drain, monkeypatch):
    monkeypatch.setattr("worker.sinks.build", lambda *_: pytest.fail("a drain built a sink"))
    runnable = await register(wish)
    await feed(4)
    await drain(runnable, gates=OPEN)
    assert set(await verdicts(pool)) == {("suppressed", "drain")}


async def test_an_open_gate_releases_and_a_closed_one_never_does_later(pool, register, feed, drain):
    runnable = await register(wish)
    await feed(2)
    await drain(runnable, mode="run")
    assert set(await verdicts(pool)) == {("suppressed", "gate closed")}
    await feed(2, first=2)
    await drain(runnable, mode="run", gates=OPEN)
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 2


async def test_a_key_without_version_is_delivered_once_whatever_version_asks(pool, register, feed, drain):
    await feed(1)
    await drain(await register(wish), mode="run", gates=OPEN)
    again = await register(wish, version="2")
    run = await pool.fetchval("select tailrace.open_run('replay', $1, '{\"quiet\": false}')", again.version_id)
    await pool.execute("select tailrace.advance_run($1, 100)", run)
    await drain(again, mode="run", gates=OPEN)
    assert await verdicts(pool) == [("released", None), ("suppressed", "duplicate")]


async def test_a_lost_sender_ends_as_its_policy_says(pool, live, clock):
    effects = Effects(pool, "w")
    for policy in ("never_twice", "never_lost", "idempotent"):
        await decide(pool, gates={"k": {"policy": policy, "hold": 0}}, key=policy)
    token, claimed = await effects.claim("k", 10, None, 30)
    assert len(claimed) == 3
    await clock.advance(31)
    assert await pool.fetchval("select tailrace.rescue_deliveries(100)") == 3
    states = dict(await pool.fetch("select policy, state from tailrace.deliveries"))
    assert states == {"never_twice": "uncertain", "never_lost": "pending", "idempotent": "pending"}
    with pytest.raises(Exception, match="no longer ours"):
        await effects.finish("never_lost", token, Receipt("sent"))


async def test_what_waits_too_long_expires(pool, live, clock):
    await decide(pool)
    await clock.advance(3 * 86400 + 1)
    await pool.execute("select tailrace.rescue_deliveries(100)")
    assert tuple(await pool.fetchrow("select state, error from tailrace.deliveries")) == ("failed", "expired: it waited too long to be news")


async def test_a_rate_holds_over_processes_and_time(pool, live, clock):
    for n in range(10):
        await decide(pool, key=f"k{n}")
    await clock.set(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1))
    one, two = Effects(pool, "a"), Effects(pool, "b")
    taken = [len((await e.claim("k", 10, 3.0, 30))[1]) for e in (one, two)]
    assert sum(taken) == 3
    await clock.advance(1)
    assert len((await two.claim("k", 10, 3.0, 30))[1]) == 3


async def test_a_held_delivery_can_be_cancelled_in_time(pool, live, clock):
    await decide(pool, gates={"k": {"policy": "never_lost", "hold": 60}})
    assert (await Effects(pool, "w").claim("k", 1, None, 30))[1] == []
    assert await pool.fetchval("select tailrace.cancel_delivery('a', 'me')")
    await clock.advance(61)
    assert (await Effects(pool, "w").claim("k", 1, None, 30))[1] == []


class Receiver:
    """Answers as it is told: a status with headers and body, `cut` (no answer), `slow`."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.requests.append((self.path, dict(self.headers), body))
                answer = outer.answers.pop(0) if outer.answers else (200, {}, b"{}")
                if answer == "slow":
                    release.wait(10)
                if answer in ("cut", "slow"):
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_args: Any) -> None:
                """Quiet."""

        self.release = release = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


def delivery(policy="idempotent", attempt=1, target="t", body=None):
    return Delivery("key-1", "k", target, body or {"text": "hi"}, attempt, policy, "files:a", "x1")


@pytest.mark.parametrize(("answer", "policy", "outcome"), [
    ((200, {}, b'{"id": 7}'), "idempotent", "sent"),
    ((429, {"Retry-After": "3"}, b""), "never_twice", "retry"),
    ((503, {}, b""), "never_twice", "retry"),
    ((500, {}, b""), "never_twice", "uncertain"),
    ((500, {}, b""), "idempotent", "retry"),
    ((400, {}, b"no"), "idempotent", "failed"),
    ("cut", "never_twice", "uncertain"),
    ("cut", "never_lost", "retry"),
    ("slow", "never_twice", "uncertain"),
])  # fmt: skip
async def test_the_webhook_sink_says_what_is_known(receiver, answer, policy, outcome):
    sink = build("k", EffectSpec(sink="webhook", url=receiver.url, timeout=0.3))
    receiver.answers = [answer]
    receipt = await sink.send(delivery(policy))
    await sink.close()
    assert receipt.outcome == outcome, receipt.detail
    assert receiver.requests[0][1]["Idempotency-Key"] == "key-1"
    if outcome == "sent":
        assert receipt.remote_id == "7"
    if outcome == "retry" and answer[0] == 429:
        assert receipt.after == 3


async def test_no_connection_is_surely_not_sent():
    sink = build("k", EffectSpec(sink="webhook", url="http://127.0.0.1:1/"))
    assert (await sink.send(delivery("never_twice"))).outcome == "retry"
    await sink.close()


async def test_the_telegram_sink_reads_the_bot_api_and_hides_its_token(receiver, monkeypatch):
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123:secret")
    sink = build("k", EffectSpec(sink="telegram", base_url=receiver.url, timeout=0.5))
    receiver.answers = [
        (200, {}, b'{"ok": true, "result": {"message_id": 42}}'),
        (429, {}, b'{"ok": false, "parameters": {"retry_after": 9}}'),
        (400, {}, b'{"ok": false, "description": "moved", "parameters": {"migrate_to_chat_id": -100}}'),
        (200, {}, b'{"ok": true, "result": {"message_id": 43}}'),
        (403, {}, b'{"ok": false, "description": "blocked"}'),
        "cut",
    ]
    found = [await sink.send(delivery("never_twice", target="5")) for _ in range(6)]
    await sink.close()
    assert [r.outcome for r in found] == ["sent", "retry", "retry", "sent", "failed", "uncertain"]
    assert (found[0].remote_id, found[1].after) == ("42", 9.0)
    assert [json.loads(body)["chat_id"] for _, _, body in receiver.requests] == ["5", "5", "5", "-100", "-100", "-100"]
    assert not [r for r in found if r.detail and "secret" in r.detail]


async def test_the_jsonl_sink_writes_a_key_once(tmp_path):
    sink = build("k", EffectSpec(sink="jsonl", path=str(tmp_path / "out" / "a.jsonl")))
    assert (await sink.send(delivery())).outcome == "sent"
    assert (await sink.send(delivery(attempt=2))).detail == "was there already"
    assert [json.loads(line)["key"] for line in (tmp_path / "out" / "a.jsonl").read_text().splitlines()] == ["key-1"]
    blocked = build("k", EffectSpec(sink="jsonl", path="/proc/nowhere/a.jsonl"))
    assert (await blocked.send(delivery())).outcome == "retry"


def test_gates_hold_only_what_is_open_and_policies_follow_the_sink():
    settings = Settings(effects={"a": {"sink": "jsonl", "path": "x", "open": True}, "b": {"sink": "jsonl", "path": "x"}})
    assert gates(settings) == {"a": {"policy": "idempotent", "max_age": None, "hold": 0.0}}
    assert policy_of("k", EffectSpec(sink="webhook", url="u", honours_key=False)) == "never_twice"
    assert policy_of("k", EffectSpec(sink="telegram", policy="never_lost")) == "never_lost"


async def test_the_dispatcher_delivers_each_key_once_and_stops_in_order(pool, live, receiver, eventually, seen):
    for n in range(30):
        await decide(pool, gates={"k": {"policy": "idempotent", "hold": 0}}, key=f"k{n}")
    receiver.answers = [(500, {}, b""), "cut", (400, {}, b"")]
    settings = Settings(
        effects={"k": {"sink": "webhook", "url": receiver.url, "open": True}, "closed": {"sink": "webhook", "url": "http://127.0.0.1:1"}}
    )
    dispatcher = Dispatcher(pool, settings, "w", asyncio.Event())
    assert list(dispatcher._outlets) == ["k"]

    async def done() -> bool:
        await dispatcher.step()
        await pool.execute("update tailrace.deliveries set next_at = now() where state = 'pending'")
        return await pool.fetchval("select count(*) from tailrace.deliveries where state in ('sent', 'failed')") == 30

    await eventually(done)
    await dispatcher.close()
    assert dict(await pool.fetch("select state, count(*) from tailrace.deliveries group by 1")) == {"sent": 29, "failed": 1}
    ledger = Counter(r["event"] for r in await pool.fetch("select event from tailrace.delivery_attempts"))
    assert ledger == {"claimed": 32, "sent": 29, "retry": 2, "failed": 1}
    assert Counter(name for name, _ in seen if name.startswith("delivery"))["delivery.sent"] == 29


def test_a_kind_that_keeps_failing_rests_and_then_probes():
    outlet = Outlet("k", EffectSpec(sink="webhook", url="http://127.0.0.1:1", open=True))
    for _ in range(5):
        outlet.note(Receipt("retry"))
    assert (outlet.at_once, outlet.rests_until > 0) == (1, True)
    outlet.note(Receipt("sent"))
    assert (outlet.at_once, outlet.rests_until) == (8, 0.0)


async def test_the_ledger_and_the_effects_are_append_only(pool, live):
    await decide(pool)
    for table in ("effects", "delivery_attempts", "reviews"):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await pool.execute(f"delete from tailrace.{table}")
