"""What stands in the body of a tracker issue beside its text: marks that nobody sees, and the count of failures that everybody does."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from worker.core.models import Receipt

LONGEST_TITLE, LONGEST_BODY = 256, 60_000  # GitHub takes 65,536 characters; our marks need some
KEPT = 20  # keys of deliveries in one issue
_BEGIN = "<!-- tailrace:"
_COUNT = re.compile(r"(<!-- tailrace:issue:\w+ -->\r?\nfailures: )(\d{1,9})")
_COUNTED = re.compile(r"\r?\n<!-- tailrace:counted:\w+ -->")


def mark(what: str, name: str) -> str:
    """`what` is issue (named by its fingerprint), or what a delivery (named by its key) did: opened, counted."""
    return f"{_BEGIN}{what}:{hashlib.sha256(name.encode()).hexdigest()[:24]} -->"


def harmless(text: Any, most: int = LONGEST_BODY) -> str:
    """What was given as text: it cannot pretend to be a mark, and is not too long."""
    written = "" if text is None else str(text).replace(_BEGIN, "<!- tailrace:")
    return written if len(written) <= most else written[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def first_body(text: Any, fingerprint: str, key: str) -> str:
    return f"{harmless(text)}\n\n{mark('issue', fingerprint)}\nfailures: 1\n{mark('opened', key)}"


def counted_up(body: str, counted: str, by: int) -> str:
    """The body with the mark of one more delivery; an editor may have changed the ends of its lines, or taken the count away."""
    body = _COUNT.sub(lambda m: f"{m[1]}{int(m[2]) + by}", body, count=1)
    kept = [m[0].strip() for m in _COUNTED.finditer(body)][1 - KEPT :]
    return "\n".join([_COUNTED.sub("", body), *kept, counted])


def body_of(thing: Any) -> str:
    """Of an issue or a comment; empty where it has none."""
    return str((thing.get("body") if isinstance(thing, dict) else None) or "")


def sent(repo: str, issues: list[Any], detail: str) -> Receipt:
    """Told by the first of these issues; GitHub's answer may have been cut off before its number."""
    number = issues[0].get("number") if issues and isinstance(issues[0], dict) else None
    return Receipt("sent", remote_id=None if number is None else f"{repo}#{number}", detail=detail)
