"""What the sinks know after sending, over real sockets and files."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import sys

import pytest
from pydantic import SecretStr
from starlette.requests import Request

from collector.sources.signing import Refused, WebhookOptions, check_signature
from worker.core.errors import Misconfigured
from worker.core.settings import Settings
from worker.core.specs import EffectSpec
from worker.sinks import build, gates, policy_of
from worker.sinks.webhook import idempotency_key

TOKEN = "123:secret-part"
OK = b'{"ok": true, "result": {"message_id": 42}}'


@pytest.fixture
def webhook(receiver):
    return lambda **options: build("k", EffectSpec(sink="webhook", **({"url": receiver.url, "timeout": 0.4} | options)))


@pytest.fixture
def telegram(receiver, monkeypatch):
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", f"{TOKEN}\n")
    return lambda **options: build("k", EffectSpec(sink="telegram", **({"base_url": receiver.url, "timeout": 0.4} | options)))


async def send(sink, delivery):
    try:
        return await sink.send(delivery)
    finally:
        await sink.close()


AMBIGUOUS = ["drop before", "drop after", "slow", (500, {}, b""), (502, {}, b""), (504, {}, b""), b"nonsense\r\n\r\n"]


@pytest.mark.parametrize("answer", AMBIGUOUS, ids=str)
@pytest.mark.parametrize(("policy", "outcome"), [("never_twice", "uncertain"), ("never_lost", "retry"), ("idempotent", "retry")])
@pytest.mark.parametrize("sink", ["webhook", "telegram"])
async def test_what_nobody_can_know_ends_as_the_policy_says(receiver, delivery, request, sink, answer, policy, outcome):
    receiver.answers = [answer]
    receipt = await send(request.getfixturevalue(sink)(), delivery(policy, target="5"))
    assert receipt.outcome == outcome, receipt.detail


@pytest.mark.parametrize(("status", "headers", "outcome", "after"), [
    (429, {"Retry-After": "3"}, "retry", 3.0),
    (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "retry", 0.0),
    (503, {"Retry-After": "9" * 30}, "retry", 86400.0),
    (429, {"Retry-After": "soon"}, "retry", None),
    (408, {}, "retry", None), (425, {}, "retry", None), (401, {}, "retry", None),
    (400, {}, "failed", None), (403, {}, "failed", None), (404, {}, "failed", None), (301, {"Location": "/x"}, "failed", None),
])  # fmt: skip
async def test_what_the_webhook_receiver_refuses(webhook, receiver, delivery, status, headers, outcome, after):
    receiver.answers = [(status, headers, b"because")]
    receipt = await send(webhook(), delivery("never_twice"))
    assert (receipt.outcome, receipt.after) == (outcome, after)
    assert receipt.detail == f"127.0.0.1 answered {status}: because"


@pytest.mark.parametrize(("answer", "remote"), [
    ((200, {}, b'{"id": 7}'), "7"), ((201, {"X-Request-Id": "r1"}, b"fine"), "r1"), ((204, {}, b""), None), ((200, {}, b"[1]"), None),
    ((200, {}, b'{"id": '), None), (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", None),
])  # fmt: skip
async def test_a_2xx_is_sent_whatever_follows(webhook, receiver, delivery, answer, remote):
    receiver.answers = [answer]
    receipt = await send(webhook(), delivery("never_twice"))
    assert (receipt.outcome, receipt.remote_id) == ("sent", remote)
    path, headers, body = receiver.requests[0]
    assert (path, headers["Idempotency-Key"]) == ("/", "key-1")
    assert json.loads(body) == {"key": "key-1", "kind": "k", "target": "t", "source": "files:a", "external_id": "x1", "body": {"text": "hi"}}


async def test_an_answer_without_end_is_not_read_to_its_end(webhook, receiver, delivery):
    receiver.answers = ["endless"]
    assert (await asyncio.wait_for(send(webhook(), delivery()), 10)).outcome == "sent"


@pytest.mark.parametrize("sink", ["webhook", "telegram"])
async def test_no_connection_is_surely_not_sent(request, delivery, sink):
    where = {"url": "http://127.0.0.1:1/"} if sink == "webhook" else {"base_url": "http://127.0.0.1:1"}
    receipt = await send(request.getfixturevalue(sink)(**where), delivery("never_twice"))
    assert (receipt.outcome, "secret" in receipt.detail) == ("retry", False)


async def test_a_webhook_is_signed_as_our_collector_expects_it(webhook, receiver, delivery, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    await send(webhook(secret_env="HOOK_SECRET"), delivery())
    _, headers, body = receiver.requests[0]
    request = Request({"type": "http", "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]})
    options = WebhookOptions(secret_env="HOOK_SECRET")
    check_signature(request, body, options, SecretStr("s3cret"))
    with pytest.raises(Refused):
        check_signature(request, body + b" ", options, SecretStr("s3cret"))


def test_a_key_that_no_header_can_carry_is_sent_as_its_digest():
    assert idempotency_key("k:t:rss:https://x/a%20b:1") == "k:t:rss:https://x/a%20b:1"
    for key in ("канал", "a\nb", " a", "a" * 256, ""):
        assert idempotency_key(key) == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


async def test_a_target_cannot_leave_its_place_in_the_url(webhook, receiver, delivery):
    await send(webhook(url=f"{receiver.url}/to/{{target}}/end"), delivery(target="../x?y#z"))
    assert receiver.requests[0][0] == "/to/..%2Fx%3Fy%23z/end"


async def test_a_receiver_that_echoes_shows_no_secret(webhook, telegram, receiver, delivery, monkeypatch):
    monkeypatch.setenv("HOOK_URL", f"{receiver.url}/services/T000/hidden")
    receiver.answers = [
        (400, {}, b"no handler for /services/T000/hidden with Bearer abcdef"),
        (404, {}, f"Cannot POST /bot{TOKEN}/sendMessage".encode()),
        (400, {}, json.dumps({"ok": False, "description": f"bad {TOKEN}"}).encode()),
    ]
    hook = await send(webhook(url=None, url_env="HOOK_URL", headers={"Authorization": "Bearer abcdef"}), delivery())
    assert receiver.requests[0][1]["Authorization"] == "Bearer abcdef"
    assert hook.detail == "127.0.0.1 answered 400: no handler for *** with ***"
    for expected in ("the Bot API answered 404: Cannot POST /bot***/sendMessage", "the Bot API answered 400: bad ***"):
        assert (await send(telegram(), delivery(target="5"))).detail == expected


async def test_the_telegram_sink_reads_what_the_bot_api_says(telegram, receiver, delivery):
    long = "x" * 500
    receiver.answers = [
        (200, {}, OK),
        (429, {}, json.dumps({"ok": False, "description": long, "parameters": {"retry_after": 9}}).encode()),
        (400, {}, json.dumps({"ok": False, "description": long, "parameters": {"migrate_to_chat_id": -100}}).encode()),
        (200, {}, OK),
        (403, {}, b'{"ok": false, "description": "Forbidden: bot was blocked by the user", "parameters": null}'),
        (200, {}, b'{"ok": false, "description": "odd"}'),
        (401, {}, b'{"ok": false, "description": "Unauthorized"}'),
    ]
    sink = telegram(parse_mode="HTML")
    found = [await sink.send(delivery("never_twice", target="5")) for _ in range(7)]
    await sink.close()
    assert [r.outcome for r in found] == ["sent", "retry", "retry", "sent", "failed", "failed", "retry"]
    assert (found[0].remote_id, found[1].after, found[2].after) == ("42", 9.0, 0.0)
    assert found[4].detail == "the Bot API answered 403: Forbidden: bot was blocked by the user"
    sent = [json.loads(body) for _, _, body in receiver.requests]
    assert [s["chat_id"] for s in sent] == ["5"] * 3 + ["-100"] * 4
    assert sent[0] == {"chat_id": "5", "text": "hi", "parse_mode": "HTML"}
    assert receiver.requests[0][0] == f"/bot{TOKEN}/sendMessage"


async def test_the_telegram_sink_edits_what_it_sent(telegram, receiver, delivery):
    receiver.answers = [(200, {}, OK), (400, {}, b'{"ok": false, "description": "Bad Request: message is not modified"}')]
    sink = telegram()
    edit = dataclasses.replace(delivery("never_twice", target="5"), edits="42")
    assert [(await sink.send(edit)).outcome for _ in range(2)] == ["sent", "sent"]
    await sink.close()
    path, _, body = receiver.requests[0]
    assert path == f"/bot{TOKEN}/editMessageText"
    assert json.loads(body) == {"chat_id": "5", "text": "hi", "message_id": "42"}


@pytest.mark.parametrize("content", [b'{"ok": tr', b"[]", b"<html>"])
@pytest.mark.parametrize(("policy", "outcome"), [("never_twice", "uncertain"), ("never_lost", "retry")])
async def test_a_200_that_does_not_say_ok_is_ambiguous(telegram, receiver, delivery, content, policy, outcome):
    receiver.answers = [(200, {}, content)]
    assert (await send(telegram(), delivery(policy, target="5"))).outcome == outcome


async def test_a_message_without_text_or_chat_is_not_asked_about(telegram, receiver, delivery):
    receiver.answers = [(200, {}, OK)]
    found = [
        await send(telegram(), delivery(target="")),
        await send(telegram(), delivery(target="5", body={"x": 1})),
        await send(telegram(), delivery(target="5", body=["x"])),
        await send(telegram(chat_id=-7), delivery(target="", body="plain")),
    ]
    assert [r.outcome for r in found] == ["failed", "failed", "failed", "sent"]
    assert json.loads(receiver.requests[0][2]) == {"chat_id": "-7", "text": "plain"}


@pytest.fixture
def outbox(tmp_path):
    return tmp_path / "out" / "a.jsonl"


@pytest.fixture
def jsonl(outbox):
    return build("k", EffectSpec(sink="jsonl", path=str(outbox)))


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_the_jsonl_sink_writes_a_key_once(jsonl, outbox, delivery):
    first = await jsonl.send(delivery())
    assert (first.outcome, first.remote_id) == ("sent", "0")
    assert (await jsonl.send(delivery(attempt=2))).detail == "was there already"
    assert (await jsonl.send(delivery(attempt=2, key="key-2"))).outcome == "sent"
    assert [line["key"] for line in lines(outbox)] == ["key-1", "key-2"]
    assert {**lines(outbox)[0], "at": ""} == {
        "key": "key-1", "kind": "k", "target": "t", "body": {"text": "hi"}, "source": "files:a", "external_id": "x1", "at": "",
    }  # fmt: skip


async def test_a_line_that_a_crash_cut_is_left_alone_and_does_not_count(jsonl, outbox, delivery):
    outbox.write_bytes(b'{"key":"key-1","kind":"k","bo')
    assert (await jsonl.send(delivery(attempt=2))).outcome == "sent"
    cut, whole = outbox.read_bytes().splitlines()
    assert (cut, json.loads(whole)["key"]) == (b'{"key":"key-1","kind":"k","bo', "key-1")


WRITER = """
import asyncio, sys
from worker.core.models import Delivery
from worker.core.specs import EffectSpec
from worker.sinks import build
async def main(path, name):
    sink = build("k", EffectSpec(sink="jsonl", path=path))
    await asyncio.gather(*(sink.send(Delivery(f"{name}-{n}", "k", "", "x" * 9000, 1, "idempotent", "s", "e")) for n in range(100)))
asyncio.run(main(*sys.argv[1:]))
"""


async def test_lines_of_several_processes_do_not_mix(outbox, delivery, jsonl):
    writers = [await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(outbox), name) for name in "ab"]
    assert [await asyncio.wait_for(w.wait(), 60) for w in writers] == [0, 0]
    assert sorted(line["key"] for line in lines(outbox)) == sorted(f"{name}-{n}" for name in "ab" for n in range(100))


async def test_a_full_disk_leaves_no_half_line(delivery):
    sink = build("k", EffectSpec(sink="jsonl", path="/dev/full"))
    receipt = await sink.send(delivery())
    assert (receipt.outcome, receipt.detail) == ("retry", "cannot write /dev/full: No space left on device")


async def test_a_folder_that_vanishes_is_said(jsonl, outbox, delivery):
    outbox.parent.rmdir()
    receipt = await jsonl.send(delivery())
    assert (receipt.outcome, receipt.detail) == ("retry", f"cannot write {outbox}: No such file or directory")


@pytest.mark.parametrize(("spec", "message"), [
    ({"sink": "webhok"}, "did you mean 'webhook'"),
    ({"sink": "webhook", "url": "http://x", "honors_key": True}, "did you mean 'honours_key'"),
    ({"sink": "webhook"}, "either url or url_env"),
    ({"sink": "webhook", "url": "example.org/x"}, "https://host/path"),
    ({"sink": "webhook", "url": "http://x", "secret_env": "NOT_THERE"}, "NOT_THERE is not set"),
    ({"sink": "webhook", "url": "http://x", "headers": {"X-A": "a\nb"}}, "'X-A' has characters"),
    ({"sink": "telegram"}, "TELEGRAM_BOT_TOKEN is not set"),
    ({"sink": "telegram", "token_env": "ODD_TOKEN"}, "ODD_TOKEN is not the token of a bot"),
    ({"sink": "jsonl"}, "path: Field required"),
    ({"sink": "jsonl", "path": "/nowhere/at/all/a.jsonl"}, "no folder /nowhere/at/all"),
    ({"sink": "not_there:mine"}, "cannot load sink"),
])  # fmt: skip
def test_a_wrong_sink_says_what_to_do(monkeypatch, spec, message):
    monkeypatch.delenv("TELEGRAM_BOT_TOKEN", raising=False)
    monkeypatch.setenv("ODD_TOKEN", "s3cr3t/odd")
    with pytest.raises(Misconfigured, match=message) as refused:
        build("k", EffectSpec(**spec))
    assert "s3cr3t" not in str(refused.value)


def test_gates_hold_only_what_is_open_and_read_no_credential(monkeypatch):
    monkeypatch.delenv("TELEGRAM_BOT_TOKEN", raising=False)
    settings = Settings(effects={
        "a": {"sink": "jsonl", "path": "x", "open": True}, "b": {"sink": "jsonl", "path": "x"},
        "c": {"sink": "telegram", "open": True, "max_age": "1h", "hold": 5},
    })  # fmt: skip
    assert gates(settings) == {
        "a": {"policy": "idempotent", "max_age": None, "hold": 0.0, "on_change": "report"}, "c": {"policy": "never_twice", "max_age": 3600.0, "hold": 5.0, "on_change": "report"},
    }  # fmt: skip


@pytest.mark.parametrize(("spec", "policy"), [
    ({"sink": "webhook", "url": "u"}, "idempotent"),
    ({"sink": "webhook", "url": "u", "policy": "never_twice"}, "never_twice"),
    ({"sink": "webhook", "url": "u", "honours_key": False}, "never_twice"),
    ({"sink": "webhook", "url": "u", "honours_key": False, "policy": "never_lost"}, "never_lost"),
    ({"sink": "telegram"}, "never_twice"),
    ({"sink": "telegram", "policy": "never_lost"}, "never_lost"),
])  # fmt: skip
def test_the_policy_is_what_the_configuration_says_else_what_the_sink_can(spec, policy):
    assert policy_of("k", EffectSpec(**spec)) == policy


@pytest.fixture
def standin(shared, monkeypatch):
    """Starts a stand-in by name; it ends with the test."""
    monkeypatch.syspath_prepend(str(shared / "services"))
    from standin import Standin  # noqa: PLC0415  only where it is there

    started = []

    def start(name, *options):
        started.append(Standin(name, *options))
        return started[-1]

    yield start
    for one in started:
        one.process.stdin.close()
        one.process.wait(20)


@pytest.mark.shared
async def test_the_webhook_sink_against_the_stand_in(standin, delivery):
    receiver = await asyncio.to_thread(standin, "webhook")
    sink = build("k", EffectSpec(sink="webhook", url=f"{receiver.url}/hook", timeout=2))
    outcomes = []
    for fault in ({}, {"do": "drop"}, {"do": "drop_after"}, {"do": "status", "status": 429, "retry_after": 2}, {"do": "status", "status": 500}):
        if fault:
            await asyncio.to_thread(receiver.fault, **fault)
        outcomes.append((await sink.send(delivery("never_twice"))).outcome)
    await sink.close()
    assert outcomes == ["sent", "uncertain", "uncertain", "retry", "uncertain"]
    assert '"key-1"' in json.dumps(await asyncio.to_thread(receiver.requests))


@pytest.mark.shared
async def test_the_telegram_sink_against_the_stand_in(standin, delivery, monkeypatch):
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123:abc")
    api = await asyncio.to_thread(standin, "telegram-bot")
    sink = build("k", EffectSpec(sink="telegram", base_url=api.url, timeout=2))
    to = {"ok": "@tutor_broadcast", "moved": "-4001", "again": "-4001", "blocked": "1013"}
    found = {name: await sink.send(delivery("never_twice", target=chat)) for name, chat in to.items()}
    found["long"] = await sink.send(delivery("never_twice", target="1001", body="x" * 5000))
    for fault in ({"do": "flood", "retry_after": 7}, {"do": "drop"}, {"do": "drop_after"}, {"do": "malformed"}, {"do": "status", "status": 502}):
        await asyncio.to_thread(api.fault, **fault)
        found[fault["do"]] = await sink.send(delivery("never_twice", target="1001"))
    await sink.close()
    assert {name: r.outcome for name, r in found.items()} == {
        "ok": "sent", "moved": "retry", "again": "sent", "blocked": "failed", "long": "failed",
        "flood": "retry", "drop": "uncertain", "drop_after": "uncertain", "malformed": "uncertain", "status": "uncertain",
    }  # fmt: skip
    assert found["flood"].after == 7.0
    assert "blocked by the user" in found["blocked"].detail
    assert "too long" in found["long"].detail


def test_only_a_sink_that_can_edit_may_be_told_to():
    settings = Settings(effects={"k": {"sink": "webhook", "url": "http://127.0.0.1:1/", "open": True, "on_change": "edit"}})
    with pytest.raises(Misconfigured, match="cannot change what it has sent"):
        gates(settings)
    settings = Settings(effects={"k": {"sink": "telegram", "open": True, "on_change": "edit"}})
    assert gates(settings)["k"]["on_change"] == "edit"
