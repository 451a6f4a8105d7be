"""What a version is made of: code, prompt, output schema, model, parameters. Any change of it is another version."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from worker.core.specs import PipelineSpec
from worker.processors import Processor


@dataclass(frozen=True, slots=True)
class Parts:
    """`facts` are small and compared; `texts` are what their hashes stand for."""

    facts: dict[str, Any]
    texts: dict[str, str]

    @property
    def fingerprint(self) -> str:
        return _hash(orjson.dumps(self.facts, option=orjson.OPT_SORT_KEYS))


def parts_of(spec: PipelineSpec, found: Processor, prompt: str | None) -> Parts:
    """Of a processor under this configuration; `prompt` is the text of the configured prompt."""
    texts: dict[str, str] = {}

    def kept(text: str) -> str:
        digest = _hash(text.encode("utf-8", "surrogatepass"))
        texts[digest] = text
        return digest

    code = {"": found.code} if found.code is not None else dict(_sources(found))
    facts = {
        "processor": found.name,
        "code": {name: kept(text) for name, text in sorted(code.items())},
        "options": spec.options,
        "model": spec.model,
        "prompt": kept(prompt) if prompt is not None else None,
        "texts": [kept(text) for text in found.fingerprint],
        "schema": found.output.model_json_schema() if found.output else None,
    }
    return Parts(facts, texts)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sources(found: Processor) -> Iterator[tuple[str, str]]:
    """The file of the processor and those of its own folder (or package) that it imports, directly or not: name and text."""
    module = inspect.getmodule(found.function)
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        yield "", inspect.getsource(found.function)
        return
    first = Path(file).resolve()
    top = (module.__package__ or "").partition(".")[0]
    root = next((p for p in first.parents if p.name == top), first.parent) if top else first.parent
    waiting, seen = [(first, module.__package__ or "")], {first}
    while waiting:
        path, package = waiting.pop()
        text = path.read_text("utf-8")
        yield str(path.relative_to(root)), text
        for other, inside in _imported(text, package, root):
            if other not in seen:
                seen.add(other)
                waiting.append((other, inside))


def _imported(text: str, package: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Files below `root` that a module's text imports, with the package that each is in."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            stem = (f"{base}.{node.module}" if base and node.module else base or node.module or "") if node.level else node.module or ""
            names = [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
        for name in names:
            path = _file_of(name, root)
            if path is not None:
                yield path, name if path.name == "__init__.py" else name.rpartition(".")[0]


def _file_of(name: str, root: Path) -> Path | None:
    beside = root.joinpath(*name.split("."))
    for path in (beside.with_suffix(".py"), beside / "__init__.py"):
        if path.is_file():
            return path
    try:
        spec = importlib.util.find_spec(name) if name.partition(".")[0] not in sys.stdlib_module_names else None
    except (ImportError, ValueError, AttributeError):
        return None
    found = Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None
    return found if found and root in found.parents else None


def changes(stored: Mapping[str, Any], given: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """What differs between two sets of facts, for people; texts line by line where they are known."""
    lines: list[str] = []
    for name in sorted(stored.keys() | given.keys()):
        before, after = stored.get(name), given.get(name)
        if before == after:
            continue
        if name == "prompt":
            lines += _text_diff("prompt", before, after, texts)
        elif isinstance(before or {}, dict) and isinstance(after or {}, dict):
            lines += _table_diff(name, before or {}, after or {}, texts)
        else:
            lines.append(f"{name}: {_said(before)} -> {_said(after)}")
    return lines


def _table_diff(name: str, before: Mapping[str, Any], after: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            if name == "code":
                lines += _text_diff(key or "code", before.get(key), after.get(key), texts)
            else:
                lines.append(f"{name}.{key}: {_said(before.get(key))} -> {_said(after.get(key))}")
    return lines


def _text_diff(what: str, before: Any, after: Any, texts: Mapping[str, str]) -> list[str]:
    old, new = texts.get(before or "", ""), texts.get(after or "", "")
    if (before and not old) or (after and not new):
        return [f"{what} is another text (sha256 {str(before)[:12]} -> {str(after)[:12]})"]
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), f"{what} (stored)", f"{what} (given)", lineterm="", n=1))


def _said(value: Any) -> str:
    return "nothing" if value is None else orjson.dumps(value).decode()[:200]
