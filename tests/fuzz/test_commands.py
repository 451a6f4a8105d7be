"""Any words after the names of the three programs: understood, or a message with exit code 2. Never a traceback."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import collector.cli
import ops.cli
import worker.cli
from tests.fuzz.hostile import often, texts
from worker.core import options
from worker.core.times import parse_window

WORDS = ["--json", "--dry-run", "--source", "--since", "--until", "--max-records", "--chunk-size", "--pipeline", "--version", "--max-jobs", "--percent", "--raw-id", "--limit", "--budget", "--time", "--plan", "--sample",
         "--wait", "--force", "--failed", "--all", "--to", "--", "-", "--help=x", "1", "0", "-1", "²", "9" * 5000, "1e400", "nan", "[1", "[[]]", '["a"]', "[" * 3000, "a,b", "x", "2026-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
         "list", "explain", "release", "resolve", "cancel", "pause", "resume", "reset", "report"]  # fmt: skip
COMMANDS = {
    collector.cli: ["live", "backfill", "enqueue", "liev"],
    worker.cli: ["run", "drain", "dran"],
    ops.cli: [
        "init",
        "up",
        "migrate",
        "status",
        "sources",
        "runs",
        "retry",
        "stale",
        "effects",
        "explain",
        "config",
        "doctor",
        "verify",
        "plan",
        "replay",
        "compare",
        "promote",
        "rollback",
        "prune",
        "export",
        "web",
        "x",
    ],
}
words = st.lists(st.sampled_from(WORDS) | texts, max_size=5)


@often(120)
@given(st.sampled_from(list(COMMANDS)), st.data())
def test_any_words(capsys, program, data):
    said(program, [*data.draw(st.lists(st.sampled_from(COMMANDS[program]), max_size=1)), *data.draw(words)], capsys)


@pytest.mark.parametrize(("program", "given"), [
    (collector.cli, ["backfill", "--source", "[1"]), (collector.cli, ["backfill", "--source", "[[]]"]), (collector.cli, ["enqueue", "--source", "[" * 5000]), (collector.cli, ["backfill", "--max-records", "²"]),
    (worker.cli, ["drain", "--max-jobs", "9" * 5000]), (ops.cli, ["explain", "9" * 5000]), (ops.cli, ["explain", str(2**63)]), (ops.cli, ["retry", "--raw-id", str(2**70)]), (ops.cli, ["effects", "release", str(-(2**70))]),
    (ops.cli, ["runs", "pause", str(2**64)]), (ops.cli, ["effects", "list", "--limit", str(2**64)]), (ops.cli, ["promote", "p", "v", "--percent", "²"]), (ops.cli, ["replay", "--budget", "nan"]),
])  # fmt: skip
def test_odd_words_are_refused(capsys, program, given):
    assert said(program, given, capsys) == 2


def said(program, given, capsys):
    """The exit code; None where the words are understood."""

    def main():
        found = program.parse(given)
        parse_window(getattr(found, "since", None), getattr(found, "until", None))
        assert all(isinstance(name, str) for name in getattr(found, "source", None) or [])
        return -1

    try:
        code = options.guarded(main)
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr()
    assert code in {-1, 0, 2}
    assert "Traceback" not in told.err
    assert code != 2 or told.err.strip()
    return code
