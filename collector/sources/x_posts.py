"""Posts of X as records: ids that are times, the text of each post as it came, what of it makes a revision."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any, NamedTuple

from collector.record import TOMBSTONE, Defect, digest_of, moment, parse, without
from collector.sources.values import array
from worker.core.models import RawRecord

COUNTERS = (  # what changes without an edit: numbers, what is left of the time to edit, what X works out by itself later on
    "public_metrics", "non_public_metrics", "organic_metrics", "promoted_metrics", "edit_controls", "context_annotations", "entities",
)  # fmt: skip
_EPOCH = 1_288_834_974_657  # milliseconds; ids count from here, in steps of 2 ** 22
_FIRST = 29_700_859_247  # ids below it are older than that and tell no time
_DECODER = json.JSONDecoder(strict=False)
_SPACE = (" ", "\t", "\r", "\n")
_TICK = dt.timedelta(milliseconds=1)
Span = tuple[dt.datetime, dt.datetime]


class Malformed(ValueError):
    """An answer that is not what it should be, e.g. cut off."""


class Post(NamedTuple):
    """One post of an answer. `edited`: it stands in the list under another id than its key, which is its first one."""

    id: int
    record: RawRecord
    edited: bool


class Sheet(NamedTuple):
    """One answer: posts newest first, the token of the next one, and the ids of authors that came along."""

    posts: list[Post]
    next: str | None
    authors: list[str]

    @property
    def newest(self) -> int:
        return self.posts[0].id if self.posts else 0

    @property
    def oldest(self) -> int:
        return self.posts[-1].id if self.posts else 0


def snowflake(when: dt.datetime) -> int:
    """The least id of that moment; of times before there were such ids, the first of them."""
    return max(_FIRST, (round(when.timestamp() * 1000) - _EPOCH) << 22)


def time_of(number: int) -> dt.datetime | None:
    """When the post of that id was made; None for an old one."""
    return dt.datetime.fromtimestamp(((number >> 22) + _EPOCH) / 1000, dt.UTC) if number > _FIRST else None


def span(first: int, last: int) -> Span | None:
    """The time from one post to another, both included."""
    since, until = time_of(first), time_of(last)
    return (since, until + _TICK) if since and until and since <= until else None


def members(text: str) -> dict[str, str]:
    """The members of a JSON object, each as it is written. Raises Malformed."""
    found: dict[str, str] = {}
    try:
        at = _past(text, 0, "{")
        while text[at : at + 1] != "}":
            name, end = _DECODER.raw_decode(text, at)
            first = _past(text, end, ":")
            _, end = _DECODER.raw_decode(text, first)
            found[str(name)] = text[first:end]
            at = _past(text, end)
            at = at if text[at : at + 1] == "}" else _past(text, at, ",")
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON, or cut off: {error}"[:200]) from None
    return found


def _past(text: str, at: int, wanted: str = "") -> int:
    """Where something begins after white space, or after the character that has to come there."""
    while text[at : at + 1] in _SPACE:
        at += 1
    if not wanted:
        return at
    if text[at : at + 1] != wanted:
        raise Malformed(f"no {wanted!r} at character {at}")
    return _past(text, at + 1)


def value(found: dict[str, str], name: str) -> Any:
    """A member's value; None where it is not there."""
    return _DECODER.decode(found[name]) if name in found else None


def sheet(found: dict[str, str], ignored: list[str]) -> Sheet:
    """The posts of an answer. Raises Malformed for one that is not complete."""
    meta = value(found, "meta")
    if not isinstance(meta, dict):
        raise Malformed("an answer without `meta`")
    companions = _companions(found)
    made = [_post(piece.raw, companions, ignored) for piece in _elements(found.get("data", "[]"))]
    at = next((post.id for post in made if post.id), 0)
    for n, post in enumerate(made):  # a broken post without id stands where its neighbour does
        at = post.id or at
        made[n] = post._replace(id=at)
    if meta.get("result_count", len(made)) != len(made):
        raise Malformed(f"{meta['result_count']} posts were announced, {len(made)} came")
    authors = [identity for kind, identity, _ in companions if kind == "users"]
    return Sheet(sorted(made, key=lambda post: -post.id), meta.get("next_token"), authors)


def tombstone(key: str) -> RawRecord:
    return RawRecord(key, TOMBSTONE, op="delete", occurred_at=time_of(int(key)))


def _elements(text: str) -> list[Any]:
    pieces = list(array(io.BytesIO(text.encode("utf-8", "surrogateescape")), len(text)))
    if any(piece.why for piece in pieces):
        raise Malformed("`data` is no array")
    return pieces


def _companions(found: dict[str, str]) -> list[tuple[str, str, str]]:
    """What came along with the posts (authors, and whatever else was asked for): kind, id, text."""
    listed = []
    for kind, text in members(found["includes"]).items() if "includes" in found else ():
        for piece in _elements(text):
            thing = _DECODER.decode(_text(piece.raw))
            identity = thing.get("id") or thing.get("media_key") if isinstance(thing, dict) else None
            if isinstance(identity, str):
                listed.append((kind, identity, _text(piece.raw)))
    return listed


def _post(raw: bytes, companions: list[tuple[str, str, str]], ignored: list[str]) -> Post:
    """A post with what it names of what came along. Whatever is wrong with it, it becomes a record."""
    text = _text(raw)
    seen = _DECODER.decode(text)
    post = content = seen if isinstance(seen, dict) else {"": seen}
    history = post.get("edit_history_tweet_ids")
    number = int(post["id"]) if _is_id(post.get("id")) else 0
    first = int(history[0]) if number and isinstance(history, list) and history and _is_id(history[0]) else number
    for path in ignored:
        content = without(content, path)
    digest = digest_of(json.dumps(content, sort_keys=True).encode())
    meta = {} if number else {"defect": "a post without id"}
    times = _times(post, number, first, meta)
    body = _with(text, companions).encode("utf-8", "surrogateescape")
    payload = None
    try:
        parse(body)
        payload = body.decode()
    except Defect as defect:
        meta["defect"] = str(defect)
    key = str(first) if number else digest.hex()
    return Post(number, RawRecord(key, digest, payload, None if payload else body, "create", *times, meta or None), edited=first != number)


def _times(post: dict[str, Any], number: int, first: int, meta: dict[str, Any]) -> tuple[dt.datetime | None, dt.datetime | None]:
    """When it was made, and when this text of it was."""
    try:
        created = moment(post["created_at"]) if post.get("created_at") is not None else time_of(number)
    except Defect as defect:
        meta.setdefault("defect", str(defect))
        created = time_of(number)
    return (created, created) if first == number else (time_of(first), time_of(number) or created)


def _with(text: str, companions: list[tuple[str, str, str]]) -> str:
    kinds: dict[str, list[str]] = {}
    for kind, identity, thing in companions:
        if f'"{identity}"' in text:
            kinds.setdefault(kind, []).append(thing)
    if not kinds:
        return f'{{"data":{text}}}'
    parts = ",".join(f"{json.dumps(kind)}:[{','.join(things)}]" for kind, things in kinds.items())
    return f'{{"data":{text},"includes":{{{parts}}}}}'


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _is_id(found: Any) -> bool:
    return isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20  # noqa: PLR2004  64 bits have no more digits
