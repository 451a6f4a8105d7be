"""What a service may say besides data: how much is left, come back later, or no."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from worker.core.errors import TailraceError


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit as an answer told it. `name` is shared by all who spend from it, e.g. `github:graphql`; units are the service's own."""

    name: str
    remaining: float
    limit: float | None = None
    resets_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a page cost of a budget that we set ourselves, e.g. money; when `most` is spent, all who spend from `name` wait until it begins anew."""

    name: str
    amount: float
    most: float
    resets_at: dt.datetime


class Limited(TailraceError):
    """Come back in `seconds`: a flood wait, an exhausted quota. It costs nobody an attempt; `name` says who else has to wait."""

    def __init__(self, name: str, seconds: float, reason: str) -> None:
        super().__init__(reason, f"resumes by itself in {seconds:g} s")
        self.name = name
        self.seconds = seconds


class Denied(TailraceError):
    """Credentials or permissions are missing or refused: waiting does not help, a person has to act."""

    def __init__(self, name: str, reason: str, hint: str) -> None:
        super().__init__(reason, hint)
        self.name = name
