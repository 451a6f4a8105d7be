"""How figures and values of others are written for people."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

_UNSEEN = {"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    """Text of others without what steers a terminal or turns the direction of writing: such characters are written as their code."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in _UNSEEN else f"\\u{ord(c):04x}" for c in text)


def value(found: Any) -> str:
    """A JSON value; a text stands for itself."""
    return visible(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


def said(found: str | None) -> str:
    return "absent" if found is None else visible(found)


def percent(share: float | None, places: int = 1) -> str:
    """All but the whole are below 100 %, all but nothing above 0 %."""
    if share is None:
        return "-"
    rounded, least = round(100 * share, places), 10.0**-places
    return f"{min(max(rounded, least), 100 - least) if 0 < share < 1 else rounded:.{places}f} %"


def ends(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def figure(number: float | None, places: int = 2) -> str:
    if number is None:
        return "-"
    return f"{number:,.{places}f}" if abs(number) >= 1 or number == 0 else f"{number:.3g}"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"  # noqa: PLR2004  no more digits are told
