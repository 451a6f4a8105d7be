"""The `tailrace` command in this process, on a database of the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ops import cli
from worker.core.options import guarded

CONFIG = """
[sources.inbox]
kind = "files"
path = "inbox"

[pipelines.p]
processor = "echo"

[effects.post]
sink = "jsonl"
path = "outbox.jsonl"
"""


@pytest.fixture
def tailrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], db_url: str) -> Callable[..., Any]:
    """`tailrace("status", "--json")` gives code, out, err and, with --json, the value."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", db_url)
    (tmp_path / "tailrace.toml").write_text(CONFIG)

    def run(*words: str, **env: str) -> SimpleNamespace:
        capsys.readouterr()
        with monkeypatch.context() as around:
            for name, value in env.items():
                around.setenv(name, value)
            try:
                code = guarded(lambda: cli.main(list(words)))
            except SystemExit as ended:
                code = int(ended.code or 0)
        shown = capsys.readouterr()
        return SimpleNamespace(code=code, out=shown.out, err=shown.err, value=json.loads(shown.out) if "--json" in words and shown.out else None)

    return run
