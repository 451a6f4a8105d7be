"""telegram: what is particular to it, at a service of messages in this process and at the stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import sqlite3
from itertools import pairwise

import pytest
from telethon import TelegramClient, errors, functions, types

from collector import live
from collector.raw import Appender, register
from collector.sources import Healing, Tailed, Window, telegram_client, telegram_line, telegram_tail
from collector.sources.answers import Denied, Limited
from collector.sources.building import build
from collector.sources.telegram_content import digest, of_message
from collector.sources.telegram_news import Chat
from collector.sources.telegram_records import record
from tests.collector.contract import standin
from tests.collector.subjects.telegram import BEGAN, CHANNEL, Client, Service, session
from worker.core.errors import Misconfigured
from worker.core.settings import Settings

MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
NAME = "telegram:offers"


class Raw:
    """What raw holds: only what `heal` asks for."""

    def __init__(self):
        self.records, self.asked = {}, 0

    def take(self, page):
        for r in page.records:
            self.records[r.external_id] = r
        return page

    async def among(self, keys):
        self.asked += 1
        return {k for k in keys if k in self.records and self.records[k].op != "delete"}


@pytest.fixture
def service(monkeypatch):
    made = Service()
    monkeypatch.setattr(telegram_client, "connect", made.connect)
    return made


@pytest.fixture
def spec(tmp_path):
    """The options of `[sources.offers]`, with both sessions."""
    for file, text in {"news": session(1), "history": session(2), "hash": "s3cret-hash"}.items():
        (tmp_path / file).write_text(text)
    files = {"session_file": "news", "catchup_session_file": "history", "api_hash_file": "hash"}
    return {"kind": "telegram", "api_id": 1} | {k: str(tmp_path / v) for k, v in files.items()}


def made(spec, name=NAME, **collector):
    return build(Settings(sources={name: spec}, collector=collector))[name]


@pytest.fixture
async def source(service, spec):
    found = made(spec | {"verify": 0.05})
    yield found
    await found.aclose()


async def healed(source, raw, position=None, tail=None):
    pages = [raw.take(page) async for page in source.heal(position or {}, tail or {}, raw)]
    return pages, pages[-1].position if pages else {}


@contextlib.asynccontextmanager
async def tailing(source, position=None):
    """The pages of its tail, as a list that grows."""
    stop, pages = asyncio.Event(), []

    async def read():
        async for page in source.tail(position or {}, stop):
            pages.append(page)

    task = asyncio.create_task(read())
    try:
        yield pages
    finally:
        stop.set()
        await asyncio.wait_for(task, 3)


def keys(pages):
    return [r.external_id for page in pages for r in page.records]


def message(**fields):
    return types.Message(**{"id": 5, "peer_id": types.PeerChannel(CHANNEL), "date": BEGAN, "message": "Selling a bike"} | fields)


# -- records ----------------------------------------------------------------------------------------------


def test_counters_and_an_edit_of_nothing_make_no_revision():
    plain = record(message(), 0).digest
    counted = {
        "views": 4711, "forwards": 3, "edit_date": BEGAN + HOUR, "edit_hide": True, "pinned": True, "post_author": "Ann",
        "replies": types.MessageReplies(replies=4, replies_pts=9),
        "reactions": types.MessageReactions([types.ReactionCount(types.ReactionEmoji("+"), 5)]),
    }  # fmt: skip
    for name, value in counted.items():
        assert record(message(**{name: value}), 0).digest == plain, name


CONTENTS = {
    "text": {"message": "Selling a car"},
    "entities": {"entities": [types.MessageEntityBold(0, 7)]},
    "link": {"entities": [types.MessageEntityTextUrl(0, 7, "https://example.org/a")]},
    "another link": {"entities": [types.MessageEntityTextUrl(0, 7, "https://example.org/b")]},
    "photo": {"media": types.MessageMediaPhoto(photo=types.Photo(1, 2, b"r", BEGAN, [types.PhotoSize("x", 800, 600, 52000)], 2))},
    "another photo": {"media": types.MessageMediaPhoto(photo=types.Photo(3, 4, b"r", BEGAN, [types.PhotoSize("x", 800, 600, 52001)], 2))},
    "file": {"media": types.MessageMediaDocument(document=types.Document(1, 2, b"r", BEGAN, "application/pdf", 900, 2, []))},
    "button": {"reply_markup": types.ReplyInlineMarkup([types.KeyboardInlineButtonRow([
        types.KeyboardInlineButton("Buy", types.InlineButtonTypeUrl("https://example.org"))])])},
    "poll": {"media": types.MessageMediaPoll(types.Poll(1, types.TextWithEntities("Which?", []), [
        types.PollAnswer(types.TextWithEntities("this", []), b"0")], 0), types.PollResults())},
}  # fmt: skip


def test_each_part_of_the_content_makes_a_revision():
    found = {name: record(message(**fields), 0).digest for name, fields in CONTENTS.items()} | {"": record(message(), 0).digest}
    assert len(set(found.values())) == len(found)
    created = types.MessageService(5, types.PeerChannel(CHANNEL), BEGAN, action=types.MessageActionChannelCreate("Offers"))
    renamed = types.MessageService(5, types.PeerChannel(CHANNEL), BEGAN, action=types.MessageActionChatEditTitle("Offers"))
    assert record(created, 0).digest != record(renamed, 0).digest


def test_the_payload_is_the_whole_message():
    photo = types.Photo(9007199254740993, -2, b"\x00\xff", BEGAN, [types.PhotoStrippedSize("i", b"\x01")], 2)
    made = record(message(media=types.MessageMediaPhoto(photo=photo), edit_date=BEGAN + HOUR), 0)
    payload = json.loads(made.payload)
    assert payload["date"] == "2026-03-01T08:00:00+00:00"
    assert payload["media"]["photo"]["file_reference"] == "AP8="
    assert payload["media"]["photo"]["id"] == 9007199254740993
    assert payload.keys() == message().to_dict().keys()
    assert (made.external_id, made.occurred_at, made.source_time) == ("5", BEGAN, BEGAN + HOUR)
    assert record(message(media=types.MessageMediaPhoto(photo=photo), edit_date=BEGAN + HOUR), 0) == made


def test_service_messages_and_messages_without_text_are_records_too():
    service = types.MessageService(1, types.PeerChannel(CHANNEL), BEGAN, action=types.MessageActionChannelCreate("Offers"))
    assert json.loads(record(service, 0).payload)["action"]["title"] == "Offers"
    assert json.loads(record(message(message="", media=types.MessageMediaUnsupported()), 0).payload)["message"] == ""


def test_what_jsonb_cannot_hold_is_kept_as_bytes():
    made = record(message(message="a\x00b"), 0)
    assert made.payload is None
    assert json.loads(made.body)["message"] == "a\x00b"
    assert made.meta == {"defect": "NUL character"}


def test_within_one_second_the_count_of_events_orders():
    assert record(message(), 7).source_time < record(message(), 8).source_time < BEGAN + dt.timedelta(seconds=1)


# -- history in chunks ------------------------------------------------------------------------------------


async def test_a_chunk_is_the_next_of_history_newest_first(service, source):
    for n in range(320):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    service.remove([100, 101])
    first = await source.chunk({}, 250, Window())
    assert keys([first]) == [str(n) for n in range(320, 68, -1) if n not in (100, 101)]
    assert (first.ids, first.total, first.more) == ((69, 321), 318, True)
    asked = [r.limit for _, r in service.asked if isinstance(r, functions.messages.GetHistoryRequest)]
    assert asked == [100, 100, 50]
    rest = await source.chunk(first.position, 250, Window())
    assert keys([rest]) == [str(n) for n in range(68, 0, -1)]
    assert (rest.ids, rest.more) == ((1, 69), False)
    assert rest.times == (BEGAN, first.times[0])


async def test_a_window_cuts_history_by_date(service, source):
    for n in range(30):
        service.store(f"Offer {n}", date=BEGAN + n * HOUR)
    window = Window(BEGAN + 10 * HOUR, BEGAN + 20 * HOUR)
    page = await source.chunk({}, 4, window)
    assert keys([page]) == ["20", "19", "18", "17"]
    rest = [page]
    while rest[-1].more:
        rest.append(await source.chunk(rest[-1].position, 4, window))
    assert keys(rest) == [str(n) for n in range(20, 10, -1)]
    assert rest[-1].position["before"] == 11, "what is older was not read"


async def test_an_answer_without_messages_is_believed_only_at_the_end(service, source, monkeypatch):
    for n in range(150):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    first = await source.chunk({}, 100, Window())
    history, empty = service.history, [True]

    def once(request):
        answer = history(request)
        if empty and request.limit != 2:
            empty.pop()
            answer.messages = []
        return answer

    monkeypatch.setattr(service, "history", once)
    with pytest.raises(ValueError, match="without messages"):
        await source.chunk(first.position, 100, Window())
    assert (await source.chunk(first.position, 100, Window())).ids == (1, 51)


async def test_a_flood_in_the_middle_ends_the_chunk_and_no_call_is_made_until_it_is_over(service, source):
    for n in range(150):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    history = service.history
    service.history = lambda request: history(request) if not request.offset_id else _raise(errors.FloodWaitError(request, capture=40))
    page = await source.chunk({}, 150, Window())
    assert len(page.records) == 100
    calls = len(service.asked)
    with pytest.raises(Limited) as limited:
        await source.chunk(page.position, 150, Window())
    assert limited.value.name == source.exclusive_history[0]
    assert 38 <= limited.value.seconds <= 40
    assert len(service.asked) == calls


def _raise(error):
    raise error


async def test_the_history_of_an_empty_channel_is_over_at_once(source):
    page = await source.chunk({}, 100, Window())
    assert (page.records, page.more, page.total) == ([], False, 0)


# -- news -------------------------------------------------------------------------------------------------


async def test_news_edits_and_deletions_are_pages_with_dense_ids(service, source, eventually):
    service.store("before", date=BEGAN)
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        assert (pages[0].records, pages[0].position) == ([], {"chat": -(10**12) - CHANNEL, "since": 1, "last": 1})
        service.store("one")
        await eventually(lambda: keys(pages) == ["2"])
        assert (pages[-1].ids, pages[-1].position["last"]) == ((2, 3), 2)
        service.change(2, message="one, edited")
        service.remove([1])
        await eventually(lambda: keys(pages) == ["2", "2", "1"])
        assert pages[-1].records[-1].op == "delete"
        assert json.loads(pages[-1].records[-1].payload)["_"] == "MessageEmpty"
        assert pages[-1].position["last"] == 2


async def test_a_tail_goes_on_at_once_and_leaves_what_was_missed_to_the_catch_up(service, source, eventually):
    for n in range(500):
        service.store(f"Offer {n}", date=BEGAN)
    async with tailing(source, {"chat": -(10**12) - CHANNEL, "since": 3, "last": 5}) as pages:
        await eventually(lambda: pages)
        assert source.gap.is_set()
        service.store("news")
        await eventually(lambda: keys(pages) == ["501"])
        assert pages[-1].position == {"chat": -(10**12) - CHANNEL, "since": 3, "last": 501}
        assert pages[-1].ids == (501, 502), "the hole before it shows"


async def test_what_the_service_counts_and_did_not_tell_opens_a_gap(service, source, eventually, monkeypatch):
    monkeypatch.setattr(telegram_tail, "GRACE", 0.05)
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        for miss in (
            lambda: service.store("quiet", quiet=True),
            lambda: service.change(1, message="quietly edited", quiet=True),
            lambda: service.remove([1], quiet=True),
        ):
            source.gap.clear()
            before = source._heal.holes
            miss()
            await eventually(source.gap.is_set)
            assert source._heal.holes == before + 1
        service.store("loud")
        await eventually(lambda: keys(pages) == ["2"])
        assert pages[-1].ids == (2, 3)
        source.gap.clear()
    assert not source.gap.is_set()


async def test_a_jump_in_the_count_of_events_opens_a_gap(service, source, eventually):
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        source.gap.clear()
        service.store("quiet", quiet=True)
        service.store("loud")
        await eventually(lambda: keys(pages) == ["2"])
        assert source.gap.is_set()
        assert pages[-1].ids == (2, 3)
        source.gap.clear()
        service.store("next")
        await eventually(lambda: keys(pages) == ["2", "3"])
        assert not source.gap.is_set()


async def test_updates_that_the_library_skips_open_a_gap(service, source, eventually):
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        source.gap.clear()
        ear = service.clients[0].ear
        ear.missed(CHANNEL)
        ear.reached(CHANNEL, service.pts + 40)
        await eventually(source.gap.is_set)


async def test_a_channel_that_we_have_not_joined_is_read_by_looking(service, source, eventually):
    service.member = False
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        source.gap.clear()
        holes = source._heal.holes
        service.store("told to members only")
        await eventually(source.gap.is_set)
        assert source._heal.holes == holes, "not each look asks for a recheck"


async def test_a_lost_connection_is_taken_up_again_and_calls_the_catch_up(service, source, eventually):
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        await healed(source, Raw())
        await eventually(lambda: source.caught_up)
        source.gap.clear()
        service.down = True
        service.drop()
        await eventually(lambda: not source.caught_up)
        service.store("missed")
        service.down = False
        await eventually(source.gap.is_set)
        service.store("heard")
        await eventually(lambda: keys(pages) == ["2"])
        assert pages[-1].ids == (2, 3)
        assert not source.caught_up, "there is a gap"
        await healed(source, Raw())
        await eventually(lambda: source.caught_up)


async def test_a_flood_at_a_restart_does_not_stop_the_news(service, source, eventually):
    for n in range(5):
        service.store(f"Offer {n}", date=BEGAN)
    service.refusals.append(errors.FloodWaitError(None, capture=900))
    async with tailing(source, {"since": 3, "last": 4}) as pages:
        await eventually(lambda: pages)
        service.store("news")
        await eventually(lambda: keys(pages) == ["6"])
        assert pages[-1].position == {"chat": -(10**12) - CHANNEL, "since": 3, "last": 6}


async def test_chats_of_one_session_share_a_client(service, spec, eventually):
    one, two = made(spec), made(spec | {"chat": "@Offers"}, "telegram:again")
    async with tailing(one) as first, tailing(two) as second:
        await eventually(lambda: first and second)
        service.store("news")
        await eventually(lambda: keys(first) == keys(second) == ["1"])
        assert len(service.clients) == 1
        await one.aclose()
        service.store("more")
        await eventually(lambda: keys(second) == ["1", "2"])
    await two.aclose()
    assert not service.clients
    assert not telegram_line._lines[asyncio.get_running_loop()]


async def test_the_connection_of_history_ends_with_the_catch_up(service, source, eventually):
    """As the lease on its session does: a backfill of another process may come."""
    service.store("offer")
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        await healed(source, Raw())
        assert [c.who.label for c in service.clients] == [source._news.label]
        looked = service.listed
        await healed(source, Raw())
        assert service.listed == looked, "the chat is remembered"


async def test_a_session_for_history_is_sent_no_news(service, spec, source, eventually):
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        service.store("offer")
        await source.chunk({}, 10, Window())
        assert {c.who.label: c.news for c in service.clients} == {source._news.label: True, source._old.label: False}
    shared = made(spec | {"session_file": spec["catchup_session_file"], "share_session": True, "chat": "offers"}, "telegram:again")
    async with tailing(shared) as pages:
        await eventually(lambda: pages)
        service.store("for both")
        await eventually(lambda: keys(pages) == ["2"])
    await shared.aclose()


async def test_a_tail_ends_within_a_call(service, source, eventually, monkeypatch):
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        hung = asyncio.Event()
        monkeypatch.setattr(type(service.clients[0]), "__call__", lambda *_: hung.wait())
        await eventually(lambda: source._tail.quiet)
    left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    assert not left


# -- the catch-up -----------------------------------------------------------------------------------------


async def test_a_catch_up_begins_where_raw_ends_and_comes_to_the_present(service, source):
    raw = Raw()
    for n in range(300):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    for n in range(1, 101):
        raw.records[str(n)] = record(service.messages[n], 0)
    pages, position = await healed(source, raw)
    assert keys(pages)[:200] == [str(n) for n in range(101, 301)]
    assert (position["upto"], position["at"]) == (300, pages[1].position["at"])
    service.store("one more", date=BEGAN + 300 * MINUTE)
    pages, position = await healed(source, raw, position)
    assert "301" in keys(pages)
    assert position["upto"] == 301


async def test_a_catch_up_of_a_new_source_leaves_history_to_a_backfill(service, source):
    for n in range(300):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    pages, position = await healed(source, Raw())
    assert not keys(pages)
    assert position["upto"] == 300


async def test_news_that_came_before_the_first_catch_up_hide_no_gap(service, source):
    raw = Raw()
    for n in range(20):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    for n in (*range(1, 11), 20):  # 20 came as news; 11 to 19 came when nobody looked
        raw.records[str(n)] = record(service.messages[n], 0)
    await healed(source, raw, {}, {"since": 19, "last": 20})
    assert raw.records.keys() == {str(n) for n in range(1, 21)}


async def test_what_comes_as_news_is_not_read_again_but_looked_at_later(service, source, eventually):
    raw = Raw()
    for n in range(10):
        service.store(f"Offer {n}", date=BEGAN + n * MINUTE)
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        service.store("news")
        service.store("more news")
        await eventually(lambda: keys(pages) == ["11", "12"])
        read, position = await healed(source, raw, {"upto": 5, "at": BEGAN.isoformat()}, {"since": 10, "last": 11})
        assert keys(read) == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"], "11 is stored: looked at for an edit; 12 is not yet"
        assert position["upto"] == 11, "what news brought needs no second reading after a restart"


async def test_a_page_of_a_catch_up_covers_no_more_than_chunk_hours(service, spec):
    source = made(spec, chunk_hours=2, overlap=0, target_lag=0)
    raw = Raw()
    service.store("known", date=BEGAN)
    raw.take(await source.chunk({}, 1, Window()))
    for n in range(1, 9):
        service.store(f"Offer {n}", date=BEGAN + n * HOUR)
    pages, _ = await healed(source, raw, {"upto": 1, "at": BEGAN.isoformat()})
    assert [keys([p]) for p in pages[:4]] == [["1", "2"], ["3", "4"], ["5", "6"], ["7", "8"]]
    assert [p.ids for p in pages[:4]] == [(1, 3), (3, 5), (5, 7), (7, 9)]
    covered = [p.times for p in pages if p.times]
    assert covered[0][0] == BEGAN
    assert all(a[1] == b[0] for a, b in pairwise(covered)), "in one piece, up to now"
    await source.aclose()


async def test_target_lag_leaves_the_youngest_to_the_tail(service, spec):
    source, raw, now = made(spec | {"recheck": 0}, target_lag=600), Raw(), dt.datetime.now(dt.UTC).replace(microsecond=0)
    for minutes in (30, 20, 5):
        service.store("offer", date=now - minutes * MINUTE)
    pages, position = await healed(source, raw, {"upto": 0, "at": (now - HOUR).isoformat()})
    assert keys(pages) == ["1", "2"]
    assert position["upto"] == 2
    await source.aclose()


async def test_edits_and_deletions_of_the_last_days_are_found(service, source):
    raw, now = Raw(), dt.datetime.now(dt.UTC).replace(microsecond=0)
    for n in range(40):
        service.store(f"Offer {n}", date=now - (40 - n) * 3 * HOUR)
    raw.take(await source.chunk({}, 100, Window()))
    _, position = await healed(source, raw)
    service.change(30, message="edited", quiet=True)
    service.change(2, message="too old", quiet=True)
    service.remove([28, 40], quiet=True)
    source._heal.holes += 1
    pages, _ = await healed(source, raw, position)
    assert raw.records["30"].digest == digest(of_message(service.messages[30]))
    assert {k for k, r in raw.records.items() if r.op == "delete"} == {"28", "40"}
    assert "2" not in keys(pages)


async def test_a_message_is_gone_only_when_the_service_says_so(service, source, monkeypatch):
    raw = Raw()
    for n in range(5):
        service.store(f"Offer {n}")
    raw.take(await source.chunk({}, 100, Window()))
    _, position = await healed(source, raw)
    history, called = service.history, Client.__call__

    def without(request):
        answer = history(request)
        answer.messages = [m for m in answer.messages if m.id not in (2, 3)]
        return answer

    async def unsaid(client, request):
        answer = await called(client, request)
        if isinstance(request, functions.channels.GetMessagesRequest):
            answer.messages = [m for m in answer.messages if m.id != 3]
        return answer

    monkeypatch.setattr(service, "history", without)
    monkeypatch.setattr(Client, "__call__", unsaid)
    source._heal.holes += 1
    pages, _ = await healed(source, raw, position)
    assert "2" in keys(pages), "read by its id"
    assert all(r.op != "delete" for r in raw.records.values())


async def test_a_recheck_goes_on_where_it_was_interrupted_and_a_gap_goes_first(service, source):
    raw, now = Raw(), dt.datetime.now(dt.UTC).replace(microsecond=0)
    for n in range(350):
        service.store(f"Offer {n}", date=now - 24 * HOUR + n * MINUTE)
    position = {"upto": 350, "at": now.isoformat()}
    history = service.history
    service.history = lambda r: _raise(errors.FloodWaitError(r, capture=0)) if r.offset_id > 150 else history(r)
    with pytest.raises(Limited):
        await healed(source, raw, position)
    assert raw.records.keys() == {str(n) for n in range(1, 201)}
    service.history = history
    service.store("news")
    pages, position = await healed(source, raw, position)
    assert keys(pages)[0] == "351"
    assert keys(pages)[1] == "201"
    source._heal.holes += 1
    pages = []
    async for page in source.heal(position, {}, raw):
        pages.append(page)
        source.gap.set()
    assert [p.ids for p in pages] == [(351, 352), None, (1, 101)], "the rest of the recheck comes after the gap"


async def test_a_catch_up_that_floods_interrupt_comes_further_each_time(service, source):
    raw, now = Raw(), dt.datetime.now(dt.UTC).replace(microsecond=0)
    for n in range(1000):  # all within the overlap
        service.store(f"Offer {n}", date=now - MINUTE)
    position, history, calls = {"upto": 0, "at": now.isoformat()}, service.history, []

    def some_at_a_time(request):
        calls.append(request)
        return _raise(errors.FloodWaitError(request, capture=0)) if len(calls) % 6 == 0 else history(request)

    service.history = some_at_a_time
    for _ in range(6):
        with contextlib.suppress(Limited):
            async for page in source.heal(position, {}, raw):
                position = raw.take(page).position
        if len(raw.records) == 1000:
            break
    assert len(raw.records) == 1000
    assert len(calls) < 25


async def test_what_vanishes_at_the_top_stops_no_catch_up(service, source, eventually):
    raw = Raw()
    for n in range(10):
        service.store(f"Offer {n}")
    raw.take(await source.chunk({}, 100, Window()))
    async with tailing(source) as pages:
        await eventually(lambda: pages)
        service.remove([9, 10], quiet=True)
        _, position = await healed(source, raw, {"upto": 5, "at": BEGAN.isoformat()}, {"since": 10, "last": 10})
        assert {k for k, r in raw.records.items() if r.op == "delete"} == {"9", "10"}
        source._heal._resume = ([(8, 10)], 0)  # a recheck that was interrupted before
        source.gap.clear()
        await healed(source, raw, position, {"since": 10, "last": 10})
        assert source._heal._resume is None


async def test_a_position_of_another_chat_is_refused(service, source):
    service.store("offer")
    with pytest.raises(Denied, match="was chat -7 and is"):
        await healed(source, Raw(), {"chat": -7, "upto": 40})


async def test_a_position_that_makes_no_sense_begins_anew(service, source):
    service.store("offer", date=BEGAN)
    _, position = await healed(source, Raw(), {"upto": "many", "at": "yesterday"})
    assert position["upto"] == 1
    assert keys([await source.chunk({"before": -3}, 10, Window())]) == ["1"]


# -- sessions, permissions, secrets -----------------------------------------------------------------------


async def test_without_a_session_of_its_own_nothing_is_caught_up(service, spec):
    del spec["catchup_session_file"]
    source = made(spec)
    assert isinstance(source, Healing)
    assert "share_session" in source.describe()
    assert await healed(source, Raw()) == ([], {})
    with pytest.raises(Denied, match="no session for history"):
        await source.chunk({}, 10, Window())
    shared = made(spec | {"share_session": True})
    service.store("offer")
    assert keys([await shared.chunk({}, 10, Window())]) == ["1"]
    assert shared.exclusive == shared.exclusive_history
    await shared.aclose()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.AuthKeyUnregisteredError(None), "AUTH_KEY_UNREGISTERED"),
        (errors.SessionRevokedError(None), "SESSION_REVOKED"),
        (errors.ChannelPrivateError(None), "CHANNEL_PRIVATE"),
        (errors.AuthKeyNotFound(), "AUTH_KEY_NOT_FOUND"),
        (errors.AuthKeyDuplicatedError(None), "AUTH_KEY_DUPLICATED"),
    ],
)
async def test_what_only_a_person_can_mend_is_denied_with_a_hint(service, source, error, said):
    service.store("offer")
    service.refusals.append(error)
    with pytest.raises(Denied, match=said) as denied:
        await source.chunk({}, 10, Window())
    assert denied.value.hint
    assert denied.value.name == NAME


@pytest.mark.parametrize("error", [asyncio.IncompleteReadError(b"", 8), errors.RpcCallFailError(None), errors.InvalidBufferError(b"x")])
async def test_a_broken_connection_is_one_whatever_the_library_calls_it(service, source, error):
    service.store("offer")
    service.refusals.append(error)
    with pytest.raises(ConnectionError):
        await source.chunk({}, 10, Window())


async def test_a_chat_that_does_not_exist_is_denied(spec, service):
    source = made(spec | {"chat": "nowhere"})
    with pytest.raises(Denied, match="USERNAME_NOT_OCCUPIED"):
        await source.chunk({}, 10, Window())
    await source.aclose()


async def test_what_is_joined_needs_no_look_up_and_its_flood_holds_no_history(spec, service):
    service.store("offer")
    service.members = False  # of the list of what is joined
    source, other = made(spec), made(spec | {"chat": "nowhere"}, "telegram:nowhere")
    assert keys([await source.chunk({}, 10, Window())]) == ["1"]
    service.lookups.append(errors.FloodWaitError(None, capture=20000))
    with pytest.raises(Limited) as limited:
        await other.chunk({}, 10, Window())
    assert limited.value.name == f"{source.exclusive_history[0]}:names"
    assert keys([await source.chunk({}, 10, Window())]) == ["1"]
    await source.aclose()
    await other.aclose()
    service.members, service.asked = True, []
    again = made(spec)
    await again.chunk({}, 10, Window())
    assert not [r for _, r in service.asked if isinstance(r, functions.contacts.ResolveUsernameRequest)]
    await again.aclose()


async def test_a_private_chat_is_found_by_its_id(spec, service):
    service.store("offer")
    for number in (CHANNEL, -(10**12) - CHANNEL):
        source = made(spec | {"chat": str(number)})
        assert keys([await source.chunk({}, 10, Window())]) == ["1"]
        await source.aclose()


def test_a_session_is_read_from_a_file_of_the_library(spec, tmp_path):
    text = made(spec)
    file = sqlite3.connect(tmp_path / "collector.session")
    file.execute("create table sessions (dc_id integer, server_address text, port integer, auth_key blob, takeout_id integer, tmp_auth_key blob)")
    file.execute("insert into sessions values (2, '127.0.0.1', 9, ?, null, null)", [telegram_client.Session(session(1)).auth_key.key])
    file.commit()
    for given in ("collector.session", "collector"):
        path = made({k: v for k, v in spec.items() if k != "session_file"} | {"session_path": str(tmp_path / given)})
        assert path.exclusive == text.exclusive
    before = (tmp_path / "collector.session").read_bytes()
    assert (tmp_path / "collector.session").read_bytes() == before


def test_secrets_are_told_nowhere(spec, monkeypatch):
    source = made(spec)
    key = telegram_client.Session(session(1)).auth_key.key
    told = " ".join((source.describe(), repr(source._news), *source.exclusive, *source.exclusive_history, *source.limits))
    assert not any(secret in told for secret in (session(1), session(2), "s3cret-hash", key.hex()))
    (error,) = refused({k: v for k, v in spec.items() if k != "api_hash_file"})
    assert "api_hash" in error
    monkeypatch.setenv("NEWS", session(1)[:-9])
    (error,) = refused({k: v for k, v in spec.items() if k != "session_file"} | {"session_env": "NEWS"})
    assert "cannot be read" in error
    assert session(1)[40:60] not in error


def refused(spec):
    with pytest.raises(Misconfigured) as error:
        made(spec)
    return [str(error.value)]


def test_neither_session_nor_export_is_refused():
    assert "neither a session nor an export" in refused({"kind": "telegram"})[0]


def test_it_is_read_live_only_with_a_session(spec, tmp_path):
    assert isinstance(made(spec), Tailed)
    assert not isinstance(made({"kind": "telegram", "export": str(tmp_path / "result.json")}), Tailed)


# -- the seam to the library ------------------------------------------------------------------------------


class Ear:
    def __init__(self):
        self.told = []

    def hear(self, update):
        self.told.append(type(update).__name__)

    def reached(self, channel, pts):
        self.told.append((channel, pts))

    def missed(self, channel):
        self.told.append(("missed", channel))


async def test_what_the_library_takes_in_and_keeps_to_itself_is_told(monkeypatch):
    client = telegram_client.Client(telegram_client.Session(session(1)), 1, "hash")
    client.ear = ear = Ear()
    edited = types.UpdateEditChannelMessage(message(), 41, 1)
    dialog = types.Dialog(types.PeerChannel(CHANNEL), 9, 0, 0, 0, 0, 0, 0, types.PeerNotifySettings(), pts=77)
    answers = iter([
        types.updates.ChannelDifference(pts=42, new_messages=[], other_updates=[edited], chats=[], users=[], final=True),
        types.updates.ChannelDifferenceTooLong(dialog, [], [], []),
        errors.FloodWaitError(None, capture=3),
        types.updates.DifferenceTooLong(9),
    ])  # fmt: skip

    async def answered(*_):
        answer = next(answers)
        return _raise(answer) if isinstance(answer, Exception) else answer

    monkeypatch.setattr(TelegramClient, "__call__", answered)
    asked = functions.updates.GetChannelDifferenceRequest(types.InputChannel(CHANNEL, 5), types.ChannelMessagesFilterEmpty(), 40, 100)
    await client(asked)
    await client(asked)
    with pytest.raises(errors.FloodWaitError):
        await client(asked)
    await client(functions.updates.GetDifferenceRequest(1, BEGAN, 0))
    assert ear.told == [
        (CHANNEL, 42), "UpdateEditChannelMessage", ("missed", CHANNEL), (CHANNEL, 77), ("missed", CHANNEL), ("missed", None),
    ]  # fmt: skip


async def test_a_call_that_the_library_cancels_is_a_lost_connection(service, source, monkeypatch):
    service.store("offer")

    async def cancelled(*_):
        raise asyncio.CancelledError

    await source.chunk({}, 10, Window())
    monkeypatch.setattr(type(service.clients[0]), "__call__", cancelled)
    with pytest.raises(ConnectionError):
        await source.chunk({}, 10, Window())


async def test_an_answer_that_does_not_come_ends_the_connection(service, source, monkeypatch):
    service.store("offer")
    await source.chunk({}, 10, Window())
    monkeypatch.setattr(telegram_line, "CALL", 0.05)
    monkeypatch.setattr(type(service.clients[0]), "__call__", lambda *_: asyncio.Event().wait())
    with pytest.raises(ConnectionError, match="not answered"):
        await source.chunk({}, 10, Window())
    monkeypatch.undo()
    monkeypatch.setattr(telegram_client, "connect", service.connect)
    assert keys([await source.chunk({}, 10, Window())]) == ["1"]


async def test_small_groups_are_heard_and_their_deletions_looked_for(service, source, eventually, monkeypatch):
    line = source._line(source._news)
    line._chats["offers"] = chat = Chat(types.InputPeerChat(77), types.PeerChat(77), -77, member=True)
    news = line.listen(chat)
    line.hear(types.UpdateShortChatMessage(id=12, from_id=5, chat_id=77, message="hello", pts=4, pts_count=1, date=BEGAN))
    line.hear(types.UpdateNewMessage(types.Message(13, types.PeerChat(77), BEGAN, "whole"), 5, 1))
    line.hear(types.UpdateNewMessage(types.Message(14, types.PeerChat(78), BEGAN, "another group"), 6, 1))
    line.hear(types.UpdateDeleteMessages([3], 7, 1))
    tail = telegram_tail.Tail(NAME, line, "offers", source._healer(), source.gap, 60, 100)
    page = tail._page(news)
    assert [(r.external_id, json.loads(r.payload)["message"]) for r in page.records] == [("12", "hello"), ("13", "whole")]
    assert json.loads(page.records[0].payload)["from_id"] == {"_": "PeerUser", "user_id": 5}
    assert not source.gap.is_set()
    assert not tail._page(news).records
    assert source.gap.is_set()


# -- the programs -----------------------------------------------------------------------------------------


class World:
    """The programs at a service, in one database."""

    def __init__(self, pool, url, spec, **collector):
        fast = {"port": 0, "touch_seconds": 0.1, "heal_seconds": 3600.0}
        self.pool, self.url, self.settings = pool, url, Settings(sources={NAME: spec}, collector=fast | collector)

    async def backfill(self):
        """History in chunks; what was appended."""
        source, appended = build(self.settings)[NAME], 0
        number = (await register(self.pool, self.settings, [NAME]))[NAME]
        appender, position, more = Appender(self.pool, enqueue=True, bells=0), {}, True
        while more:
            page = await source.chunk(position, 250, Window())
            appended += (await appender.append(number, NAME, page, 1))["appended"]
            position, more = page.position, page.more
        await source.aclose()
        return appended

    @contextlib.asynccontextmanager
    async def live(self):
        program = live.Live(self.settings, build(self.settings))
        task = asyncio.create_task(program.run(self.url))
        try:
            yield
        finally:
            program.stop.set()
            await asyncio.wait_for(task, 20)

    async def revisions(self):
        """Of each message its contents one after the other; None: gone."""
        rows = await self.pool.fetch("select external_id, op, payload->>'message' as text from tailrace.raw_records order by id")
        found = {}
        for row in rows:
            found.setdefault(int(row["external_id"]), []).append(None if row["op"] == "delete" else row["text"] or "")
        return found


async def test_a_flood_of_the_catch_up_holds_no_news_not_even_after_a_restart(service, spec, pool, db_url, eventually):
    service.store("offer", date=BEGAN)
    world = World(pool, db_url, spec | {"verify": 3600})
    history, held = service.history, [True]
    service.history = lambda r: _raise(errors.FloodWaitError(r, capture=900)) if held and service.asked[-1][0] == old else history(r)
    old = build(world.settings)[NAME]._old.label
    for n in range(2):
        async with world.live():
            await eventually(lambda: pool.fetchval("select 1 from tailrace.quotas where name = $1 and breaker = 'open'", f"source:{NAME} catch-up"))
            await eventually(lambda n=n: len(service.clients) >= 1)
            await eventually(lambda: pool.fetchval("select 1 from tailrace.cursors where lane = 0"))
            service.store(f"news {n}")
            await eventually(lambda n=n: pool.fetchval("select 1 from tailrace.raw_records where payload->>'message' = $1", f"news {n}"), 5)
    assert await pool.fetchval("select reason from tailrace.quotas where name like 'telegram:session:%'") == f"FLOOD_WAIT_900 for session {old}"


@pytest.fixture
def world(shared, pool, db_url, spec, tmp_path):
    """The stand-in's channels, tutors_chat of them."""
    service = standin("telegram", "--too-long", "200")
    for number, file in enumerate(("news", "history")):
        (tmp_path / file).write_text(service.do("session", user="collector", n=number)["session"])
    made = World(pool, db_url, spec | {"chat": "tutors_chat", "verify": 1})
    made.service = service
    yield made
    service.stop()


def held(world):
    """What the channel holds: text by id; an action has none."""
    return {m["id"]: "" if m["service"] else m["text"] for m in world.service.control("messages", channel="tutors_chat")}


async def agrees(world):
    return {n: r[-1] for n, r in (await world.revisions()).items() if r[-1] is not None} == held(world)


@pytest.mark.shared
async def test_history_and_news_are_the_revisions_of_the_service(world, eventually):
    do, revisions = world.service.do, {n: [text] for n, text in held(world).items()}
    assert await world.backfill() == len(revisions)
    assert await world.backfill() == 0
    async with world.live():
        await eventually(lambda: world.pool.fetchval("select 1 from tailrace.cursors where lane = 0"))
        for n in range(30):
            (number,) = do("post", channel="tutors_chat", text=f"post {n}")["ids"]
            revisions[number] = [f"post {n}"]
            if n % 3 == 0:
                do("edit", channel="tutors_chat", id=number, text=f"edited {n}")
                revisions[number].append(f"edited {n}")
            if n % 5 == 0:
                do("delete", channel="tutors_chat", ids=[number])
                revisions[number].append(None)
        await eventually(lambda: _equal(world, revisions))


async def _equal(world, revisions):
    return await world.revisions() == revisions


@pytest.mark.shared
async def test_what_happened_in_an_outage_and_quietly_is_all_found(world, eventually):
    do = world.service.do
    await world.backfill()
    async with world.live():
        await eventually(lambda: world.pool.fetchval("select 1 from tailrace.cursors where lane = 0"))
        await eventually(lambda: agrees(world))
        ids = do("post", channel="tutors_chat", text="before {n}", count=50)["ids"]
        await eventually(lambda: agrees(world))
        do("drop", refuse=1)
        do("post", channel="tutors_chat", text="in the outage {n}", count=300)  # more than a difference holds
        for number in ids[:10]:
            do("edit", channel="tutors_chat", id=number, text=f"edited {number}")
        do("delete", channel="tutors_chat", ids=ids[20:25])
        await eventually(lambda: agrees(world), 40)
        do("post", channel="tutors_chat", text="quiet {n}", count=3, quiet=True)
        do("edit", channel="tutors_chat", id=ids[30], text="quietly edited", quiet=True)
        await eventually(lambda: agrees(world), 40)
        do("post", channel="tutors_chat", text="too many at once {n}", count=250, quiet=True)
        do("post", channel="tutors_chat", text="a hint")
        await eventually(lambda: agrees(world), 40)


@pytest.mark.shared
async def test_a_session_that_is_revoked_waits_for_a_person(world, eventually):
    world.service.fault(do="rpc_error", error="SESSION_REVOKED", op="messages.GetHistory", times=0)
    async with world.live():
        said = "select reason from tailrace.quotas where name = $1 and breaker = 'open' and open_until is null"
        reason = await eventually(lambda: world.pool.fetchval(said, f"source:{NAME}"))
        assert re.fullmatch(r"Telegram refuses session [0-9a-f]{12}: SESSION_REVOKED", reason)
