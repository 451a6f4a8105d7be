"""From the configuration to what this process can run: processors found, options checked, versions registered."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from pydantic import ValidationError

from worker.core import loading
from worker.core.context import Context
from worker.core.crashpoint import crashpoint
from worker.core.db import mapped
from worker.core.errors import Misconfigured, nearest
from worker.core.events import emit
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
from worker.fingerprint import Parts, changes, parts_of
from worker.processors import Processor, registered

BOXED = ("rules", "echo")


@dataclass(frozen=True, slots=True)
class Runnable:
    """One version that this process can run."""

    pipeline: str
    processor: Processor
    spec: PipelineSpec
    version: str
    version_id: int
    state: str
    options: Any
    slice_size: int
    concurrency: int
    deadline: float
    prompt: str | None = None
    sampled: Iterator[int] = field(default_factory=count, compare=False)  # inputs of which the text was considered for keeping

    def context(self, attempt: int = 0, lane: int = 0) -> Context:
        return Context(self.pipeline, self.version, self.options, attempt, lane, self.spec.model, self.prompt)


def find(pipeline: str, spec: PipelineSpec, folder: Path) -> Processor:
    """Loads the processor of a pipeline: one in the box, a module, `module:name` or a `.py` file relative to the configuration."""
    where, _, name = spec.processor.partition(":")
    before = set(registered())
    if where in BOXED:
        importlib.import_module(f"worker.processors.{where}")
        return registered()[where]
    try:
        module = _load_file(folder / where) if where.endswith(".py") else loading.module(where)
    except (ImportError, OSError) as error:
        raise Misconfigured(f"pipelines.{pipeline}: cannot load processor {spec.processor!r}: {error}", f"in the box: {', '.join(BOXED)}") from error
    found = {n: p for n, p in registered().items() if p.function.__module__ == module.__name__ or n not in before}
    wanted = name or (pipeline if pipeline in found else next(iter(found), "") if len(found) == 1 else "")
    if wanted not in found:
        raise Misconfigured(
            f"pipelines.{pipeline}: {where} registers no processor {wanted or 'that can be chosen'}", nearest(wanted or pipeline, found)
        )
    return found[wanted]


def _load_file(path: Path) -> Any:
    path = path.resolve()
    name = f"tailrace_processor_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what it imports beside itself
    spec.loader.exec_module(module)
    return module


def _options(pipeline: str, spec: PipelineSpec, found: Processor) -> Any:
    if found.options is None:
        return spec.options
    try:
        return found.options.model_validate(spec.options)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(p) for p in problem["loc"])
        hint = nearest(str(problem["loc"][-1]), found.options.model_fields) if problem["type"] == "extra_forbidden" else "see the processor's options"
        raise Misconfigured(f"pipelines.{pipeline}.options.{where}: {problem['msg']}", hint) from error


def prompt_of(pipeline: str, spec: PipelineSpec, found: Processor, folder: Path) -> str | None:
    """The text of the configured prompt. Raises Misconfigured where it is missing, or has no place for an input of the processor."""
    text = spec.prompt
    if spec.prompt_file is not None:
        try:
            text = (folder / spec.prompt_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"pipelines.{pipeline}.prompt_file: {error}", "it is read beside the configuration") from error
    if text is not None:
        for name in found.inputs:
            if "{" + name + "}" not in text:
                raise Misconfigured(
                    f"pipelines.{pipeline}: the prompt has no {{{name}}}, so the model would be asked without its input",
                    f"write {{{name}}} where the text of the record belongs",
                )
    return text


def _wants(sources: list[str]) -> list[str]:
    """Globs as LIKE patterns."""
    return [s.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%").replace("?", "_") for s in sources]


def versions_of(settings: Settings, only: str | None, version: str | None) -> list[tuple[str, PipelineSpec, str | None]]:
    """(pipeline, its configuration, a name that overrides the configured one) of everything to run: pipelines and their variants."""
    if only and only not in settings.pipelines:
        raise Misconfigured(f"there is no pipeline {only!r}", nearest(only, settings.pipelines))
    chosen = {n: s for n, s in settings.pipelines.items() if only in (None, n)}
    override = version or settings.pipeline_version
    if override and len(chosen) > 1:
        raise Misconfigured(f"version {override!r} is meant for one pipeline, {len(chosen)} are configured", "name it with --pipeline")
    found: list[tuple[str, PipelineSpec, str | None]] = []
    for name, spec in chosen.items():
        if override:
            found.append((name, spec.with_variant(override), None) if override in spec.variants else (name, spec, override))
        else:
            found += [(name, spec, None), *((name, spec.with_variant(v), None) for v in spec.variants)]
    return found


async def register(pool: asyncpg.Pool, settings: Settings, folder: Path, only: str | None, version: str | None, actor: str) -> list[Runnable]:
    """Registers the configured pipelines and variants (or `only` one) and returns what this process can run."""
    return [
        await register_one(pool, name, spec, find(name, spec, folder), override, actor, folder)
        for name, spec, override in versions_of(settings, only, version)
    ]


def name_of(pipeline: str, spec: PipelineSpec, found: Processor, folder: Path) -> str:
    """The name of the version that this configuration stands for."""
    return spec.version or found.version or f"v-{parts_of(spec, found, prompt_of(pipeline, spec, found, folder)).fingerprint[:12]}"


async def register_one(
    pool: asyncpg.Pool, pipeline: str, spec: PipelineSpec, found: Processor, override: str | None, actor: str, folder: Path = Path()
) -> Runnable:  # fmt: skip
    options, prompt = _options(pipeline, spec, found), prompt_of(pipeline, spec, found, folder)
    parts = parts_of(spec, found, prompt)
    name = override or name_of(pipeline, spec, found, folder)
    size = spec.slice_size or found.slice_size
    stored = parts.facts | {k: getattr(spec, k) for k in ("max_attempts", "retry_base", "retry_after", "retry_rounds")}
    await pool.execute("select tailrace.store_texts($1)", orjson.dumps(parts.texts).decode())
    try:
        with mapped():
            row = await pool.fetchrow(
                "select * from tailrace.register_version($1, $2, $3, $4, $5, $6, $7, $8)",
                pipeline, name, parts.fingerprint, orjson.dumps(stored).decode(), size, _wants(spec.sources), spec.promote, actor,
            )  # fmt: skip
    except Misconfigured as refused:
        raise await _explained(refused, pool, parts) from refused
    crashpoint("after-register-before-claim")
    emit("version.registered", pipeline=pipeline, version=name, id=row["version_id"], state=row["state"], created=row["created"], live=row["live"])
    concurrency = spec.concurrency or found.concurrency or (8 if inspect.iscoroutinefunction(found.function) else 1)
    deadline = spec.deadline or found.deadline
    return Runnable(pipeline, found, spec, name, row["version_id"], row["state"], options, size, concurrency, deadline, prompt)


async def _explained(refused: Misconfigured, pool: asyncpg.Pool, given: Parts) -> Misconfigured:
    """A name that stands for something else already: with what differs, line by line."""
    detail = getattr(refused.__cause__, "detail", None)
    if not detail:
        return refused
    stored = {k: v for k, v in orjson.loads(detail)["stored"].items() if k in given.facts}
    hashes = [h for h in (stored.get("prompt"), *(stored.get("code") or {}).values()) if isinstance(h, str)]
    texts = dict(await pool.fetch("select hash, text from tailrace.texts where hash = any ($1)", hashes))
    lines = changes(stored, given.facts, texts | given.texts)
    return Misconfigured(f"{refused.args[0]}; what differs:\n  " + "\n  ".join(lines), refused.hint)
