"""Gold files, and how figures and texts of others are written."""

from __future__ import annotations

import pytest

from ops.compare import gold
from ops.compare.words import percent, visible
from worker.core.errors import Misconfigured


def test_a_gold_file_is_read_as_it_is_meant(tmp_path):
    (tmp_path / "g.jsonl").write_text('{"raw_id": 7, "kind": "NaN", "n": null}\n\n{"source": "files:a", "external_id": 12, "kind": "\\\\u0000"}\n')
    rows, loose = gold.read(tmp_path / "g.jsonl")
    assert rows == ({"raw_id": 7, "value": {"kind": "NaN", "n": None}}, {"source": "files:a", "external_id": "12", "value": {"kind": "\\u0000"}})
    assert not loose
    (tmp_path / "g.csv").write_text('\ufeffraw_id,n,yes,text,none\n7,1.50,true,"a ""b""",\n')
    assert gold.read(tmp_path / "g.csv") == (({"raw_id": 7, "value": {"n": 1.5, "yes": True, "text": 'a "b"', "none": None}},), True)


@pytest.mark.parametrize(("name", "text", "wrong"), [
    ("g.txt", "", "ends in"),
    ("g.jsonl", '{"raw_id": 1}\n{"kind": 1}', "line 2"),
    ("g.jsonl", "[1]", "line 1"),
    ("g.jsonl", '{"raw_id": 1', "line 1"),
    ("g.jsonl", '{"raw_id": 1, "n": 1e999}', "line 1"),
    ("g.jsonl", '{"raw_id": 1, "n": "\\u0000"}', "NUL"),
    ("g.jsonl", '{"raw_id": 1, "n": "\\ud800"}', "line 1"),
    ("g.jsonl", '{"raw_id": 99999999999999999999}', "line 1"),
    ("g.csv", "raw_id,n\n1\n", "line 2"),
    ("g.csv", "n\n1\n", "line 2"),
])  # fmt: skip
def test_what_is_wrong_in_a_gold_file_is_named(tmp_path, name, text, wrong):
    (tmp_path / name).write_text(text)
    with pytest.raises(Misconfigured, match=wrong):
        gold.read(tmp_path / name)


def test_only_all_is_a_hundred_percent():
    assert [percent(x) for x in (1, 0.99999, 0.5, 0.000001, 0, None)] == ["100.0 %", "99.9 %", "50.0 %", "0.1 %", "0.0 %", "-"]


def test_what_steers_a_terminal_is_written_as_its_code():
    assert visible("a\x1b[31m\u202eb\x9b\u200b\n") == "a\\u001b[31m\\u202eb\\u009b\\u200b\n"
