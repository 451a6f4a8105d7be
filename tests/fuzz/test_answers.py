"""What services and exports answer, mutated or made up: records with their defects, or an error of ours. The rest of a page goes on."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime as dt
import json
from types import SimpleNamespace

import httpx
import libipld
import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from collector.record import MOST_KEY, parse
from collector.sources import Window, rss_parse
from collector.sources.bluesky_car import Incomplete, Repository
from collector.sources.bluesky_client import Client as Xrpc
from collector.sources.bluesky_events import FIREHOSE, JETSTREAM, Garbled, Refused
from collector.sources.bluesky_intake import Intake
from collector.sources.bluesky_place import Place
from collector.sources.bluesky_records import Maker
from collector.sources.building import build
from collector.sources.github_client import LostCursor
from collector.sources.github_orders import Changes, History
from collector.sources.github_pulls import Records
from collector.sources.rss_entries import Feed, records
from collector.sources.telegram_export import Export
from collector.sources.telegram_scan import Cut
from collector.sources.x_client import Answer
from collector.sources.x_posts import Malformed
from tests.collector.bluesky_host import POST, block_of, car, frame, tid, tree
from tests.collector.subjects.rss import RSS, feed, item
from tests.fuzz.hostile import deep, often, values
from worker.core.errors import TailraceError
from worker.core.settings import CollectorSettings, Settings
from worker.core.texts import as_json, storable

DAY = dt.timedelta(days=1)
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
TIMES = [
    "0000-00-00T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59-14:00",
    "9999-12-31T23:59:59Z",
    "2026-02-30T00:00:00Z",
    "-62135596801",
    "9" * 30,
    -1,
    2**40,
    1e300,
]
ATOMS = st.sampled_from([*TIMES, json.loads(deep(300)), "did:plc:x", "a/b/c", 2**63, 10**30])
hostile = values(leaves=4) | ATOMS
BYTES = [
    b"",
    b"\x00",
    b"{}",
    b"[]",
    b"null",
    b'"x"',
    b"{",
    deep(5000).encode(),
    deep(60_000, "1", '{"data":', "}").encode(),
    b'{"data": 1e400}',
    b'{"errors": [[]]}',
    b'{"errors": [{"path": 5, "message": {"a": 1}}]}',
    b"<html>",
]


@st.composite
def mutated(draw, valid):
    """The value with some of its parts replaced, taken away or doubled."""
    made = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, 3))):
        at = made
        while True:
            names = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(at[name], (dict, list)) and draw(st.integers(0, 4)):
                at = at[name]
                continue
            if draw(st.integers(0, 4)) == 0:
                del at[name]
            else:
                at[name] = copy.deepcopy(draw(hostile))  # what is drawn may be changed next
            break
    return made


def dumped(value):
    return json.dumps(value).encode("utf-8", "surrogatepass")


def fits(record):
    """Whether Postgres takes it as it is, without a second look."""
    assert 0 < len(record.external_id) <= MOST_KEY
    assert storable(record.external_id)
    assert record.body is None or record.payload is None
    if record.payload is not None:
        parse(record.payload.encode())
    assert all(t is None or t.tzinfo for t in (record.occurred_at, record.source_time))
    assert storable(as_json(record.meta or {}))
    return record


def anew(kind, name, options):
    return build(Settings(sources={name: {"kind": kind, **options}}))[name]


NODE = {
    "number": 5,
    "databaseId": 1,
    "fullDatabaseId": "1",
    "author": {"login": "a"},
    "createdAt": "2026-01-01T00:00:00Z",
    "updatedAt": "2026-01-02T00:00:00Z",
    "title": "t",
    "labels": {"nodes": [{"name": "x"}]},
    "comments": {"totalCount": 1},
}
PULLS = {
    "data": {
        "rateLimit": {"limit": 5000, "remaining": 4999, "resetAt": "2026-01-01T00:00:00Z"},
        "repository": {
            "pullRequests": {
                "totalCount": 3,
                "pageInfo": {"hasNextPage": False, "endCursor": "c"},
                "nodes": [NODE, NODE | {"number": 6}, NODE | {"number": 7}],
            }
        },
    }
}
HEADERS = st.dictionaries(st.sampled_from(["date", "retry-after", "x-ratelimit-reset", "x-ratelimit-remaining", "x-rate-limit-reset", "x-rate-limit-remaining", "x-rate-limit-limit", "ratelimit-reset", "ratelimit-remaining", "ratelimit-limit"]),
                          st.sampled_from(["", "0", "-1", "²", "1e400", "nan", "inf", "9" * 5000, "9" * 15, "Mon, 01 Jan 0001 00:00:00 +1400", "Fri, 31 Dec 9999 23:59:59 -1400", "Mon, 99 Foo", "x"]), max_size=4)  # fmt: skip


@often(60)
@given(mutated(PULLS).map(dumped) | st.sampled_from(BYTES) | st.binary(max_size=60), HEADERS)
@example(dumped(PULLS), {"date": "Mon, 01 Jan 0001 00:00:00 +1400"})
@example(dumped(PULLS).replace(b'"endCursor": "c"', b'"endCursor": ' + b"[" * 400 + b"]" * 400), {})
@example(b'{"errors": [{"type": "RATE_LIMITED", "message": "x"}]}', {"retry-after": "²"})
@example(b'{"errors": [{"type": "RATE_LIMITED", "message": "x"}]}', {"x-ratelimit-reset": "9" * 5000})
@example(
    dumped(
        {
            "data": {
                "repository": {
                    "pullRequests": {"nodes": [NODE | {"number": 2**70, "createdAt": "9999-12-31T23:59:59Z"}], "pageInfo": {"hasNextPage": False}}
                }
            }
        }
    ),
    {},
)
async def test_github(monkeypatch, content, headers):
    monkeypatch.setenv("GITHUB_TOKEN", "secret-token")
    made = anew("github", "github:o/r", {})

    async def post(variables):
        return SimpleNamespace(content=content, headers=httpx.Headers([(k.encode(), v.encode("latin-1")) for k, v in headers.items()]))

    made._client._post = post
    with contextlib.suppress(TailraceError, LostCursor):
        page = await made._client.pulls("UPDATED_AT", "DESC", 10, None)
        as_json([q.remaining for q in page.quotas])
        for order in (Changes({}, DAY, DAY), History({}, Window()), History({}, Window(since=NOW))):
            found = [fits(Records(["comments"]).record(node)) for node in order.take(page)]
            orjson.dumps(order.reached(found) if isinstance(order, Changes) else order.reached())
            times, ids = order.times(), order.ids() if isinstance(order, History) else None
            assert times is None or times[0] < times[1]
            assert ids is None or -(2**63) < ids[0] < ids[1] < 2**63


@often(40)
@given(mutated(NODE))
def test_one_odd_pull_request_leaves_the_others(odd):
    made = [fits(Records(["comments"]).record(node)) for node in (NODE, odd, NODE | {"number": 7})]
    assert [made[0].external_id, made[2].external_id] == ["5", "7"]


POSTS = {
    "data": [
        {
            "id": str(1_500_000_000_000_000_000 + n),
            "text": "a",
            "created_at": "2026-01-01T00:00:00.000Z",
            "edit_history_tweet_ids": ["1500000000000000000"],
            "author_id": "7",
            "public_metrics": {"like_count": 1},
        }
        for n in range(3)
    ],
    "includes": {"users": [{"id": "7"}]},
    "meta": {"result_count": 3},
}


@often(60)
@given(
    mutated(POSTS).map(dumped) | st.sampled_from(BYTES) | st.binary(max_size=60),
    mutated({"data": {"id": "7", "public_metrics": {"tweet_count": 5}}}).map(dumped) | st.sampled_from(BYTES),
    HEADERS,
    st.sampled_from([200] * 6 + [400, 403, 429, 500]),
)
@example(dumped({"data": [json.loads(deep(900))], "meta": {}}), b'{"data": {"id": "7"}}', {}, 200)
@example(dumped(POSTS), b'{"data": {"id": "7"}}', {"x-rate-limit-remaining": "1", "x-rate-limit-reset": "9" * 15}, 200)
@example(dumped({"data": [{"id": "1", "text": "x"}], "meta": {"result_count": [], "next_token": {"a": 1}}}), b'{"data": {"id": "7"}}', {}, 200)
async def test_x(monkeypatch, content, who, headers, status):
    monkeypatch.setenv("X_TOKEN", "secret-token")
    made = anew("x", "x:harbour", {"token_env": "X_TOKEN"})
    calls = []

    async def request(method, route, params=None, **_):
        calls.append(route)
        assert len(calls) < 50
        body = who if "/by/" in route else content if len(calls) < 4 else b'{"meta": {"result_count": 0}}'
        return Answer(status, headers, body.decode("utf-8", "surrogateescape"))

    made._client._transport.request = request
    with contextlib.suppress(TailraceError, Malformed):
        async for page in made.poll({}):
            for record in page.records:
                fits(record)
            as_json(page.position)
            as_json([(q.remaining, q.limit, q.resets_at) for q in page.quotas])


@often(40)
@given(mutated(POSTS["data"][1]) | hostile)
async def test_one_odd_post_leaves_the_others(monkeypatch, odd):
    monkeypatch.setenv("X_TOKEN", "secret-token")
    made = anew("x", "x:harbour", {"token_env": "X_TOKEN"})

    async def request(method, route, params=None, **_):
        said = {"data": {"id": "7"}} if "/by/" in route else {"data": [POSTS["data"][2], odd, POSTS["data"][0]], "meta": {}}
        return Answer(200, {}, json.dumps(said))

    made._client._transport.request = request
    keys = [fits(r).payload or "" for page in [p async for p in made.poll({})] for r in page.records]
    assert sum(f'"{POSTS["data"][n]["id"]}"' in key for n in (0, 2) for key in keys) >= 2


RECORD = {"$type": POST, "text": "clover", "createdAt": "2026-05-01T08:00:00Z"}
LINE = {
    "did": "did:plc:a",
    "time_us": 1_700_000_000_000_000,
    "kind": "commit",
    "commit": {"rev": tid(1), "operation": "create", "collection": POST, "rkey": tid(2), "cid": "bafyreih", "record": RECORD},
}
ACCOUNT = {
    "did": "did:plc:a",
    "time_us": 1,
    "kind": "account",
    "account": {"active": False, "did": "did:plc:a", "time": "2026-05-01T08:00:00Z", "status": "deleted"},
}
CID, BLOCK = block_of(RECORD)
COMMIT = {
    "seq": 5,
    "repo": "did:plc:a",
    "rev": tid(1),
    "since": tid(0),
    "time": "2026-05-01T08:00:00Z",
    "tooBig": False,
    "blocks": car(CID, {CID: BLOCK}),
    "ops": [{"action": "create", "path": f"{POST}/x", "cid": CID}],
}


def cbor(value):
    try:
        return libipld.encode_dag_cbor(value)
    except Exception:  # noqa: BLE001  what it cannot write is no frame
        return b"\x81" * 3000 + b"\x01"


def framed(head, body):
    return cbor(head) + cbor(body)


lines = (
    mutated(LINE).map(dumped)
    | mutated(ACCOUNT).map(dumped)
    | st.sampled_from(BYTES)
    | st.binary(max_size=60)
    | st.sampled_from(
        [b'{"did": [], "time_us": 1, "kind": "identity"}', b'{"did": "a", "time_us": 1e400, "kind": "x"}', dumped(LINE | {"did": ["a"]})]
    )
)
plain = mutated({k: v for k, v in COMMIT.items() if k not in ("blocks", "ops")}).map(
    lambda body: framed({"op": 1, "t": "#commit"}, body | {"blocks": COMMIT["blocks"], "ops": COMMIT["ops"]})
)
frames = (
    plain | st.builds(framed, mutated({"op": 1, "t": "#commit"}), mutated({"seq": 1, "did": "did:plc:a", "time": "x", "ops": [{"action": "create", "path": "a.b/c", "cid": None}], "rev": "x", "repo": "did:plc:a"}))
    | st.binary(max_size=80) | st.sampled_from([frame("#commit", COMMIT)[:n] for n in range(0, 200, 20)]) | st.sampled_from([b"\x81" * 200_000, b"\x9f" * 50_000, b"\xa1\x61\x61" * 50_000, b"\xd8\x2a" * 50_000])
)  # fmt: skip


@often(100)
@given(st.sampled_from([JETSTREAM, FIREHOSE]), st.data(), st.booleans())
async def test_frames_of_a_stream(transport, data, one):
    met = data.draw(st.lists(lines if transport == JETSTREAM else frames, min_size=1, max_size=4))
    intake = Intake(transport, Maker(whole=not one), [], None)
    intake.place = Place(transport, "h", did="did:plc:a" if one else "")
    for _ in range(4):  # what cannot be read is passed over in the end
        with contextlib.suppress(Garbled, Refused):
            for batch in intake.batches(list(met), 10):
                for record in batch:
                    fits(record)
        as_json(intake.place.position())
        assert intake.recent in (True, False)
        assert intake.place.cursor is None or type(intake.place.cursor) is int
    good = (
        dumped(LINE | {"commit": LINE["commit"] | {"rkey": "last"}})
        if transport == JETSTREAM
        else frame("#commit", COMMIT | {"ops": [{"action": "delete", "path": f"{POST}/last", "cid": None}]})
    )
    assert any("last" in r.external_id for batch in intake.batches([good], 10) for r in batch)


@often(60)
@given(st.integers(0, 2000), st.binary(max_size=4), st.booleans())
async def test_repositories(at, new, cut):
    blocks = {CID: BLOCK}
    root = tree([(f"{POST}/{tid(n)}", CID) for n in range(20)], blocks)
    commit, block = block_of({"did": "did:plc:a", "rev": tid(1), "data": root, "version": 3})
    whole = car(commit, blocks | {commit: block})
    spoilt = whole[: at % len(whole)] + new + (b"" if cut else whole[at % len(whole) + len(new) :])
    with Repository() as repository, contextlib.suppress(Incomplete):
        for n in range(0, len(spoilt), 100):
            repository.feed(spoilt[n : n + 100])
        repository.close()
        for entry in repository.entries():
            fits(Maker(whole=False).entry("did:plc:a", entry, tid(1), {}))


@often(60)
@given(
    mutated({"records": [{"uri": f"at://did:plc:a/{POST}/x", "cid": "bafy", "value": RECORD}], "cursor": "c"}) | hostile,
    mutated({"did": "did:plc:a", "service": [{"id": "#atproto_pds", "serviceEndpoint": "https://h"}]}) | hostile,
    mutated({"collections": [POST], "rev": tid(1), "cid": "c"}) | hostile,
)
async def test_answers_of_hosts(monkeypatch, listing, document, described):
    made = anew("bluesky", "bluesky:did:plc:a", {"method": "list", "stream": "wss://h"})

    async def answer(self, url, params):
        return listing if "listRecords" in url else described if "xrpc" in url else document

    monkeypatch.setattr(Xrpc, "json", answer)
    for asked in (made.chunk({}, 10, Window()), made.chunk({"rev": "x", "left": [POST], "of": [], "did": "did:plc:a"}, 10, Window())):
        with contextlib.suppress(TailraceError, Incomplete):
            page = await asyncio.wait_for(asked, 20)
            as_json(page.position)
            for record in page.records:
                fits(record)


ABOUT = {"version": "rss20", "names": {"a": "b"}, "next": "x", "whole": True, "problem": "", "ttl": "5", "period": "daily", "frequency": "1"}
ENTRY = {
    "entry": {
        "id": "a",
        "title": "t",
        "link": "l",
        "published_parsed": "2026-01-01T00:00:00Z",
        "updated": "x",
        "content": [{"value": "v"}],
        "links": [{"rel": "enclosure", "href": "h"}],
    },
    "raw": "<item/>",
}
DATES = [
    "Mon, 01 Jan 0000 00:00:00 GMT",
    "Mon, 01 Jan 0001 00:00:00 +1400",
    "Fri, 31 Dec 9999 23:59:59 -1400",
    "Mon, 01 Jan 99999 00:00:00 GMT",
    "Thu, 30 Feb 2026 25:61:61 GMT",
    "0001-01-01T00:00:00+23:59",
    "-1",
    "9" * 50,
    "2026-13-45T99:99:99Z",
]


@often(60)
@given(mutated(ENTRY["entry"]), st.sampled_from(DATES))
@example({"id": "\ud800", "title": "\x00", "published": "0000-00-00"}, DATES[0])
@example({"id": "k" * 5000, "link": 5, "content": [json.loads(deep(300))]}, DATES[0])
def test_one_odd_entry_leaves_the_others(odd, date):
    rest = [{"entry": {"id": key, "title": key, "published": date}, "raw": None} for key in ("b", "c")]
    made = [fits(r) for r in records(Feed(ABOUT, [rest[0], {"entry": odd, "raw": "<item/>"}, rest[1]]), frozenset(), set())]
    assert len(made) == 3
    assert {r.external_id for r in made} >= {"b", "c"} or odd.get("id") in ("b", "c")


@often(25)
@given(st.sampled_from(DATES), st.binary(max_size=20), st.integers(0, 1500), st.integers(0, 30))
@example(DATES[0], deep(3000, "x", "<a>", "</a>").encode(), 300, 0)
@example(DATES[0], b'<!DOCTYPE a [<!ENTITY x "y">]>', 0, 0)
def test_bytes_of_feeds(date, noise, at, gone):
    text = feed(*(item(f"b{n}", "a & b", NOW) for n in range(4)), f"<item><title>x</title><pubDate>{date}</pubDate></item>").encode()
    told = None
    with contextlib.suppress(Exception):  # the program tells it in one line
        told = list(rss_parse.lines(text[:at] + noise + text[at + gone :], {"type": RSS, "url": "https://h.example/", "most": 100_000}))
    for record in records(Feed(told[0], json.loads(json.dumps(told[1:]))), frozenset(), set()) if told else ():
        fits(record)


MESSAGE = {
    "id": 5,
    "type": "message",
    "date": "2026-03-01T09:00:00",
    "date_unixtime": "1772352000",
    "edited_unixtime": "1772352001",
    "text": ["a", {"type": "bold", "text": "b"}],
    "text_entities": [{"type": "plain", "text": "a"}],
    "photo": "p",
    "width": 1,
    "poll": {"question": "q", "answers": [{"text": "a"}]},
}
EXPORT = {"name": "Offers", "id": 7, "messages": [MESSAGE, MESSAGE | {"id": 6}, MESSAGE | {"id": 7}]}
exports = (
    mutated(EXPORT).map(dumped)
    | mutated({"chats": {"list": [EXPORT]}}).map(dumped)
    | st.tuples(st.integers(0, 900), st.binary(max_size=4)).map(lambda harm: dumped(EXPORT)[: harm[0]] + harm[1] + dumped(EXPORT)[harm[0] + 1 :])
    | st.binary(max_size=60)
    | st.sampled_from(
        [
            *BYTES,
            deep(3000, "{}", '{"chats": {"list": [', "]}}").encode(),
            b'{"messages": [' + b'"' * 3000,
            b'{"messages": [{"id": 1}',
            b'{"\\ud800": 1}',
            b'{"name": tru, "messages": []}',
        ]
    )
)


@often(80)
@given(exports)
async def test_exports(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "result.json"
    path.write_bytes(data)
    made = Export("telegram:Offers", str(path), "Offers", CollectorSettings(page_records=2), 20_000)
    with contextlib.suppress(Cut):
        async with asyncio.timeout(20):
            async for page in made.fetch({}):
                as_json(page.position)
                for record in page.records:
                    fits(record)


@often(60)
@given(mutated(MESSAGE) | hostile)
@example(MESSAGE | {"date_unixtime": "9" * 30})
@example(MESSAGE | {"id": "9" * 4000})
@example(MESSAGE | {"date_unixtime": "-62135596800", "photo_file_size": 0, "edited_unixtime": None})
@example(MESSAGE | {"text_entities": [{"type": json.loads(deep(300)), "text": "x"}]})
async def test_one_odd_message_leaves_the_others(tmp_path_factory, odd):
    path = tmp_path_factory.getbasetemp() / "odd.json"
    path.write_bytes(dumped(EXPORT | {"messages": [MESSAGE, odd, MESSAGE | {"id": 7}]}))
    made = Export("telegram:Offers", str(path), "Offers", CollectorSettings(), 1_000_000)
    found = [fits(r) for page in [p async for p in made.fetch({})] for r in page.records]
    assert len(found) == 3
    assert (found[0].external_id, found[2].external_id) == ("5", "7")
