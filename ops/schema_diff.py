"""How the outputs of two versions differ in shape: fields added, removed, retyped; by their schemas, else by what they gave lately."""

from __future__ import annotations

from typing import Any

from ops.chosen import Version
from ops.db import Connection, rows

Fields = dict[str, tuple[frozenset[str], bool]]  # types, and whether every output has it


def between(connection: Connection, old: Version, new: Version, sample: int) -> list[dict[str, Any]]:
    """Rows {field, change, old, new, breaking}. Breaking: whoever reads the field of the old version may not find what it expects."""
    before, after = _fields(connection, old, sample), _fields(connection, new, sample)
    if not before or not after:
        return []
    found = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        change, breaking = _judge(was, now)
        if change:
            found.append({"field": name, "change": change, "old": _said(was), "new": _said(now), "breaking": breaking})
    return found


def _judge(was: tuple[frozenset[str], bool] | None, now: tuple[frozenset[str], bool] | None) -> tuple[str, bool]:
    if was is None:
        return "added", False
    if now is None:
        return "removed", True
    if not now[0] <= was[0]:
        return "retyped", True
    if now[0] < was[0]:
        return "narrowed", False
    if was[1] and not now[1]:
        return "now optional", True
    return "", False


def _fields(connection: Connection, version: Version, sample: int) -> Fields:
    schema = version.spec.get("schema")
    if schema:
        return of_schema(schema)
    found = rows(connection, "select * from tailrace.output_fields(%s, %s)", [version.id, sample])
    return {r["field"]: (frozenset(r["types"]), r["present"] == r["outputs"]) for r in found}


def of_schema(schema: dict[str, Any]) -> Fields:
    """The top-level fields of a JSON schema; `integer` is a `number` with more to it."""
    required = set(schema.get("required", ()))
    return {name: (frozenset(_types(value, schema)), name in required) for name, value in schema.get("properties", {}).items()}


def _types(value: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    if ref := value.get("$ref"):
        return _types(schema.get("$defs", {}).get(ref.rpartition("/")[2], {}), schema)
    for union in ("anyOf", "oneOf"):
        if union in value:
            return set().union(*(_types(v, schema) for v in value[union]))
    given = value.get("type", "object" if "properties" in value else "any")
    return set(given) if isinstance(given, list) else {given}


def _said(field: tuple[frozenset[str], bool] | None) -> str:
    return "-" if field is None else " | ".join(sorted(field[0])) + ("" if field[1] else ", optional")
