"""The budgets and rules of the house. Limits only ever go down."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from functools import cache
from pathlib import Path

import pytest

from worker.core import crashpoint, events

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("collector", "worker", "ops")
FOLDERS = {"collector", "worker", "ops", "sql", "tests"}
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 200, 40, 8
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", r"\bXX" + r"X\b", "NotImplemented" + "Error")))
KEYWORDS = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|CREATE|TABLE|FUNCTION|RETURNS|BEGIN|VALUES|JOIN|ORDER BY|GROUP BY|GRANT|ALTER|DROP)\b"
)


@cache
def sources(*folders: str) -> tuple[Path, ...]:
    return tuple(sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def functions() -> list[tuple[int, str]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(n, p) for p in sources(*PROGRAMS) for n in ast.walk(parsed(p)) if isinstance(n, kinds)]
    return sorted(((body_lines(n), f"{shown(p)}:{n.lineno} {n.name}") for n, p in found), reverse=True)


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Each call of a file with the last part of the called name."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found.append((name, node))
    return found


def test_files_are_short():
    long = {shown(p): n for p in sources(*PROGRAMS) if (n := len(p.read_text("utf-8").splitlines())) > FILE_LINES}
    assert not long, f"split these, the limit is {FILE_LINES} lines: {long}"


def test_functions_are_short():
    long = [f"{name}: {lines}" for lines, name in functions() if lines > FUNCTION_LINES]
    assert not long, f"split these, the limit is {FUNCTION_LINES} lines: {long}"


def test_the_median_function_is_tiny(capsys):
    found = functions()
    median = statistics.median(lines for lines, _ in found)
    with capsys.disabled():
        print(f"\n  {len(found)} functions, median {median:g} lines; longest: " + ", ".join(f"{name.split(' ')[1]} {n}" for n, name in found[:5]))
    assert median <= MEDIAN_LINES


def test_nothing_is_added_at_the_top():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in listed.stdout.split("\0") if "/" in name}
    assert {f for f in folders if not f.startswith(".")} <= FOLDERS


def test_nothing_is_left_unfinished():
    files = [*sources(*PROGRAMS, "tests"), *(ROOT / "sql").rglob("*.sql")]
    found = [f"{shown(p)}:{n}" for p in files for n, line in enumerate(p.read_text("utf-8").splitlines(), 1) if UNFINISHED.search(line)]
    assert not found


def test_no_test_sleeps():
    found = [f"{shown(p)}:{node.lineno}" for p in sources("tests") for name, node in calls(p) if name == "sleep"]
    assert not found, "wait for a condition with `eventually`"


def test_every_event_is_declared_and_every_declared_event_is_emitted():
    emitted, strings = {}, set()
    for path in sources(*PROGRAMS):
        for name, node in calls(path):
            if name == "emit" and node.args and isinstance(node.args[0], ast.Constant):
                emitted[node.args[0].value] = f"{shown(path)}:{node.lineno}"
        if path.name not in {"events.py", "log.py"}:
            strings |= {n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    undeclared = {name: where for name, where in emitted.items() if name not in events.NAMES}
    assert not undeclared, "declare these in worker/core/events.py"
    unused = {n for n in events.NAMES if n not in emitted and n not in strings}
    assert not unused, "declared in events.py, emitted nowhere"


def test_every_crash_point_stands_once_in_the_code():
    passed = [node.args[0] for p in sources(*PROGRAMS) for name, node in calls(p) if name == "crashpoint"]
    assert all(isinstance(point, ast.Constant) for point in passed), "name it where it stands"
    assert sorted(point.value for point in passed) == sorted(crashpoint.POINTS), "declare it in worker/core/crashpoint.py, with what recovery owes"


def test_metrics_are_made_in_one_file():
    makers = {"Counter", "Gauge", "Histogram", "Summary", "GaugeMetricFamily", "CounterMetricFamily"}
    made = [shown(p) for p in sources(*PROGRAMS) for name, _ in calls(p) if name in makers and "prometheus_client" in p.read_text("utf-8")]
    assert set(made) <= {"worker/core/metrics.py"}


def test_only_one_file_writes_logs():
    found = [shown(p) for p in sources(*PROGRAMS) if re.search(r"^\s*(import|from) (structlog|logging)\b", p.read_text("utf-8"), re.MULTILINE)]
    assert set(found) <= {"worker/core/log.py"}, "emit an event instead"


def sql_code(path: Path) -> str:
    """The file without comments and quoted strings."""
    return re.sub(r"'(?:[^']|'')*'", "''", re.sub(r"--[^\n]*", "", path.read_text("utf-8")))


def test_sql_is_lower_case():
    found = {shown(p): sorted(set(KEYWORDS.findall(sql_code(p)))) for p in sorted((ROOT / "sql").rglob("*.sql")) if KEYWORDS.search(sql_code(p))}
    assert not found


def test_every_sql_function_is_in_the_readme():
    readme = ROOT / "sql" / "README.md"
    if not readme.exists():
        pytest.skip("sql/README.md is absent")
    known = set(re.findall(r"\w+", readme.read_text("utf-8")))
    texts = [p.read_text("utf-8") for p in (ROOT / "sql" / "functions").glob("*.sql")]
    defined = {name for text in texts for name in re.findall(r"create or replace function tailrace\.(\w+)", text)}
    assert not defined - known, "say in sql/README.md what these do"
