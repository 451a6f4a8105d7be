"""Whatever bytes a source shows: stored as they are, under the same key and digest each time, and read back from Postgres."""

from __future__ import annotations

import decimal
import json

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.raw import Appender
from collector.record import MOST_KEY, Builder, RecordOptions
from collector.sources import Page
from tests.fuzz.hostile import deep, often, texts, values

FIELDS = st.sampled_from(["id", "t", "v", "gone", "n", "a"]) | texts


def written(value, ascii_only, indent):
    return json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")


def edited(data, at, new):
    at %= len(data) + 1
    return data[:at] + new + data[at + len(new) :]


TWICE = [b'{"id": 1, "id": 2}', b'{"a": {"b": 1, "\\u0062": 2}}', b'{"id":\t"\\u003a", "id" : 3}']
NUMBERS = [
    b"-0",
    b"-0.0",
    b"1e400",
    b"1E-400",
    b"9" * 5000,
    b"0." + b"3" * 500,
    b"1e131072",
    b"1e-16384",
    b"[1.10, 1.1]",
    b'{"id": 1e5}',
    b'{"id": 123456789012345678901234567890.5}',
]
STRANGE = [b"", b" ", b"\xef\xbb\xbf{}", b"\x00", b"{\x00}", b'"\\ud800"', b'"\\udc00\\ud800"', b'{"id": "\\ud83d\\ude00"}', b'"\\u0000"', b'"\\\\u0000"', b'"\\\\\\u0000"', b"NaN", b"[NaN]",
           b'{"id": Infinity}', b"\xff\xfe", b"\xed\xa0\x80", b'{"t": "0001-01-01T00:00:00+14:00"}', b'{"t": "9999-12-31T23:59:59-14:00"}', b'{"t": 1e300}', b'{"t": -62135596801}']  # fmt: skip
DEEP = [deep(n).encode() for n in (100, 1000, 1024, 1025, 5000, 60_000)] + [deep(n, "1", '{"a":', "}").encode() for n in (200, 255, 600, 5000)]
DEEP += [b'{"id": %s}' % deep(n).encode() for n in (250, 300, 1000)] + [deep(n, "12345678901234567890").encode() for n in (300, 1000)]
pieces = (
    st.binary(max_size=300)
    | st.builds(written, values(FIELDS), st.booleans(), st.sampled_from([None, 1]))
    | st.builds(written, st.fixed_dictionaries({}, optional={n: values() for n in ("id", "t", "v", "gone", "n")}), st.booleans(), st.none())
    | st.builds(edited, st.builds(written, values(FIELDS), st.booleans(), st.none()), st.integers(0, 300), st.binary(max_size=3))
    | st.sampled_from([*TWICE, *NUMBERS, *STRANGE, *DEEP])
)
OPTIONS = [
    {}, {"id_field": ["id"]}, {"id_field": ["id", "n.a"], "time_field": "t", "version_field": "v"},
    {"ignore_fields": ["n", "n.a", "v"], "delete_field": "gone"}, {"id_field": ["n.a"], "time_field": "t", "version_field": "t", "ignore_fields": ["t"]},
]  # fmt: skip
builders = st.sampled_from([Builder(RecordOptions(**options)) for options in OPTIONS])


@often(150)
@given(builders, pieces)
@example(Builder(RecordOptions(id_field=["id"])), b'{"id": %s}' % deep(300).encode())
@example(Builder(RecordOptions(id_field=["id"])), deep(1000, "12345678901234567890").encode())
@example(Builder(RecordOptions(ignore_fields=["v"])), deep(1000).encode())
def test_any_bytes_make_one_record_that_holds_them(builder, raw):
    record = builder.build(raw, {"at": 1})
    assert (record.body if record.payload is None else record.payload.encode()) == raw
    assert 0 < len(record.external_id) <= MOST_KEY
    record.external_id.encode()
    assert "\x00" not in record.external_id
    assert len(record.digest) == 16 or record.op == "delete"
    assert builder.build(raw, {"at": 2})[:2] == record[:2]
    assert "\x00" not in json.dumps(record.meta)


@often(60)
@given(values(st.text(max_size=4)), values(st.text(max_size=4)))
def test_what_differs_has_another_digest(one, other):
    def there(value):
        try:
            return Builder(RecordOptions()).build(orjson.dumps(value), {}).digest
        except TypeError:
            return None

    a, b = there(one), there(other)
    if a is not None and b is not None:
        assert (a == b) == (orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS))


@pytest.fixture
async def source_id(pool):
    rows = await pool.fetch("select * from tailrace.register_sources('{files:fuzz}', '{\"{}\"}')")
    return rows[0]["id"]


def exact(text):
    """The value with all its digits. jsonb keeps these, not how a number is written."""
    return json.loads(text, parse_float=decimal.Decimal, parse_int=decimal.Decimal)


@often(20)
@given(builder=builders, page=st.lists(pieces, min_size=1, max_size=12), copies=st.sampled_from([1, 20]))
@example(builder=Builder(RecordOptions(**OPTIONS[2])), page=[*TWICE, *NUMBERS, *STRANGE, *DEEP], copies=1)
@example(builder=Builder(RecordOptions()), page=[*TWICE, *NUMBERS, *STRANGE, *DEEP], copies=10)
async def test_any_page_is_stored_and_read_back_byte_for_byte(pool, source_id, builder, page, copies):
    appender = Appender(pool, enqueue=True, bells=0)
    start = await pool.fetchval("select coalesce(max(id), 0) from tailrace.raw_records")
    records = [builder.build(raw, {"at": n}) for n, raw in enumerate(page)]
    row = await appender.append(source_id, "files:fuzz", Page(records * copies, {"n": start}))
    assert row["appended"] + row["unchanged"] + row["stale"] == len(records) * copies
    stored = await pool.fetch("select external_id, digest, payload, body, meta from tailrace.raw_records where id > $1 order by id", start)
    asked = {}
    for record in records:
        asked.setdefault((record.external_id, record.digest), []).append((record, record.payload.encode() if record.body is None else record.body))
    for found in stored:
        alternatives = asked[found["external_id"], found["digest"]]
        if found["payload"] is None:
            assert found["body"] in [raw for _, raw in alternatives]
            assert "defect" in orjson.loads(found["meta"])
        else:
            assert any(exact(found["payload"]) == exact(raw) for _, raw in alternatives)
    for record in records:
        newest = await pool.fetchval(
            "select max(revision) from tailrace.raw_records where source_id = $1 and external_id = $2", source_id, record.external_id
        )
        assert newest
