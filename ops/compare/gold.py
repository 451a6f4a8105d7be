"""A gold file: records with the values that a right version gives. `.jsonl` (one object a line) or `.csv` (a row under names).

A row has `raw_id`, or `source` and `external_id`; what else it has are fields and their values. A value of null (in a .csv: an empty cell) says that there is
nothing to be found. In a .csv numbers, true and false mean themselves or the same text.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.core.errors import Misconfigured

_KEYS = ("raw_id", "source", "external_id")


def read(path: Path) -> tuple[tuple[dict[str, Any], ...], bool]:
    """The rows {raw_id} or {source, external_id}, with `value`; and whether values are texts. Raises Misconfigured with the line that is wrong."""
    found = {".jsonl": _lines, ".csv": _cells}.get(path.suffix.lower())
    if found is None:
        raise Misconfigured(f"{path}: a gold file ends in .jsonl or .csv")
    try:
        rows = tuple(_row(path, n, given) for n, given in found(path))
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Misconfigured(f"{path}: {error}") from error
    return rows, path.suffix.lower() == ".csv"


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for n, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield n, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise Misconfigured(f"{path}, line {n}: {error}") from error


def _cells(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for row in (reader := csv.DictReader(lines, strict=True)):
            if None in row or None in row.values():
                raise Misconfigured(f"{path}, line {reader.line_num}: as many cells as names, please")
            yield reader.line_num, {k: v if k in _KEYS else _value(v) for k, v in row.items()}


def _value(cell: str) -> Any:
    if not cell:
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, (bool, int, float)) and value == value and abs(value) != float("inf") else cell  # noqa: PLR0124  NaN


def _row(path: Path, n: int, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Misconfigured(f"{path}, line {n}: an object, please")
    value = {k: v for k, v in given.items() if k not in _KEYS}
    if "\\u0000" in (text := json.dumps(value)) or "NaN" in text or "Infinity" in text:
        raise Misconfigured(f"{path}, line {n}: no output can hold such a value (a NUL character, NaN or Infinity)")
    if str(given.get("raw_id") or "").isdecimal():
        return {"raw_id": int(given["raw_id"]), "value": value}
    if given.get("source") and given.get("external_id") not in (None, ""):
        return {"source": str(given["source"]), "external_id": str(given["external_id"]), "value": value}
    raise Misconfigured(f"{path}, line {n}: `raw_id`, or `source` and `external_id`, please")
