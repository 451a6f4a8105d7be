"""The source github: its two orders, what it makes of answers, and what it says when there is none."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import itertools
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector import live
from collector.raw import Appender, register
from collector.sources import Window
from collector.sources.answers import Denied, Limited, Quota
from collector.sources.building import build
from collector.sources.github_client import Pulls
from collector.sources.github_orders import Changes, History
from collector.sources.github_pulls import Records
from tests.collector.contract import standin
from tests.collector.subjects.github import REPO, TOKEN, FakeGithub, iso
from tests.collector.test_webhook import Hook
from worker.core.errors import Misconfigured, TailraceError, Unavailable
from worker.core.settings import Settings

NAME = f"github:{REPO}"
ALL = Window()
DAY = dt.timedelta(days=1)


@pytest.fixture
async def fake():
    made = FakeGithub()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def github(fake, monkeypatch):
    """`github(reviews=True, collector={...})`: the source at the fake."""
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    made = []

    def make(name=NAME, collector=None, **options):
        config = Settings(sources={name: {"kind": "github", "base_url": fake.url, **options}}, collector=collector or {})
        made.extend(build(config).values())
        return made[-1]

    yield make
    for one in made:
        await one.aclose()


async def polled(source, position=None):
    """The pages of one poll."""
    return [page async for page in source.poll(position or {})]


async def chunks(source, size, window=ALL, position=None):
    """All chunks to the end."""
    pages = [await source.chunk(position or {}, size, window)]
    while pages[-1].more:
        pages.append(await source.chunk(pages[-1].position, size, window))
    return pages


def keys(*pages):
    return [int(r.external_id) for page in pages for r in page.records]


# -- in the order of change


async def test_the_first_poll_goes_back_a_day_and_the_next_ones_to_the_mark(fake, github):
    for _ in range(5):
        fake.put()
    fake.now += 3 * DAY
    for _ in range(3):
        fake.put()
    source = github()
    (first,) = await polled(source)
    assert keys(first) == [8, 7, 6]
    newest = fake.now
    assert first.times == (newest - DAY, newest)
    fake.now += DAY
    fake.put(2, title="changed")
    (second,) = await polled(source, first.position)
    assert keys(second) == [2, 8, 7, 6]  # those of the overlap come again
    assert second.times == (newest, fake.now)
    assert second.position["mark"] == fake.now.isoformat()
    assert [a["first"] for a in fake.asked] == [100, 100]


async def test_a_poll_that_finds_nothing_has_nothing_to_store(fake, github):
    for _ in range(5):
        fake.put()
    (first,) = await polled(github())
    (again,) = await polled(github(), first.position)
    assert (again.records, again.position, again.times) == ([], first.position, None)
    assert again.quotas == (Quota("github:graphql", 4992.0, 5000.0, dt.datetime(2031, 1, 1, tzinfo=dt.UTC)),)
    assert await polled(github(), first.position | {"seen": "other"}) != []


async def test_what_has_the_time_of_the_mark_is_read_again(fake, github):
    fake.put()
    fake.put()
    (first,) = await polled(github(collector={"overlap": 0}))
    fake.put(1, title="in the same second", updatedAt=fake.pulls[2]["updatedAt"])
    (second,) = await polled(github(collector={"overlap": 0}), first.position)
    assert sorted(keys(second)) == [1, 2]
    assert second.times is None


async def test_a_poll_that_was_killed_goes_on_from_its_cursor_and_the_next_one_finds_what_came_meanwhile(fake, github):
    for _ in range(10):
        fake.put()
    (begun,) = await polled(github())
    fake.now += DAY
    for _ in range(250):
        fake.put()
    pages = []
    async for page in github().poll(begun.position):
        pages.append(page)
        if len(pages) == 2:
            break
    assert pages[1].position == {"mark": begun.position["mark"], "top": fake.now.isoformat(), "cursor": pages[1].position["cursor"]}
    top = fake.now
    fake.put(20, title="moved above the top before it was read")
    rest = await polled(github(), pages[1].position)
    assert set(keys(*pages, *rest)) == set(range(1, 261)) - {20}
    assert (rest[-1].position, rest[-1].times) == ({"mark": top.isoformat()}, (dt.datetime.fromisoformat(begun.position["mark"]), top))
    assert 20 in keys(*await polled(github(), rest[-1].position))
    assert len(fake.asked) == 1 + 2 + 1 + 3


async def test_a_repository_without_pull_requests_is_asked_again(fake, github):
    (page,) = await polled(github())
    assert (page.records, page.position) == ([], {})
    (chunk,) = await chunks(github(), 10)
    assert (chunk.records, chunk.more, chunk.total, chunk.ids, chunk.times) == ([], False, 0, None, None)
    fake.put()
    assert keys(*await polled(github())) == keys(*await chunks(github(), 10, position=chunk.position)) == [1]


@pytest.mark.parametrize("position", [
    {"mark": "yesterday", "top": 5, "cursor": ["x"]}, {"cursor": 5, "number": "x", "at": {}}, {"number": 9}, {"top": "2026-01-01T00:00:00Z", "cursor": "x"},
])  # fmt: skip
async def test_a_position_of_another_shape_is_none(fake, github, position):
    for _ in range(3):
        fake.put()
    assert keys(*await polled(github(), position)) == [3, 2, 1]
    assert keys(*await chunks(github(), 2, position=position)) == [1, 2, 3]


async def test_a_cursor_that_the_service_does_not_know_is_left(fake, github):
    for _ in range(3):
        fake.put()
    lost = {"mark": iso(fake.now - DAY), "top": iso(fake.now), "cursor": "not a cursor"}
    assert keys(*await polled(github(), lost)) == [3, 2, 1]
    assert keys(*await chunks(github(), 2, position={"cursor": "not a cursor", "number": 9, "at": iso(fake.now)})) == [1, 2, 3]


async def test_a_page_that_cannot_be_made_in_time_is_smaller_the_next_time(fake, github):
    for _ in range(60):
        fake.put()
    fake.answers.extend([(502, {}, b"<html>")] * 2)
    source = github()
    for _ in range(2):
        with pytest.raises(Unavailable, match="answered 502"):
            await polled(source)
    assert len(keys(*await polled(source))) == 60
    assert [a["first"] for a in fake.asked] == [100, 50, 25, 50]


# -- in the order of opening


async def test_chunks_are_of_the_size_that_was_asked_for(fake, github):
    for _ in range(260):
        fake.put()
    pages = await chunks(github(), 25)
    assert keys(*pages) == list(range(1, 261))
    assert {len(p.records) for p in pages[:-1]} == {25}
    assert {a["first"] for a in fake.asked} == {25}
    assert {p.total for p in pages} == {260}
    fake.asked.clear()
    (page,) = await chunks(github(), 500)
    assert [a["first"] for a in fake.asked] == [100, 100, 100]
    assert (len(page.records), page.more) == (260, False)


async def test_what_is_covered_has_no_holes(fake, github):
    fake.put(4)  # 1 to 3 are issues
    for number in (5, 8, 9, 10, 15, 16):
        fake.put(number)
    pages = await chunks(github(), 3)
    assert [p.ids for p in pages] == [(1, 9), (9, 16), (16, 17)]
    assert [p.times[0] for p in pages[1:]] == [p.times[1] for p in pages[:-1]]
    assert pages[0].times[0].isoformat() == fake.pulls[4]["createdAt"].replace("Z", "+00:00")
    assert abs(pages[-1].times[1] - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)


async def test_a_history_that_was_read_goes_on_with_what_was_opened_since(fake, github):
    for _ in range(7):
        fake.put()
    pages = await chunks(github(), 4)
    fake.put(2, title="edited: that is for the poll")
    fake.put()
    again = await chunks(github(), 4, position=pages[-1].position)
    assert keys(*again) == [8]
    assert keys(*await chunks(github(), 4, position=again[-1].position)) == []


async def test_pull_requests_that_change_while_history_is_read_are_neither_skipped_nor_doubled(fake, github):
    for _ in range(20):
        fake.put()
    source, position, seen, more = github(), {}, [], True
    while more:
        page = await source.chunk(position, 3, ALL)
        position, more = page.position, page.more
        seen += keys(page)
        fake.put(1 + len(seen) % 20, title="changed")
        if len(seen) < 12:
            fake.put()
    assert seen == sorted(fake.pulls)


@pytest.mark.parametrize("since", [True, False])
@pytest.mark.parametrize("until", [True, False])
@pytest.mark.parametrize("size", [1, 4, 30])
async def test_a_window_holds_what_was_opened_in_it(fake, github, since, until, size):
    moments = []
    for _ in range(24):
        fake.now += dt.timedelta(hours=1)
        fake.put()
        moments.append(fake.now)
    window = Window(moments[6] if since else None, moments[18] if until else None)
    wanted = list(range(7 if since else 1, 19 if until else 25))
    pages = await chunks(github(), size, window)
    assert sorted(keys(*pages)) == wanted
    assert all(len(p.records) <= size for p in pages)
    assert len(fake.asked) <= len(pages)
    assert (pages[0].total is None) == (since or until)
    spans = sorted(p.times for p in pages if p.times)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    if since or until:
        assert (spans[0][0], spans[-1][1] if until else 0) == (window.since or moments[0], window.until if until else 0)
    numbers = sorted(p.ids for p in pages if p.ids)
    assert (numbers[0][0], numbers[-1][1]) == (wanted[0], wanted[-1] + 1)


async def test_a_window_that_was_left_goes_on(fake, github):
    moments = [fake.now + dt.timedelta(seconds=n) for n in range(31)]
    for _ in range(30):
        fake.put()
    window = Window(moments[11])
    page = await github().chunk({}, 5, window)
    assert keys(page) == [30, 29, 28, 27, 26]
    fake.put()
    assert keys(*await chunks(github(), 5, window, page.position)) == list(range(25, 10, -1))


async def test_a_chunk_is_no_larger_than_what_may_be_held(fake, github):
    for _ in range(250):
        fake.put(body="x" * 5000)
    page = await github(collector={"page_bytes": 400_000}).chunk({}, 5000, ALL)
    assert (len(page.records), page.more) == (100, True)


# -- what is stored


class Repository:
    """The fake's pull requests without a network, read by a reader that may be killed after any page."""

    def __init__(self):
        self.fake = FakeGithub()
        self.raw, self.position, self.history, self.records = {}, {}, {}, Records(["comments"])

    def _page(self, after, first, field, direction):
        page = self.fake.page(after, first, {"field": field, "direction": direction})
        return Pulls(page["nodes"], page["pageInfo"]["endCursor"] or after, page["pageInfo"]["hasNextPage"], None, (), dt.datetime.now(dt.UTC))

    def _store(self, records):
        for r in records:
            held = self.raw.get(r.external_id)
            if held is None or r.source_time >= held.source_time:
                self.raw[r.external_id] = r

    def poll(self, pages, first):
        """At most `pages` of one poll are stored."""
        changes = Changes(self.position, dt.timedelta(0), DAY)
        while changes.more and pages:
            records = [self.records.record(n) for n in changes.take(self._page(changes.cursor, first, "UPDATED_AT", "DESC"))]
            reached = changes.reached(records)
            self._store([] if reached == self.position else records)
            self.position, pages = reached, pages - 1

    def chunk(self, first):
        history = History(self.history, ALL)
        self._store([self.records.record(n) for n in history.take(self._page(history.cursor, first, "CREATED_AT", "ASC"))])
        self.history = history.reached()


OPERATION = st.one_of(
    st.tuples(st.just("open"), st.booleans()), st.tuples(st.just("edit"), st.integers(1, 12), st.booleans()),
    st.tuples(st.just("poll"), st.integers(1, 3), st.integers(1, 4)), st.tuples(st.just("chunk"), st.integers(1, 4)),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(OPERATION, max_size=40))
def test_whatever_happens_between_pages_news_and_history_together_are_what_the_service_holds(operations):
    world = Repository()
    for number, (what, *how) in enumerate(operations):
        if what == "open" or (what == "edit" and how[0] in world.fake.pulls):
            if how[-1]:  # in the same second as the change before
                world.fake.now -= dt.timedelta(seconds=1)
            world.fake.put(how[0] if what == "edit" else None, title=f"by {number}")
        elif what == "poll":
            world.poll(*how)
        elif what == "chunk":
            world.chunk(*how)
    for _ in range(3):
        world.poll(99, 5)
        world.chunk(99)
    assert {k: json.loads(r.payload)["title"] for k, r in world.raw.items()} == {str(n): p["title"] for n, p in world.fake.pulls.items()}


async def test_what_is_missing_is_said_in_meta_and_the_rest_of_the_page_goes_on(fake, github):
    fake.put(databaseId=None)
    fake.put(author=None)
    fake.put(databaseId=None, author=None)
    fake.put()
    fake.put(databaseId=None, fullDatabaseId="3000000000")
    (page,) = await chunks(github(), 10)
    assert [r.meta.get("defect") for r in page.records] == ["no databaseId", "no author", "no databaseId, no author", None, None]
    assert json.loads(page.records[3].payload) == fake.pulls[4]
    assert (iso(page.records[3].occurred_at), iso(page.records[3].source_time)) == (fake.pulls[4]["createdAt"], fake.pulls[4]["updatedAt"])


@pytest.mark.parametrize(("body", "why"), [("a\x00b", "NUL character"), ("a\ud83db", "lone surrogate")])
async def test_what_jsonb_cannot_hold_keeps_its_number_and_its_bytes(fake, github, pool, body, why):
    fake.put()
    fake.put(body=body)
    fake.put()
    source = github()
    ids = await register(pool, Settings(sources={NAME: {"kind": "github"}}), [NAME])
    appender = Appender(pool, enqueue=True, bells=0)
    for _ in range(2):
        (page,) = await chunks(source, 10)
        await appender.append(ids[NAME], NAME, page, lane=1)
        fake.put(2, comments={"totalCount": 1})
    fake.put(2, title="edited")
    await appender.append(ids[NAME], NAME, (await polled(source))[0])
    rows = await pool.fetch("select external_id, revision, payload is null as bytes, body, meta, occurred_at from tailrace.raw_records order by id")
    assert [(r["external_id"], r["revision"], r["bytes"]) for r in rows] == [("1", 1, False), ("2", 1, True), ("3", 1, False), ("2", 2, True)]
    assert json.loads(rows[3]["body"]) == fake.pulls[2]
    assert json.loads(rows[1]["meta"])["defect"] == why
    assert iso(rows[1]["occurred_at"]) == fake.pulls[2]["createdAt"]


@pytest.mark.parametrize(("changed", "options", "new"), [
    ({}, {}, False),
    ({"comments": {"totalCount": 5}}, {}, False),
    ({"comments": {"totalCount": 5}}, {"ignore_fields": []}, True),
    ({"reviews": {"totalCount": 1}}, {}, True),
    ({"reviews": {"totalCount": 1}}, {"ignore_fields": ["reviews.totalCount"]}, False),
    ({"title": "other"}, {}, True),
    ({"state": "MERGED"}, {}, True),
])  # fmt: skip
async def test_which_change_is_a_revision(fake, github, changed, options, new):
    fake.put()
    (before,) = await chunks(github(**options), 10)
    fake.put(1, **changed)
    (after,) = await chunks(github(**options), 10)
    assert (before.records[0].digest != after.records[0].digest) == new
    assert after.records[0].source_time > before.records[0].source_time


# -- what is no page

SECONDARY = {"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}
RESET = str(int(time.time()) + 1200)


def partly(node=None, **errors):
    """The last pull request of the page is missing."""

    def change(answer):
        nodes = answer["data"]["repository"]["pullRequests"]["nodes"]
        nodes[-1] = node
        return answer | errors

    return change


@pytest.mark.parametrize(("told", "kind", "said"), [
    ((200, {"x-ratelimit-reset": RESET}, {"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded"}]}), Limited, 1200),
    ((200, {}, {"errors": [{"type": "RATE_LIMIT", "message": "API rate limit exceeded"}]}), Limited, 60),
    ((403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": RESET}, {"message": "API rate limit exceeded"}), Limited, 1200),
    ((403, {"Retry-After": "7"}, SECONDARY), Limited, 7),
    ((429, {"Retry-After": "7"}, SECONDARY), Limited, 7),
    ((429, {"Retry-After": "soon"}, SECONDARY), Limited, 60),
    ((429, {}, b"slow down"), Limited, 60),
    ((403, {}, SECONDARY), Limited, 60),
    ((200, {"Retry-After": "9"}, {"data": None, "errors": [SECONDARY]}), Limited, 9),
    ((200, {"x-ratelimit-reset": "9" * 12}, {"errors": [{"type": "RATE_LIMITED", "message": "x"}]}), Limited, 7200),
    ((401, {}, {"message": f"Bad credentials {TOKEN}"}), Denied, r"401: Bad credentials \*\*\*"),
    ((403, {}, {"message": "Resource protected by organization SAML enforcement"}), Denied, "SAML"),
    ((404, {}, b"<html>"), Denied, "404"),
    ((200, {}, {"data": {"repository": None}, "errors": [{"type": "NOT_FOUND", "path": ["repository"], "message": "Could not resolve"}]}), Denied, "Could not"),
    ((200, {}, {"data": {}, "errors": [{"type": "FORBIDDEN", "path": ["repository", "x"], "message": "not accessible"}]}), Denied, "refuses repository.x"),
    ((200, {}, {"errors": [{"message": "Field 'x' doesn't exist", "locations": [{"line": 1, "column": 1}]}]}), Denied, "correct `fields`"),
    ((200, {}, {"errors": [{"type": "MAX_NODE_LIMIT_EXCEEDED", "message": "too many"}]}), Denied, "correct `fields`"),
    ((200, {}, {"errors": [{"type": "INVALID_CURSOR_ARGUMENTS", "message": "odd"}]}), Unavailable, "odd"),
    ((502, {}, b"<html>"), Unavailable, "502"),
    ((503, {"Retry-After": "5"}, {"message": "away"}), Unavailable, "away"),
    ((200, {}, {"data": None, "errors": [{"message": "Something went wrong while executing your query."}]}), Unavailable, "Something went wrong"),
    ((200, {}, {"errors": "odd"}), Unavailable, "odd"),
    ((200, {}, b'{"data": {"repository": {"pullRequests": {"nodes": [{"num'), Unavailable, "cut off"),
    ((200, {}, b"[]"), Unavailable, "no JSON object"),
    ((200, {}, {"data": None}), Unavailable, "no page"),
    ((200, {}, {"data": {"repository": {"pullRequests": {"nodes": None, "pageInfo": {"hasNextPage": False}}}}}), Unavailable, "no page"),
    ((200, {}, {"data": {"repository": {"pullRequests": {"nodes": [], "pageInfo": {"hasNextPage": True, "endCursor": None}}}}}), Unavailable, "not where"),
    ((302, {"Location": "/elsewhere"}, b""), Unavailable, "no JSON object"),
    (partly(), Unavailable, "1 of 3"),
    (partly(errors=[{"message": "Something went wrong", "path": ["repository", "pullRequests", "nodes", 2]}]), Unavailable, "in part"),
    (partly(node={"number": 3}, errors=[{"type": "NOT_FOUND", "message": "gone", "path": ["repository", "pullRequests", "nodes", 2, "author"]}]), Unavailable, "in part"),
])  # fmt: skip
async def test_what_is_no_whole_page(fake, github, told, kind, said):
    for _ in range(3):
        fake.put()
    source = github()
    for call in (lambda: source.chunk({}, 10, ALL), lambda: polled(source)):
        fake.answers.append(told)
        with pytest.raises(kind) as raised:
            await call()
        error = raised.value
        assert isinstance(error, TailraceError)
        assert TOKEN not in f"{error!r} {error}"
        if isinstance(said, str):
            assert re.search(said, str(error))
        elif said:
            assert (error.name, error.seconds) == ("github:graphql", pytest.approx(said, abs=2 if said < 1000 else 300))
    assert keys(*await chunks(source, 10)) == [1, 2, 3]


async def test_no_connection_and_no_answer_are_failures(fake, github):
    fake.put()
    nobody = github(base_url="http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="no answer from GitHub: ConnectError"):
        await nobody.chunk({}, 10, ALL)


async def test_a_wrong_token_waits_for_a_person(fake, github, db_url, pool, eventually, tmp_path, seen):
    fake.put()
    (tmp_path / "token").write_text("ghs_an-old-one")
    spec = {"kind": "github", "base_url": fake.url, "token_file": str(tmp_path / "token"), "every": 0.05}
    config = Settings(sources={NAME: spec}, collector={"port": 0})
    program = live.Live(config, build(config))
    task = asyncio.create_task(program.run(db_url))
    await eventually(lambda: [e for e in seen if e[0] == "source.denied"])
    program.stop.set()
    await asyncio.wait_for(task, 20)
    assert fake.statuses == [401]
    row = await pool.fetchrow("select reason, open_until from tailrace.quotas where name = $1", f"source:{NAME}")
    assert (row["reason"], row["open_until"]) == ("GitHub answered 401: Bad credentials", None)
    assert "ghs_an-old-one" not in repr(seen)


async def test_a_call_that_hangs_ends_with_the_program(fake, github, db_url, pool, eventually):
    fake.put()
    never = asyncio.Event()
    fake.answers.append(never)
    config = Settings(sources={NAME: {"kind": "github", "base_url": fake.url}}, collector={"port": 0})
    program = live.Live(config, build(config))
    task = asyncio.create_task(program.run(db_url))
    await eventually(lambda: fake.asked)
    program.stop.set()
    await asyncio.wait_for(task, 20)
    never.set()
    assert not [t for t in asyncio.all_tasks() if "read github" in t.get_name()]


async def test_a_limit_holds_all_who_spend_from_it_and_its_quota_is_told(fake, github, db_url, pool, eventually):
    fake.put()
    other = f"{REPO.partition('/')[0]}/other"
    spec = {"kind": "github", "base_url": fake.url, "every": 0.05, "account": "bot"}
    config = Settings(sources={NAME: spec, f"github:{other}": spec}, collector={"port": 0})
    sources = build(config)
    assert {s.limits for s in sources.values()} == {("github:graphql:bot",)}
    program = live.Live(config, {NAME: sources[NAME]})
    task = asyncio.create_task(program.run(db_url))
    quota = await eventually(lambda: pool.fetchrow("select * from tailrace.quotas where name = 'github:graphql:bot' and remaining < 5000"))
    assert (quota["limit_n"], quota["resets_at"].year) == (5000, 2031)
    fake.answers.append((200, {"x-ratelimit-reset": RESET}, {"errors": [{"type": "RATE_LIMITED", "message": "exhausted"}]}))
    held = await eventually(lambda: pool.fetchrow("select * from tailrace.quotas where name = 'github:graphql:bot' and breaker = 'open'"))
    program.stop.set()
    await asyncio.wait_for(task, 20)
    await sources[f"github:{other}"].aclose()
    assert held["reason"] == "exhausted"
    assert abs(held["open_until"].timestamp() - int(RESET)) < 5


@pytest.mark.parametrize(("name", "options", "message"), [
    ("github:river", {}, "names no repository"),
    ("github:river/barge/x", {}, "names no repository"),
    ("github:river/../barge", {}, "names no repository"),
    (NAME, {"token_env": "NOT_SET"}, "NOT_SET is not set"),
    (NAME, {"token_file": "/nonexistent/token"}, "cannot read the file /nonexistent/token"),
    (NAME, {"tokenenv": "X"}, "did you mean 'token_env'"),
])  # fmt: skip
async def test_a_source_that_cannot_be_built_says_what_to_do(github, name, options, message):
    with pytest.raises(Misconfigured, match=message) as refused:
        github(name=name, **options)
    assert TOKEN not in str(refused.value)


async def test_no_start_without_a_token(github, monkeypatch):
    monkeypatch.delenv("GITHUB_TOKEN")
    with pytest.raises(Misconfigured, match="GITHUB_TOKEN is not set"):
        github()


async def test_it_says_what_it_reads_and_nothing_of_its_token(fake, github):
    source = github()
    assert source.describe() == f"pull requests of {REPO} at {fake.url}, asked every 60 s"
    assert TOKEN not in repr(vars(source))


@pytest.mark.parametrize(("base", "url"), [
    ("https://api.github.com", "https://api.github.com/graphql"), ("https://own.example/api/v3", "https://own.example/api/graphql"),
    ("http://127.0.0.1:8802/", "http://127.0.0.1:8802/graphql"), ("https://own.example/api/v3/", "https://own.example/api/graphql"),
])  # fmt: skip
def test_where_graphql_is(monkeypatch, base, url):
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    (source,) = build(Settings(sources={NAME: {"kind": "github", "base_url": base}})).values()
    assert source._client._url == url


# -- webhooks


async def test_events_of_githubs_webhook_are_stored_under_their_delivery_id(pool, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "between us")
    body = json.dumps({"action": "opened", "number": 7, "pull_request": {"number": 7, "title": "first 7"}, "sender": {"login": "vera"}}).encode()
    signed = "sha256=" + hmac.new(b"between us", body, hashlib.sha256).hexdigest()
    async with Hook(pool, {"signature": "github"}) as hook:
        headers = {"X_GitHub_Event": "pull_request", "X_GitHub_Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958", "X_Hub_Signature_256": signed}
        assert (await hook.post(body, signed=False, **headers)).json() == {"accepted": 1, "stored": 1, "known": 0}
        assert (await hook.post(body, signed=False, **headers)).json() == {"accepted": 1, "stored": 0, "known": 1}  # sent again by hand
        assert (await hook.post(body + b" ", signed=False, **headers)).status_code == 401
    (row,) = await pool.fetch("select external_id, payload, meta from tailrace.raw_records")
    assert row["external_id"] == "72d3162e-cc78-11e3-81ab-4c9367dc0958"
    assert json.loads(row["payload"]) == json.loads(body)
    assert json.loads(row["meta"])["event"] == "pull_request"


# -- at the stand-in, which counts and refuses as GitHub's documents say


@pytest.fixture
async def stood(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    (tmp_path / "pulls.jsonl").write_text(json.dumps({"repo": REPO, "prs": 260}))
    service = await asyncio.to_thread(standin, "github", "--data", str(tmp_path / "pulls.jsonl"))
    yield service
    await asyncio.to_thread(service.stop)


@pytest.mark.shared
@pytest.mark.parametrize("options", [{}, {"reviews": True}, {"fields": "milestone { title } reviewDecision"}])
async def test_a_page_of_a_hundred_costs_four_points(stood, github, options):
    source = github(base_url=stood.url, **options)
    page = await source.chunk({}, 100, ALL)
    assert (len(page.records), page.total) == (100, 260)
    assert page.quotas[0].limit - page.quotas[0].remaining == 4
    first = json.loads(page.records[0].payload)
    assert set(first) >= {
        "number", "databaseId", "id", "title", "body", "state", "isDraft", "author", "createdAt", "updatedAt", "closedAt", "mergedAt", "additions",
        "deletions", "changedFiles", "commits", "labels", "baseRefName", "headRefName", "mergedBy", "reviews", "comments",
    }  # fmt: skip
    assert ("reviewDecision" in first) == ("fields" in options)
    authors = [json.loads(r.payload)["author"] for r in page.records]
    assert {"login", "databaseId", "__typename"} == set(next(filter(None, authors)))
    if "reviews" in options:
        reviews = [v for r in page.records for v in json.loads(r.payload)["reviews"]["nodes"]]
        assert {"id", "state", "submittedAt", "author"} == set(reviews[0])


@pytest.mark.shared
async def test_faults_of_the_stand_in_are_no_pages(stood, github):
    source = github(base_url=stood.url, timeout=2)
    seen = {}
    for fault in ("partial", "something_wrong", "bad_gateway", "secondary", "rate_limited", "drop", "drop_after", "drop_mid", "malformed"):
        await asyncio.to_thread(stood.fault, do=fault, retry_after=2, seconds=1)
        with pytest.raises(TailraceError) as raised:
            await source.chunk({}, 50, ALL)
        seen[fault] = type(raised.value)
        await asyncio.to_thread(stood.do, "rate", remaining=5000, reset_in=3600)
    assert seen == dict.fromkeys(seen, Unavailable) | {"secondary": Limited, "rate_limited": Limited}
    assert keys(*await chunks(source, 100)) == list(range(1, 261))
    with pytest.raises(Denied, match="Cannot query field 'nope'"):
        await github(base_url=stood.url, fields="nope").chunk({}, 50, ALL)
    with pytest.raises(Denied, match="Could not resolve to a Repository"):
        await github(name="github:river/none", base_url=stood.url).chunk({}, 50, ALL)
