"""Texts from outside on their way to Postgres, whose text and JSON have no NUL and no lone surrogate."""

from __future__ import annotations


def storable(text: str) -> bool:
    """Whether Postgres can hold it as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def fit(text: str, most: int | None = None) -> str:
    """The same where it is storable, else with marks in place of what is not; at most `most` characters."""
    return text[:most].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
