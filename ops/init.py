"""`tailrace init [DIR]`: a first configuration that runs, and three messages to run it on."""

from __future__ import annotations

from pathlib import Path

from worker.core.errors import Misconfigured

CONFIG = """# Tailrace. Every value can be overridden by the environment: TAILRACE_SECTION__NAME, e.g. TAILRACE_WORKER__LEASE_SECONDS=30.
# `tailrace config` shows all settings with their values and origins. The database is named by DATABASE_URL;
# where that is unset, an embedded PostgreSQL is used.

[sources.inbox]
kind = "files"                  # .jsonl (followed as it grows), .json, .csv, and .gz or .zst of each
path = "inbox"
id_field = "id"                 # what names a record; leave it out and the content does
time_field = "date"

# A processor: `rules` and `echo` are in the box; your own is a file: processor = "./offers.py"
[pipelines.offers]
processor = "rules"
sources = ["files:*"]

[pipelines.offers.options]
text = "text"

[[pipelines.offers.options.fields]]
name = "price"
pattern = '(\\d+(?:[.,]\\d+)?) ?EUR'
type = "number"

[[pipelines.offers.options.labels]]
name = "offer"
any = ["sell", "selling", "for sale"]

[[pipelines.offers.options.effects]]
kind = "broadcast"
when = "offer"
text = "{source}: {text}"

# Where effects go once their gate is open. It is closed until TAILRACE_EFFECTS__BROADCAST=1.
[effects.broadcast]
sink = "jsonl"
path = "outbox/broadcast.jsonl"
"""
SAMPLE = """{"id": 1, "date": "2026-01-05T08:00:00Z", "text": "Selling a city bike, 120 EUR"}
{"id": 2, "date": "2026-01-05T08:05:00Z", "text": "Does anybody know a good bike shop?"}
{"id": 3, "date": "2026-01-05T08:09:00Z", "text": "Four chairs for sale, 80,50 EUR"}
"""


def init(folder: Path, *, dry_run: bool) -> int:
    config, sample = folder / "tailrace.toml", folder / "inbox" / "messages.jsonl"
    if config.exists():
        raise Misconfigured(f"{config} exists already", "edit it, or name another folder: tailrace init DIR")
    for path, text in ((config, CONFIG), (sample, SAMPLE)):
        if path.exists():
            print(f"kept       {path}")
            continue
        print(f"{'would write' if dry_run else 'wrote'}      {path}")
        if not dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    here = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    print(f"next       {here}tailrace up        # database, collector and workers on this machine; then append lines to {sample.name}")
    return 0
