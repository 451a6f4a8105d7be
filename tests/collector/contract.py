"""What a kind of source has to bring to be held to the contract of test_contract.py.

`subjects/KIND.py` has `SUBJECTS`, a list of subclasses of Subject: one at a service of the test's own (synthetic records, no network beyond
this machine), and one at the stand-in of ../shared where there is one (`shared = True`).
"""

from __future__ import annotations

import abc
import importlib
import sys
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared"


class Subject(abc.ABC):
    """One source at a running service. Everything that `post`, `edit` and `delete` did is there when they return."""

    kind: ClassVar[str]
    shared: ClassVar[bool] = False  # needs ../shared
    edits: ClassVar[bool] = True  # an edit at the service becomes a revision
    deletions: ClassVar[bool] = True  # a deletion at the service becomes a tombstone
    history: ClassVar[bool] = True  # what was there before can be read by a backfill
    limits: ClassVar[bool] = True  # the service can ask to be let alone

    def __init__(self, folder: Path) -> None:
        """`folder` is empty and the subject's own."""
        self.folder = folder

    @abc.abstractmethod
    async def start(self) -> None:
        """Starts the service, with at least 30 records at the source."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """Ends it."""

    @abc.abstractmethod
    def name(self) -> str:
        """NAME of `[sources.NAME]`, in full: `kind:path`."""

    @abc.abstractmethod
    def spec(self) -> dict[str, Any]:
        """The table `[sources.NAME]`; secrets are in files of the folder."""

    @abc.abstractmethod
    async def truth(self) -> dict[str, str]:
        """What the source holds now: the external id of each record, and a text that its newest payload must contain."""

    @abc.abstractmethod
    async def post(self, count: int) -> list[str]:
        """New records; returns their external ids."""

    async def edit(self, key: str) -> None:
        """Changes the content of a record, so that `truth` tells another text for it."""
        raise AssertionError(f"{self.kind} cannot")

    async def delete(self, key: str) -> None:
        """Takes a record away."""
        raise AssertionError(f"{self.kind} cannot")

    async def limit(self, seconds: float) -> None:
        """The next call is refused: come back in `seconds`."""
        raise AssertionError(f"{self.kind} cannot")


def subjects() -> list[type[Subject]]:
    """All, by kind."""
    found: list[type[Subject]] = []
    for path in sorted((HERE / "subjects").glob("*.py")):
        found += importlib.import_module(f"tests.collector.subjects.{path.stem}").SUBJECTS
    return found


def standin(*arguments: Any) -> Any:
    """A stand-in of ../shared, as its own standin.Standin: a process that ends with this one."""
    sys.path.insert(0, str(SHARED / "services"))
    try:
        return importlib.import_module("standin").Standin(*arguments)
    finally:
        sys.path.remove(str(SHARED / "services"))
