"""`python -m collector live | backfill | enqueue`: the composition root of the collector."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from collector.backfill import backfill
from collector.enqueue import enqueue
from collector.live import live
from worker.core import log, options
from worker.core.embedded import database_url
from worker.core.settings import read
from worker.core.times import parse_window


def parse(argv: Sequence[str]) -> Any:
    parser = options.Parser(prog="python -m collector", description="source -> raw")
    commands = parser.add_subparsers(dest="command", required=True, metavar="live | backfill | enqueue")
    commands.add_parser("live", help="tail all configured sources until stopped")
    back = commands.add_parser("backfill", help="read the history of sources into raw, once")
    back.add_argument("--chunk-size", type=options.positive, metavar="N", help="records per transaction, to the letter")
    back.add_argument("--max-chunks", type=options.positive, metavar="N", help="stop after so many chunks of a source")
    back.add_argument("--max-minutes", type=options.positive, metavar="N", help="stop after so many minutes, also in a pause for a limit")
    back.add_argument("--parallel", type=options.positive, default=4, metavar="N", help="sources at a time, under their shared limits (default 4)")
    back.add_argument("--force-enqueue", action="store_true", help="also open work for records that are known")
    again = commands.add_parser("enqueue", help="open work for stored records; never reads a source")
    again.add_argument("--pipeline", metavar="P")
    again.add_argument("--version", metavar="V", help="default: the live one")
    again.add_argument("--failed", action="store_true", help="only records whose newest result is failed")
    again.add_argument("--force", action="store_true", help="also records that have a result: it stays, a new rerun is added")
    for command in (back, again):
        command.add_argument(
            "--source", action="append", type=options.names, metavar="S", help="only these sources; may be repeated, or a comma list"
        )
        command.add_argument("--since", metavar="T", help="only what occurred at or after this time (ISO 8601 with zone)")
        command.add_argument("--until", metavar="T", help="only what occurred before this time")
        command.add_argument("--max-records", type=options.positive, metavar="N")
        command.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
        command.add_argument("--json", action="store_true", help="print the summary as JSON")
    given = parser.parse_args(argv)
    if getattr(given, "source", None):
        given.source = [name for entry in given.source for name in entry]
    return given


def main(argv: Sequence[str] | None = None) -> int:
    return options.guarded(lambda: _main(parse(sys.argv[1:] if argv is None else argv)))


def _main(given: Any) -> int:
    settings, _ = read()
    log.configure("collector", settings.log.level if given.command == "live" else "warning", settings.log.format)
    window = parse_window(getattr(given, "since", None), getattr(given, "until", None))
    url = database_url(settings)
    match given.command:
        case "live":
            return uvloop.run(live(settings, url))
        case "backfill":
            return uvloop.run(backfill(settings, url, given, window))
        case _:
            return uvloop.run(enqueue(settings, url, given, window))
