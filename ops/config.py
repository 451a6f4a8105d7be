"""`tailrace config`: every setting, its value, where it comes from and what it means; secrets hidden."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, SecretStr

from ops.table import as_json, show
from worker.core.config import Loaded
from worker.core.db import shown
from worker.core.settings import Settings

_SECRET = ("secret", "token", "password", "api_key")


def every(settings: Settings, loaded: Loaded) -> list[dict[str, Any]]:
    return _walk(settings, loaded, "")


def _walk(model: BaseModel, loaded: Loaded, above: str) -> list[dict[str, Any]]:
    found = []
    values = {name: getattr(model, name) for name in type(model).model_fields} | (model.model_extra or {})
    for name, value in values.items():
        dotted = f"{above}{name}"
        field = type(model).model_fields.get(name)
        if isinstance(value, BaseModel):
            found += _walk(value, loaded, f"{dotted}.")
        elif isinstance(value, dict) and value and all(isinstance(v, BaseModel) for v in value.values()):
            for key, entry in value.items():
                found += _walk(entry, loaded, f"{dotted}.{key}.")
        else:
            origin = loaded.origin_of(dotted) or loaded.origin_of(_short(dotted)) or _of_a_part(dotted, loaded) or "default"
            found.append({"setting": dotted, "value": _hidden(name, value), "origin": origin, "meaning": (field.description or "") if field else ""})
    return found


def _of_a_part(dotted: str, loaded: Loaded) -> str:
    """Where the entries of a table of free names come from."""
    return next((origin for name, origin in loaded.origins.items() if name.startswith(f"{dotted}.")), "")


def _short(dotted: str) -> str:
    """`sources.files:inbox.path` is written `sources.inbox.path` in the file."""
    section, _, rest = dotted.partition(".")
    return f"{section}.{rest.partition(':')[2]}" if section == "sources" and ":" in rest else dotted


def _hidden(name: str, value: Any) -> Any:
    if isinstance(value, SecretStr):
        return shown(value.get_secret_value()) if name == "database_url" else "***"
    if any(word in name for word in _SECRET) and isinstance(value, str) and not name.endswith(("_env", "_file")):
        return "***"
    if isinstance(value, dict):
        return {k: _hidden(k, v) for k, v in value.items()}
    return str(value) if not isinstance(value, (int, float, bool, str, list, type(None))) else value


def config(settings: Settings, loaded: Loaded, *, json: bool) -> int:
    found = every(settings, loaded)
    if json:
        as_json(found)
    else:
        print(f"file: {loaded.path or 'none (tailrace.toml in this folder, or TAILRACE_CONFIG)'}\n")
        show([row | {"value": f"{row['value']:g}"} if isinstance(row["value"], float) else row for row in found], indent="")
    return 0
