"""Entries of a feed as records: read by a program of their own, keyed, digested by what people see of them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from collector.record import Defect, digest_of, moment, parse, short
from worker.core.errors import Unavailable
from worker.core.models import RawRecord

_PROGRAM = Path(__file__).with_name("rss_parse.py")
_LONGEST = 180.0  # seconds that it may take on a busy machine; it has far less CPU time
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")  # it needs no credentials
SEEN = ("title", "link", "summary", "content", "enclosures")  # what of an entry makes a revision
_MOST_SHARED = 500
_PERIODS = {"hourly": 3600.0, "daily": 86_400.0, "weekly": 604_800.0, "monthly": 2_592_000.0, "yearly": 31_536_000.0}
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class Feed(NamedTuple):
    """`about`: the head that rss_parse tells. `entries`: in the order of the feed."""

    about: dict[str, Any]
    entries: list[dict[str, Any]]


async def read(body: bytes, content_type: str, base: str, most: int) -> Feed:
    """Raises Unavailable for what is no feed, is cut off, or cannot be read; `base` is what relative links are relative to."""
    place = _places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(os.cpu_count() or 1))
    async with place:
        told, said, code = await _run(json.dumps({"type": content_type, "url": base, "most": most}), body)
        if code:
            raise Unavailable(f"the feed cannot be read: {said or 'it takes too long or too much memory'}", "tried again by itself")
        about, *entries = await asyncio.to_thread(_decoded, told)
    if not about["version"] and not entries:
        raise Unavailable(
            f"this is no feed: {about['problem'] or 'there is no feed in it'}", "see whether the address is right; tried again by itself"
        )
    if not about["whole"]:
        raise Unavailable(f"the feed is cut off: {about['problem']}", "tried again by itself")
    return Feed(about, entries)


async def _run(asked: str, body: bytes) -> tuple[bytes, str, int]:
    """What the program said on stdout and stderr, and its exit code. It never outlives this call."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(sys.executable, "-P", str(_PROGRAM), asked, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        async with asyncio.timeout(_LONGEST):
            out, said = await program.communicate(body)
    except TimeoutError:
        return b"", "it takes too long", 1
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    return out, said.decode("utf-8", "replace").strip()[-300:], program.returncode or 0


def _decoded(told: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.decode("utf-8", "surrogatepass").split("\n")[:-1]]


def records(feed: Feed, ignored: frozenset[str], shared: set[str]) -> list[RawRecord]:
    """Oldest first. `shared`: ids that several entries have been found to use; others are added: these are keyed by content as well."""
    made = [_record(told, feed.about["names"], ignored) for told in reversed(feed.entries)]
    by_key: dict[str, set[bytes]] = defaultdict(set)
    for record in made:
        by_key[record.external_id].add(record.digest)
    shared |= {_mark(key) for key, digests in by_key.items() if len(digests) > 1}
    if shared:
        made = [_told_apart(r, len(by_key[r.external_id])) if _mark(r.external_id) in shared else r for r in made]
    dated = [(r.occurred_at, n) for n, r in enumerate(made) if r.occurred_at]
    return [made[n] for _, n in sorted(dated)] if len(dated) == len(made) else made


def remembered(shared: set[str]) -> list[str]:
    """For a position."""
    return sorted(shared)[:_MOST_SHARED]


def _mark(key: str) -> str:
    return digest_of(key.encode("utf-8", "surrogatepass")).hex()[:16]


def _told_apart(record: RawRecord, count: int) -> RawRecord:
    meta = {**(record.meta or {}), "defect": f"its id is used by {max(count, 2)} entries of the feed"}
    return record._replace(external_id=short(f"{record.external_id}#{record.digest.hex()}"), meta=meta)


def _record(told: dict[str, Any], names: dict[str, str], ignored: frozenset[str]) -> RawRecord:
    if why := told.get("why"):
        digest = bytes.fromhex(told["digest"])
        raw = told["raw"].encode("utf-8", "surrogatepass")
        return RawRecord(short(told["id"] or told["digest"]), digest, body=raw, meta={"defect": why})
    entry: dict[str, Any] = told["entry"]
    meta: dict[str, Any] = {"namespaces": names} if names and told["raw"] else {}
    digest = _digest(entry, told["raw"], ignored)
    key = _clean(entry.get("id")) or _clean(entry.get("link")) or digest.hex()
    published, updated = _time(entry, "published", meta), _time(entry, "updated", meta)
    payload = entry | ({"raw_xml": told["raw"]} if told["raw"] else {})
    text = json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        parse(text)
    except Defect as defect:
        return RawRecord(short(key), digest, None, text, "create", published or updated, updated, meta | {"defect": str(defect)})
    return RawRecord(short(key), digest, text.decode(), None, "create", published or updated, updated, meta or None)


def _clean(name: Any) -> str:
    return name.encode("utf-8", "replace").decode().strip() if isinstance(name, str) else ""


def _digest(entry: dict[str, Any], raw: str | None, ignored: frozenset[str]) -> bytes:
    """Over what people see; over all of it where they see nothing."""
    seen = {
        **{name: entry[name] for name in ("title", "link", "summary") if entry.get(name)},
        "content": [[part.get("type"), part.get("value")] for part in _dicts(entry, "content")],
        "enclosures": [[part.get("href"), part.get("type")] for part in _dicts(entry, "links") if part.get("rel") == "enclosure"],
    }
    kept = {name: value for name, value in seen.items() if value and name not in ignored}
    return digest_of(json.dumps(kept or raw or entry, sort_keys=True).encode())


def _dicts(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = entry.get(name)
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def _time(entry: dict[str, Any], name: str, meta: dict[str, Any]) -> dt.datetime | None:
    try:
        if found := entry.get(f"{name}_parsed") or entry.get(name):
            return moment(found if f"{name}_parsed" in entry else f"{found}")
    except Defect as defect:
        meta.setdefault("defect", str(defect))
    return None


def pace(about: dict[str, Any]) -> float:
    """Seconds between two looks, as the feed itself wishes."""
    period = _PERIODS.get(str(about["period"]).strip().lower(), 0.0) / max(number(about["frequency"]), 1.0)
    return max(number(about["ttl"]) * 60, period)


def number(found: Any) -> float:
    """A number as a feed or a position has it; 0 for anything else."""
    text = str(found).strip()
    return float(text) if _NUMBER.fullmatch(text) else 0.0
