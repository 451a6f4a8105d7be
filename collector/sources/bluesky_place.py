"""Where a stream was left: a cursor means something to its own host only, a revision to everybody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_CURSORS = range(2**63)
MOST_MARKS = 100  # collections that a position tells of; the ones seen last


@dataclass(slots=True)
class Place:
    """`rev` is the newest revision of the one account; `since`: from there on to `rev` nothing was missed (None: nobody can tell).

    `marks`: what came last of each collection, as revision (one account) or cursor (many): a host may be blind to a collection and move
    the cursor all the same.
    """

    via: str
    host: str
    did: str = ""
    cursor: int | None = None
    rev: str | None = None
    since: str | None = None
    marks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, position: dict[str, Any], via: str, host: str, did: str) -> Place:
        """From a stored position; of what is another host's, or makes no sense, only the rest is used."""
        place = cls(via, host, did)
        if did and position.get("did") == did and isinstance(position.get("rev"), str):
            place.rev = position["rev"]
            place.since = position["since"] if isinstance(position.get("since"), str) else None
            place.marks = _marks(position)
        if (position.get("via"), position.get("host")) == (via, host) and type(position.get("cursor")) is int and position["cursor"] in _CURSORS:
            place.cursor = position["cursor"]
            place.marks = _marks(position)
        return place

    def position(self) -> dict[str, Any]:
        """To be stored with what came before."""
        written = {"via": self.via, "host": self.host, "cursor": self.cursor, "marks": dict(self.marks)}
        return written | ({"did": self.did, "rev": self.rev, "since": self.since} if self.did else {})

    def mark(self, collection: str, value: Any) -> None:
        self.marks.pop(collection, None)
        self.marks[collection] = value
        if len(self.marks) > MOST_MARKS:
            del self.marks[next(iter(self.marks))]

    def follow(self, rev: str, since: str | None, *, whole: bool) -> bool:
        """A commit came; whether something before it, or of it, was missed."""
        if self.rev is not None and rev <= self.rev:
            return False
        missed = self.rev is not None and since != self.rev
        if missed or self.since is None:
            self.since = since
        if not whole:
            self.since, missed = rev, True
        self.rev = rev
        return missed


def _marks(position: dict[str, Any]) -> dict[str, Any]:
    marks = position.get("marks")
    return dict(marks) if isinstance(marks, dict) else {}
