"""The switch behind the crash points; what each point owes is shown in tests/flow/test_crashpoints.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.core.config import load
from worker.core.errors import Misconfigured
from worker.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PASSES = """
from worker.core.crashpoint import crashpoint
for n in range(4):
    print(n, flush=True)
    crashpoint("after-heal-before-next")
    crashpoint("after-settle-before-next")
"""


@pytest.mark.parametrize(
    ("asked", "printed", "code"),
    [("", "0123", 0), ("after-settle-before-next", "0", -signal.SIGKILL), ("after-settle-before-next:3", "012", -signal.SIGKILL)],
)
def test_the_process_ends_at_the_point_that_is_named_and_only_there(asked, printed, code):
    ended = subprocess.run(
        [sys.executable, "-c", PASSES], cwd=ROOT, env=os.environ | {"CRASHPOINT": asked}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert ended.stdout.split() == list(printed)
    assert ("this process ends after-settle-before-next" in ended.stderr) == bool(asked)


@pytest.mark.parametrize(
    ("asked", "hint"), [("after-setle-before-next", "'after-settle-before-next'"), ("after-settle-before-next:0", "NAME:3"), ("x:y", "NAME:3")]
)
def test_a_program_refuses_a_point_that_it_does_not_have(asked, hint, tmp_path):
    with pytest.raises(Misconfigured, match="CRASHPOINT") as refused:
        load(Settings, {"CRASHPOINT": asked}, tmp_path)
    assert hint in str(refused.value)
