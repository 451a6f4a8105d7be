"""From the configuration to what this process can run: processors found, options checked, versions registered."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from pydantic import ValidationError

from worker.core.db import mapped
from worker.core.errors import Misconfigured, nearest
from worker.core.events import emit
from worker.core.models import Context
from worker.core.settings import Settings
from worker.core.specs import PipelineSpec
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

    def context(self, attempt: int = 0, lane: int = 0) -> Context:
        return Context(self.pipeline, self.version, self.options, attempt, lane)


def find(pipeline: str, spec: PipelineSpec, folder: Path) -> Processor:
    """Loads the processor of a pipeline: one in the box, a module, `module:name` or a `.py` file relative to the configuration."""
    where, _, name = spec.processor.partition(":")
    before = set(registered())
    if where in BOXED:
        importlib.import_module(f"worker.processors.{where}")
        return registered()[where]
    try:
        module = _load_file(folder / where) if where.endswith(".py") else importlib.import_module(where)
    except (ImportError, FileNotFoundError) as error:
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


def describe(spec: PipelineSpec, found: Processor) -> tuple[str, dict[str, Any]]:
    """The fingerprint of a version, and what it is made of: code, options, further texts."""
    code = found.code or inspect.getsource(inspect.getmodule(found.function) or found.function)
    parts = {
        "processor": found.name,
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "options": spec.options,
        "texts": [hashlib.sha256(t.encode()).hexdigest() for t in found.fingerprint],
    }
    digest = hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return digest, parts


def _wants(sources: list[str]) -> list[str]:
    """Globs as LIKE patterns."""
    return [s.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%").replace("?", "_") for s in sources]


async def register(pool: asyncpg.Pool, settings: Settings, folder: Path, only: str | None, version: str | None, actor: str) -> list[Runnable]:
    """Registers the configured pipelines (or `only` one) and returns what this process can run."""
    if only and only not in settings.pipelines:
        raise Misconfigured(f"there is no pipeline {only!r}", nearest(only, settings.pipelines))
    chosen = {n: s for n, s in settings.pipelines.items() if only in (None, n)}
    override = version or settings.pipeline_version
    if override and len(chosen) > 1:
        raise Misconfigured(f"version {override!r} is meant for one pipeline, {len(chosen)} are configured", "name it with --pipeline")
    return [await _register(pool, name, spec, find(name, spec, folder), override, actor) for name, spec in chosen.items()]


async def _register(pool: asyncpg.Pool, pipeline: str, spec: PipelineSpec, found: Processor, override: str | None, actor: str) -> Runnable:
    options = _options(pipeline, spec, found)
    fingerprint, parts = describe(spec, found)
    name = override or spec.version or found.version or f"v-{fingerprint[:12]}"
    size = spec.slice_size or found.slice_size
    stored = parts | {k: getattr(spec, k) for k in ("max_attempts", "retry_base", "retry_after", "retry_rounds")}
    with mapped():
        row = await pool.fetchrow(
            "select * from tailrace.register_version($1, $2, $3, $4, $5, $6, $7, $8)",
            pipeline, name, fingerprint, orjson.dumps(stored).decode(), size, _wants(spec.sources), spec.promote, actor,
        )  # fmt: skip
    emit("version.registered", pipeline=pipeline, version=name, id=row["version_id"], state=row["state"], created=row["created"], live=row["live"])
    concurrency = spec.concurrency or found.concurrency or (8 if inspect.iscoroutinefunction(found.function) else 1)
    return Runnable(pipeline, found, spec, name, row["version_id"], row["state"], options, size, concurrency, spec.deadline or found.deadline)
