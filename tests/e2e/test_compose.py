import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compose.py")


@pytest.mark.e2e
@pytest.mark.slow
def test_compose_brings_the_main_job_through_a_crash():
    if not shutil.which("docker"):
        pytest.skip("needs a Docker engine")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
