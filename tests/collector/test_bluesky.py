"""bluesky: one record is one record whichever way it comes; what a stream loses is found again; how an account stands is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections import Counter
from contextlib import aclosing
from types import SimpleNamespace

import libipld
import pytest
import zstandard

from collector import live
from collector.backfiller import Backfill
from collector.raw import register
from collector.record import TOMBSTONE, digest_of, short
from collector.sources import Chunked, Fetched, Healing, Tailed, Window
from collector.sources.answers import Denied, Limited
from collector.sources.bluesky_car import Incomplete, Repository
from collector.sources.bluesky_events import Garbled, of_frame, of_line
from collector.sources.bluesky_intake import Intake
from collector.sources.bluesky_place import Place
from collector.sources.bluesky_records import Maker
from collector.sources.bluesky_tail import whole_address
from collector.sources.bluesky_values import as_json, cid_text, tid_time
from collector.sources.building import build
from tests.collector.bluesky_host import LIKE, POST, Host, block_of, car, failing, frame, tid, tree
from tests.collector.contract import SHARED, standin
from worker.core.errors import Misconfigured, Unavailable
from worker.core.settings import Settings

NOTE = "org.example.meadow.note"
ALL = Window()


def note(text, **more):
    return {"$type": POST, "text": text, "createdAt": "2026-05-01T08:00:00Z", **more}


@pytest.fixture
async def host():
    host = Host()
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
async def repo(host):
    repo = host.account("meadow")
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note(f"clover {n}") for n in range(5)})
    return repo


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """A stream that does not bring what is missing is given up sooner."""
    monkeypatch.setattr("collector.sources.bluesky_healing.GRACE", 0.5)


class World:
    """One source at the test's host: alone, or read into a database by the programs."""

    def __init__(self, host, name, pool=None, url=None, collector=None, **options):
        spec = {"kind": "bluesky", "plc": host.url, "resolver": host.url, "stream": f"ws://127.0.0.1:{host.port}"} | options
        fast = {"port": 0, "touch_seconds": 0.1, "heal_seconds": 3600}
        self.settings = Settings(sources={name: spec}, collector=fast | (collector or {}))
        self.host, self.pool, self.url, self.name = host, pool, url, name

    def source(self):
        return build(self.settings)[self.name]

    async def backfill(self, **given):
        source = self.source()
        ids = await register(self.pool, self.settings, [self.name])
        asked = {"max_records": None, "max_chunks": None, "chunk_size": None, "dry_run": False, "force_enqueue": False, "max_minutes": None} | given
        run = Backfill(self.pool, self.settings, SimpleNamespace(**asked), None, None)
        try:
            return await run.run(source, ids[self.name])
        finally:
            await run.close()

    @contextlib.asynccontextmanager
    async def live(self):
        program = live.Live(self.settings, build(self.settings))
        task = asyncio.create_task(program.run(self.url))
        try:
            yield program
        finally:
            program.stop.set()
            await asyncio.wait_for(task, 30)

    async def newest(self):
        rows = await self.pool.fetch("select distinct on (external_id) * from tailrace.raw_records order by external_id, revision desc")
        return {r["external_id"]: dict(r) | {"payload": json.loads(r["payload"] or "null"), "meta": json.loads(r["meta"] or "{}")} for r in rows}

    async def position(self, lane=0):
        return json.loads(await self.pool.fetchval("select position from tailrace.cursors where lane = $1", lane) or "{}")

    async def agrees(self, repo):
        there = {k: r["payload"]["cid"] for k, r in (await self.newest()).items() if r["op"] != "delete" and "." in k.split("/")[0]}
        return there == {path: cid_text(block_of(value)[0]) for path, value in repo.records.items()}


@pytest.fixture
def world(host, pool, db_url):
    return lambda name, **options: World(host, name, pool, db_url, **options)


async def first_pages(source, count, position=None):
    """The first records of a tail, with the position that they reach."""
    stop, records, at = asyncio.Event(), [], position or {}
    async with aclosing(source.tail(at, stop)) as pages:
        async for page in pages:
            records, at = records + page.records, page.position
            if len(records) >= count:
                break
    return records, at


# -- values and files ------------------------------------------------------------------------------------


def test_a_tid_has_a_time_and_sorts_by_it():
    first, second = tid(1_700_000_000_000_000), tid(1_700_000_000_000_001, 0)
    assert first < second
    assert tid_time(first).timestamp() == 1_700_000_000
    assert [tid_time(t) for t in ("self", "3k", "zzzzzzzzzzzzz", None, 7)] == [None] * 5


def test_bytes_that_look_like_a_link_stay_bytes():
    link = block_of({"a": 1})[0]
    data = b"\xa3" + b"aa" + b"\x58\x24" + link + b"ab" + b"\xd8\x2a\x58\x25\x00" + link + b"ac" + b"\x43\x01\x02\x03"
    found = json.loads(as_json(data))
    assert found["b"] == {"$link": cid_text(link)}
    assert set(found["a"]) == {"$bytes"}
    assert found["c"] == {"$bytes": "AQID"}


def test_numbers_keep_all_their_digits():
    numbers = [2**63, -(2**63), 2**64 - 1, 0.1, 1e300]
    assert json.loads(as_json(libipld.encode_dag_cbor(numbers[:3]))) == numbers[:3]
    assert as_json(b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff") == str(-(2**64))


def test_a_tree_of_any_shape_is_walked_in_order():
    for count in (0, 1, 2, 17, 300):
        blocks, items = {}, []
        for n in range(count):
            cid, data = block_of({"n": n})
            blocks[cid] = data
            items.append((f"{NOTE}/{tid(1_700_000_000_000_000 + n * 977)}", cid))
        root = tree(items, blocks)
        commit, data = block_of({"did": "did:plc:x", "rev": "r", "data": root})
        with Repository() as repository:
            for byte in range(0, len(whole := car(commit, {commit: data} | blocks)), 7):
                repository.feed(whole[byte : byte + 7])
            repository.close()
            assert [e.path for e in repository.entries()] == [k for k, _ in items]
            assert [e.path for e in repository.entries(items[5][0] if count > 5 else "")] == [k for k, _ in items[6 if count > 5 else 0 :]]


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing", "empty", "text"])
def test_a_broken_file_is_never_taken_for_a_whole_one(harm):
    host = Host()
    repo = host.account("meadow")
    repo.rev, repo.records = tid(host.tick()), {f"{POST}/{tid(host.tick())}": note(str(n)) for n in range(9)}
    whole = repo.car(next(iter(repo.records)) if harm == "missing" else None)
    middle = len(whole) // 2
    data = {
        "cut": whole[:-9],
        "flipped": whole[:middle] + bytes((whole[middle] ^ 1,)) + whole[middle + 1 :],
        "missing": whole,
        "empty": b"",
        "text": b"<html>try later</html>",
    }
    with pytest.raises(Incomplete):
        _entries(data[harm])


def _entries(data):
    with Repository() as repository:
        repository.feed(data)
        repository.close()
        return list(repository.entries())


# -- one record, four ways -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        note("clover"),
        {"$type": NOTE, "picture": {"$type": "blob", "ref": block_of({"x": 1})[0]}, "seal": b"\x01\x02", "n": 2**60},
        {"$type": NOTE, "text": "a NUL \0 in it"},
    ],
    ids=["plain", "links and bytes", "defect"],
)
async def test_a_record_is_the_same_whichever_way_it_comes(host, record):
    repo, path, found = host.account("meadow"), f"{NOTE}/{tid(host.tick())}", {}
    shown = json.loads(as_json(block_of(record)[1]))
    await host.write(repo, {path: record}, shown={path: shown})
    for method in ("car", "list"):
        source = World(host, f"bluesky:{repo.did}", method=method).source()
        if method == "list":
            found[method] = (await source.chunk({}, 10, ALL)).records[0]
        else:
            (found[method],) = [r async for page in source.fetch({}) for r in page.records]
        await source.aclose()
    for transport in ("firehose", "jetstream"):
        source = World(host, f"bluesky:{repo.did}", transport=transport).source()
        place = {"via": transport, "host": f"127.0.0.1:{host.port}", "cursor": 1}
        ((found[transport],), _) = await first_pages(source, 1, place)
    assert {r.external_id for r in found.values()} == {path}
    assert {r.digest for r in found.values()} == {digest_of(cid_text(block_of(record)[0]).encode())}
    if record.get("text") == "a NUL \0 in it":
        assert {r.meta["defect"] for r in found.values()} == {"NUL character"}
        assert {json.loads(r.body)["record"]["text"] for r in found.values()} == {record["text"]}
        return
    assert all(json.loads(r.payload)["record"] == shown for r in found.values())
    assert all(json.loads(r.payload)["uri"] == f"at://{repo.did}/{path}" for r in found.values())
    assert found["car"].payload == found["list"].payload
    assert found["car"][6:7] == found["list"][6:7]
    assert len({r.occurred_at for r in found.values()}) == 1
    assert {r.source_time for r in found.values()} == {tid_time(repo.rev)}


async def test_half_a_character_is_the_defect_of_one_record(host, repo):
    rows = [{"uri": f"at://{repo.did}/{POST}/{n}", "cid": cid_text(block_of(n)[0]), "value": note("\ud83d" if n == 1 else "whole")} for n in range(3)]
    source = World(host, f"bluesky:{repo.did}", method="list").source()
    await source.chunk({}, 10, ALL)
    host.errors.append((200, json.dumps({"records": rows}).encode()))
    page = await source.chunk({"rev": repo.rev, "left": [POST], "of": []}, 10, ALL)
    assert [r.meta.get("defect") for r in page.records] == [None, "lone surrogate", None]
    commit = {"rev": repo.rev, "operation": "create", "collection": POST, "rkey": "1", "cid": rows[1]["cid"], "record": rows[1]["value"]}
    (op,) = of_line(json.dumps({"did": repo.did, "time_us": 5, "kind": "commit", "commit": commit})).ops()
    record = Maker(whole=False).changed(SimpleNamespace(did=repo.did, rev=repo.rev), op, {})
    assert (record.digest, record.meta["defect"]) == (page.records[1].digest, "lone surrogate")
    assert json.loads(record.body)["record"] == json.loads(page.records[1].body)["record"] == rows[1]["value"]


async def test_listing_and_file_give_the_same_rows_in_the_same_order(host, repo):
    other = {"app.bsky.feed/self": note("a collection that sorts oddly"), f"{LIKE}/{tid(host.tick())}": {"$type": LIKE}}
    await host.write(repo, other | {f"{POST}/{tid(host.tick())}": note(f"vetch {n}") for n in range(230)})
    by_car = World(host, f"bluesky:{repo.did}").source()
    by_list = World(host, f"bluesky:{repo.did}", method="list").source()
    assert isinstance(by_car, Fetched)
    assert not isinstance(by_car, Chunked)
    assert isinstance(by_list, Chunked)
    one = [r for page in [p async for p in by_car.fetch({})] for r in page.records]
    two, at, more = [], {}, True
    while more:
        page = await by_list.chunk(at, 100, ALL)
        assert len(page.records) <= 100
        two, at, more = two + page.records, page.position, page.more
    assert [r._replace(meta=None, payload=json.loads(r.payload)) for r in one] == [r._replace(meta=None, payload=json.loads(r.payload)) for r in two]
    assert {r.external_id for r in one} == set(repo.records)


async def test_only_the_wanted_collections_are_read(host, repo):
    await host.write(repo, {f"{LIKE}/{tid(host.tick())}": {"$type": LIKE}, f"{NOTE}/self": {"$type": NOTE}})
    for named, expected in (([POST], {POST}), (["app.bsky.*"], {POST, LIKE}), ("org.example.meadow.*", {NOTE})):
        source = World(host, f"bluesky:{repo.did}", collections=named).source()
        assert {r.external_id.split("/")[0] async for page in source.fetch({}) for r in page.records} == expected


# -- a stream --------------------------------------------------------------------------------------------


async def test_events_of_others_move_the_position_without_a_page_for_each(host, repo, eventually):
    other = host.account("hedge")
    source = World(host, f"bluesky:{repo.did}", transport="firehose").source()
    stop, pages = asyncio.Event(), []

    async def tail():
        async with aclosing(source.tail({}, stop)) as found:
            async for page in found:
                pages.append(page)

    task = asyncio.create_task(tail())
    await source._stream.connected.wait()
    for n in range(300):
        await host.write(other, {f"{POST}/{tid(host.tick())}": note(f"not ours {n}")})
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("ours")})
    await eventually(lambda: any(p.records for p in pages))
    stop.set()
    await asyncio.wait_for(task, 3)
    assert sum(len(p.records) for p in pages) == 1
    assert len(pages) < 30
    assert pages[-1].position["cursor"] == host._seq
    assert pages[-1].position["marks"] == {POST: repo.rev}


async def test_a_position_of_another_host_is_not_used(host, repo):
    source = World(host, f"bluesky:{repo.did}", transport="firehose").source()
    elsewhere = {"via": "firehose", "host": "elsewhere.example", "cursor": 5, "did": repo.did, "rev": repo.rev, "since": "3aa"}
    task = asyncio.create_task(first_pages(source, 1, elsewhere))
    await source._stream.connected.wait()
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("new")})
    ((record,), at) = await asyncio.wait_for(task, 20)
    assert json.loads(record.payload)["record"]["text"] == "new"
    assert host.connections == [("/xrpc/com.atproto.sync.subscribeRepos", {}, [])]
    assert source.gap.is_set()
    assert at["host"] == f"127.0.0.1:{host.port}"


@pytest.mark.parametrize("position", [{"cursor": "x"}, {"via": 7, "marks": []}, {"via": "firehose", "host": None, "cursor": {}}])
def test_a_position_that_makes_no_sense_means_to_begin_anew(position):
    place = Place.read(position, "firehose", "here", "did:plc:x")
    assert (place.cursor, place.rev, place.marks) == (None, None, {})


async def test_jetstream_is_asked_to_repeat_a_few_seconds(host, repo):
    source = World(host, f"bluesky:{repo.did}").source()
    await first_pages(source, 1, {"via": "jetstream", "host": f"127.0.0.1:{host.port}", "cursor": 9_000_000})
    ((path, asked, dids),) = host.connections
    assert (path, asked["cursor"], dids) == ("/subscribe", "4000000", [repo.did])


def test_times_of_jetstream_that_fall_do_not_move_the_position_back():
    intake = Intake("jetstream", Maker(whole=True), [], None)
    intake.place = Place("jetstream", "here")
    lines = [json.dumps({"did": "did:plc:x", "time_us": us, "kind": "identity", "identity": {}}) for us in (100, 90, 95)]
    list(intake.batches(lines, 10))
    assert intake.place.cursor == 100


async def test_many_accounts_are_named_in_a_message(host, repo):
    dids = [repo.did, *(f"did:plc:{n:024}" for n in range(80))]
    source = World(host, "bluesky:jetstream", wanted_dids=dids, wanted_collections="app.bsky.*").source()
    ((first, *_), _) = await first_pages(source, 5, {"via": "jetstream", "host": f"127.0.0.1:{host.port}", "cursor": 1})
    assert first.external_id.startswith(f"{repo.did}/{POST}/")
    assert host.hellos == [{"type": "options_update", "payload": {"wantedCollections": ["app.bsky.*"], "wantedDids": sorted(dids)}}]


@pytest.mark.parametrize("transport", ["firehose", "jetstream"])
async def test_a_whole_stream_is_kept_with_its_accounts_in_the_keys(host, repo, transport):
    other = host.account("hedge")
    await host.write(other, {f"{LIKE}/one": {"$type": LIKE}, f"{POST}/two": note("two")})
    await host.became(other, "deactivated")
    source = World(host, f"bluesky:{transport}").source()
    assert isinstance(source, Tailed)
    assert not isinstance(source, Healing)
    records, at = await first_pages(source, 8, {"via": transport, "host": f"127.0.0.1:{host.port}", "cursor": 1})
    keys = [r.external_id for r in records]
    assert len(keys) == 8
    assert keys[5:] == [f"{other.did}/{LIKE}/one", f"{other.did}/{POST}/two", f"account/{other.did}"]
    assert "did" not in at
    narrow = World(host, f"bluesky:{transport}", wanted_dids=[other.did], wanted_collections=[LIKE]).source()
    records, _ = await first_pages(narrow, 2, {"via": transport, "host": f"127.0.0.1:{host.port}", "cursor": 1})
    assert [r.external_id for r in records] == [keys[5], keys[7]]


async def test_an_outdated_cursor_is_told_and_the_rest_is_taken(host, repo):
    host.frames = [(1, frame("#info", {"name": "OutdatedCursor"}), None)]
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("after the hole")})
    place = {"via": "firehose", "host": f"127.0.0.1:{host.port}", "cursor": 0}
    for name in ("bluesky:firehose", f"bluesky:{repo.did}"):
        source = World(host, name, **({} if name == "bluesky:firehose" else {"transport": "firehose"})).source()
        records, _ = await first_pages(source, 2, place)
        assert records[0].external_id == f"info/127.0.0.1:{host.port}/0"
        assert json.loads(records[0].payload)["info"]["name"] == "OutdatedCursor"
        assert source._intake.gap.is_set()


@pytest.mark.parametrize("how", ["in the stream", "at the door"])
async def test_a_cursor_that_a_host_does_not_accept_is_dropped(host, repo, eventually, how):
    host.script.append(("send", failing("FutureCursor")) if how == "in the stream" else ("refuse", (400, {"error": "CursorTooOld"})))
    source = World(host, f"bluesky:{repo.did}", transport="firehose").source()
    task = asyncio.create_task(first_pages(source, 1, {"via": "firehose", "host": f"127.0.0.1:{host.port}", "cursor": 99_999_999}))
    await eventually(lambda: len(host.connections) == 2 and source._stream.connected.is_set())
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("new")})
    ((record,), at) = await asyncio.wait_for(task, 20)
    assert (json.loads(record.payload)["record"]["text"], at["cursor"]) == ("new", host._seq)
    assert source.gap.is_set()


async def test_other_errors_of_a_stream_are_failures(host, repo):
    source = World(host, f"bluesky:{repo.did}", transport="firehose").source()
    for what in (("send", failing("ConsumerTooSlow")), ("end", None), ("refuse", (503, {"error": "NotEnoughResources"}))):
        host.script.append(what)
        with pytest.raises(Unavailable):
            await first_pages(source, 1)
    host.script.append(("refuse", (429, {"error": "RateLimitExceeded"})))
    with pytest.raises(Limited) as limited:
        await first_pages(source, 1)
    assert limited.value.name == f"bluesky:127.0.0.1:{host.port}"


async def test_a_garbled_frame_is_a_failure_until_it_is_clear_that_it_stays(host, repo):
    host.frames.insert(0, (1, b"\xff\xfenonsense", None))
    source = World(host, f"bluesky:{repo.did}", transport="firehose").source()
    place = {"via": "firehose", "host": f"127.0.0.1:{host.port}", "cursor": 0}
    for _ in range(2):
        with pytest.raises(Garbled):
            await first_pages(source, 1, place)
        assert source.gap.is_set()
        source.gap.clear()
    records, _ = await first_pages(source, 5, place)
    assert len(records) == 5
    assert source.gap.is_set()


async def test_a_silent_stream_is_opened_anew_and_looked_behind(host, repo):
    host.script.extend([("stall", None), ("stall", None)])
    source = World(host, f"bluesky:{repo.did}", transport="firehose", heartbeat=0.2).source()
    records, _ = await asyncio.wait_for(first_pages(source, 5, {"via": "firehose", "host": f"127.0.0.1:{host.port}", "cursor": 1}), 20)
    assert len(records) == 5
    assert len(host.connections) == 3
    assert source.gap.is_set()


async def test_a_revision_that_does_not_follow_is_a_gap(host, repo):
    source = World(host, f"bluesky:{repo.did}", transport="firehose").source()
    _, at = await first_pages(source, 5, {"via": "firehose", "host": f"127.0.0.1:{host.port}", "cursor": 1})
    before = repo.rev
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("told")})
    source.gap.clear()
    _, at = await first_pages(source, 1, at)
    assert (source.gap.is_set(), at["rev"], at["since"]) == (False, repo.rev, before)
    missed = await host.write(repo, {f"{POST}/{tid(host.tick())}": note("not told")}, quiet=True)
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("told")})
    _, at = await first_pages(source, 1, at)
    assert (source.gap.is_set(), at["rev"], at["since"]) == (True, repo.rev, missed)
    assert before < missed
    source.gap.clear()
    await host.say("#sync", {"did": repo.did, "rev": repo.rev, "blocks": b"", "time": "2026-05-01T08:00:00Z"})
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("after the reset")})
    await first_pages(source, 1, at)
    assert source.gap.is_set()


async def test_a_block_that_a_commit_lacks_is_a_defect_and_a_gap(host, repo):
    root, data = block_of({"did": repo.did})
    missing = block_of(note("lost on the way"))[0]
    rev = tid(host.tick())
    ops = [{"action": "create", "path": f"{POST}/lost", "cid": missing}, {"action": "delete", "path": f"{POST}/gone", "cid": None}]
    body = {"seq": 5, "repo": repo.did, "rev": rev, "since": repo.rev, "time": "2026-05-01T08:00:00Z", "ops": ops, "blocks": car(root, {root: data})}
    event = of_frame(frame("#commit", body))
    intake = Intake("firehose", Maker(whole=False), [], [repo.did])
    intake.place = Place("firehose", "here", repo.did, 1, repo.rev, "3aaaaaaaaaaaa")
    lost, gone = intake._records(event)
    assert (lost.meta["defect"], lost.body, lost.digest == digest_of(cid_text(missing).encode())) == ("its block is missing", b"", False)
    assert (gone.op, gone.digest) == ("delete", TOMBSTONE)
    assert intake.gap.is_set()
    assert intake.place.since == rev


@pytest.mark.parametrize("data", [b"", b"\xa0", b"\xa1aop\x01", frame("#commit", {"repo": "x"}), "text", b"\xa1bop\x01\x01"])
def test_a_frame_that_is_none_is_garbled(data):
    with pytest.raises(Garbled):
        of_frame(data)


@pytest.mark.parametrize(
    "data", ["", "[]", "{}", '{"kind": "commit", "did": "d", "time_us": 1}', '{"kind": "commit", "did": "d", "time_us": 1, "commit": {"rev": "r"}}']
)
def test_a_line_that_is_none_is_garbled(data):
    with pytest.raises(Garbled):
        of_line(data)


def test_frames_of_kinds_to_come_only_move_the_position():
    intake = Intake("firehose", Maker(whole=True), [], None)
    intake.place = Place("firehose", "here")
    assert list(intake.batches([frame("#novelty", {"seq": 9, "did": "did:plc:x", "what": b"ever"})], 10)) == [[]]
    assert (intake.place.cursor, intake.gap.is_set()) == (9, False)


# -- how an account stands -------------------------------------------------------------------------------


async def test_states_are_records_that_replays_and_other_hosts_do_not_double(host, repo, world, eventually):
    program = world(f"bluesky:{repo.did}", transport="firehose")
    async with program.live():
        await eventually(lambda: program.agrees(repo))
        await host.say("#identity", {"did": repo.did, "handle": "renamed.example", "time": "2026-05-01T08:00:00.1Z"})
        await host.say("#handle", {"did": repo.did, "handle": "renamed.example", "time": "2026-05-01T08:00:00.1Z"})
        for status in ("deactivated", "deactivated", None):
            await host.became(repo, status)
        await eventually(lambda: _count(program, f"account/{repo.did}", 2))
    seen = await program.pool.fetch("select external_id, revision, payload::jsonb from tailrace.raw_records where external_id !~ '^app' order by id")
    keys = [(r["external_id"].split("/")[0], r["revision"]) for r in seen]
    assert sorted(keys) == [("account", 1), ("account", 2), ("handle", 1), ("identity", 1)]
    host.frames = [(seq + 500_000, *rest) for seq, *rest in host.frames]
    await program.pool.execute("update tailrace.cursors set position = position || '{\"cursor\": 1}' where lane = 0")
    async with program.live():
        await host.write(repo, {f"{POST}/{tid(host.tick())}": note("after the replay")})
        await eventually(lambda: program.agrees(repo))
    assert await program.pool.fetchval("select count(*) from tailrace.raw_records where external_id !~ '^app'") == 4


async def _count(program, key, number):
    return await program.pool.fetchval("select count(*) from tailrace.raw_records where external_id = $1", key) == number


@pytest.mark.parametrize("status", ["takendown", "suspended", "deactivated", "deleted"])
async def test_an_account_that_is_not_to_be_had_is_a_state_and_never_complete(host, repo, world, eventually, status):
    program = world(f"bluesky:{repo.did}", collector={"heal_seconds": 0.2})
    assert (await program.backfill()).finished
    await host.became(repo, status, quiet=True)
    report = await program.backfill()
    assert not report.finished
    assert status in report.error or "RepoNotFound" in report.error or "Repo" in report.error
    async with program.live():
        row = await eventually(lambda: _newest(program, f"account/{repo.did}"))
        assert (row["payload"]["account"]["active"], row["payload"]["account"]["status"]) == (False, status)
        assert await program.agrees(repo)
        await host.became(repo, None, quiet=True)
        await host.write(repo, {f"{POST}/{tid(host.tick())}": note("back again")}, quiet=True)
        await eventually(lambda: program.agrees(repo))
        row = await eventually(lambda: _newest(program, f"account/{repo.did}", 2))
        assert row["payload"]["account"]["active"] is True


async def _newest(program, key, revision=1):
    row = (await program.newest()).get(key)
    return row if row and row["revision"] >= revision else None


async def test_an_account_that_never_was_waits_for_a_person(host, repo, world):
    for name in ("bluesky:did:plc:nobodynobodynobodynobody", "bluesky:nobody.example"):
        report = await world(name).backfill()
        assert not report.finished
        assert "check the name" in report.error
    host.documents["did:plc:gone"] = host.url
    host.repos["did:plc:gone"] = host.account("gone")
    host.repos["did:plc:gone"].state = "deleted"
    source = World(host, "bluesky:did:plc:gone").source()
    with pytest.raises(Denied):
        [page async for page in source.heal({}, {}, None)]


async def test_an_account_that_moves_is_followed(host, repo, world, eventually):
    """Its new host tells a rev of its own; the stream is that of the host, too."""
    new = Host()
    await new.start()
    program = world(f"bluesky:{repo.handle}", transport="firehose", stream=None)
    try:
        async with program.live():
            await eventually(lambda: program.agrees(repo))
            moved = new.repos[repo.did] = new.account("meadow")
            moved.records = dict(repo.records)
            await new.write(moved, {f"{POST}/{tid(new.tick())}": note("from the new host")})
            host.documents[repo.did] = new.url
            await host.became(repo, "deactivated", quiet=True)
            await host.say("#identity", {"did": repo.did, "time": "2026-05-01T08:00:00Z"})
            await eventually(lambda: program.agrees(moved))
            await eventually(lambda: new.connections)
            await new.write(moved, {f"{POST}/{tid(new.tick())}": note("and live")})
            await eventually(lambda: program.agrees(moved))
            await eventually(lambda: _at_host(program, new))
    finally:
        await new.stop()


async def _at_host(program, host):
    return (await program.position())["host"] == f"127.0.0.1:{host.port}"


async def test_a_handle_that_names_somebody_else_does_not_mix_two_accounts(host, repo, world):
    program = world(f"bluesky:{repo.handle}")
    await program.backfill()
    thief = host.account("thief")
    await host.write(thief, {f"{POST}/{tid(host.tick())}": note("not ours")})
    repo.handle, thief.handle = "renamed.example", repo.handle
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("ours")})
    await program.backfill()
    assert await program.agrees(repo)


# -- healing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["car", "list"])
async def test_what_no_stream_told_is_found_with_edits_and_deletions(host, repo, world, eventually, method):
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note(f"sorrel {n}") for n in range(250)})
    program = world(f"bluesky:{repo.did}", method=method, collector={"heal_seconds": 0.2, "page_records": 40})
    async with program.live():
        await eventually(lambda: program.agrees(repo))
        first, *gone = list(repo.records)[::50]
        changes = {first: note("corrected"), f"{LIKE}/{tid(host.tick())}": {"$type": LIKE}} | dict.fromkeys(gone)
        await host.write(repo, changes, quiet=True)
        await eventually(lambda: program.agrees(repo))
        newest = await program.newest()
        assert newest[first]["payload"]["record"]["text"] == "corrected"
        assert {k for k, r in newest.items() if r["op"] == "delete"} == set(gone)
        assert {newest[k]["revision"] for k in gone} == {2}
        await host.write(repo, dict.fromkeys(list(repo.records)), quiet=True)
        await eventually(lambda: program.agrees(repo))


async def test_a_key_that_is_too_long_is_known_again_and_its_deletion_found(host, repo, world, eventually):
    path = f"{POST}/{'r' * 505}"
    await host.write(repo, {path: note("long"), f"{POST}/zz": note("after it")})
    program = world(f"bluesky:{repo.did}", collector={"heal_seconds": 0.2})
    async with program.live():
        await eventually(lambda: _healed_to(program, repo.rev))
        await host.write(repo, {f"{POST}/zzz": note("last")}, quiet=True)
        await eventually(lambda: _healed_to(program, repo.rev))
        assert Counter(r["op"] for r in (await program.newest()).values()) == {"create": 8}
        await host.write(repo, {path: None}, quiet=True)
        await eventually(lambda: _healed_to(program, repo.rev))
        assert [k for k, r in (await program.newest()).items() if r["op"] == "delete"] == [short(path)]


async def test_a_repository_that_did_not_change_is_not_read_again(host, repo, world, eventually):
    program = world(f"bluesky:{repo.did}", transport="firehose", collector={"heal_seconds": 0.05})
    async with program.live():
        await eventually(lambda: program.agrees(repo))
        asked = host.calls["com.atproto.sync.getLatestCommit"]
        await eventually(lambda: host.calls["com.atproto.sync.getLatestCommit"] > asked + 5)
        read = host.calls["com.atproto.sync.getRepo"]
        for n in range(5):
            await host.write(repo, {f"{POST}/{tid(host.tick())}": note(f"told {n}")})
            await eventually(lambda: program.agrees(repo))
        await eventually(lambda: _healed_to(program, repo.rev))
    assert host.calls["com.atproto.sync.getRepo"] - read <= 1  # the first commit that the stream told followed none that it had told


async def _healed_to(program, rev):
    return (await program.position(1)).get("heal", {}).get("rev") == rev


async def test_news_of_an_absence_come_from_the_stream_in_their_order(host, repo, world, eventually):
    program = world(f"bluesky:{repo.did}", transport="firehose")
    async with program.live():
        await eventually(lambda: program.agrees(repo))
        path = f"{POST}/{tid(host.tick())}"
        await host.write(repo, {path: note("told")})
        await eventually(lambda: program.agrees(repo))
        await eventually(lambda: _at_cursor(program, host._seq))
    for n in range(4):
        await host.write(repo, {path: note(f"edit {n}")})
    read = host.calls["com.atproto.sync.getRepo"]
    async with program.live():
        await eventually(lambda: _healed_to(program, repo.rev))
        texts = await program.pool.fetch(
            "select payload #>> '{record,text}' from tailrace.raw_records where external_id = $1 order by revision", path
        )
    assert [t[0] for t in texts] == ["told", "edit 0", "edit 1", "edit 2", "edit 3"]
    assert host.calls["com.atproto.sync.getRepo"] - read <= 1


async def _at_cursor(program, cursor):
    return (await program.position())["cursor"] == cursor


async def test_a_host_that_is_blind_to_a_collection_hides_nothing(host, repo, world, eventually):
    host.blind.add(LIKE)
    program = world(f"bluesky:{repo.did}", collector={"heal_seconds": 0.2})
    async with program.live():
        await eventually(lambda: program.agrees(repo))
        await host.write(repo, {f"{LIKE}/{tid(host.tick())}": {"$type": LIKE}})
        await host.write(repo, {f"{POST}/{tid(host.tick())}": note("seen")})
        await eventually(lambda: program.agrees(repo))
        await eventually(lambda: _marked(program, repo.rev))
    assert set((await program.position())["marks"]) == {POST}


async def _marked(program, rev):
    return (await program.position()).get("marks", {}).get(POST) == rev


async def test_a_wider_choice_of_collections_is_caught_up_with(host, repo, world, eventually):
    await host.write(repo, {f"{LIKE}/{tid(host.tick())}": {"$type": LIKE}})
    async with (narrow := world(f"bluesky:{repo.did}", collections=[POST])).live():
        await eventually(lambda: _healed_to(narrow, repo.rev))
    assert {k.split("/")[0] for k in await narrow.newest()} == {POST}
    async with (wide := world(f"bluesky:{repo.did}", collections=[LIKE])).live():
        await eventually(lambda: _healed_to(wide, repo.rev))
        await eventually(lambda: wide.agrees(repo))
    assert not [r for r in (await wide.newest()).values() if r["op"] == "delete"]


async def test_a_part_of_a_repository_is_never_taken_for_all_of_it(host, repo, world, eventually):
    program = world(f"bluesky:{repo.did}", collector={"heal_seconds": 0.2})
    await program.backfill()
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note("one more")}, quiet=True)
    host.without = next(iter(repo.records))
    assert "missing" in (report := await program.backfill()).error
    assert not report.finished
    async with program.live():
        await eventually(lambda: program.pool.fetchval("select reason from tailrace.quotas where reason like '%missing%'"))
        assert not [r for r in (await program.newest()).values() if r["op"] == "delete"]
        host.without, host.cut_car = None, True
        await eventually(lambda: program.pool.fetchval("select reason from tailrace.quotas where reason like '%middle%'"))
        host.cut_car = False
        await eventually(lambda: program.agrees(repo))


async def test_an_older_revision_never_replaces_a_newer_one(host, repo, world, eventually):
    path = next(iter(repo.records))
    await host.write(repo, {path: note("newest")})
    program = world(f"bluesky:{repo.did}", transport="firehose")
    await program.backfill()
    await register(program.pool, program.settings, [program.name])
    place = json.dumps({"via": "firehose", "host": f"127.0.0.1:{host.port}", "cursor": 1})
    await program.pool.execute(
        "insert into tailrace.cursors (source_id, lane, position, updated_at) select id, 0, $1, now() from tailrace.sources", place
    )
    async with program.live():
        await host.write(repo, {f"{POST}/{tid(host.tick())}": note("last")})
        await eventually(lambda: program.agrees(repo))
    newest = (await program.newest())[path]
    assert (newest["revision"], newest["payload"]["record"]["text"]) == (1, "newest")


async def test_a_host_that_asks_for_a_pause_gets_it(host, repo):
    source = World(host, f"bluesky:{repo.did}").source()
    (page, *_) = [p async for p in source.fetch({})]
    (quota,) = page.quotas
    assert (quota.name, quota.remaining, quota.limit) == (f"bluesky:127.0.0.1:{host.port}", 2990, 3000)
    host.limited.append(7)
    with pytest.raises(Limited) as limited:
        [p async for p in source.fetch({})]
    assert limited.value.name == f"bluesky:127.0.0.1:{host.port}"
    assert 6 < limited.value.seconds < 10


async def test_a_repository_larger_than_allowed_is_refused(host, repo):
    await host.write(repo, {f"{POST}/{tid(host.tick())}": note(f"{n} " * 8_000) for n in range(60)})
    source = World(host, f"bluesky:{repo.did}", max_repo_bytes=1_000_000).source()
    with pytest.raises(Unavailable, match="max_repo_bytes"):
        [page async for page in source.fetch({})]


@pytest.mark.parametrize("answer", [(500, {}), (502, {"error": "UpstreamFailure"}), (403, {"error": "Forbidden"})])
async def test_failures_and_refusals_are_told_apart(host, repo, answer):
    host.errors.extend([answer] * 2)
    source = World(host, f"bluesky:{repo.did}").source()
    with pytest.raises(Denied if answer[0] == 403 else Unavailable, match=str(answer[0])):
        [page async for page in source.fetch({})]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("bluesky:meadow", {}, "no account"),
        ("bluesky:jetstream", {"pds": "http://x"}, "a whole stream"),
        ("bluesky:a.example", {"wanted_dids": ["did:plc:x"]}, "whole stream"),
        ("bluesky:a.example", {"colections": "x"}, "collections"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(name, options, said):
    with pytest.raises(Misconfigured, match=said):
        build(Settings(sources={name: {"kind": "bluesky", **options}}))


def test_addresses_of_streams_may_be_short():
    assert whole_address("http://127.0.0.1:8805", "jetstream") == "ws://127.0.0.1:8805/subscribe"
    assert whole_address("relay.example", "firehose") == "wss://relay.example/xrpc/com.atproto.sync.subscribeRepos"
    assert whole_address("wss://relay.example/other", "firehose") == "wss://relay.example/other"


async def test_it_ends_at_once_also_at_a_host_that_says_nothing(host, repo, world, eventually):
    host.script.extend([("stall", None)] * 5)
    program = world(f"bluesky:{repo.did}", transport="firehose")
    async with program.live():
        await eventually(lambda: host.connections)


# -- what others published, and the host software itself --------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "blocks", "records"), [("repo", 29, 23), ("fakermaker", 690, 142), ("paul_staging", 458, 185), ("greenground", 4, 2)]
)
def test_published_repositories_give_exactly_their_records(shared, name, blocks, records):
    data = next((shared / "data" / "bluesky").glob(f"{name}*.car")).read_bytes()
    with Repository() as repository:
        repository.feed(data)
        repository.close()
        found = {e.path: e.cid for e in repository.entries()}
        texts = [as_json(e.block) for e in repository.entries()]
        assert repository._db.execute("select count(*) from blocks").fetchone()[0] == blocks
    assert len(found) == len(texts) == records
    assert found == _walked(data)
    if name == "repo":
        lines = (shared / "data" / "bluesky" / "car_expected_records.tsv").read_text().splitlines()
        assert [f"{path}\t{cid}" for path, cid in found.items()] == lines


def _walked(data):
    """The same by the library's own reading of the file, and by recursion."""
    header, blocks = libipld.decode_car(data)

    def below(cid):
        if cid is None:
            return
        node, key = blocks[cid], b""
        yield from below(node["l"])
        for entry in node["e"]:
            key = key[: entry["p"]] + entry["k"]
            yield key.decode(), libipld.encode_cid(entry["v"])
            yield from below(entry["t"])

    return dict(below(blocks[header["roots"][0]]["data"]))


def _frames(shared):
    data = zstandard.ZstdDecompressor().decompress((shared / "data" / "bluesky" / "frames.bin.zst").read_bytes(), max_output_size=1 << 28)
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


@pytest.mark.shared
def test_published_frames_give_the_published_events(shared):
    frames, expected = (
        list(_frames(shared)),
        [json.loads(line) for line in (shared / "data" / "bluesky" / "expected_v1.jsonl").read_text().splitlines()],
    )
    found = []
    for event in map(of_frame, frames):
        if event.kind != "commit":
            found.append({"did": event.did, "kind": event.kind, event.kind: event.body})
        for op in event.ops():
            collection, rkey = op.path.split("/")
            commit = {"rev": event.rev, "operation": op.action, "collection": collection, "rkey": rkey}
            commit |= {"record": json.loads(op.record), "cid": op.cid} if op.record else {}
            found.append({"did": event.did, "kind": "commit", "commit": commit})
    assert (len(frames), len(found)) == (150, 152)
    assert found == [{k: v for k, v in line.items() if k != "time_us"} for line in expected]
    kinds = Counter(e.get("commit", {}).get("operation", e["kind"]) for e in found)
    assert kinds == {"create": 144, "update": 2, "delete": 4, "identity": 1, "account": 1}


@pytest.mark.shared
def test_published_frames_and_lines_give_the_same_records(shared):
    both = []
    for transport, given in (
        ("firehose", list(_frames(shared))),
        ("jetstream", (shared / "data" / "bluesky" / "expected_v1.jsonl").read_text().splitlines()),
    ):
        intake = Intake(transport, Maker(whole=True), [], None)
        intake.place = Place(transport, "here")
        records = [r for batch in intake.batches(given, 50) for r in batch]
        assert len(records) == 152
        assert not [r.meta["defect"] for r in records if "defect" in r.meta]
        both.append([(r.external_id, r.digest, r.op, r.occurred_at, r.source_time, json.loads(r.payload)) for r in records])
    assert both[0] == both[1]


@pytest.mark.shared
async def test_a_file_of_235_kilobytes_is_read_and_stored(shared, host, world):
    data = (shared / "data" / "bluesky" / "fakermaker.repo.car").read_bytes()
    did = libipld.decode_car(data)[1][libipld.decode_car(data)[0]["roots"][0]]["did"]
    repo = host.repos[did] = host.account("published")
    repo.car, repo.rev = (lambda without: data), tid(host.tick())
    host.documents[did] = host.url
    program = world(f"bluesky:{did}")
    report = await program.backfill()
    assert (report.appended, report.finished) == (142, True)


class AtStandin(World):
    def __init__(self, running, pool, url, **options):
        host = SimpleNamespace(url=running.url, port=running.port)
        super().__init__(host, "bluesky:bob.test", pool, url, plc=running.info["plc"], **options)


@pytest.fixture(scope="module")
def real(request):
    """The reference host software."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which is absent")
    with standin("bluesky") as running:
        yield running


@pytest.mark.shared
@pytest.mark.parametrize("transport", ["firehose", "jetstream"])
async def test_nothing_is_lost_at_the_real_host_whatever_its_streams_do(real, pool, db_url, eventually, transport):
    program = AtStandin(real, pool, db_url, transport=transport, heartbeat=2, collector={"heal_seconds": 5})
    op = "sync.subscribeRepos" if transport == "firehose" else "subscribe"
    real.reset()
    posted = []

    def post(count):
        for _ in range(count):
            posted.append(real.do("post", handle="bob", text=f"plantain {transport} {len(posted)}")["uri"].split("/", 3)[3])

    async def there():
        return {*posted} <= {k for k, r in (await program.newest()).items() if r["op"] != "delete"}

    async with program.live():
        await eventually(program.position)
        for n, fault in enumerate(({"do": "garbage"}, {"do": "cut", "seconds": 0.3}, {"do": "stall", "seconds": 3}, {"do": "garbage"}), 1):
            real.fault(op=op, **fault)
            await asyncio.to_thread(real.do, "drop_streams")
            await asyncio.to_thread(post, 4)
            await eventually(lambda number=n: sum(real.counters()["faults"].values()) == number, 60)
            await eventually(there, 60)
    await asyncio.to_thread(post, 5)
    async with program.live():
        await asyncio.to_thread(post, 2)
        await eventually(there, 60)
    assert real.counters()["faults"] == {"garbage": 2, "cut": 1, "stall": 1}
    doubled = "select count(*) from (select digest = lag(digest) over (partition by external_id order by revision) as same from tailrace.raw_records) r where same"
    assert await pool.fetchval(doubled) == 0


@pytest.mark.shared
async def test_the_real_host_lists_what_it_sends_as_a_file(real, pool, db_url):
    by_car, by_list = (AtStandin(real, pool, db_url, method=method).source() for method in ("car", "list"))
    one = [r for page in [p async for p in by_car.fetch({})] for r in page.records]
    two, at, more = [], {}, True
    while more:
        page = await by_list.chunk(at, 25, ALL)
        two, at, more = two + page.records, page.position, page.more
    assert len(one) > 40
    as_rows = [
        {(r.external_id, r.digest, json.dumps(json.loads(r.payload), sort_keys=True), r.op, r.occurred_at, r.source_time) for r in rows}
        for rows in (one, two)
    ]
    assert as_rows[0] == as_rows[1]
