"""Messages for the demo: made up, the same at every start, with edits, repeats, and a few broken lines as real exports have them."""

from __future__ import annotations

import datetime as dt
import json
import random
from pathlib import Path
from typing import Any

CHANNELS: dict[str, tuple[str, ...]] = {
    "bikes": ("city bike, three gears", "racing bike, 56 cm", "cargo bike with box", "child's bike, 20 inch"),
    "furniture": ("oak table, 1.80 m", "four chairs", "sofa bed", "bookshelf, white"),
    "lessons": ("maths up to grade 10", "guitar for beginners", "spoken Portuguese", "swimming for adults"),
    "rooms": ("room of 14 m2 near the station", "studio for six months", "shared flat, garden", "desk in an office"),
}
_WAYS = (
    "Selling {thing}, {price} EUR. Call {phone}",
    "{thing} for sale: {price},50 EUR, pick up today",
    "Offer: {thing}. {price} EUR",
    "Looking for {thing}, please write to me",
    "{thing} is sold, thank you all",
    "Last chance! {thing}, only {price} EUR, {phone}",
    "Does anybody know a good place for {thing}?",
    "To let or to sell: {thing}. Price on request",
)
_START = dt.datetime(2026, 1, 5, 8, tzinfo=dt.UTC)


def messages(channel: str, count: int) -> list[dict[str, Any]]:
    """`count` lines of one channel; about one in thirty is an edit of an earlier message, one in forty a repeat with other views."""
    chance = random.Random(channel)  # noqa: S311  made-up data
    lines: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        when = (_START + dt.timedelta(minutes=7 * number)).isoformat()
        roll = chance.random()
        if roll < 1 / 30 and lines:
            lines.append({**chance.choice(lines), "edited": when, "text": "EDIT: " + chance.choice(lines)["text"]})
        elif roll < 1 / 30 + 1 / 40 and lines:
            lines.append({**chance.choice(lines[-50:]), "views": chance.randrange(5000)})
        else:
            text = chance.choice(_WAYS).format(
                thing=chance.choice(CHANNELS[channel]), price=chance.randrange(5, 900), phone=f"+49 30 {chance.randrange(100000, 999999)}"
            )
            lines.append({"id": number, "channel": channel, "date": when, "edited": when, "text": text, "views": chance.randrange(500)})
    return lines


def write(folder: Path, count: int) -> int:
    """Writes one file per channel, once. Returns the number of lines."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for channel in CHANNELS:
        path = folder / f"{channel}.jsonl"
        if not path.exists():
            lines = [json.dumps(m, ensure_ascii=False) for m in messages(channel, count)]
            lines.insert(count // 2, '{"id": 0, "text": "cut in the mid')
            path.write_text("\n".join(lines) + "\n", "utf-8")
        total += sum(1 for _ in path.open(encoding="utf-8"))
    return total
