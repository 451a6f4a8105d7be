"""`make matrix`: the suite and the chaos run on other servers and other ways to reach them.

    python tests/long/matrix.py            all cells
    python tests/long/matrix.py part       what fits into `make test`: the SQL and the programs on another major version, where one is installed
    python tests/long/matrix.py NAME ...   some cells

Exit code 0 when every cell passed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "chaos")]

from server import DATABASE, Server  # noqa: E402  after the path

from worker.core.binaries import binaries  # noqa: E402  as above

SUITE = ("tests",)
PROGRAMS = ("tests/flow",)  # what starts programs, which is what a pooler stands before
PART = ("tests/sql", "tests/worker/test_outcomes.py", "tests/worker/test_effects.py", "tests/collector/test_live.py", "tests/ops/test_commands.py")


@dataclass(frozen=True)
class Cell:
    """A way to run. `old`: a server of another major version than the embedded one."""

    name: str
    old: bool = False
    sync: str = "on"
    pooler: bool = False
    env: dict[str, str] = field(default_factory=dict)
    tests: tuple[str, ...] = SUITE
    chaos: bool = True


CELLS = (
    Cell("embedded", chaos=True),
    Cell("old", old=True),
    Cell("pooler", pooler=True, tests=PROGRAMS),
    Cell("old-pooler", old=True, pooler=True, tests=PROGRAMS),
    Cell("unprepared", env={"TEST_PREPARE": "0"}, chaos=False),
    Cell("async", sync="off"),
    Cell("old-async", old=True, sync="off", tests=PROGRAMS),
)


def installed() -> Path | None:
    """The programs of a server that the distribution brought, or that PGBIN names."""
    if named := os.environ.get("PGBIN"):
        return Path(named)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    return found[0].parent if found else Path(on_path).parent if on_path else None


def suite(cell: Cell, bin_dir: Path, tests: tuple[str, ...]) -> bool:
    """pytest on a server of its own, made for this cell."""
    home = Path(tempfile.mkdtemp(prefix="tailrace-matrix-"))
    home.chmod(0o755)
    server = Server(home, bin_dir, sync=cell.sync, pooler=cell.pooler, megabytes=4000)
    try:
        server.create({"max_connections": "120", "fsync": "off", "synchronous_commit": cell.sync, "max_wal_size": "1GB"})
        server.start_pooler("*")
        env = os.environ | cell.env | {"TAILRACE_TEST_DATABASE_URL": server.url().replace(f"/{DATABASE}", "/postgres")}
        if cell.pooler:
            env["TEST_POOLER"] = f"127.0.0.1:{server.pooler_port}"
        print(f"== {cell.name}: PostgreSQL {server.version()}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", os.environ.get("JOBS", "2"), "--dist", "loadscope", *tests]
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0
    finally:
        server.remove()
        shutil.rmtree(home, ignore_errors=True)


def chaos(cell: Cell, bin_dir: Path) -> bool:
    env = os.environ | {"PGBIN": str(bin_dir), "SYNC": cell.sync, "POOLER": "1" if cell.pooler else ""}
    print(f"== {cell.name}: chaos", flush=True)
    return subprocess.run([sys.executable, "tests/chaos/driver.py"], cwd=ROOT, env=env, check=False).returncode == 0


def main(asked: list[str]) -> int:
    part = asked == ["part"]
    chosen = [Cell("old", old=True, tests=PART, chaos=False)] if part else [c for c in CELLS if not asked or c.name in asked]
    if unknown := set(asked) - {"part"} - {c.name for c in CELLS}:
        print(f"error: there is no cell {', '.join(sorted(unknown))}; known: {', '.join(c.name for c in CELLS)}", file=sys.stderr)
        return 2
    home, old = Path(tempfile.gettempdir()) / "tailrace-chaos" / "data", installed()
    home.parent.mkdir(mode=0o755, exist_ok=True)
    outcomes = []
    for cell in chosen:
        if cell.old and old is None:
            print(f"== {cell.name}: left out, no other PostgreSQL is installed (PGBIN= names one)", flush=True)
            continue
        bin_dir = old if cell.old and old else binaries(home)
        begun = time.monotonic()
        fine = suite(cell, bin_dir, cell.tests)
        outcomes.append((cell.name, "suite", fine, time.monotonic() - begun))
        if cell.chaos and not part:
            begun = time.monotonic()
            outcomes.append((cell.name, "chaos", chaos(cell, bin_dir), time.monotonic() - begun))
    for name, what, fine, seconds in outcomes:
        print(f"{name:12} {what:6} {'passed' if fine else 'FAILED'}  {seconds:.0f} s")
    return 0 if all(fine for _, _, fine, _ in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
