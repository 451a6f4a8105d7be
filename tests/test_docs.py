"""What the documents say exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from worker.core import metrics, settings
from worker.core.config import load
from worker.core.errors import Misconfigured

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [p for p in (*ROOT.glob("*.md"), *ROOT.glob("ops/**/*.md"), *ROOT.glob("sql/*.md")) if p.is_file()]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
ALERTS = (ROOT / "ops/prometheus/alerts.yml").read_text("utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def code(document: Path) -> str:
    """Everything in back-quotes or code blocks."""
    text = document.read_text("utf-8")
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`|^    [^\n]+$", text, re.DOTALL | re.MULTILINE))


def each_document(function):
    return pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))(function)


@each_document
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name}: no {target}"
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), f"{document.name}: no heading {target}"


@each_document
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code(document))) <= targets


@each_document
def test_environment_names_are_settings(document):
    for name in set(re.findall(r"\bTAILRACE_[A-Z_]*[A-Z]\b(?!\*)", document.read_text("utf-8"))) - {"TAILRACE_CONFIG", "TAILRACE_TEST_DATABASE_URL"}:
        section = name.removeprefix("TAILRACE_").split("__")[0].lower()
        if section in {"effects", "sources", "pipelines"} or name in (ROOT / "docker-compose.yml").read_text("utf-8"):
            continue
        try:
            load(settings.Settings, {name: "1"}, ROOT / "tests")
        except Misconfigured as error:
            pytest.fail(f"{document.name}: {error}")


def test_alerts_ask_for_metrics_that_exist():
    asked = set(re.findall(r"\b(tailrace_\w+?)(?:_bucket|_sum|_count)?\b(?=[{\[) ]|$)", "\n".join(re.findall(r"expr: (.+)", ALERTS))))
    known = set(re.findall(r'"(tailrace_\w+)"', inspect.getsource(metrics)))
    assert asked
    assert asked <= known


def test_alerts_lead_to_the_runbook():
    runbook = ROOT / "ops/runbook.md"
    if not runbook.exists():
        pytest.skip("ops/runbook.md is absent")
    wanted = set(re.findall(r"runbook: ops/runbook\.md#([\w-]+)", ALERTS))
    assert len(wanted) == ALERTS.count("- alert:")
    assert wanted <= anchors(runbook)


def test_the_tests_that_guard_the_invariants_exist():
    text = (ROOT / "ops/invariants.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", text)
    assert len(named) > 15
    for path, test in named:
        file = ROOT / path
        assert file.exists(), path
        assert not test or re.search(rf"def {test}\(", file.read_text("utf-8")), f"{path} has no {test}"
