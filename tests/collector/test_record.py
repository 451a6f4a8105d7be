"""What jsonb cannot hold is kept as bytes, with the reason; nothing is dropped and nothing crashes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.record import Builder, RecordOptions, short


@pytest.mark.parametrize(("raw", "why"), [
    (b'{"a": "\\u0000"}', "NUL"),
    (b'{"a": "\\ud800"}', "surrogate"),
    (b'{"a": NaN}', "NaN"),
    (b'{"a": Infinity}', "Infinity"),
    (b'{"a": "\xff"}', "not UTF-8"),
    (b"plain text", "not JSON"),
    (b'{"a": 1', "not JSON"),
    (b'{"a": 1, "a": 2}', "duplicate keys"),
    (b'{"a": {"b": 1, "b": "\\u0022:"}}', "duplicate keys"),
    (b"[" * 5000 + b"]" * 5000, "deep"),
])  # fmt: skip
def test_what_jsonb_cannot_hold_is_kept_as_bytes(raw, why):
    record = Builder(RecordOptions(id_field=["id"])).build(raw, {"file": "f"})
    assert record.body == raw
    assert record.payload is None
    assert why in record.meta["defect"]


def test_an_escaped_backslash_is_no_nul():
    record = Builder(RecordOptions()).build(rb'{"a": "\\u0000"}', {})
    assert record.body is None


@pytest.mark.parametrize(
    ("value", "why"), [("2026-01-01T00:00:00", "naive time"), ("yesterday", "not a time"), (True, "not a time"), (1e300, "not a time")]
)
def test_a_time_that_cannot_be_used_is_a_defect_of_a_stored_record(value, why):
    record = Builder(RecordOptions(time_field="t")).build(json.dumps({"t": value}).encode(), {})
    assert record.occurred_at is None
    assert why in record.meta["defect"]
    assert record.payload is not None


@pytest.mark.parametrize("value", [1_700_000_000, 1_700_000_000_000, "2023-11-14T22:13:20Z", "2023-11-15T00:13:20+02:00"])
def test_times_come_in_seconds_milliseconds_and_iso(value):
    record = Builder(RecordOptions(time_field="t")).build(json.dumps({"t": value}).encode(), {})
    assert record.occurred_at.isoformat().startswith(("2023-11-14T22:13:20", "2023-11-15T00:13:20+02"))


def test_keys_come_from_fields_else_from_the_content():
    raw = b'{"chat": {"id": 7}, "n": "x", "views": 1}'
    assert Builder(RecordOptions(id_field=["chat.id", "n"])).build(raw, {}).external_id == "7/x"
    content = Builder(RecordOptions(ignore_fields=["views"]))
    assert content.build(raw, {}).external_id == content.build(raw.replace(b"1}", b"2}"), {}).external_id
    missing = Builder(RecordOptions(id_field=["nope"])).build(raw, {})
    assert missing.meta["defect"] == "no nope"


def test_a_long_key_is_shortened_and_stays_unique():
    assert short("k" * 5000) != short("k" * 4999)
    assert len(short("k" * 5000)) < 500
    assert "\x00" not in short("a\x00b")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda t: json.dumps({"id": t, "v": t}).encode()))
def test_any_bytes_make_a_record_that_holds_them(raw):
    record = Builder(RecordOptions(id_field=["id"], time_field="v")).build(raw, {})
    assert (record.body == raw) if record.payload is None else (record.payload.encode() == raw)
    assert record.external_id
    assert len(record.external_id) <= 500


@pytest.mark.parametrize("raw", [b'{"a" :1,"a":2}', b'{"a":1,"\\u0061":2,"t":"\\u003a"}', b'{"x": {"a" : 1, "a"  : 1}}'])
def test_a_key_that_comes_twice_is_found_however_it_is_written(raw):
    assert Builder(RecordOptions()).build(raw, {}).meta["defect"] == "duplicate keys"


@pytest.mark.parametrize("raw", [b'{"t": "a\\":b", "u": ":"}', b'{"t": "\\u003a \\u0022:"}', b'{"a": {"a": {"a": 1}}}', b"[" * 400 + b"]" * 400])
def test_what_only_looks_like_it_is_none(raw):
    assert Builder(RecordOptions()).build(raw, {}).payload is not None


def test_numbers_that_a_double_cannot_hold_stay_apart():
    build = Builder(RecordOptions(id_field=["id"])).build
    one, other = (build(b'{"id": %d, "v": 1}' % n, {}) for n in (2**64 + 1, 2**64 + 2))
    assert (one.external_id, other.external_id) == (str(2**64 + 1), str(2**64 + 2))
    short_v, long_v = (build(b'{"id": 1, "v": %s}' % v, {}) for v in (b"0.12345678901234567890", b"0.12345678901234567891"))
    assert short_v.digest != long_v.digest
    assert short_v.external_id == "1"
    assert build(b'{"id": 1, "v": "12345678901234567890"}', {}).external_id == "1"


def test_the_order_of_keys_and_spaces_is_no_news():
    build = Builder(RecordOptions(ignore_fields=["views", "stats.likes"])).build
    one = build(b'{"id": 1, "stats": {"likes": 1, "x": 2}, "views": 5}', {})
    assert one.digest == build(b'{"stats":{"x":2,"likes":9},"id":1}', {}).digest
    assert one.digest != build(b'{"stats":{"x":3,"likes":9},"id":1}', {}).digest
