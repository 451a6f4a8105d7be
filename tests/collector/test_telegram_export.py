"""telegram: exports of Telegram Desktop as history, beside what the API gives. The exports are written here, as Desktop writes them."""

from __future__ import annotations

import datetime as dt
import json
import tracemalloc

import pytest
from telethon import types

from collector.raw import Appender, register
from collector.sources import Fetched, Tailed
from collector.sources.building import build
from collector.sources.telegram_content import of_message
from collector.sources.telegram_exported import of_export
from collector.sources.telegram_exported import record as exported
from collector.sources.telegram_records import record
from tests.collector.subjects.telegram import BEGAN, CHANNEL, session
from worker.core.settings import Settings

NAME = "telegram:Offers"
SENT = {"date": "2026-03-01T09:00:00", "date_unixtime": str(int(BEGAN.timestamp()))}


def said(number, *parts, **more):
    """A message of an export."""
    entities = [{"type": "plain", "text": p} if isinstance(p, str) else p for p in parts]
    return {
        "id": number,
        "type": "message",
        **SENT,
        "from": "Offers",
        "from_id": f"channel{CHANNEL}",
        **more,
        "text": list(parts),
        "text_entities": entities,
    }


def message(number=5, text="", **fields):
    return types.Message(id=number, peer_id=types.PeerChannel(CHANNEL), date=BEGAN, message=text, **fields)


def document(*attributes, mime="video/mp4", size=1234):
    return types.MessageMediaDocument(document=types.Document(1, 2, b"r", BEGAN, mime, size, 2, list(attributes)))


PHOTO = types.Photo(1, 2, b"r", BEGAN, [
    types.PhotoStrippedSize("i", b"\x01"), types.PhotoSize("m", 320, 240, 9000), types.PhotoSizeProgressive("y", 1280, 960, [4000, 20000, 90000]),
], 2)  # fmt: skip
LIKE = {
    "plain": (message(text="Selling a bike"), said(5, "Selling a bike")),
    "empty": (message(), said(5) | {"text": ""}),
    "styles": (
        message(text="🚲 Bike: see this, or call", entities=[
            types.MessageEntityBold(0, 8), types.MessageEntityItalic(3, 4), types.MessageEntityTextUrl(13, 4, "https://example.org/b"),
            types.MessageEntityMentionName(22, 4, 77),
        ]),
        said(5, {"type": "bold", "text": "🚲 Bike:"}, " see ", {"type": "text_link", "text": "this", "href": "https://example.org/b"}, ", or ",
             {"type": "mention_name", "text": "call", "user_id": 77}, ""),
    ),
    "photo": (
        message(text="Look", media=types.MessageMediaPhoto(photo=PHOTO)),
        said(5, "Look", photo="photos/photo_1.jpg", photo_file_size=90000, width=1280, height=960),
    ),
    "video": (
        message(media=document(types.DocumentAttributeVideo(12.6, 640, 480), types.DocumentAttributeFilename("a.mp4"))),
        said(5, file="(File not included. Change data exporting settings to download.)", file_name="a.mp4", file_size=1234, media_type="video_file",
             mime_type="video/mp4", duration_seconds=12, width=640, height=480),
    ),
    "sticker": (
        message(media=document(types.DocumentAttributeImageSize(512, 512), types.DocumentAttributeSticker("👍", types.InputStickerSetEmpty()), mime="image/webp")),
        said(5, file="stickers/s.webp", file_size=1234, media_type="sticker", sticker_emoji="👍", width=512, height=512),
    ),
    "voice": (
        message(media=document(types.DocumentAttributeAudio(7, voice=True), mime="audio/ogg")),
        said(5, file="v.ogg", file_size=1234, media_type="voice_message", mime_type="audio/ogg", duration_seconds=7),
    ),
    "file": (message(media=document(mime="application/pdf")), said(5, file="a.pdf", file_size=1234, mime_type="application/pdf")),
    "contact": (
        message(media=types.MessageMediaContact("6591234567", "Ann", "", "", 0)),
        said(5, contact_information={"first_name": "Ann", "last_name": "", "phone_number": "+65 9123 4567"}),
    ),
    "place": (
        message(media=types.MessageMediaGeo(types.GeoPoint(103.851959, 1.290270, 5))),
        said(5, location_information={"latitude": 1.29027, "longitude": 103.852}),
    ),
    "poll": (
        message(media=types.MessageMediaPoll(types.Poll(1, types.TextWithEntities("Which?", []), [
            types.PollAnswer(types.TextWithEntities(t, []), t.encode()) for t in ("this", "that")], 0), types.PollResults())),
        said(5, poll={"question": "Which?", "closed": False, "total_voters": 9, "answers": [
            {"text": "this", "voters": 4, "chosen": False}, {"text": "that", "voters": 5, "chosen": True}]}),
    ),
    "buttons": (
        message(text="Go", reply_markup=types.ReplyInlineMarkup([types.KeyboardInlineButtonRow([
            types.KeyboardInlineButton("Site", types.InlineButtonTypeUrl("https://example.org")),
            types.KeyboardInlineButton("Buy", types.InlineButtonTypeCallback(b"buy"))])])),
        said(5, "Go", inline_bot_buttons=[[{"type": "url", "text": "Site", "data": "https://example.org"}, {"type": "callback", "text": "Buy", "data": "buy"}]]),
    ),
    "preview of a page": (
        message(text="https://example.org", entities=[types.MessageEntityUrl(0, 19)], media=types.MessageMediaWebPage(types.WebPageEmpty(3))),
        said(5, {"type": "link", "text": "https://example.org"}),
    ),
    "action": (
        types.MessageService(id=5, peer_id=types.PeerChannel(CHANNEL), date=BEGAN, action=types.MessageActionChannelCreate("Offers")),
        {"id": 5, "type": "service", **SENT, "actor": "Offers", "action": "create_channel", "title": "Offers", "text": "", "text_entities": []},
    ),
    "pin": (
        types.MessageService(id=5, peer_id=types.PeerChannel(CHANNEL), date=BEGAN, action=types.MessageActionPinMessage()),
        {"id": 5, "type": "service", **SENT, "actor": "Offers", "action": "pin_message", "message_id": 3, "text": "", "text_entities": []},
    ),
    "unsupported": (message(media=types.MessageMediaUnsupported()), {"id": 5, "type": "unsupported"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIKE)
def test_an_export_and_the_api_tell_the_same_content(kind):
    ours, theirs = LIKE[kind]
    assert of_message(ours) == of_export(theirs)
    made = exported(json.dumps(theirs).encode(), BEGAN)
    assert (made.external_id, made.digest) == ("5", record(ours, 0).digest)


def test_an_old_export_has_no_list_of_entities():
    new = said(5, "a ", {"type": "bold", "text": "b"})
    old = {k: v for k, v in new.items() if k != "text_entities"}
    assert of_export(old) == of_export(new)
    assert of_export(old | {"text": "a b"}) == of_export(said(5, "a b"))


def test_the_record_of_an_export_is_the_message_as_it_is_written():
    raw = json.dumps(said(5, "Bike", edited="2026-03-01T10:00:00", edited_unixtime=str(int(BEGAN.timestamp()) + 60)), ensure_ascii=False).encode()
    made = exported(raw, None)
    assert made.payload.encode() == raw
    assert (made.occurred_at, made.source_time) == (BEGAN, BEGAN + dt.timedelta(seconds=60))
    assert made.meta == {"from": "export"}


def test_what_an_export_tells_without_sizes_is_older_than_what_the_api_tells():
    whole = said(5, photo="p.jpg", photo_file_size=90000, width=1280, height=960)
    less = {k: v for k, v in whole.items() if k != "photo_file_size"}
    assert exported(json.dumps(less).encode(), None).source_time < exported(json.dumps(whole).encode(), None).source_time


@pytest.mark.parametrize(
    ("raw", "defect"),
    [
        (b'{"id": 5, "type": "message", "text": 7}', "not a message"),
        (b'{"type": "message"}', "not a message"),
        (b'{"id": 5, "type": "message", "date": "2019-01-01T10:00:00", "text": "old"}', "no time with zone"),
        (b'{"id": 5, "type": "message", "date_unixtime": "1772352000", "text": "a\\u0000b"}', "NUL"),
    ],
)
def test_a_message_that_cannot_be_taken_is_kept_with_its_defect(raw, defect):
    made = exported(raw, None)
    assert defect in made.meta["defect"]
    assert (made.payload or made.body.decode()) == raw.decode()


def test_control_characters_are_read_as_desktop_writes_them():
    raw = b'{"id": 5, "type": "message", "date_unixtime": "1772352000", "text": "a\\x0Bb \\\\x0B"}'
    assert of_export(json.loads(exported(raw, None).payload))[1] == [["plain", "a\x0bb \\x0B"]]


# -- files ------------------------------------------------------------------------------------------------


def chat(*messages, name="Offers", number=CHANNEL):
    return {"name": name, "type": "public_channel", "id": number, "messages": list(messages)}


def account(*chats):
    """An export of everything: the chats are far inside."""
    return {
        "about": "Here is the data you requested.", "personal_information": {"user_id": 1, "first_name": "Ann"},
        "contacts": {"about": "Contacts", "list": [{"user_id": 5, "first_name": "Bob"}]},
        "chats": {"about": "Chats", "list": list(chats)}, "left_chats": {"about": "Left", "list": []},
    }  # fmt: skip


@pytest.fixture
def export(tmp_path):
    """Writes a result.json, and gives the source that reads it."""

    def write(value, spec=(), **collector):
        (tmp_path / "result.json").write_text(json.dumps(value, indent=1, ensure_ascii=False))
        found = {"kind": "telegram", "export": str(tmp_path / "result.json"), **dict(spec)}
        return build(Settings(sources={NAME: found}, collector=collector))[NAME]

    return write


async def read(source, position=None, most=None):
    pages = []
    async for page in source.fetch(position or {}):
        pages.append(page)
        if most and len(pages) == most:
            break
    return [r.external_id for p in pages for r in p.records], pages[-1].position if pages else {}


async def test_an_export_of_one_chat_is_history(export):
    source = export(chat(*(said(n, f"Offer {n}") for n in range(1, 8))))
    assert isinstance(source, Fetched)
    assert not isinstance(source, Tailed)
    assert "result.json" in source.describe()
    assert (await read(source))[0] == [str(n) for n in range(1, 8)]


@pytest.mark.parametrize("chosen", [{}, {"export_chat": "offers"}, {"export_chat": str(CHANNEL)}, {"export_chat": f"-100{CHANNEL}"}])
async def test_of_an_export_of_many_chats_one_is_read(export, chosen):
    others = chat(said(1, "not ours"), name="Others", number=9), {"type": "saved_messages", "id": 4, "messages": [said(2, "nor this")]}
    source = export(account(others[0], chat(said(7, "ours"), said(8, "ours too")), others[1]), chosen)
    assert (await read(source))[0] == ["7", "8"]


async def test_it_goes_on_anywhere_and_a_second_time_reads_nothing(export):
    whole = account(chat(*(said(n, f"Offer {n} 🚲") for n in range(1, 8))), chat(said(99, "not ours"), name="Others", number=9))
    source = export(whole, page_records=3)
    found, position = await read(source, most=1)
    assert found == ["1", "2", "3"]
    found, position = await read(source, position)
    assert found == ["4", "5", "6", "7"]
    assert await read(source, position) == ([], {})
    whole["chats"]["list"][0]["messages"].append(said(8, "new"))
    assert (await read(export(whole), position))[0] == [str(n) for n in range(1, 9)], "another file"


async def test_an_unsupported_message_is_of_the_time_of_the_one_before(export):
    source = export(chat(said(1, "Offer"), {"id": 2, "type": "unsupported"}))
    pages = [page async for page in source.fetch({})]
    assert pages[0].records[1].occurred_at == BEGAN
    assert pages[0].records[1].source_time < BEGAN
    assert "no time" in pages[0].records[1].meta["defect"]


async def test_a_file_that_is_cut_off_says_where(export, tmp_path):
    source = export(chat(*(said(n, f"Offer {n}") for n in range(1, 8))), page_records=2)
    whole = (tmp_path / "result.json").read_bytes()
    (tmp_path / "result.json").write_bytes(whole[: whole.index(b"Offer 6")])
    found = []
    with pytest.raises(ValueError, match="cut off"):
        await _into(found, source)
    assert found == ["1", "2", "3", "4", "5"]


async def _into(found, source):
    async for page in source.fetch({}):
        found += [r.external_id for r in page.records]


async def test_a_file_that_is_not_there_is_named(export, tmp_path):
    source = export(chat())
    (tmp_path / "result.json").unlink()
    assert await read(source) == ([], {})
    assert "result.json" in source.unread[0]


async def test_a_large_export_takes_no_memory(export, tmp_path):
    source = export(account(chat(*(said(n, f"Others {n} " + "x" * 3000) for n in range(4_000)), name="Others", number=9),
                            chat(*(said(n, f"Offer {n} " + "y" * 3000) for n in range(4_000)))), page_records=100)  # fmt: skip
    assert (tmp_path / "result.json").stat().st_size > 50_000_000
    tracemalloc.start()
    count = 0
    async for page in source.fetch({}):
        count += len(page.records)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 16_000_000


async def stored(pool, source, number, appender, position=None):
    row = {"appended": 0}
    async for page in source.fetch(position or {}):
        done = await appender.append(number, NAME, page, 1)
        row = {"appended": row["appended"] + done["appended"]}
    return row["appended"]


async def test_an_export_and_the_api_make_no_revisions_over_each_other(export, pool, tmp_path):
    ours = [m for m, _ in LIKE.values()]
    theirs = []
    for n, (m, value) in enumerate(zip(ours, (v for _, v in LIKE.values()), strict=True), 1):
        m.id = n
        theirs.append(value | {"id": n})
    for name, text in {"news": session(1), "hash": "h"}.items():
        (tmp_path / name).write_text(text)
    spec = {"session_file": str(tmp_path / "news"), "api_hash_file": str(tmp_path / "hash"), "api_id": 1}
    source = export(chat(*theirs), spec)
    assert isinstance(source, Fetched)
    assert isinstance(source, Tailed)
    number = (await register(pool, Settings(sources={NAME: {"kind": "telegram", **spec}}), [NAME]))[NAME]
    appender = Appender(pool, enqueue=True, bells=0)
    assert await stored(pool, source, number, appender) == len(LIKE)
    from_api = [record(m, 40) for m in ours]
    await pool.execute("select 1")
    rows = await pool.fetch("select external_id, digest from tailrace.raw_records")
    assert {r["external_id"]: r["digest"] for r in rows} == {r.external_id: r.digest for r in from_api}
    source = export(chat(*theirs, said(90, "new")), spec)
    assert await stored(pool, source, number, appender) == 1, "only what is new"
