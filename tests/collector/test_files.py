"""Files as they are found: grown, half written, rotated, cut off, replaced, packed, broken."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest
import zstandard

from collector.sources.building import build
from worker.core.errors import Misconfigured


async def ids(inbox):
    return [r["payload"]["id"] for r in await inbox.raw() if r["payload"]]


async def test_a_second_read_adds_nothing_and_an_edit_one_revision_and_one_job(inbox, version, pool):
    inbox.write("a.json", [])
    (inbox.folder / "a.json").write_text(json.dumps([{"id": n, "text": "t"} for n in range(5)]))
    assert (await inbox.read()).appended == 5
    assert (await inbox.read()).seen == 0
    jobs = await pool.fetchval("select count(*) from tailrace.jobs")
    (inbox.folder / "a.json").write_text(json.dumps([{"id": n, "text": "changed" if n == 3 else "t"} for n in range(5)]))
    report = await inbox.read()
    assert (report.appended, report.unchanged) == (1, 4)
    assert [(r["external_id"], r["op"]) for r in await inbox.raw() if r["revision"] == 2] == [("3", "update")]
    assert await pool.fetchval("select count(*) from tailrace.jobs") == jobs + 1


@pytest.mark.parametrize("shape", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.csv", "a.csv.zst"])
async def test_every_shape_gives_the_same_records(inbox, shape):
    inbox.collector = {"page_records": 7}
    rows = [{"id": str(n), "text": f"täxt {n}"} for n in range(50)]
    lines = "\n".join(json.dumps(r) for r in rows) + "\n"
    text = {"jsonl": lines, "json": json.dumps(rows, indent=1), "csv": "id,text\n" + "".join(f"{r['id']},{r['text']}\n" for r in rows)}[
        shape.split(".")[1]
    ]
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(shape.split(".")[-1], bytes)
    (inbox.folder / shape).write_bytes(pack(text.encode()))
    assert (await inbox.read()).appended == 50
    assert [r["payload"] for r in await inbox.raw()] == rows
    assert (await inbox.read()).seen == 0


async def test_a_half_written_last_line_waits_for_its_end(inbox, pool, eventually):
    path = inbox.write("a.jsonl", {"id": 1})
    with path.open("a") as file:
        file.write('{"id": 2, "te')
    source = build(inbox.settings())["files:inbox"]
    pages = [(records, entry) async for records, entry in pages_of(source, final=False)]
    assert [r.external_id for records, _ in pages for r in records] == ["1"]
    with path.open("a") as file:
        file.write('xt": "x"}\n')
    assert (await inbox.read()).appended == 2


async def pages_of(source, final, position=None):
    async for page in source._pass(position or {}, final=final):
        yield page.records, page.position


@pytest.mark.parametrize("final", [True, False])
async def test_a_last_line_without_newline_counts_where_it_is_complete(inbox, final):
    path = inbox.folder / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}')
    source, position = build(inbox.settings())["files:inbox"], {}
    for written, wanted in [(b"", ["1"]), (b'\n{"id": 2', []), (b"}", ["2"]), (b"\r\n", []), (b'{"id": 3}\n{"id": 4}', ["3", "4"])]:
        with path.open("ab") as file:
            file.write(written)
        pages = [page async for page in pages_of(source, final, position)]
        assert [r.external_id for records, _ in pages for r in records] == wanted
        position = pages[-1][1] if pages else position


async def test_a_last_line_that_may_go_on_is_said_and_counts_where_the_file_is_renamed(inbox, seen):
    path = inbox.folder / "a.jsonl"
    path.write_text('{"id": 1}\n12')
    assert (await inbox.read()).appended == 1
    assert [(name, f["bytes"]) for name, f in seen if name == "line.awaited"] == [("line.awaited", 2)]
    path.rename(inbox.folder / "a.jsonl.1")
    assert (await inbox.read()).appended == 1
    assert [r["payload"] for r in await inbox.raw()] == [{"id": 1}, 12]


async def test_rotation_loses_and_repeats_nothing(inbox):
    path = inbox.write("a.jsonl", {"id": 1})
    inbox.options["path"] = str(path)
    await inbox.read()
    inbox.write("a.jsonl", {"id": 2}, mode="a")
    path.rename(inbox.folder / "a.jsonl.1")
    inbox.write("a.jsonl", {"id": 3})
    report = await inbox.read()
    assert sorted(await ids(inbox)) == [1, 2, 3]
    assert (report.seen, report.appended) == (2, 2)


async def test_a_file_that_was_cut_off_and_one_under_the_old_name_are_read_from_the_start(inbox):
    inbox.write("a.jsonl", {"id": 1}, {"id": 2})
    await inbox.read()
    with (inbox.folder / "a.jsonl").open("r+") as file:
        file.truncate(0)
    inbox.write("a.jsonl", {"id": 3}, mode="a")
    await inbox.read()
    (inbox.folder / "new").write_text(json.dumps({"id": 4, "pad": "x" * 100}) + "\n")
    (inbox.folder / "new").rename(inbox.folder / "a.jsonl")
    await inbox.read()
    assert await ids(inbox) == [1, 2, 3, 4]


async def test_broken_lines_are_kept_and_the_rest_goes_on(inbox):
    (inbox.folder / "a.jsonl").write_bytes(b'{"id": 1}\nnot json\n{"id": "\\ud800"}\n\n\xff\xfe\n{"id": 2}\n')
    report = await inbox.read()
    assert (report.appended, report.defects) == (5, 3)
    assert [r["body"] for r in await inbox.raw() if r["body"]] == [b"not json", b'{"id": "\\ud800"}', b"\xff\xfe"]
    assert await ids(inbox) == [1, 2]


async def test_what_postgres_alone_refuses_is_found_by_halving(inbox):
    lines = [json.dumps({"id": n}) for n in range(300)]
    lines[123] = '{"id": 123, "n": 1e200000}'
    (inbox.folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    assert (await inbox.read()).appended == 300
    odd = [r for r in await inbox.raw() if r["body"]]
    assert [r["body"] for r in odd] == [lines[123].encode()]


async def test_a_huge_line_is_stored_and_a_longer_one_than_allowed_leaves_its_head(inbox):
    big = "x" * 50_000_000
    inbox.write("a.jsonl", {"id": 1, "big": big}, {"id": 2})
    report = await inbox.read()
    assert (report.appended, report.defects) == (2, 0)
    inbox.options["max_line_bytes"] = 3_000_000
    inbox.write("b.jsonl", {"id": 3}, {"id": 4, "big": big}, {"id": 5})
    report = await inbox.read()
    assert (report.appended, report.defects) == (3, 1)
    odd = next(r for r in await inbox.raw() if "defect" in r["meta"])
    assert "longer than max_line_bytes" in odd["meta"]["defect"]
    assert len(odd["body"]) == 65536


async def test_empty_files_links_in_circles_and_strangers_are_no_trouble(inbox, seen):
    (inbox.folder / "empty.jsonl").touch()
    (inbox.folder / "empty.json").touch()
    (inbox.folder / "readme.txt").write_text("not ours")
    (inbox.folder / "loop").symlink_to(inbox.folder)
    (inbox.folder / "self.jsonl").symlink_to(inbox.folder / "self.jsonl")
    os.mkfifo(inbox.folder / "pipe.jsonl")
    inbox.write("a.jsonl", {"id": 1})
    report = await inbox.read()
    assert (report.appended, report.error) == (1, "")


async def test_a_cut_off_archive_is_reported_and_the_others_are_read(inbox, seen):
    packed = gzip.compress(b"".join(json.dumps({"id": n, "pad": os.urandom(50).hex()}).encode() + b"\n" for n in range(1000)))
    (inbox.folder / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    inbox.write("b.jsonl", {"id": 5000})
    await inbox.read()
    assert [f["file"].rsplit("/", 1)[1] for name, f in seen if name == "source.failed"] == ["a.jsonl.gz"]
    assert 5000 in await ids(inbox)
    (inbox.folder / "a.jsonl.gz").write_bytes(packed)
    await inbox.read()
    assert sorted(await ids(inbox)) == [*range(1000), 5000]


async def test_stopping_at_any_page_and_going_on_gives_the_same(inbox):
    inbox.collector = {"page_records": 3}
    inbox.write("a.jsonl", *({"id": n} for n in range(20)))
    (inbox.folder / "b.json").write_text(json.dumps([{"id": n} for n in range(20, 40)]))
    for _ in range(20):
        await inbox.read(max_chunks=1)
    assert sorted(await ids(inbox)) == list(range(40))
    assert len(await inbox.raw()) == 40


async def test_a_dry_run_changes_nothing(inbox, pool):
    inbox.write("a.jsonl", {"id": 1})
    report = await inbox.read(dry_run=True)
    assert report.appended == 1
    assert await pool.fetchval("select count(*) from tailrace.raw_records") == 0


async def test_ignored_fields_make_no_revision_and_tombstones_do(inbox):
    inbox.options |= {"ignore_fields": ["views"], "delete_field": "gone"}
    inbox.write("a.jsonl", {"id": 1, "views": 1}, {"id": 1, "views": 2}, {"id": 1, "gone": True})
    report = await inbox.read()
    assert (report.appended, report.unchanged) == (2, 1)
    assert [r["op"] for r in await inbox.raw()] == ["create", "delete"]


def test_an_unknown_option_or_kind_names_the_nearest(inbox):
    inbox.options["id_feld"] = "x"
    with pytest.raises(Misconfigured, match="id_field"):
        build(inbox.settings())
    with pytest.raises(Misconfigured, match="files:inbox"):
        build(inbox.settings(), ["files:inbx"])


@pytest.mark.shared
async def test_real_messages_are_stored_once(inbox, shared, version, pool):
    for path in sorted((shared / "data/telegram").glob("*.json")):
        shutil.copy(path, inbox.folder)
    inbox.options = {"id_field": ["channel", "message_id"], "time_field": "date"}
    total = sum(len(json.loads(p.read_text())) for p in inbox.folder.glob("*.json"))
    assert (await inbox.read()).appended == total
    assert (await inbox.read()).appended == 0
    path = next(inbox.folder.glob("*.json"))
    messages = json.loads(path.read_text())
    messages[7]["text"] += " (edited)"
    path.write_text(json.dumps(messages, ensure_ascii=False))
    before = await pool.fetchval("select count(*) from tailrace.jobs")
    report = await inbox.read()
    assert (report.appended, report.unchanged) == (1, len(messages) - 1)
    assert await pool.fetchval("select count(*) from tailrace.jobs") == before + 1


async def test_a_line_file_written_anew_in_place_is_read_again(inbox):
    path = inbox.write("a.jsonl", *({"id": n, "text": "one"} for n in range(200)))
    await inbox.read()
    path.write_text(path.read_text().replace('{"id": 100, "text": "one"}', '{"id": 100, "text": "two"}'))
    os.utime(path, (1, 1))
    report = await inbox.read()
    assert (report.appended, report.unchanged) == (1, 199)


async def test_a_renamed_folder_number_or_device_changes_nothing(inbox, pool):
    inbox.write("a.jsonl", {"id": 1})
    await inbox.read()
    position = json.loads(await pool.fetchval("select position from tailrace.cursors"))
    elsewhere = {"files": {"ffff" + identity[identity.index("-") :]: entry for identity, entry in position["files"].items()}}
    await pool.execute("update tailrace.cursors set position = $1", json.dumps(elsewhere))
    assert (await inbox.read()).seen == 0


async def test_a_failing_file_is_left_alone_for_a_while_and_read_when_it_is_mended(inbox, seen):
    path = inbox.folder / "a.jsonl.zst"
    path.write_bytes(b"not packed")
    source = build(inbox.settings())["files:inbox"]
    for _ in range(3):
        assert [p async for p in pages_of(source, final=True)] == []
    assert [name for name, _ in seen] == ["source.failed"]
    path.write_bytes(zstandard.ZstdCompressor().compress(b'{"id": 1}\n'))
    assert len([p async for p in pages_of(source, final=True)]) == 1
    assert [name for name, _ in seen] == ["source.failed", "source.recovered"]


async def test_the_position_forgets_the_oldest_of_the_files_that_are_gone_and_none_that_is_there(inbox):
    gone = {f"1-{n:x}": {"name": "x", "size": 1, "mtime": n, "done": True} for n in range(3000)}
    for n in range(5):
        inbox.write(f"{n}.jsonl", {"id": n})
    source = build(inbox.settings())["files:inbox"]
    [(records, position)] = [p async for p in pages_of(source, final=True, position={"files": gone})]
    assert len(records) == 5
    assert len(position["files"]) == 1005
    assert min(e["mtime"] for e in position["files"].values()) == 2000
    assert [p async for p in pages_of(source, final=True, position=position)] == []


async def test_small_files_share_a_page(inbox):
    for n in range(30):
        inbox.write(f"{n}.jsonl", {"id": n})
    report = await inbox.read()
    assert (report.chunks, report.appended) == (1, 30)


async def test_two_overlong_lines_with_the_same_beginning_are_two_records(inbox):
    inbox.options["max_line_bytes"] = 100_000
    lines = [b"x" * 3_000_000 + end + b"\n" for end in (b"a", b"b", b"b")]
    (inbox.folder / "a.jsonl").write_bytes(b"".join(lines))
    (inbox.folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines) + b'{"id": 1}\n'))
    report = await inbox.read()
    assert (report.appended, report.unchanged) == (3, 4)


async def test_a_last_line_that_is_not_whole_waits_also_in_a_rotated_file(inbox):
    path = inbox.folder / "a.jsonl.1"
    path.write_text('{"id": 1}\n{"id": 2, "text')
    assert (await inbox.read()).appended == 1
    with path.open("a") as file:
        file.write('": ""}')
    assert (await inbox.read()).appended == 1
    assert await ids(inbox) == [1, 2]


async def test_a_name_that_is_no_text_is_no_trouble(inbox):
    inbox.write("\udcff.jsonl", {"id": 1})
    assert (await inbox.read()).appended == 1
    assert (await inbox.read()).seen == 0


async def test_what_was_read_but_not_stored_is_read_again(inbox):
    """The process died between reading and storing: the position still stands before the page."""
    inbox.write("a.jsonl", *({"id": n} for n in range(10)))
    source = build(inbox.settings())["files:inbox"]
    async for records, _ in pages_of(source, final=False):
        assert len(records) == 10
    assert (await inbox.read()).appended == 10
    assert len([r async for r in pages_of(source, final=False)]) == 0
    async for page in source.fetch({}):
        assert len(page.records) == 10
