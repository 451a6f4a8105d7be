"""x: what is asked, what an answer means, what makes a record, what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import time
from types import SimpleNamespace

import pytest

from collector import backfill, live
from collector.sources import Window, ahead, x_money
from collector.sources.answers import Denied, Limited
from collector.sources.building import build
from collector.sources.x_posts import Malformed, members, sheet, snowflake, time_of
from tests.collector.contract import standin
from tests.collector.local import Local
from tests.collector.subjects.x import TOKEN, FakeX
from worker.core.errors import Misconfigured, Unavailable
from worker.core.settings import Settings

NAME = "x:harbour_office"
HOUR = dt.timedelta(hours=1)


@pytest.fixture
async def fake():
    service = FakeX()
    async with Local(service.app) as local:
        service.url = local.url
        yield service


@pytest.fixture
def settings(fake, tmp_path):
    def of(name=NAME, **options):
        (tmp_path / "token").write_text(TOKEN)
        spec = {"kind": "x", "token_file": str(tmp_path / "token"), "base_url": fake.url, **options}
        fast = {"port": 0, "poll_seconds": 0.05, "touch_seconds": 0.1, "heal_seconds": 3600}
        return Settings(sources={name: spec}, collector=fast)

    return of


@pytest.fixture
async def make(settings):
    made = []

    def of(name=NAME, **options):
        made.append(build(settings(name, **options))[name])
        return made[-1]

    yield of
    for source in made:
        await source.aclose()


class Stored:
    """What raw would hold, for a source that is read without a database."""

    def __init__(self):
        self.newest, self.revisions = {}, []

    async def take(self, pages, most=None):
        """Stores pages; returns them."""
        taken = []
        async with contextlib.aclosing(pages) as open_pages:
            async for page in open_pages:
                taken.append(page)
                for r in page.records:
                    if self.newest.get(r.external_id, r._replace(digest=b"")).digest != r.digest:
                        self.revisions.append(r)
                        self.newest[r.external_id] = r
                if most is not None and len(taken) == most:
                    break
        return taken

    async def between(self, first, last):
        return sorted(k for k, r in self.newest.items() if first <= k <= last and r.op != "delete")


def fill(fake, count, every=dt.timedelta(minutes=1)):
    now = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    return [fake.add(f"notice {n}", now - every * n) for n in range(count, 0, -1)]


async def all_of(pages):
    return [page async for page in pages]


def text(record):
    return json.loads(record.payload)["data"]["text"]


# -- news ----------------------------------------------------------------------------------------------


async def test_a_poll_reads_what_is_newer_than_its_position_and_asks_for_no_more(fake, make):
    keys, x = fill(fake, 30), make()
    page = (await all_of(x.poll({"since": keys[19]})))[-1]
    assert [r.external_id for r in page.records] == keys[20:]
    assert page.position == {"since": keys[-1]}
    assert fake.reads()[0]["since_id"] == keys[19]
    (quiet,) = await all_of(x.poll(page.position))
    assert (quiet.records, quiet.position) == ([], page.position)
    assert (quiet.quotas[0].name, quiet.quotas[0].limit) == ("x:timeline", 900)


async def test_a_poll_that_was_killed_goes_on_where_it_was(fake, make):
    keys, stored = fill(fake, 250), Stored()
    (first,) = await stored.take(make().poll({"since": keys[0]}), most=1)
    assert first.position == {"since": keys[0], "top": keys[-1], "until": keys[150], "count": 100}
    late = fake.add("came while it was dead")
    fake.calls.clear()
    pages = await stored.take(make().poll(first.position))
    assert [q.get("until_id") for q in fake.reads()] == [keys[150]] * 2
    assert pages[-1].position == {"since": keys[-1]}
    await stored.take(make().poll(pages[-1].position))
    assert sorted(stored.newest) == [*keys[1:], late]


async def test_the_first_poll_begins_a_day_ago_for_the_rest_is_history(fake, make):
    keys = fill(fake, 60, HOUR)
    pages = await all_of(make().poll({}))
    assert [r.external_id for p in pages for r in p.records] == keys[-23:]
    assert await all_of(make().poll({"since": "no id", "of": "another release"}))


async def test_a_page_without_posts_is_not_the_end(fake, make):
    keys = fill(fake, 20)
    fake.holes = 1
    pages = await all_of(make().poll({"since": keys[0]}))
    assert [len(p.records) for p in pages] == [0, 19]
    assert pages[0].position == {"since": keys[0]}
    fake.holes = 1
    assert len((await make().chunk({}, 50, Window())).records) == 20


async def test_only_what_is_certainly_complete_is_covered(fake, make):
    keys = fill(fake, 250)
    pages = await all_of(make().poll({"since": keys[0]}))
    assert min(p.times[0] for p in pages) == time_of(int(keys[0]))
    assert max(p.times[1] for p in pages) > time_of(int(keys[-1]))
    short, fake.reach = make(), 150
    short._reach._most = 150
    pages = await all_of(short.poll({"since": keys[0]}))
    assert min(p.times[0] for p in pages) == time_of(int(keys[100])), "what lies beyond the reach is a gap"
    without = make(exclude=["retweets"])
    old = str(snowflake(dt.datetime.now(dt.UTC) - dt.timedelta(days=30)))
    pages = await all_of(without.poll({"since": old}))
    assert min(p.times[0] for p in pages) > time_of(int(old)), "what is excluded counts for the reach and is not seen"
    assert fake.reads()[-1]["exclude"] == "retweets"


def test_how_far_x_reaches_is_said(make):
    assert make().describe() == "posts of @harbour_office (X shows the last 3,200 posts; no budget set)"
    assert make(exclude="replies", budget=5).describe() == "posts of @harbour_office (X shows the last 800 posts; 5 USD a month)"
    assert make("x:any", query="harbour").describe() == "the search 'harbour' (X shows the last 7 days; no budget set)"


async def test_a_search_never_asks_for_what_it_does_not_reach(fake, make):
    keys, x = fill(fake, 12), make("x:any", query="harbour")
    old = str(snowflake(dt.datetime.now(dt.UTC) - dt.timedelta(days=8)))
    (page,) = await all_of(x.poll({"since": old}))
    assert page.position == {"since": keys[-1]}
    assert page.times[0] == time_of(int(keys[0])), "what is older than a week is lost, and not covered"
    (query,) = fake.reads()
    assert query["query"] == "harbour"
    assert not {"since_id", "start_time"} & query.keys()
    assert (await x.chunk({}, 10, Window(until=dt.datetime.now(dt.UTC) - dt.timedelta(days=9)))).more is False
    assert x.limits == ("x:money", "x:search")
    assert len(fake.reads()) == 1


# -- history -------------------------------------------------------------------------------------------


async def test_a_chunk_is_never_larger_than_asked_for_and_never_smaller_than_x_allows(fake, make):
    keys, x = fill(fake, 12), make()
    page = await x.chunk({}, 3, Window())
    assert [r.external_id for r in page.records] == keys[:-4:-1]
    assert fake.reads()[-1]["max_results"] == "5"
    while page.more:
        page = await x.chunk(page.position, 5, Window())
        keys[:0] = []
    assert page.records[-1].external_id == keys[0]
    await x.chunk({}, 5000, Window())
    assert fake.reads()[-1]["max_results"] == "100"


async def test_a_window_holds_its_beginning_and_not_its_end(fake, make):
    keys, x = fill(fake, 40), make()
    window = Window(time_of(int(keys[10])), time_of(int(keys[20])))
    page = await x.chunk({}, 100, window)
    assert [r.external_id for r in page.records] == keys[19:9:-1]
    assert page.more is False
    assert not {"start_time", "end_time"} & fake.reads()[-1].keys(), "X refuses times together with ids"


# -- edits and deletions -------------------------------------------------------------------------------


async def recheck(x, stored, position, tail):
    return (await stored.take(x.heal(position, tail, stored)))[-1].position


async def test_an_edit_gets_a_new_id_and_is_a_revision_of_the_first(fake, make):
    (key,), x, stored = fill(fake, 1), make(), Stored()
    tail = (await stored.take(x.poll({})))[-1].position
    fake.edit(key, "mended")
    await recheck(x, stored, {}, tail)
    assert [r.op for r in stored.revisions] == ["create"], "its place is taken by a newer one, which is no deletion"
    await stored.take(x.poll(tail))
    first, second = stored.revisions
    assert (first.external_id, second.external_id, text(second)) == (key, key, "mended")
    assert second.occurred_at == first.occurred_at
    assert second.source_time > first.source_time


async def test_what_is_gone_is_a_tombstone_and_counters_are_no_news(fake, make):
    keys, x, stored = fill(fake, 230), make(), Stored()
    tail = (await stored.take(x.poll({"since": str(int(keys[0]) - 1)})))[-1].position
    for key in (keys[-1], keys[100], keys[0]):
        fake.delete(key)
    position = await recheck(x, stored, {}, tail)
    assert {r.external_id for r in stored.newest.values() if r.op == "delete"} == {keys[-1], keys[100], keys[0]}
    assert len(stored.revisions) == 233
    await recheck(x, stored, position, tail)
    assert len(stored.revisions) == 233


async def test_a_recheck_that_was_killed_goes_on_and_remembers_edits(fake, make):
    keys, x, stored = fill(fake, 230), make(), Stored()
    tail = (await stored.take(x.poll({"since": str(int(keys[0]) - 1)})))[-1].position
    fake.edit(keys[5], "mended")
    fake.delete(keys[7])
    (first,) = await stored.take(x.heal({}, tail, stored), most=1)
    assert first.position["edited"] == [keys[5]]
    fake.calls.clear()
    position = await recheck(make(), stored, first.position, tail)
    assert [q["until_id"] for q in fake.reads()] == [first.position["until"]] * 2
    assert [r.external_id for r in stored.newest.values() if r.op == "delete"] == [keys[7]]
    assert position == {"how": "", "from": "0"}


async def test_an_answer_without_anything_is_believed_the_second_time(fake, make):
    fill(fake, 5)
    x, stored = make(), Stored()
    tail = (await stored.take(x.poll({})))[-1].position
    fake.posts.clear()
    position = await recheck(x, stored, {}, tail)
    assert len(stored.revisions) == 5
    await recheck(x, stored, position, tail)
    assert {r.op for r in stored.newest.values()} == {"delete"}


async def test_what_is_no_longer_asked_for_is_not_deleted(fake, make):
    keys, stored = fill(fake, 10), Stored()
    tail = (await stored.take(make("x:any", query="harbour").poll({})))[-1].position
    position = await recheck(make("x:any", query="harbour"), stored, {}, tail)
    for key in keys[:5]:
        fake.delete(key)  # another query finds fewer
    other = make("x:any", query="harbour lang:en")
    for _ in range(2):
        position = await recheck(other, stored, position, tail)
    assert all(r.op == "create" for r in stored.newest.values())
    new = fake.add("news")
    tail = (await stored.take(other.poll(tail)))[-1].position
    await recheck(other, stored, position, tail)
    fake.delete(new)
    fake.add("later")
    tail = (await stored.take(other.poll(tail)))[-1].position
    await recheck(other, stored, position, tail)
    assert [r.external_id for r in stored.newest.values() if r.op == "delete"] == [new]


async def test_where_the_list_may_have_ended_early_nothing_is_called_deleted(fake, make):
    keys, x, stored = fill(fake, 150), make(), Stored()
    tail = (await stored.take(x.poll({"since": str(int(keys[0]) - 1)})))[-1].position
    fake.reach = 120
    x._reach._most = 120
    await recheck(x, stored, {}, tail)
    assert all(r.op == "create" for r in stored.newest.values())


async def test_nothing_is_read_again_where_that_is_switched_off(fake, make):
    assert await all_of(make(recheck=0).heal({}, {"since": fill(fake, 3)[-1]}, Stored())) == []
    assert fake.calls == []


# -- records -------------------------------------------------------------------------------------------


def answer(*posts, **more):
    raw = [p if isinstance(p, str) else json.dumps(p) for p in posts]
    return members(
        f'{{"data": [{", ".join(raw)}], "meta": {{"result_count": {len(raw)}}}' + "".join(f', "{k}": {json.dumps(v)}' for k, v in more.items()) + "}"
    )


def post(number=1_700_000_000_000_000_000, **more):
    return {"id": str(number), "text": "hello", "author_id": "7", "created_at": "2023-09-08T10:00:00.000Z"} | more


def test_a_record_is_the_post_as_it_came_with_its_author():
    users = [{"id": "7", "username": "a"}, {"id": "8", "username": "b"}]
    (made,) = sheet(
        answer('{"id":"1700000000000000000","author_id":"7","n":12345678901234567890.10,"text":"नमस्ते"}', includes={"users": users}), []
    ).posts
    assert made.record.payload == (
        '{"data":{"id":"1700000000000000000","author_id":"7","n":12345678901234567890.10,"text":"नमस्ते"},"includes":{"users":[{"id": "7", "username": "a"}]}}'
    )
    assert made.record.occurred_at == time_of(1_700_000_000_000_000_000)


def test_what_jsonb_cannot_hold_keeps_its_key_and_the_rest_goes_on():
    nul, lone = json.dumps(post(text="a\0b")), json.dumps(post(1_700_000_000_000_000_001, text="x")).replace('"x"', '"\\ud800"')
    made = sheet(answer(nul, lone, {"text": "no id"}, post(1_700_000_000_000_000_002, created_at="yesterday"), "7", post(3)), []).posts
    defects = {p.record.external_id: (p.record.meta or {}).get("defect") for p in made}
    assert defects.pop("1700000000000000000") == "NUL character"
    assert defects.pop("1700000000000000001") == "lone surrogate"
    assert defects.pop("1700000000000000002") == "not a time: 'yesterday'"
    assert defects.pop("3") is None
    assert sorted(defects.values()) == ["a post without id", "a post without id"]
    assert {p.record.body is None for p in made} == {True, False}
    assert all(p.id for p in made)


def test_a_partial_answer_is_no_page():
    with pytest.raises(Malformed, match="2 posts were announced, 1 came"):
        sheet(members(json.dumps({"data": [post()], "meta": {"result_count": 2}})), [])
    whole = json.dumps({"data": [post()], "meta": {"result_count": 1}})
    for end in range(len(whole)):
        with pytest.raises(Malformed):
            members(whole[:end])


# -- refusals ------------------------------------------------------------------------------------------


async def refusal(make, fake, *told):
    fake.coming.extend(told)
    with pytest.raises(Exception) as raised:  # noqa: PT011  which one it is, is what is tested
        await all_of(make().poll({}))
    fake.coming.clear()
    assert TOKEN not in repr(raised.value)
    assert TOKEN not in str(raised.value)
    return raised.value


PROBLEM = {"title": "Invalid Request", "errors": [{"parameters": {"query": ["("]}, "message": "there is no closing bracket"}]}
SINCE = {"title": "Invalid Request", "errors": [{"parameters": {"since_id": ["1"]}, "message": "must be younger"}]}


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "words"),
    [
        (401, {}, {"title": "Unauthorized", "detail": f"Bearer {TOKEN} is unknown"}, Denied, "Bearer *** is unknown"),
        (403, {}, {"title": "Forbidden", "detail": "your app may not"}, Denied, "your app may not"),
        (402, {}, {"title": "CreditsDepleted", "detail": "no credits"}, Denied, "no credits"),
        (400, {}, PROBLEM, Denied, "there is no closing bracket"),
        (400, {}, SINCE, Unavailable, "must be younger"),
        (404, {}, "", Denied, "404"),
        (500, {}, "<html>oops</html>", Unavailable, "oops"),
        (503, {}, {"title": "Service Unavailable"}, Unavailable, "Service Unavailable"),
        (302, {"location": "https://elsewhere.example/"}, "", Unavailable, "302"),
        (200, {}, '{"data": {"id"', Unavailable, "broken"),
        (200, {}, b"\xff\xfe", Unavailable, "broken"),
        (200, {}, "{}", Unavailable, "200"),
        (200, {}, {"data": {"name": "no id"}}, Unavailable, "no id"),
        (200, {}, {"errors": [{"detail": "User has been suspended: [harbour_office]."}]}, Denied, "has been suspended"),
        (429, {}, {"title": "Too Many Requests"}, Limited, "Too Many Requests"),
        (429, {}, {"title": "UsageCapExceeded", "detail": "Usage cap exceeded: Monthly product cap"}, Limited, "Monthly product cap"),
    ],
)
async def test_every_refusal_is_told_in_the_words_of_x(fake, make, status, headers, body, kind, words):
    error = await refusal(make, fake, (status, headers, body))
    assert type(error) is kind
    assert words in str(error)


async def test_a_limit_says_when_to_come_back_and_for_which_calls(fake, make):
    fake.coming.append((200, {}, {"data": {"id": "77"}}))
    error = await refusal(make, fake, (429, {"x-rate-limit-reset": str(int(time.time()) + 120), "x-rate-limit-remaining": "0"}, {}))
    assert (error.name, 118 < error.seconds <= 120) == ("x:timeline", True)
    early = await refusal(make, fake, (429, {"x-rate-limit-reset": "12"}, {}))
    assert (early.name, early.seconds) == ("x:user", 1)
    capped = await refusal(make, fake, (429, {}, {"type": "https://api.twitter.com/2/problems/usage-capped"}))
    assert capped.seconds == 3600


async def test_an_account_that_is_gone_or_closed_is_no_empty_one(fake, make):
    fake.errors["77"] = {"errors": [{"title": "Authorization Error", "detail": "Sorry, you are not authorized to see the user with id: [77]."}]}
    with pytest.raises(Denied, match="not authorized"):
        await all_of(make().poll({}))
    fake.errors["harbour_office"] = {"errors": [{"detail": "Could not find user with username: [harbour_office]."}]}
    with pytest.raises(Denied, match="Could not find user"):
        await make().chunk({}, 10, Window())


async def test_an_answer_that_never_comes_is_a_failure_that_names_the_address_alone(make):
    with pytest.raises(Unavailable, match=r"no answer from http://127\.0\.0\.1:9: ClientConnectorError"):
        await all_of(make(base_url="http://127.0.0.1:9").poll({}))


def test_wrong_options_are_refused_with_what_to_do(make, monkeypatch):
    with pytest.raises(Misconfigured, match="no handle of X"):
        make("x:much_too_long_a_handle")
    with pytest.raises(Misconfigured, match="-is:retweet"):
        make("x:any", query="q", exclude=["replies"])
    with pytest.raises(Misconfigured, match="bearer token"):
        make(token_file=None)
    with pytest.raises(Misconfigured, match="exclude"):
        make(exclude=["likes"])
    monkeypatch.setenv("X_OF_TEST", "")
    with pytest.raises(Misconfigured, match="X_OF_TEST is not set"):
        make(token_file=None, token_env="X_OF_TEST")


# -- money ---------------------------------------------------------------------------------------------


def test_a_budget_begins_anew_with_the_day_or_the_month():
    now = dt.datetime(2026, 12, 31, 23, 59, tzinfo=dt.UTC)
    assert x_money.end_of("day", now) == x_money.end_of("month", now) == dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
    assert x_money.end_of("month", dt.datetime(2026, 2, 1, 1, tzinfo=dt.timezone(HOUR * 2))) == dt.datetime(2026, 2, 1, tzinfo=dt.UTC)


async def test_a_post_costs_once_a_day_however_often_it_is_read(fake, make, monkeypatch):
    keys = fill(fake, 30)
    x = make(budget=10)
    (page,) = await all_of(x.poll({"since": keys[9]}))
    assert [(s.name, s.amount, s.most, s.resets_at) for s in page.spent] == [
        ("x:money", 20 * 0.005 + 0.01, 10, x_money.end_of("month", dt.datetime.now(dt.UTC)))
    ]
    (again,) = await all_of(x.poll({"since": keys[4]}))
    assert [s.amount for s in again.spent] == [5 * 0.005]
    (free,) = await all_of(x.poll({"since": keys[4]}))
    assert free.spent == ()
    tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    monkeypatch.setattr(x_money, "utcnow", lambda: tomorrow)
    (next_day,) = await all_of(x.poll({"since": keys[4]}))
    assert [s.amount for s in next_day.spent] == [25 * 0.005 + 0.01]
    assert (await all_of(make().poll({"since": keys[4]})))[0].spent == ()


async def test_what_costs_is_not_asked_for_before_the_last_cost_is_booked(fake, make):
    fill(fake, 250)
    async with contextlib.aclosing(ahead(make(budget=10).poll({}))) as pages:
        await anext(pages)
        assert len(fake.reads()) == 1
        await anext(pages)
        assert len(fake.reads()) == 2


@contextlib.asynccontextmanager
async def running(config, url):
    program = live.Live(config, build(config))
    task = asyncio.create_task(program.run(url))
    try:
        yield program
    finally:
        program.stop.set()
        await asyncio.wait_for(task, 20)


SPENT = "select reason, open_until from tailrace.quotas where name = 'x:money' and breaker = 'open'"


async def test_a_spent_budget_stops_the_reading_until_the_next_period_begins(fake, settings, db_url, pool, clock, eventually, monkeypatch):
    keys = fill(fake, 350)
    config = settings(every=0.1, budget=0.9, budget_period="day", recheck=0)  # 0.01 for the account, 0.50 for each full page
    async with running(config, db_url):
        row = await eventually(lambda: pool.fetchrow(SPENT))
        assert row["reason"] == "the budget of 0.9 is spent"
        assert abs(row["open_until"] - x_money.end_of("day", dt.datetime.now(dt.UTC))) < dt.timedelta(seconds=1)
    assert await pool.fetchval("select count(*) from tailrace.raw_records") == 200
    async with running(config, db_url):  # a restart spends nothing
        await eventually(lambda: pool.fetchval("select count(*) from tailrace.cursors"))
    assert len(fake.reads()) == 2
    tomorrow = row["open_until"] + dt.timedelta(seconds=5)
    monkeypatch.setattr(x_money, "utcnow", lambda: tomorrow)
    await clock.set(tomorrow)
    async with running(config, db_url):
        await eventually(lambda: all_there(pool, keys))
    row = await pool.fetchrow("select remaining, resets_at from tailrace.quotas where name = 'x:money'")
    assert (round(row["remaining"], 3), row["resets_at"]) == (round(0.9 - 150 * 0.005 - 0.01, 3), x_money.end_of("day", tomorrow))


async def test_a_running_collector_goes_on_by_itself_when_its_budget_begins_anew(fake, settings, db_url, pool, eventually, monkeypatch):
    begun = dt.datetime.now(dt.UTC)
    monkeypatch.setattr("collector.breaker.LOOK", 0.1)
    monkeypatch.setattr(x_money, "end_of", lambda _, now: begun + dt.timedelta(seconds=3 + 3600 * (now - begun > dt.timedelta(seconds=3))))
    keys = fill(fake, 150)
    async with running(settings(every=0.1, budget=0.5), db_url):
        await eventually(lambda: pool.fetchrow(SPENT))
        assert len(fake.reads()) == 1
        assert dt.datetime.now(dt.UTC) - begun < dt.timedelta(seconds=3)
        await eventually(lambda: all_there(pool, keys))
        assert dt.datetime.now(dt.UTC) - begun > dt.timedelta(seconds=3)


async def all_there(pool, keys):
    return await pool.fetchval("select count(*) from tailrace.raw_records where external_id = any($1)", keys) == len(keys)


def asked(**more):
    nothing = dict.fromkeys(("max_records", "max_chunks", "chunk_size", "max_minutes", "source"))
    return SimpleNamespace(**nothing, dry_run=False, force_enqueue=False, parallel=1, json=True, **more)


async def test_a_history_that_is_there_is_not_paid_for_again(fake, settings, db_url, pool, monkeypatch):
    fill(fake, 150)
    made = []
    monkeypatch.setattr(backfill, "build", lambda *args: made.append(build(*args)) or made[-1])
    for reads in (3, 1):  # the second one is asked for its size alone
        fake.calls.clear()
        assert await backfill.backfill(settings(), db_url, asked(), (None, None)) == 0
        assert len(fake.reads()) == reads
    assert await pool.fetchval("select count(*) from tailrace.raw_records") == 150
    assert [source._client._transport.session for sources in made for source in sources.values()] == [None, None]


async def test_a_backfill_pauses_where_its_budget_is_spent_and_goes_on_in_the_next_period(fake, settings, db_url, pool, eventually, monkeypatch):
    period, begun = dt.timedelta(seconds=4), dt.datetime.now(dt.UTC)
    monkeypatch.setattr(x_money, "end_of", lambda _, now: begun + period * (1 + (now - begun) // period))
    keys = fill(fake, 250)
    running = asyncio.create_task(backfill.backfill(settings(budget=0.9), db_url, asked(), (None, None)))
    paused = "select reason, resume_at from tailrace.runs where state = 'paused' and resume_at is not null"
    row = await eventually(lambda: pool.fetchrow(paused))
    assert row["reason"].startswith("x:money: ")
    assert row["resume_at"] - begun < period * 2
    there = await pool.fetchval("select count(*) from tailrace.raw_records")
    assert 100 <= there <= 180, "what 0.90 USD buy, less what is left to the tail"
    assert await asyncio.wait_for(running, 60) == 0
    assert await all_there(pool, keys)


# -- the end -------------------------------------------------------------------------------------------


async def test_it_ends_in_the_middle_of_a_call(fake, settings, db_url, eventually):
    fake.gate = asyncio.Event()
    async with running(settings(), db_url):
        await eventually(lambda: fake.calls)
    fake.gate.set()
    assert not [t for t in asyncio.all_tasks() if "poll" in repr(t)]


# -- the stand-in --------------------------------------------------------------------------------------


@pytest.mark.shared
async def test_a_long_history_at_the_stand_in_is_read_within_its_rate_limit(shared, tmp_path):
    (tmp_path / "token").write_text("any")
    x = await asyncio.to_thread(standin, "x", "--limit", "12", "--window", "2")
    try:
        spec = {"kind": "x", "token_file": str(tmp_path / "token"), "base_url": x.url}
        source = build(Settings(sources={"x:cm_office": spec}))["x:cm_office"]
        keys, position, waits, more = [], {}, [], True
        while more:
            try:
                page = await source.chunk(position, 100, Window())
            except Limited as limit:
                waits.append((limit.name, 0 < limit.seconds <= 3))
                await asyncio.to_thread(x.reset)
                continue
            keys += [r.external_id for r in page.records]
            position, more = page.position, page.more
        assert len(keys) == len(set(keys)) == 2600
        assert keys == sorted(keys, reverse=True)
        assert waits == [("x:timeline", True)] * 2
    finally:
        await source.aclose()
        await asyncio.to_thread(x.stop)
