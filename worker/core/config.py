"""Where settings come from: tailrace.toml and the environment, merged, each value with its origin."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from worker.core import crashpoint
from worker.core.errors import Misconfigured, nearest
from worker.core.texts import storable

PREFIX = "TAILRACE_"
DEEPEST = 50  # tables in tables
FREE = frozenset({"sources", "effects"})  # their entries allow keys of their own kind, checked by the kind


@dataclass(slots=True)
class Loaded:
    """Merged values, nested by section; `origins` tells for each dotted name which variable or file it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    path: Path | None = None

    def origin_of(self, dotted: str) -> str:
        while dotted:
            if dotted in self.origins:
                return self.origins[dotted]
            dotted = dotted.rpartition(".")[0]
        return ""


def load(model: type[BaseModel], environ: dict[str, str] | None = None, cwd: Path | None = None) -> Loaded:
    """Reads file and environment; refuses every name that `model` does not know."""
    environ = dict(os.environ) if environ is None else environ
    _check_crashpoint(environ.get(crashpoint.VARIABLE, ""))
    loaded = Loaded()
    _read_file(loaded, environ, cwd or Path.cwd())
    _check_names(loaded.values, model, (), str(loaded.path))
    for name in sorted(n for n in environ if n.startswith(PREFIX) and n != f"{PREFIX}CONFIG"):
        _check_value(environ[name], f"environment variable {name}")
        _read_variable(loaded, model, name, environ[name])
    if url := environ.get("DATABASE_URL", "").strip():
        _check_value(url, "environment variable DATABASE_URL")
        loaded.values["database_url"] = url
        loaded.origins["database_url"] = "DATABASE_URL"
    return loaded


def _check_value(value: Any, where: str) -> None:
    """Whatever is configured can come to be stored in Postgres: refused is what it, or JSON, has no way to hold."""
    if isinstance(value, str) and not storable(value):
        raise Misconfigured(f"{where} holds a character that is no text (NUL, or bytes that are not UTF-8)", "write it in UTF-8")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Misconfigured(f"{where} is a number of more than 64 bits", "write a smaller one")
    if isinstance(value, float) and not math.isfinite(value):
        raise Misconfigured(f"{where} is {value}, which is no number", "leave it out, or write a number")


def _check_values(values: dict[str, Any], path: str) -> None:
    """All that a file holds. It is walked without recursion: a dotted name may have thousands of parts."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(values, ())]
    while waiting:
        value, above = waiting.pop()
        if len(above) > DEEPEST:
            raise Misconfigured(f"{path}: {'.'.join(above[:5])}... is nested more than {DEEPEST} deep", "write it flatter")
        _check_value(value, f"{path}: {'.'.join(above)}")
        if isinstance(value, dict):
            for name, inner in value.items():
                _check_value(name, f"{path}: the name {name!r}")
                waiting.append((inner, (*above, name)))
        elif isinstance(value, list):
            waiting += [(inner, (*above, str(n))) for n, inner in enumerate(value)]


def _check_crashpoint(text: str) -> None:
    """A point that does not exist would never be reached, and its test prove nothing."""
    try:
        name, _ = crashpoint.parse(text)
    except ValueError as error:
        raise Misconfigured(f"{crashpoint.VARIABLE}={text}: {error}", "write NAME, or NAME:3 for the third time") from error
    if text and name not in crashpoint.POINTS:
        raise Misconfigured(f"{crashpoint.VARIABLE}={text}: there is no such point", nearest(name, crashpoint.POINTS))


def _read_file(loaded: Loaded, environ: dict[str, str], cwd: Path) -> None:
    named = environ.get(f"{PREFIX}CONFIG")
    path = cwd / (named or "tailrace.toml")
    try:
        loaded.values = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        if named:
            raise Misconfigured(f"TAILRACE_CONFIG names {path}, which does not exist", "`tailrace init` writes a first one") from error
        return
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}", "TAILRACE_CONFIG names the file") from error
    except (ValueError, RecursionError) as error:  # also a number that is too long, brackets that are too deep
        raise Misconfigured(f"{path} is not valid TOML: {error}", "mend that line") from error
    _check_values(loaded.values, str(path))
    loaded.path = path.resolve()
    for dotted in _leaves(loaded.values, ()):
        loaded.origins[dotted] = str(path)


def _leaves(values: dict[str, Any], above: tuple[str, ...]) -> list[str]:
    found = []
    for name, value in values.items():
        found += _leaves(value, (*above, name)) if isinstance(value, dict) else [".".join((*above, name))]
    return found


def _entry_model(model: type[BaseModel], name: str) -> tuple[type[BaseModel] | None, bool]:
    """The model of a section, and whether the section is a table of named entries of it."""
    annotation = model.model_fields[name].annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    args: tuple[Any, ...] = getattr(annotation, "__args__", ())
    if len(args) == 2 and args[1] is type(None) and isinstance(args[0], type) and issubclass(args[0], BaseModel):  # noqa: PLR2004  Model | None
        return args[0], False
    if len(args) == 2 and isinstance(args[1], type) and issubclass(args[1], BaseModel):  # noqa: PLR2004  dict[str, Model]
        return args[1], True
    return None, False


def _check_names(values: dict[str, Any], model: type[BaseModel], above: tuple[str, ...], path: str) -> None:
    for name, value in values.items():
        if name not in model.model_fields:
            if above and above[0] in FREE:
                continue
            where = ".".join((*above, name))
            raise Misconfigured(f"{path}: unknown setting {where!r}", nearest(name, model.model_fields))
        inner, named = _entry_model(model, name)
        if inner is None:
            continue
        if not isinstance(value, dict):
            raise Misconfigured(f"{path}: {name} must be a table", f"write [{name}]")
        for key, entry in value.items() if named else [("", value)]:
            if not isinstance(entry, dict):
                raise Misconfigured(f"{path}: {name}.{key} must be a table", f"write [{name}.{key}]")
            _check_names(entry, inner, (*above, name, *([key] if named else [])), path)


def _same(given: str, known: str) -> bool:
    return given.lower() == "".join(c if c.isalnum() else "_" for c in known).lower()


def _read_variable(loaded: Loaded, model: type[BaseModel], variable: str, value: str) -> None:
    """TAILRACE_WORKER__PORT=9 -> worker.port; TAILRACE_EFFECTS__DM=1 -> effects.dm.open."""
    parts = variable[len(PREFIX) :].split("__")
    section = parts[0].lower()
    if section not in model.model_fields or section == "database_url":
        known = [f"{PREFIX}{n.upper()}" for n in model.model_fields if n != "database_url"]
        raise Misconfigured(f"unknown environment variable {variable}", nearest(variable, [*known, f"{PREFIX}CONFIG"]))
    inner, named = _entry_model(model, section)
    path = [section]
    if named:
        if len(parts) == 1:
            raise Misconfigured(f"{variable} needs a name", f"{PREFIX}{section.upper()}__NAME")
        entries = loaded.values.setdefault(section, {})
        entry = next((known for known in entries if _same(parts[1], known)), None)
        if entry is None:
            what = "gate" if section == "effects" else section[:-1]
            raise Misconfigured(f"{variable}: there is no {what} {parts[1].lower()!r} in the configuration", nearest(parts[1].lower(), entries))
        path += [entry]
        rest = [p.lower() for p in parts[2:]] or (["open"] if section == "effects" else [])
    else:
        rest = [p.lower() for p in parts[1:]]
    if inner is not None:
        if not rest:
            raise Misconfigured(f"{variable} names a section", f"{variable}__NAME sets a value in it")
        if rest[0] not in inner.model_fields and section not in FREE and rest[0] != "options":
            raise Misconfigured(f"unknown environment variable {variable}", nearest(rest[0], inner.model_fields))
        path += rest
    elif rest:
        raise Misconfigured(f"unknown environment variable {variable}", f"{PREFIX}{section.upper()} takes a value")
    _put(loaded, path, variable, value)


def _put(loaded: Loaded, path: list[str], variable: str, value: str) -> None:
    target = loaded.values
    for n, name in enumerate(path[:-1], 1):
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise Misconfigured(f"{variable}: {'.'.join(path[:n])} is a value, there is nothing in it", f"set {PREFIX}{'__'.join(path[:n]).upper()}")
    target[path[-1]] = value
    loaded.origins[".".join(path)] = variable
