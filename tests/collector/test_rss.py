"""rss: how a feed is asked for, what its answers mean, what makes a record, and that no feed can hurt."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import gzip
import json
import signal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from collector import live
from collector.sources import rss_entries, rss_parse
from collector.sources.answers import Denied, Limited
from collector.sources.building import build
from collector.sources.rss_entries import Feed, pace, records
from tests.collector.local import Local
from tests.collector.subjects.rss import RSS, FakeFeed, feed, item
from worker.core.errors import Misconfigured, Unavailable
from worker.core.settings import Settings

NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
async def fake():
    service = FakeFeed()
    service.serve(feed(*(item(f"b{n}", f"arrival {n}", NOON + HOUR * n) for n in range(5, 0, -1))))
    async with Local(service.app) as local:
        service.url = local.url
        yield service


@pytest.fixture
def settings(fake):
    def of(path="/feed.xml", name=None, **options):
        spec = {"kind": "rss", **options}
        return Settings(sources={name or f"rss:{fake.url}{path}": spec}, collector={"port": 0, "touch_seconds": 0.1})

    return of


@pytest.fixture
def make(settings):
    return lambda *args, **options: next(iter(build(settings(*args, **options)).values()))


async def all_of(pages):
    return [page async for page in pages]


async def read(source, position=None):
    """All records of one poll, and the position after it."""
    pages = await all_of(source.poll(position or {}))
    return [r for p in pages for r in p.records], pages[-1].position


# -- asking --------------------------------------------------------------------------------------------


def sent(fake):
    headers = fake.calls[-1][1]
    return headers.get("if-none-match"), headers.get("if-modified-since")


async def test_validators_go_back_exactly_as_they_came_and_are_replaced_together(fake, make):
    fake.coming.append((200, {"etag": 'W/odd, "one', "last-modified": "yesterday, about noon"}, fake.body))
    rss = make()
    _, position = await read(rss)
    fake.coming.append((200, {"etag": "second"}, fake.body))
    _, position = await read(rss, position)
    assert sent(fake) == ('W/odd, "one', "yesterday, about noon")
    await read(rss, position)
    assert sent(fake) == ("second", None)
    fake.coming.append((200, {}, fake.body))
    _, position = await read(rss, position)
    await read(rss, position)
    assert sent(fake) == (None, None)


@pytest.mark.parametrize(
    ("option", "wanted"), [("both", (True, True)), ("etag", (True, False)), ("modified", (False, True)), ("none", (False, False))]
)
async def test_each_feed_has_its_own_policy_of_validators(fake, make, option, wanted):
    rss = make(validators=option)
    first, position = await read(rss)
    again, after = await read(rss, position)
    assert tuple(v is not None for v in sent(fake)) == wanted
    assert (len(first), again, after) == (5, [], position)


async def test_nothing_new_is_told_by_304_or_by_the_same_bytes(fake, make, monkeypatch):
    rss = make()
    _, position = await read(rss)
    monkeypatch.setattr(rss_entries, "_PROGRAM", "nothing is read again")
    assert await read(rss, position) == ([], position)
    fake.validators = False
    assert (await read(rss, position))[0] == []
    fake.coming.append((304, {}, b""))
    with pytest.raises(Unavailable, match="answered 304"):
        await read(make())


async def test_a_packed_feed_is_unpacked_and_a_bomb_is_not(fake, make):
    assert "gzip" in (await read(make()), fake.calls[-1][1])[1]["accept-encoding"]
    bomb = gzip.compress(bytes(30_000_000))
    fake.coming.append((200, {"content-encoding": "gzip"}, bomb))
    with pytest.raises(Unavailable, match="larger than max_bytes = 10000000"):
        await read(make())
    fake.coming.append((200, {"content-encoding": "gzip, gzip"}, gzip.compress(bomb)))
    with pytest.raises(Unavailable, match="packed in a way that nobody asked for"):
        await read(make())
    fake.serve(feed(*(item(f"b{n}", "arrival", NOON) for n in range(20))))
    with pytest.raises(Unavailable, match="max_bytes = 1000"):
        await read(make(max_bytes=1000))


async def test_a_feed_that_moved_for_good_is_asked_there_and_one_that_is_away_is_not(fake, make):
    to = {"location": "/new.xml"}
    fake.answers["/feed.xml"] = (301, to, b"")
    rss = make()
    found, position = await read(rss)
    assert (len(found), position["url"]) == (5, f"{fake.url}/new.xml")
    fake.calls.clear()
    await read(rss, position)
    assert [path for path, _ in fake.calls] == ["/new.xml"]
    assert sent(fake)[0]
    fake.answers["/feed.xml"] = (302, to, b"")
    assert (await read(make()))[1]["url"] is None
    fake.answers |= {"/feed.xml": (302, {"location": "/b.xml"}, b""), "/b.xml": (308, to, b"")}
    assert (await read(make()))[1]["url"] is None, "the way there is not for good"


async def test_a_feed_that_is_no_longer_where_it_moved_is_looked_for_where_it_was(fake, make):
    fake.answers["/new.xml"] = (410, {}, b"")
    found, position = await read(make(), {"url": f"{fake.url}/new.xml", "etag": "x"})
    assert (len(found), position["url"]) == (5, None)
    assert sent(fake) == (None, None)


@pytest.mark.parametrize(
    ("location", "words"), [("/feed.xml", "leads on and on"), ("file:///etc/passwd", "not on the web"), ("http://[::1", "no answer")]
)
async def test_redirects_end(fake, make, location, words):
    fake.answers["/feed.xml"] = (301, {"location": location}, b"")
    with pytest.raises(Unavailable, match=words):
        await read(make())


async def test_a_login_is_sent_to_its_own_host_alone(fake, make, tmp_path):
    (tmp_path / "login").write_text("Basic c2VjcmV0")
    rss = make(authorization_file=str(tmp_path / "login"))
    await read(rss)
    assert fake.calls[-1][1]["authorization"] == "Basic c2VjcmV0"
    other = FakeFeed()
    other.serve(fake.body.decode())
    async with Local(other.app) as elsewhere:
        fake.answers["/feed.xml"] = (301, {"location": f"{elsewhere.url}/feed.xml"}, b"")
        _, position = await read(rss)
        await read(rss, position)
    assert [path for path, _ in fake.calls] == ["/feed.xml"] * 2, "it has moved for good"
    assert len(other.calls) == 2
    assert not [headers for _, headers in other.calls if "authorization" in headers]


async def test_an_address_that_is_a_secret_is_in_nothing_that_anybody_sees(fake, make, tmp_path, monkeypatch):
    monkeypatch.setenv("FEED_OF_TEST", f"{fake.url}/private/s3cr3t/feed?token=s3cr3t")
    fake.serve(feed("<item><guid>b1</guid><description>&lt;a href='x'&gt;x&lt;/a&gt;</description></item>"))
    rss = make(name="rss:private", url_env="FEED_OF_TEST", pages=3)
    (record,), position = await read(rss)
    history = await all_of(rss.fetch({}))
    fake.coming += [(410, {}, b""), (429, {}, b""), (500, {}, b""), (200, {}, b"nothing")]
    said = [rss.describe(), repr(record), repr(position), repr(history), repr(rss.__dict__)]
    for _ in range(4):
        with pytest.raises((Denied, Limited, Unavailable)) as raised:
            await read(rss)
        said.append(f"{raised.value!r} {raised.value} {raised.value.__cause__!r}")
    assert not [text for text in said if "s3cr3t" in text]


@pytest.mark.parametrize(
    ("status", "headers", "kind", "seconds"),
    [
        (410, {}, Denied, None),
        (401, {}, Denied, None),
        (403, {}, Denied, None),
        (404, {}, Unavailable, None),
        (500, {}, Unavailable, None),
        (503, {}, Unavailable, None),
        (503, {"retry-after": "120"}, Limited, 120),
        (429, {"retry-after": "0"}, Limited, 1),
        (429, {"retry-after": "soon"}, Limited, 900),
        (429, {"retry-after": "99999999999"}, Limited, 86_400),
    ],
)
async def test_every_refusal_has_its_meaning(fake, make, status, headers, kind, seconds):
    fake.coming.append((status, headers, b"no"))
    with pytest.raises(kind, match=f"127.0.0.1/feed.xml answered {status}") as raised:
        await read(make())
    if seconds:
        assert (raised.value.name, raised.value.seconds) == ("rss:127.0.0.1", seconds)


async def test_a_date_to_come_back_at_is_understood(fake, make):
    later = dt.datetime.now(dt.UTC) + HOUR
    fake.coming.append((503, {"retry-after": email.utils.format_datetime(later, usegmt=True)}, b""))
    with pytest.raises(Limited) as raised:
        await read(make())
    assert 3590 < raised.value.seconds <= 3600


@pytest.mark.parametrize("body", [b"", b"<html><body>hello</body></html>", b'{"version": "https://jsonfeed.org"}', b"\x00\xff\xfe", b"<?xml"])
async def test_what_is_no_feed_is_a_failure(fake, make, body):
    fake.coming.append((200, {"content-type": RSS}, body))
    with pytest.raises(Unavailable, match="this is no feed"):
        await read(make())


async def test_a_feed_that_is_cut_off_is_a_failure_and_not_half_of_it(fake, make):
    whole = fake.body
    for end in range(len(whole) - 200, len(whole) - 8, 41):
        fake.serve(whole[:end])
        with pytest.raises(Unavailable, match="cut off"):
            await read(make())


def test_wrong_options_are_refused_with_what_to_do(make, tmp_path):
    for name in ("rss:harbour", "rss:ftp://harbour.example/feed", "rss:https://", "rss:http://[::1"):
        with pytest.raises(Misconfigured, match="no address of a feed"):
            make(name=name)
    with pytest.raises(Misconfigured, match="authorization_env"):
        make(name="rss:https://user:password@harbour.example/feed")
    with pytest.raises(Misconfigured, match="ignore"):
        make(ignore=["views"])


# -- pace ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "headers", "seconds"),
    [
        ("", {}, 900),
        ("<ttl>60</ttl>", {}, 3600),
        ("<ttl>1</ttl>", {}, 900),
        ("<ttl>soon</ttl>", {}, 900),
        ("", {"cache-control": 'public, max-age="1800"'}, 1800),
        ("<ttl>60</ttl>", {"cache-control": "s-maxage=9, max-age=7200"}, 7200),
        ("<sy:updatePeriod>daily</sy:updatePeriod><sy:updateFrequency>4</sy:updateFrequency>", {}, 21_600),
        ("<sy:updatePeriod>yearly</sy:updatePeriod>", {}, 86_400),
    ],
)
async def test_a_feed_may_wish_to_be_asked_more_seldom(fake, make, more, headers, seconds):
    fake.serve(feed(more=more, root='<rss version="2.0" xmlns:sy="http://purl.org/rss/1.0/modules/syndication/">'))
    fake.headers = headers
    rss = make()
    _, position = await read(rss)
    assert rss.every == seconds
    again = make()
    await read(again, position)
    assert again.every == seconds, "also when it says no more than 304"
    deaf = make(obey_feed=False, every=60)
    await read(deaf)
    assert deaf.every == 60
    slower = make(every="2d")
    await read(slower)
    assert slower.every == 172_800


def test_a_period_without_sense_is_none():
    assert pace({"ttl": None, "period": "fortnightly", "frequency": "0"}) == 0


# -- records -------------------------------------------------------------------------------------------


def parsed(text, ignored=(), shared=None):
    about, *told = rss_parse.lines(
        text.encode() if isinstance(text, str) else text, {"type": RSS, "url": "https://harbour.example/feed", "most": 100_000}
    )
    return records(Feed(about, told), frozenset(ignored), set() if shared is None else shared)


def payload(record):
    return json.loads(record.payload)


async def test_entries_come_oldest_first_with_their_own_times_and_xml(fake, make):
    found, _ = await read(make())
    assert [r.external_id for r in found] == ["b1", "b2", "b3", "b4", "b5"]
    assert [r.occurred_at for r in found] == [NOON + HOUR * n for n in range(1, 6)]
    assert payload(found[0])["raw_xml"] == item("b1", "arrival 1", NOON + HOUR)
    assert payload(found[0])["published_parsed"] == "2026-11-24T13:00:00Z"


async def test_what_leaves_the_feed_is_no_deletion_and_what_is_known_is_not_told_again(fake, make):
    rss = make()
    _, position = await read(rss)
    fake.serve(feed(item("b6", "arrival 6", NOON + HOUR * 6), item("b5", "departure", NOON + HOUR * 5), item("b4", "arrival 4", NOON + HOUR * 4)))
    found, after = await read(rss, position)
    assert [(r.external_id, r.op) for r in found] == [("b5", "create"), ("b6", "create")]
    restarted, _ = await read(make(), position)
    assert len(restarted) == 3, "a new process compares with raw instead"
    fake.serve(feed(item("b7", "arrival 7", NOON + HOUR * 7), item("b5", "departure", NOON + HOUR * 5)))
    not_stored, _ = await read(rss, position)
    assert len(not_stored) == 2, "what was told and not stored is told again"
    assert after["seen"] != position["seen"]


def test_atom_has_a_time_of_its_edit():
    (record,) = parsed(
        '<feed xmlns="http://www.w3.org/2005/Atom"><title>t</title><entry><id>tag:1</id><title>a</title>'
        "<published>2026-11-24T12:00:00+02:00</published><updated>2026-11-25T00:00:00Z</updated></entry></feed>"
    )
    assert (record.external_id, record.occurred_at) == ("tag:1", NOON - HOUR * 2)
    assert record.source_time == dt.datetime(2026, 11, 25, tzinfo=dt.UTC)


def one(inner, **more):
    return parsed(
        feed(
            f"<item>{inner}</item>",
            root='<rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:slash="http://purl.org/rss/1.0/modules/slash/">',
        ),
        **more,
    )[0]


def test_a_key_is_the_id_else_the_link_else_the_content():
    assert one("<guid>urn:1</guid><link>https://a.example/1</link>").external_id == "urn:1"
    assert one("<link>https://a.example/1</link><title>a</title>").external_id == "https://a.example/1"
    nameless = one("<title>a</title>")
    assert nameless.external_id == nameless.digest.hex()
    assert len(one(f"<guid>urn:{'x' * 2000}</guid>").external_id) < 500


def test_a_digest_is_over_what_people_see():
    base = "<guid>urn:1</guid><title>a</title><link>https://a.example/1</link><description>d</description>"
    sound = '<enclosure url="https://a.example/1.mp3" type="audio/mpeg" length="{}"/>'
    same = one(base + sound.format(1)).digest
    assert one(base + sound.format(2) + "<slash:comments>7</slash:comments><dc:date>2026-11-24T12:00:00Z</dc:date>").digest == same
    assert one(base.replace("<title>a", "<title>b") + sound.format(1)).digest != same
    assert one(base).digest != same
    assert one(base.replace(">d<", ">e<") + sound.format(1), ignored=["summary"]).digest == one(base + sound.format(1), ignored=["summary"]).digest
    bare = '<guid isPermaLink="false">urn:1</guid><slash:comments>{}</slash:comments>'
    assert one(bare.format(7)).digest != one(bare.format(8)).digest, "where people see nothing, all of it counts"


def test_what_a_later_parser_needs_is_there():
    record = one("<guid>urn:1</guid><dc:creator>someone</dc:creator><slash:comments>7</slash:comments>")
    assert payload(record)["raw_xml"].startswith("<item><guid>urn:1</guid><dc:creator>")
    assert record.meta["namespaces"]["slash"] == "http://purl.org/rss/1.0/modules/slash/"


# -- history -------------------------------------------------------------------------------------------


def page(n, following):
    link = f'<atom:link rel="next" href="{following}"/>' if following else ""
    items = [item(f"p{n}-{k}", f"page {n} {k}", NOON - HOUR * (10 * n + k)) for k in range(3)]
    return (200, {"content-type": RSS}, feed(*items, more=link, root='<rss version="2.0" xmlns:atom="http://www.w3.org/2005/Atom">').encode())


async def test_a_backfill_follows_older_pages_as_far_as_it_may_and_never_in_a_circle(fake, make):
    fake.answers |= {"/feed.xml": page(0, "/1"), "/1": page(1, "2"), "/2": page(2, "/feed.xml")}
    assert keys_of(await all_of(make().fetch({}))) == ["p0-2", "p0-1", "p0-0"]
    assert len(keys_of(await all_of(make(pages=2).fetch({})))) == 6
    everything = await all_of(make(pages=1000).fetch({}))
    assert keys_of(everything) == [f"p{n}-{k}" for n in range(3) for k in (2, 1, 0)]
    assert everything[-1].position == {"page": None, "number": None, "after": None, "shared": []}
    for end in (1, 2, 5):  # wherever it was interrupted
        rest = await all_of(make(pages=1000).fetch(everything[end - 1].position))
        assert keys_of(everything[:end]) + keys_of(rest) == keys_of(everything)


def keys_of(pages):
    return [r.external_id for p in pages for r in p.records]


# -- hostile -------------------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))
BAD = {
    "an entity bomb": f"<?xml version='1.0'?><!DOCTYPE rss [{LAUGHS}]>"
    + feed("<item><guid>bad</guid><title>&l11;</title></item>", item("good", "x", NOON))[38:],
    "a file as an entity": "<!DOCTYPE rss [<!ENTITY f SYSTEM 'file:///etc/passwd'>]>"
    + feed("<item><guid>bad</guid><title>&f;</title></item>", item("good", "x", NOON))[38:],
    "a large entry": feed(f"<item><guid>bad</guid><title>{'a' * 200_000}</title></item>", item("good", "x", NOON)),
    "deep nesting": feed(f"<item><guid>bad</guid><description>{'<div>' * 5000}{'</div>' * 5000}</description></item>", item("good", "x", NOON)),
    "a surrogate": feed("<item><guid>bad</guid><title>&#xD800;</title></item>", item("good", "x", NOON)),
    "a NUL": feed("<item><guid>bad</guid><title>&#0;\0</title></item>", item("good", "x", NOON)),
    "no dates": feed("<item><guid>bad</guid></item>", "<item><guid>good</guid></item>"),
    "dates of nonsense": feed("<item><guid>bad</guid><pubDate>99 Foo -5 99:99</pubDate></item>", item("good", "x", NOON)),
    "years out of range": feed("<item><guid>bad</guid><pubDate>Mon, 01 Jan 99999 00:00:00 GMT</pubDate></item>", item("good", "x", NOON)),
    "an undefined entity": feed("<item><guid>bad</guid><title>a&nbsp;b&bogus;</title></item>", item("good", "x", NOON)),
    "tags that nobody closes": feed("<item><guid>bad</guid><title>a<b></title></item>", item("good", "x", NOON)),
    "another encoding than is said": feed("<item><guid>bad</guid><title>Zürich</title></item>", item("good", "x", NOON)).encode("latin-1"),
    "an encoding that is none": feed("<item><guid>bad</guid></item>", item("good", "x", NOON)).replace("utf-8", "klingon"),
    "an encoding of the East": feed("<item><guid>bad</guid><title>港</title></item>", item("good", "x", NOON))
    .replace("utf-8", "gb2312")
    .encode("gb2312"),
    "two bytes a character": feed("<item><guid>bad</guid></item>", item("good", "x", NOON)).replace("utf-8", "utf-16").encode("utf-16"),
    "an empty id": feed("<item><guid> </guid><link/><title>bad</title></item>", item("good", "x", NOON)),
    "nothing in an entry": feed("<item/>", item("good", "x", NOON)),
    "an entry in an entry": feed("<item><guid>bad</guid><item><guid>inner</guid></item></item>", item("good", "x", NOON)),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_entry_hurts_no_other(text):
    found = {r.external_id: r for r in parsed(text)}
    assert any(key.endswith("good") for key in found)
    assert len(found) >= 2
    for record in found.values():
        assert (record.payload is None) != (record.body is None)
        assert record.body is None or record.meta["defect"]
        assert "root:" not in (record.payload or "")


def test_what_is_wrong_with_an_entry_is_told():
    def defect(name):
        return {(r.meta or {}).get("defect") for r in parsed(BAD[name])} - {None}

    assert defect("a large entry") == {"an entry of 200044 bytes is larger than max_entry_bytes (100000)"}
    assert defect("dates of nonsense") == {"not a time: '99 Foo -5 99:99'"}
    assert "surrogates not allowed" in defect("a surrogate").pop()


def test_relative_links_are_relative_to_the_feed():
    record = one('<guid>urn:1</guid><link>/berth/1</link><description>&lt;img src="p.png"&gt;</description>')
    assert payload(record)["link"] == "https://harbour.example/berth/1"
    assert "https://harbour.example/p.png" in payload(record)["summary"]


def test_an_id_that_several_entries_use_is_told_apart_by_content_from_then_on():
    shared: set[str] = set()
    a, b = item("x", "one", NOON), item("x", "two", NOON + HOUR)
    both = parsed(feed(a, b), shared=shared)
    assert len({r.external_id for r in both}) == 2
    assert {r.meta["defect"] for r in both} == {"its id is used by 2 entries of the feed"}
    assert len(shared) == 1
    (later,) = parsed(feed(b), shared=shared)
    assert later.external_id == both[1].external_id
    twice = parsed(feed(a, a))
    assert {(r.external_id, r.digest) for r in twice} == {("x", twice[0].digest)}, "the same entry twice is one"


@pytest.fixture
def alarm(monkeypatch):
    monkeypatch.setattr(rss_parse, "WHOLE", 0.5)
    monkeypatch.setattr(rss_parse, "ONE", 0.2)
    before = signal.signal(signal.SIGPROF, rss_parse._late)
    yield
    signal.signal(signal.SIGPROF, before)


def test_an_entry_over_which_feedparser_would_never_end_is_a_defect(alarm):
    text = feed(item("b1", "x", NOON), f"<item><guid>bad</guid><author>{'a' * 90_000}</author></item>", item("b2", "x", NOON))
    found = {r.external_id: (r.meta or {}).get("defect") for r in parsed(text)}
    assert found == {"b1": None, "bad": "reading it takes more than 0.2 s", "b2": None}


async def test_a_feed_that_cannot_be_read_in_time_is_a_failure_and_its_reader_is_ended(fake, make, monkeypatch, tmp_path, eventually):
    (tmp_path / "hangs.py").write_text(f"import os, signal\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nwhile True: signal.pause()")
    monkeypatch.setattr(rss_entries, "_PROGRAM", tmp_path / "hangs.py")
    monkeypatch.setattr(rss_entries, "_LONGEST", 1.0)
    with pytest.raises(Unavailable, match="it takes too long"):
        await read(make())
    first = (tmp_path / "pid").read_text()
    (tmp_path / "pid").unlink()
    monkeypatch.setattr(rss_entries, "_LONGEST", 60.0)
    task = asyncio.create_task(read(make()))
    second = await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [pid for pid in (first, second) if (tmp_path / f"/proc/{pid}").exists()]


@given(st.binary(max_size=300), st.integers(0, 1500), st.integers(0, 60))
@hypothesis_settings(max_examples=150, deadline=None)
def test_whatever_the_bytes_are_they_become_records_or_a_failure(noise, at, gone):
    text = feed(*(item(f"b{n}", "a & b", NOON) for n in range(4)), "<item><title>&lt;p&gt;x</title></item>").encode()
    with contextlib.suppress(Exception):  # the program tells it in one line
        about, *told = rss_parse.lines(text[:at] + noise + text[at + gone :], {"type": RSS, "url": "https://h.example/", "most": 100_000})
        made = records(Feed(about, json.loads(json.dumps(told))), frozenset(), set())
        assert all((r.payload is None) != (r.body is None) for r in made)


# -- the end -------------------------------------------------------------------------------------------


async def test_it_ends_in_the_middle_of_a_call(fake, settings, db_url, eventually):
    fake.gate = asyncio.Event()
    config = settings()
    program = live.Live(config, build(config))
    task = asyncio.create_task(program.run(db_url))
    await eventually(lambda: fake.calls)
    program.stop.set()
    await asyncio.wait_for(task, 20)
    fake.gate.set()
