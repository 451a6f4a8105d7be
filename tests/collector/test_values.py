"""JSON arrays and CSV, whole and broken; whatever the size of the chunks in which they are read."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector.sources import reading, values

MOST = 1_000_000


def read(data, most=MOST):
    return list(values.array(io.BytesIO(data), most))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3)), max_size=9),
       st.integers(1, 40), st.sampled_from([None, 1]))  # fmt: skip
@example([100.0, 1.5e-07, 1e300], 2, None)
def test_elements_come_as_they_are_written(elements, chunk, indent):
    before, values.CHUNK = values.CHUNK, chunk
    try:
        pieces = read(json.dumps(elements, indent=indent, ensure_ascii=False).encode())
    finally:
        values.CHUNK = before
    assert [json.loads(p.raw) for p in pieces] == elements
    assert [p.end for p in pieces] == list(range(1, len(elements) + 1))
    assert not any(p.why for p in pieces)


@pytest.mark.parametrize(("data", "good", "why"), [
    (b"", 0, ""),
    (b" \n", 0, ""),
    (b"[]", 0, ""),
    (b"[ ]\n", 0, ""),
    (b'\xef\xbb\xbf[{"a": 1}]', 1, ""),
    (b'{"a": 1}', 1, ""),
    (b'{"a": 1}\n{"a": 2}\n', 2, ""),
    (b'[{"a": "line\nbreak"}, {"b": 2}]', 2, ""),
    (b'[{"a": "\xff"}, {"b": NaN}]', 2, ""),
    (b"[", 0, "cut off"),
    (b'[{"a": 1}, ', 1, "cut off"),
    (b'[{"a": 1}', 1, "broken after its value 1"),
    (b'[{"a": 1}, {"b": ', 1, "cut off"),
    (b'[{"a": 1} {"b": 2}]', 1, "broken after its value 1"),
    (b'[{"a": 1},, {"b": 2}]', 1, "not readable from its value 2"),
    (b'[{"a": 1}] trailing', 1, "after the end"),
    (b"not json at all", 0, "not readable"),
])  # fmt: skip
def test_what_is_broken_is_said_and_kept(data, good, why):
    pieces = read(data)
    assert len([p for p in pieces if not p.why]) == good
    odd = [p for p in pieces if p.why]
    assert len(odd) == bool(why)
    assert all(why in p.why and p.digest for p in odd)


def test_a_value_longer_than_allowed_ends_the_reading():
    pieces = read(b'[1, "' + b"x" * 5_000_000 + b'", 2]', most=1000)
    assert [p.raw for p in pieces if not p.why] == [b"1"]
    assert len(pieces[-1].raw) <= reading.HEAD


def table(data):
    return list(values.table(io.BytesIO(data), MOST))


def test_rows_of_a_table_are_objects_of_strings():
    assert [json.loads(p.raw) for p in table(b'\xef\xbb\xbfid,text\r\n1,"a ""b""\nc"\r\n\r\n2,\r\n')] == [
        {"id": "1", "text": 'a "b"\nc'},
        {"id": "2", "text": ""},
    ]


def test_no_column_of_a_table_is_lost():
    rows = [json.loads(p.raw) for p in table(b"a,a,a\n1,2,3\n1,2,3,4\n1\n")]
    assert rows == [{"a": "1", "a_2": "2", "a_3": "3"}, {"a": "1", "a_2": "2", "a_3": "3", "_more": ["4"]}, {"a": "1", "a_2": None, "a_3": None}]


def test_a_row_that_is_no_text_is_kept_as_its_bytes():
    good, odd = table(b'id,text\n1,x\n2,"\xff"\n')
    assert (odd.raw, odd.why) == (b'2,"\xff"', "not UTF-8")
    assert not good.why


@pytest.mark.parametrize("long", ["x" * 5000, '"x",' * 2000, '"' + "x" * 999 + '",' * 3])
def test_a_row_that_is_too_long_is_a_defect_and_the_others_are_read(long):
    pieces = list(values.table(io.BytesIO(f"id\n1\n{long}\n2\n".encode()), 1000))
    assert [p.raw for p in pieces if not p.why] == [b'{"id":"1"}', b'{"id":"2"}']
    assert any("longer than max_line_bytes" in p.why and len(p.raw) < 1010 and p.digest for p in pieces)
    assert [p.end for p in pieces] == list(range(1, len(pieces) + 1))


def test_a_header_that_is_too_long_loses_no_row():
    head, row = values.table(io.BytesIO(b"x" * 2000 + b"\n1,2\n"), 1000)
    assert (head.end, head.why, row.end, row.raw) == (1, "not readable as CSV: a row longer than max_line_bytes", 2, b'{"_more":["1","2"]}')


def test_an_empty_table_has_no_rows():
    assert table(b"") == table(b"id,text\n") == []


@pytest.mark.parametrize(("name", "shape"), [
    ("a.jsonl", (".jsonl", "")), ("a.ndjson.gz", (".ndjson", ".gz")), ("a.jsonl.1", (".jsonl", "")), ("a.jsonl.2.gz", (".jsonl", ".gz")),
    ("a.json.zst", (".json", ".zst")), ("A.CSV", (".csv", "")), ("a.txt", None), ("jsonl", None), (".jsonl", None), ("a.gz.gz", None),
])  # fmt: skip
def test_names_tell_the_shape(name, shape):
    assert reading.shape_of(name) == shape
