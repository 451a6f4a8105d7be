"""Any call of a webhook: refused, or stored before it is answered; never an answer that says that we are at fault."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette

from collector.raw import Appender, register
from collector.sources.building import build
from tests.fuzz.hostile import deep, often, values
from worker.core import service
from worker.core.http import serving
from worker.core.metrics import Metrics
from worker.core.settings import Settings

SECRET = "quite secret"
KINDS = {
    "plain": {},
    "split": {"split": True, "id_field": "id"},
    "timed": {"id_field": "id", "time_field": "t", "version_field": "t"},
    "github": {"signature": "github"},
}


class Hooks:
    """One webhook of each sort, all written by one loop each."""

    def __init__(self, pool):
        self.pool, self.stop, self.tasks, self.stored = pool, asyncio.Event(), [], {}
        tables = {name: {"kind": "webhook", "secret_env": "HOOK_SECRET", "max_bytes": 5000, **more} for name, more in KINDS.items()}
        self.settings = Settings(sources=tables)
        self.sources = build(self.settings)

    async def start(self):
        self.ids = await register(self.pool, self.settings, list(self.sources))
        appender, routes = Appender(self.pool, enqueue=True, bells=0), []
        for name, source in self.sources.items():
            routes += source.routes(self.storing(appender, name))
            self.tasks.append(asyncio.create_task(service.run(name, source.step, self.stop)))
        self.routes, self.app = routes, Starlette(routes=routes)

    def storing(self, appender, name):
        return lambda page: appender.append(self.ids[name], name, page)

    async def end(self):
        self.stop.set()
        for source in self.sources.values():
            source.close()
        await asyncio.gather(*self.tasks)

    async def count(self):
        return await self.pool.fetchval("select count(*) from tailrace.raw_records")

    async def call(self, method, path, headers, chunks):
        """What the application answers; raises what it raises."""
        waiting, sent = list(chunks), []

        async def receive():
            if not waiting:
                return {"type": "http.disconnect"}
            chunk = waiting.pop(0)
            return {"type": "http.disconnect"} if chunk is None else {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await asyncio.wait_for(self.app(scope, receive, send), 20)
        return sent[0]["status"]


@pytest.fixture
async def hooks(pool, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    made = Hooks(pool)
    await made.start()
    yield made
    await made.end()


def signed(kind, body, at=None):
    """The headers of a call that is signed as it should be."""
    stamp = str(int(at or time.time())).encode()
    mac = hmac.new(SECRET.encode(), body if kind == "github" else stamp + b"." + body, hashlib.sha256).hexdigest().encode()
    return (
        [(b"x-hub-signature-256", b"sha256=" + mac)]
        if kind == "github"
        else [(b"x-tailrace-timestamp", stamp), (b"x-tailrace-signature", b"sha256=" + mac)]
    )


BODIES = [b"", b" ", b"[]", b"[1]", b"{", b"\x00", b"\xff", b"NaN", b'{"id": 1, "id": 2}', b'{"id": {"a": [1]}, "t": "0001-01-01T00:00:00+14:00"}', b'{"id": "\\u0000", "t": 1e300}', b'[{"id": "\\ud800"}, {"id": NaN}]',
          deep(2000).encode(), b'{"id": %s}' % deep(300).encode(), b"[" + b"1," * 2000 + b"1]", b"x" * 5000, b"x" * 5001, b"1" * 4900, b'{"id": "%s"}' % (b"k" * 3000)]  # fmt: skip
bodies = (
    st.sampled_from(BODIES)
    | st.binary(max_size=60)
    | values(st.sampled_from(["id", "t", "a"]), leaves=6).map(lambda v: json.dumps(v).encode())
    | st.lists(values(leaves=3), max_size=4).map(lambda v: json.dumps(v).encode())
)
texts = st.sampled_from(
    [
        b"",
        b"0",
        b"-1",
        b"+5",
        b" 7 ",
        "²".encode("latin-1"),
        b"9" * 20,
        b"9" * 5000,
        b"\x00",
        b"a\x00b",
        b"\xff\xfe",
        b"sha256=",
        b"sha256=\xe9",
        b"k" * 3000,
        b"1e3",
        b"nan",
        b"chunked",
        b"text/plain; charset=nonsense",
    ]
) | st.binary(max_size=8)
NAMES = [
    b"content-length",
    b"content-type",
    b"idempotency-key",
    b"x-github-delivery",
    b"x-github-event",
    b"x-tailrace-timestamp",
    b"x-tailrace-signature",
    b"x-hub-signature-256",
    b"transfer-encoding",
    b"expect",
    b"\xff",
    b"",
]
headers = st.lists(st.tuples(st.sampled_from(NAMES) | st.binary(max_size=4), texts), max_size=5)


@often(60)
@given(
    kind=st.sampled_from(list(KINDS)),
    method=st.sampled_from(["POST"] * 8 + ["GET", "PUT", "", "PÖST"]),
    given=headers,
    body=bodies,
    sign=st.sampled_from([True, True, True, False]),
    cuts=st.lists(st.integers(0, 5000), max_size=3),
    broken=st.sampled_from([False] * 9 + [True]),
)
@example(kind="plain", method="POST", given=[(b"idempotency-key", b"\x00")], body=b"1", sign=True, cuts=[], broken=False)
@example(kind="plain", method="POST", given=[(b"content-type", b"a\x00b"), (b"x-github-event", b"\x00")], body=b"1", sign=True, cuts=[], broken=False)
@example(kind="plain", method="POST", given=[(b"content-length", "²".encode("latin-1"))], body=b"1", sign=True, cuts=[], broken=False)
@example(kind="plain", method="POST", given=[(b"content-length", b"9" * 5000)], body=b"1", sign=True, cuts=[], broken=False)
@example(kind="split", method="POST", given=[], body=deep(2000).encode(), sign=True, cuts=[], broken=False)
@example(kind="timed", method="POST", given=[], body=b'{"id": %s}' % deep(300).encode(), sign=True, cuts=[], broken=False)
async def test_any_call(hooks, kind, method, given, body, sign, cuts, broken):
    before = await hooks.count()
    places = sorted({0, *(c % (len(body) + 1) for c in cuts), len(body)})
    chunks = [body[a:b] for a, b in itertools.pairwise(places)] or [b""]
    status = await hooks.call(method, f"/webhook/{kind}", (signed(kind, body) if sign else []) + given, [*chunks[:-1], None] if broken else chunks)
    after = await hooks.count()
    assert status in {202, 400, 401, 405, 408, 413}
    assert status == 202 or after == before
    assert not (status == 202 and not sign)
    if sign and not given and method == "POST" and not broken and body.strip() and len(body) <= 5000 and kind != "split":
        assert status == 202


@pytest.fixture
async def port(hooks, eventually):
    async def listens():
        try:
            (await asyncio.open_connection("127.0.0.1", number))[1].close()
        except ConnectionError:
            return False
        return True

    async with serving("127.0.0.1", 0, hooks.routes, Metrics("collector"), lambda: None, lambda: None) as number:
        await eventually(listens)
        yield number


REQUEST = b"POST /webhook/plain HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n%s"


@often(40)
@given(st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)), max_size=3) | st.binary(max_size=200))
async def test_any_bytes_at_the_port(hooks, port, caplog, harm):
    """Whatever comes: an answer below 500 or an end of the connection, and the next call is served."""
    body = b'{"id": 1}'
    whole = REQUEST % (len(body), b"".join(k + b": " + v + b"\r\n" for k, v in signed("plain", body)), body)
    data = bytearray(whole)
    for at, new in harm if isinstance(harm, list) else []:
        data[at % len(data) : at % len(data) + len(new)] = new
    for sent in (harm if isinstance(harm, bytes) else bytes(data), whole):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        if sent is not whole:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert not answer or int(answer.split()[1]) < 500
    assert b" 202 " in answer
    assert not [r for r in caplog.records if r.exc_info]
