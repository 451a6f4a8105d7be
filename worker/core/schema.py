"""Which SQL belongs to this program: the files of sql/, read in order."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "sql"


@dataclass(frozen=True, slots=True)
class SqlFile:
    """One numbered file: `0001_core.sql` is number 1, name `core`."""

    number: int
    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@functools.cache
def files(folder: str) -> tuple[SqlFile, ...]:
    """The SQL files of `migrations` or `functions`, by number."""
    found = []
    for path in sorted((ROOT / folder).glob("*.sql")):
        number, name = path.stem.split("_", 1)
        found.append(SqlFile(int(number), name, path.read_text()))
    return tuple(found)


def latest_migration() -> int:
    return files("migrations")[-1].number
