"""Whatever stands in cursors.position: a source goes on from it, begins anew, or says whose position makes no sense. It never fails for ever."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json

import httpx
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.catchup import KEY
from collector.history import PART, WHOLE, _inner
from collector.positions import positions, within
from collector.sources import Window, rss
from collector.sources.answers import Denied
from collector.sources.bluesky_history import Part
from collector.sources.bluesky_place import Place
from collector.sources.building import build
from collector.sources.github_client import Pulls
from collector.sources.rss_entries import Feed
from collector.sources.rss_http import Answer
from tests.collector.subjects.telegram import Telegram
from tests.fuzz.hostile import often, texts, values
from tests.fuzz.test_files import passed, source
from worker.core.errors import Misconfigured, TailraceError, Unavailable
from worker.core.settings import Settings
from worker.core.texts import as_json

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
TIMES = st.sampled_from(
    ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00", "2026-03-01T00:00:00+00:00", "2026-03-01", 0, -1, 1e300, 2**31, "9" * 400]
)
hostile = values(leaves=5) | TIMES


def stored(value):
    """As jsonb would give it back."""
    return orjson.loads(as_json(value))


def position(*names, **like):
    """Some members with their names right, and whatever else."""
    return (
        st.dictionaries(st.sampled_from(names) | texts, hostile, max_size=5)
        .flatmap(lambda d: st.fixed_dictionaries({k: st.just(v) for k, v in d.items()} | like))
        .map(stored)
    )


async def some(pages, most=20):
    """The first pages; what the source refuses is refused by name."""
    found = []
    try:
        async with asyncio.timeout(20):
            async for page in pages:
                orjson.dumps(page.position)
                found.append(page)
                if len(found) == most:
                    break
    except TailraceError:
        return None
    finally:
        await pages.aclose()
    return found


def anew(kind, name, options, **more):
    return build(Settings(sources={name: {"kind": kind, **options}}, collector=more))[name]


entries = st.dictionaries(
    st.sampled_from(["name", "size", "mtime", "offset", "print", "folder", "index", "done"]), hostile | st.just("SIZE") | st.just("MTIME"), max_size=8
)


@often(30)
@given(position("files"), entries)
@example({"files": []}, {})
@example({"files": {"x": {"offset": 3, "folder": "a\x00b", "print": "p", "size": 1, "mtime": 1}}}, {})
@example({}, {"print": None, "size": "SIZE", "mtime": "SIZE"})
@example({}, {"offset": 0, "print": "e4a6a0577479b2b4", "folder": "/", "size": 6, "mtime": -1})
async def test_files(tmp_path_factory, at, entry):
    folder = tmp_path_factory.getbasetemp() / "positions"
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_bytes(b"1\n2\n3\n")
    (folder / "b.json").write_bytes(b"[4, 5]")
    made = source(folder)
    for file in made._folder.look({}):
        known = {"SIZE": file.size, "MTIME": file.mtime}
        at = at | {
            "files": within(at, "files") | {file.identity: stored({k: known.get(v, v) if isinstance(v, str) else v for k, v in entry.items()})}
        }
    records, after = await passed(made, made.joined(at, at), final=True)
    assert made.unread == []
    assert {r.payload for r in records} <= set("12345")
    assert (await passed(source(folder), after, final=True))[0] == []


@often(30)
@given(position("etag", "modified", "url", "seen", "pace", "shared", "page", "after", "number"))
@example({"page": 5})
@example({"etag": "\x80"})
@example({"page": "javascript:x", "number": -1})
async def test_rss(monkeypatch, at):
    made = anew("rss", "rss:https://harbour.example/feed", {})
    about = {"version": "rss20", "names": {}, "next": None, "whole": True, "problem": "", "ttl": None, "period": None, "frequency": None}

    async def read(*_):
        return Feed(about, [{"entry": {"id": "a", "title": "b"}, "raw": "<item/>"}])

    async def get(url, validators):
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise Unavailable(str(error), "") from None
        httpx.Headers(validators)
        return Answer(200, None, httpx.Headers(), b"x")

    monkeypatch.setattr(rss, "read", read)
    made._client.get = get
    for pages in (made.poll(at), made.fetch(made.joined(at, at))):
        found = await some(pages)
        assert [r.external_id for page in found for r in page.records] in (["a"], [])


class Nothing:
    """Raw holds nothing."""

    async def among(self, keys):
        return set()

    async def between(self, first, last):
        return []


@often(30)
@given(position("since", "top", "until", "count", "how", "from", "newest", "low", "edited", "doubt"))
@example({"since": "9" * 19, "top": "9" * 19, "until": "1", "count": 5})
@example({"until": "100", "newest": "200", "low": "1", "edited": 7, "how": " "})
@example({"until": "100", "newest": "200", "low": "1", "edited": ["x", 5, "7"], "how": ""})
async def test_x(monkeypatch, at):
    monkeypatch.setenv("X_TOKEN", "secret")
    made = anew("x", "x:harbour", {"token_env": "X_TOKEN"})
    asked = []

    async def timeline(user, **given):
        asked.append(given)
        return {"meta": "{}", "data": '[{"id": "1500000000000000000", "text": "a"}]'}, ()

    async def user(handle):
        return "7", 10

    made._client.timeline, made._client.user = timeline, user

    await some(made.poll(at))
    await some(made.heal(at, at, Nothing()))
    await made.chunk(at, 10, Window())
    assert all(0 <= int(given.get(name) or 0) < 10**19 for given in asked for name in ("since_id", "until_id"))


@often(30)
@given(position("mark", "top", "cursor", "seen", "number", "at", mark=TIMES))
@example({"mark": "0001-01-01T00:00:00+00:00"})
@example({"mark": "9999-12-31T23:59:59+00:00", "top": "0001-01-01T00:00:00+00:00", "cursor": "c"})
@example({"cursor": "c", "number": 2**70, "at": "9999-12-31T23:59:59.999999+00:00"})
async def test_github(monkeypatch, at):
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    made = anew("github", "github:o/r", {})

    async def pulls(field, direction, first, after):
        node = {"number": 5, "databaseId": 1, "author": {}, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}
        return Pulls([node], "d", False, 1, (), NOW)

    made._client.pulls = pulls
    for page in [
        *await some(made.poll(at)),
        await made.chunk(at, 10, Window()),
        await made.chunk(at, 10, Window(since=NOW - dt.timedelta(days=900))),
    ]:
        assert page.ids is None or 0 <= page.ids[0] < page.ids[1] < 2**63
        assert page.times is None or page.times[0] < page.times[1]


@often(30)
@given(
    position(
        "via",
        "host",
        "cursor",
        "did",
        "rev",
        "since",
        "marks",
        "after",
        "of",
        "left",
        via=st.just("jetstream"),
        host=st.just("h"),
        did=st.sampled_from(["did:plc:a", 5, None]),
        of=st.just([]),
    )
)
@example({"via": "jetstream", "host": "h", "cursor": -(10**30), "did": "did:plc:a", "rev": "3l", "since": 5, "marks": [1]})
@example({"did": "did:plc:a", "rev": "3l", "of": [], "left": [5, None], "cursor": {}})
async def test_bluesky(at):
    lister = anew("bluesky", "bluesky:did:plc:a", {"method": "list", "pds": "https://h", "stream": "wss://h"})
    by_car = anew("bluesky", "bluesky:did:plc:b", {"pds": "https://h", "stream": "wss://h"})
    asked = []

    async def listed(collection, cursor, size, rev):
        asked.append((collection, cursor, rev))
        return _part(), None

    async def answer():
        return "3lzzzzzzzzzz2"

    async def names():
        return ["a.b.c"]

    async def parts(latest, after=""):
        asked.append((latest, after, after))
        yield _part()

    for made in (lister, by_car):
        made._history.latest, made._history.listed, made._history.collections, made._history.parts = answer, listed, names, parts
    await lister.chunk(at, 10, Window())
    await some(by_car.fetch(by_car.joined(at, at)))
    assert all(isinstance(v, str | None) for row in asked for v in row)
    frame = json.dumps(
        {
            "did": "did:plc:a",
            "time_us": 1_700_000_000_000_000,
            "kind": "commit",
            "commit": {"rev": "3lzzzzzzzzzz3", "operation": "delete", "collection": "a.b.c", "rkey": "k"},
        }
    )
    for did in ("did:plc:a", ""):
        place = lister._intake.place = Place.read(at, "jetstream", "h", did)
        lister._intake.dids = None
        list(lister._intake.batches([frame], 10))
        place.follow("3lzzzzzzzzzz4", "3l", whole=True)
        orjson.dumps(place.position())
        assert 0 <= (place.cursor or 0) < 2**63
    assert "cursor" in lister._stream._asking("wss://h/subscribe", place.cursor)


def _part():
    return Part("3l", ["a.b.c/k"], [])


@pytest.fixture
async def telegram(tmp_path):
    subject = Telegram(tmp_path)
    await subject.start()
    yield lambda: anew("telegram", subject.name(), subject.spec())
    await subject.stop()


@often(30)
@given(position("chat", "since", "last", "upto", "at", "next", "before", at=TIMES))
@example({"upto": 2**40, "next": 2**40, "before": 2**40, "last": 2**40, "since": 2**40, "at": "0001-01-01T00:00:00+00:00"})
@example({"upto": 1, "at": "9999-12-31T23:59:59+00:00"})
async def test_telegram(telegram, at):
    made = telegram()

    try:
        at.pop("chat", None) if len(at) % 2 else None
        found = await some(made.heal(at, at, Nothing()))
        assert found is None or all(isinstance(page.position, dict) for page in found)
        with contextlib.suppress(Denied):
            await asyncio.wait_for(made.chunk(at, 10, Window()), 20)
    finally:
        await made.aclose()


@often(30)
@given(hostile.map(lambda v: stored({"v": v})["v"]), hostile.map(lambda v: stored({"v": v})["v"]))
def test_a_position_within_another(at, spec):
    whole = at if isinstance(at, dict) else {WHOLE: at, PART: at, KEY: at}
    bounds = spec if isinstance(spec, dict) else {}
    assert isinstance(_inner(whole, bounds), dict)
    assert isinstance(within(whole, KEY), dict)


@pytest.mark.parametrize("text", ["[]", "5", '"x"', "null", "1e400", '{"a": 1e400}', "[1, {}]"])
async def test_a_position_that_is_no_object_is_named(pool, text):
    row = await pool.fetchrow("select * from tailrace.register_sources('{files:odd}', '{\"{}\"}')")
    await pool.execute("insert into tailrace.cursors (source_id, lane, position, updated_at) values ($1, 0, $2::jsonb, now())", row["id"], text)
    with pytest.raises(Misconfigured, match=r"files:odd[\s\S]*delete its rows in tailrace.cursors"):
        await positions(pool, row["id"])
