"""Webhooks: who may call, what is answered when, and what is stored then."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time

import httpx
import pytest
from starlette.applications import Starlette

from collector.raw import Appender, register
from collector.sources.building import build
from worker.core import service
from worker.core.errors import Misconfigured
from worker.core.settings import Settings

SECRET = "quite secret"


class Hook:
    """A webhook source, its writer, and a caller."""

    def __init__(self, pool, options):
        self.settings = Settings(sources={"orders": {"kind": "webhook", "secret_env": "HOOK_SECRET", **options}})
        self.source = build(self.settings)["webhook:orders"]
        self.pool, self.stop, self.pages, self.hold, self.held = pool, asyncio.Event(), [], None, 0

    async def __aenter__(self):
        ids = await register(self.pool, self.settings, ["webhook:orders"])
        appender = Appender(self.pool, enqueue=True, bells=0)

        async def store(page):
            if self.hold:
                self.held += 1
                await self.hold()
            self.pages.append(len(page.records))
            return await appender.append(ids["webhook:orders"], "webhook:orders", page)

        app = Starlette(routes=self.source.routes(store))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://collector")
        self.writing = asyncio.create_task(service.run("webhook", self.source.step, self.stop))
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        self.source.close()
        await asyncio.wait_for(self.writing, 10)
        await self.client.aclose()

    async def post(self, body, *, signed=True, at=None, secret=SECRET, **headers):
        body = body if isinstance(body, (bytes, type(None))) or hasattr(body, "__aiter__") else json.dumps(body).encode()
        if signed:
            stamp = str(int(at or time.time()))
            mac = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
            headers |= {"X-Tailrace-Timestamp": stamp, "X-Tailrace-Signature": f"sha256={mac}"}
        return await self.client.post("/webhook/orders", content=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture
def hook(pool, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    return lambda **options: Hook(pool, options)


async def stored(pool):
    return [r["external_id"] for r in await pool.fetch("select external_id from tailrace.raw_records order by id")]


async def test_a_signed_call_is_answered_when_it_is_stored(hook, pool):
    async with hook(id_field="id") as h:
        answer = await h.post({"id": 7})
        assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "stored": 1, "known": 0})
        assert await stored(pool) == ["7"]
        assert (await h.post({"id": 7})).json()["known"] == 1


@pytest.mark.parametrize(("given", "reason"), [
    ({"signed": False}, "timestamp"),
    ({"secret": "another"}, "signature"),
    ({"at": time.time() - 40_000}, "timestamp"),
    ({"at": time.time() + 40_000}, "timestamp"),
    ({"signed": False, "X_Tailrace_Timestamp": "9" * 400}, "timestamp"),
    ({"signed": False, "X_Tailrace_Timestamp": str(int(time.time()))}, "signature"),
])  # fmt: skip
async def test_who_cannot_sign_is_refused(hook, pool, seen, given, reason):
    async with hook() as h:
        answer = await h.post({"id": 7}, **given)
    assert (answer.status_code, answer.json()["reason"]) == (401, reason)
    assert await stored(pool) == []
    assert ("webhook.refused", {"source": "webhook:orders", "reason": reason, "status": 401}) in seen


async def test_github_signs_the_body_alone_and_names_the_delivery(hook, pool):
    async with hook(signature="github") as h:
        mac = hmac.new(SECRET.encode(), b'{"zen": 1}', hashlib.sha256).hexdigest()
        headers = {"X_Hub_Signature_256": f"sha256={mac}", "X_GitHub_Delivery": "abc", "X_GitHub_Event": "ping"}
        assert (await h.post(b'{"zen": 1}', signed=False, **headers)).status_code == 202
        assert (await h.post(b'{"zen": 2}', signed=False, **headers)).status_code == 401
    assert await stored(pool) == ["abc"]


async def test_a_body_that_is_too_large_is_refused_also_without_its_length(hook, pool):
    async def chunks():
        for _ in range(50):
            yield b"x" * 50

    async with hook(max_bytes=1000, insecure=True, secret_env=None) as h:
        assert (await h.post(b"x" * 1001, signed=False)).status_code == 413
        assert (await h.post(chunks(), signed=False)).status_code == 413
        assert (await h.post(b"", signed=False)).status_code == 400
    assert await stored(pool) == []


async def test_a_key_of_the_caller_makes_a_second_call_harmless(hook, pool):
    async with hook() as h:
        for _ in range(2):
            assert (await h.post({"n": 1}, Idempotency_Key="k1")).status_code == 202
        assert (await h.post(b"\xffnot json")).status_code == 202
    assert (await stored(pool))[0] == "k1"
    assert len(await stored(pool)) == 2
    assert await pool.fetchval("select body from tailrace.raw_records where body is not null") == b"\xffnot json"


async def test_an_array_can_be_one_record_per_element_byte_for_byte(hook, pool):
    async with hook(split=True, id_field="id") as h:
        assert (await h.post(b'[{"id": 18446744073709551617}, {"id": 18446744073709551618}]')).json()["accepted"] == 2
        assert (await h.post(b'[{"id": 1}, ')).status_code == 400
        assert (await h.post(b'{"id": 5}')).json()["accepted"] == 1
    assert await stored(pool) == ["18446744073709551617", "18446744073709551618", "5"]


async def test_calls_that_come_together_share_a_page(hook, pool, eventually):
    async with hook(id_field="id") as h:
        gate = asyncio.Event()
        h.hold = gate.wait
        calls = [asyncio.create_task(h.post({"id": 0}))]
        await eventually(lambda: h.held)
        calls += [asyncio.create_task(h.post({"id": n})) for n in range(1, 40)]
        await eventually(lambda: len(h.source._waiting) == 39)
        assert not any(c.done() for c in calls)
        gate.set()
        assert {(await c).status_code for c in calls} == {202}
        assert h.pages == [1, 39]
    assert sorted(map(int, await stored(pool))) == list(range(40))


async def test_without_a_database_callers_are_told_to_come_back(hook, pool):
    async def away():
        raise ConnectionRefusedError("away")

    async with hook(id_field="id") as h:
        h.hold = away
        answer = await h.post({"id": 1})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        h.hold = None
        assert (await h.post({"id": 1})).status_code == 202
    assert await stored(pool) == ["1"]


async def test_what_was_taken_before_the_end_is_stored_and_later_calls_are_sent_away(hook, pool, eventually):
    async with hook(id_field="id") as h:
        gate = asyncio.Event()
        h.hold = gate.wait
        calls = [asyncio.create_task(h.post({"id": 0}))]
        await eventually(lambda: h.held)
        calls += [asyncio.create_task(h.post({"id": 1}))]
        await eventually(lambda: len(h.source._waiting) == 1)
        h.stop.set()
        h.source.close()
        assert (await h.post({"id": 3})).status_code == 503
        gate.set()
        assert [(await c).status_code for c in calls] == [202, 202]
    assert await stored(pool) == ["0", "1"]


@pytest.mark.parametrize(("options", "message"), [
    ({}, "needs a secret"),
    ({"secret_env": "NOT_SET"}, "NOT_SET is not set"),
    ({"secret_file": "/nonexistent/secret"}, "cannot read the file /nonexistent/secret"),
    ({"insecur": True}, "insecure"),
])  # fmt: skip
def test_no_start_without_a_secret(options, message):
    with pytest.raises(Misconfigured, match=message):
        build(Settings(sources={"w": {"kind": "webhook", **options}}))


def test_an_empty_secret_is_none(tmp_path):
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(Misconfigured, match="empty"):
        build(Settings(sources={"w": {"kind": "webhook", "secret_file": str(tmp_path / "secret")}}))
