"""Whatever a processor returns or raises, and whatever a sink makes of an answer: the record and its neighbours come to an end, and the worker lives."""

from __future__ import annotations

import contextlib
import decimal
import json
import types

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.hostile import SPECIAL, deep, often, texts, values
from tests.worker.conftest import drain, feed, processor_file, register, statuses  # noqa: F401  fixtures
from worker import Done, Effect, Fail, Outage, Retry, Skip
from worker.core.errors import Misconfigured, TailraceError
from worker.core.models import Delivery, Receipt
from worker.core.texts import as_json, fit, storable
from worker.core.times import parse_seconds, parse_time
from worker.outcomes import checked, failed
from worker.sinks import github_issue, telegram, webhook
from worker.sinks.http import Answer


class Odd:
    """Compares, counts and shows itself as nothing should."""

    def __eq__(self, other):
        raise ValueError("no truth")

    __hash__ = None

    def __bool__(self):
        raise ValueError("no truth")

    def __str__(self):
        raise ValueError("no text")

    def __repr__(self):
        return "Odd()"


odd = st.sampled_from(
    [
        Odd(),
        object(),
        b"x",
        decimal.Decimal(1),
        {1: 2},
        {"a"},
        types.MappingProxyType({"a": 1}),
        Effect,
        Done,
        ...,
        json.loads(deep(300)),
        True,
        5,
        "x",
        [1],
        [Effect("k", 1), None],
    ]
)
anything = values(leaves=5) | odd
effect = st.builds(Effect, kind=st.just("k") | texts | odd, body=anything, target=texts | odd, key=st.none() | texts | odd)
outcomes = (
    st.builds(Done, output=anything)
    | st.builds(Done, output=values(leaves=3), confidence=st.sampled_from(SPECIAL) | odd, needs_review=st.booleans() | odd, meta=st.none() | anything, input=st.none() | texts | odd)
    | st.builds(Done, effects=st.lists(effect, max_size=3) | odd)
    | st.builds(Skip, texts | odd) | st.builds(Fail, texts | odd)
    | st.builds(Retry, reason=texts | odd, after=st.sampled_from(SPECIAL) | odd, counts=st.booleans() | odd)
    | st.builds(Outage, texts | odd, st.sampled_from(SPECIAL) | odd) | st.builds(ValueError, texts | odd) | st.builds(TailraceError, texts)
    | anything
)  # fmt: skip


@often(150)
@given(outcomes)
@example(Done(rb"the text \u0000 of a program".decode()))
@example(Done(output=Odd()))
@example(Retry(Odd(), after=10**400, counts=Odd()))
@example(Done(confidence=10**400))
@example(Skip(Odd()))
@example(Fail(Odd()))
@example(Retry("r", after=float("nan")))
def test_any_value_is_an_outcome(value):
    outcome = failed(value) if isinstance(value, Exception) else checked(value)
    assert isinstance(outcome, (Done, Skip, Retry, Fail))
    assert isinstance(getattr(outcome, "reason", ""), str)
    if isinstance(outcome, Retry):
        assert outcome.after is None or (0 if outcome.counts else 1) <= outcome.after <= 2_592_000


def test_text_about_a_nul_is_no_nul():
    assert isinstance(checked(Done({"code": r"print('\u0000')", "path": "\\u0000"})), Done)
    assert checked(Done("\\\x00")) == Retry("the outcome holds a NUL character")


@often(3)
@given(hostile=st.lists(outcomes, min_size=1, max_size=25), size=st.sampled_from([1, 7, 100]), batch=st.booleans(), by_threads=st.booleans())
@example(
    hostile=[
        Done(output=Odd()),
        Retry("x", after=float("inf")),
        Done(confidence=1e300),
        Skip("\x00\ud800"),
        Fail("\ud800"),
        ValueError("\x00"),
        ValueError(Odd()),
        Outage("\x00", float("nan")),
    ],
    size=100,
    batch=False,
    by_threads=False,
)
@example(
    hostile=[Done(effects=[Effect("k", 1, key="".join(map(chr, range(40, 4000))))]), Done(effects=[Effect("k", float("nan"), "t" * 5000)])],
    size=100,
    batch=True,
    by_threads=False,
)
@example(hostile=[Outage("x", 0), ValueError()], size=7, batch=False, by_threads=True)
@example(hostile=[Retry("x", after=0, counts=False)], size=7, batch=True, by_threads=False)
async def test_every_record_beside_a_hostile_outcome_ends(pool, register, feed, drain, hostile, size, batch, by_threads):  # noqa: F811

    def one(record, ctx=None):
        n = record.payload["n"] % 1000
        value = hostile[n] if n < len(hostile) else Done({"n": n})
        if isinstance(value, Exception) and not batch:
            raise value
        return value

    async def alone(record, ctx):
        return one(record)

    first = await pool.fetchval("select coalesce(max(id), 0) from tailrace.raw_records")
    how = {"batch": True} if batch else {}
    name = f"v{first}"
    function = (lambda records, ctx: [one(r) for r in records]) if batch else one if by_threads else alone
    runnable = await register(function, name, pipeline=f"p{first}", slice_size=size, **how)
    await feed(len(hostile) + 5, first=first * 1000)
    gates = {"k": {"policy": "never_twice", "max_age": None, "hold": 0}}
    await drain(runnable, mode="run", gates=gates)
    rows = await pool.fetch("select * from tailrace.job_status where pipeline = $1 and raw_id > $2 order by raw_id", f"p{first}", first)
    assert len(rows) == len(hostile) + 5
    assert {r["status"] for r in rows} <= {"ok", "skipped", "failed", "pending"}
    if not any(isinstance(h, Outage) for h in hostile):
        assert [r["status"] for r in rows[len(hostile) :]] == ["ok"] * 5
    await pool.execute("update tailrace.pipelines set live_version_id = null")  # or every version would want every later record
    await pool.execute("update tailrace.versions set state = 'retired' where id = $1", runnable.version_id)
    await pool.execute("delete from tailrace.jobs")
    await pool.execute(f"drop table tailrace.results_v{runnable.version_id}")


@often(200)
@given(anything.filter(lambda v: not isinstance(v, (Odd, set))))
def test_whatever_is_told_becomes_json_that_postgres_holds(value):
    text = as_json({"v": value})
    text.encode()
    assert storable(json.dumps(json.loads(text), ensure_ascii=False))
    assert storable(fit(str(value), 500))


bodies = (
    st.binary(max_size=200)
    | values(leaves=6).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))
    | st.sampled_from([deep(5000).encode(), b"[]", b"{}", b"[1]", b"[{}]", b"[null]", b'[{"body": 1}]', b'{"number": []}'])
)
headers = st.dictionaries(st.sampled_from(["retry-after", "x-ratelimit-reset", "x-ratelimit-remaining", "x-request-id", "content-encoding", "content-type"]),
                          st.sampled_from(["", "0", "-1", "1e400", "nan", "²", "9" * 5000, "Mon, 01 Jan 0000 00:00:00 GMT", "Mon, 32 Jan 2026 99:00:00 GMT", "x\x00y", "gzip", "é"]), max_size=4)  # fmt: skip


@pytest.fixture
async def sinks(monkeypatch):
    """One of each that asks over HTTP; `answers` are what it is told, then `last` again and again."""
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123:secret")
    monkeypatch.setenv("GITHUB_TOKEN", "secret-token")
    made = types.SimpleNamespace()

    async def ask(self, method, url, content, headers, most):
        status, named, said = next(made.answers, made.last)
        return Answer(status, httpx.Headers([(k.encode(), v.encode("latin-1")) for k, v in named.items()]), said)

    monkeypatch.setattr("worker.sinks.http.Receiver._ask", ask)
    issues = github_issue.GithubIssue("k", github_issue.GithubIssueOptions(repo="o/r"))
    made.all = [webhook.Webhook("k", webhook.WebhookOptions(url="http://h/{target}")), telegram.Telegram("k", telegram.TelegramOptions()), issues]
    yield made
    for one in made.all:
        await one.close()


@often(60)
@given(
    st.lists(st.tuples(st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 409, 422, 429, 500, 503]), headers, bodies), min_size=1, max_size=5),
    values(leaves=6),
    texts,
    st.sampled_from(["idempotent", "never_twice", "never_lost"]),
)
@example([(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "²"}, b"{}")], {}, "", "never_twice")
@example([(200, {}, b"[1]")], {}, "", "never_twice")
@example([(200, {}, b'[{"number": 1, "body": 5}]')], {}, "", "never_twice")
@example([(200, {}, b'{"a": 1}')], {}, "", "never_twice")
async def test_any_answer_is_a_receipt(sinks, answers, body, target, policy):
    sinks.answers = iter(answers)
    sinks.last = answers[-1]
    stored = json.loads(as_json(body))
    for made in sinks.all:
        for told_body in (stored, {"text": stored, "chat_id": stored}, {"fingerprint": stored, "title": stored, "labels": stored, "body": stored}):
            receipt = await made.send(Delivery("key", "k", fit(target), told_body, 2, policy, "files:a", "x", None))
            assert isinstance(receipt, Receipt)
            assert receipt.outcome in {"sent", "retry", "failed", "uncertain"}
            assert receipt.after is None or 0 <= receipt.after <= 86_400
            assert receipt.remote_id is None or isinstance(receipt.remote_id, str)


@often(200)
@given(texts | st.from_regex(r"[0-9]{1,5}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}([+-][0-9]{2}:[0-9]{2}|Z)?", fullmatch=True))
def test_any_time_is_one_with_zone_or_refused(text):
    with contextlib.suppress(Misconfigured):
        assert parse_time(text).tzinfo is not None


@often(100)
@given(anything)
@example(10**400)
def test_any_span_is_seconds_or_refused(value):
    with contextlib.suppress(ValueError):
        assert abs(parse_seconds(value)) < float("inf")
