"""`tailrace`: what an operator runs. Each command is a function in a module of its own; here are only the words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ops import config, doctor, effects, explain, init, plan, promote, prune, replay, sources, status, up, verify, work
from ops.compare.command import compare
from ops.migrate import migrate
from ops.table import as_json
from worker.core import options
from worker.core.embedded import database_url
from worker.core.settings import Settings, read
from worker.core.times import parse_window


def parse(argv: Sequence[str]) -> Any:
    parser = options.Parser(prog="tailrace", description="raw log, versioned jobs, gated effects: the operator's command")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *, changes: bool = False, prints: bool = True) -> options.Parser:
        made: options.Parser = commands.add_parser(name, help=text, description=text)
        if prints:
            made.add_argument("--json", action="store_true", help="print JSON")
        if changes:
            made.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
        return made

    made = command("init", "write a first tailrace.toml and a sample inbox", changes=True, prints=False)
    made.add_argument("folder", nargs="?", default=".", metavar="DIR")
    made = command("up", "everything on this machine: database, migrations, collector, workers", prints=False)
    made.add_argument("--workers", type=options.positive, default=2, metavar="N")
    made.add_argument("--once", action="store_true", help="stop when all is read and settled")
    command("migrate", "bring the database to this program's schema", changes=True)
    command("status", "what is where, on one screen")
    made = command("sources", "sources with records, lag, coverage, gaps, quota and breaker", changes=True)
    made.add_argument("action", nargs="?", default="list", choices=("list", "retry"), help="retry: call a held back source again now")
    made.add_argument("name", nargs="?", help="the source that is called again")
    made = command("runs", "replays, covers and other long work", changes=True)
    made.add_argument("action", nargs="?", default="list", choices=("list", "pause", "resume", "cancel"))
    made.add_argument("id", nargs="?", type=int)
    made = command("retry", "open failed records again, and make delayed ones due now", changes=True)
    made.add_argument("--pipeline", metavar="P")
    made.add_argument("--raw-id", type=int, action="append", default=[], metavar="N")
    made.add_argument("--all", action="store_true", help="all pipelines")
    made = command("stale", "claims past their lease", changes=True)
    made.add_argument("action", nargs="?", default="report", choices=("report", "reset"))
    _versions(command)
    _effects(command("effects", "what versions wanted to send, what the gate said, what the world got", prints=False))
    made = command("explain", "one raw record, from its revisions to its deliveries")
    made.add_argument("raw_id", type=int, metavar="RAW_ID")
    command("config", "every setting, its value and where it comes from")
    command("doctor", "what is wrong or soon will be; exit code 1 if anything fails")
    command("verify", "the invariants, each as one query; exit code 1 if any is broken")
    return parser.parse_args(argv)


def _versions(command: Callable[..., options.Parser]) -> None:
    for name, text in (("plan", "what a replay of a version would do, take and cost"), ("replay", "work on the history as another version")):
        _replaying(command(name, text, changes=name == "replay"), name)
    made = command("compare", "two versions or more over the same records: agreement, truth, effects, cost; exit 1 where there are none")
    made.add_argument("words", nargs="+", metavar="[PIPELINE] VERSION", help="the first is compared with each other; one alone with the live version")
    _window(made)
    made.add_argument("--fields", metavar="F,F", help="only these fields of the outputs; default: the 40 most frequent ones")
    made.add_argument(
        "--gold", metavar="FILE", help="the truth: .jsonl or .csv with source and external_id (or raw_id) and fields; default: the reviews"
    )
    made.add_argument("--html", metavar="FILE", help="write a page with charts")
    made.add_argument("--samples", type=options.positive, default=5, metavar="N", help="records and effects that are shown of each kind")
    made.add_argument("--save-set", metavar="NAME", help="keep the compared records under a name")
    made = command("promote", "make a version live, or a canary, if the gate lets it; exit 0 done, 1 no, 2 not enough evidence", changes=True)
    made.add_argument("pipeline", metavar="PIPELINE")
    made.add_argument("version", metavar="VERSION")
    made.add_argument("--percent", type=options.percent, metavar="N", help="it speaks for so many percent of the records only; 0 ends a canary")
    made.add_argument("--force", action="store_true", help="whatever the gate says; it is written down")
    made = command("rollback", "make the version live again that was live before", changes=True)
    made.add_argument("pipeline", nargs="?", metavar="PIPELINE")
    made.add_argument("--to", metavar="VERSION", help="another one than the one before")
    made = command("prune", "drop results of retired versions that nobody needs any more", changes=True)
    made.add_argument("--pipeline", metavar="P")


def _replaying(made: options.Parser, name: str) -> None:
    made.add_argument("pipeline", nargs="?", metavar="PIPELINE")
    made.add_argument("version", nargs="?", metavar="VERSION", help="default: the configured one; registered as a candidate where it is new")
    _window(made)
    made.add_argument("--sample", type=options.positive, metavar="N", help="only so many records, chosen at random, the same each time")
    made.add_argument("--failed", action="store_true", help="only records whose newest result is failed")
    if name == "plan":
        made.add_argument("--save-set", metavar="NAME", help="keep the chosen records under a name")
    else:
        made.add_argument("--plan", metavar="HASH", help="what this plan promised")
        made.add_argument("--force", action="store_true", help="also records that have a result: it stays, a new rerun is added")
        made.add_argument("--budget", type=float, metavar="MONEY", help="pause before more than this is spent")
        made.add_argument("--time", metavar="SPAN", help="pause after this time, e.g. 8h")
        made.add_argument("--wait", action="store_true", help="stay until it is done, with progress")


def _window(made: options.Parser) -> None:
    made.add_argument("--source", action="append", metavar="S", help="only these sources; may be repeated")
    made.add_argument("--since", metavar="T", help="inclusive, ISO 8601 with zone")
    made.add_argument("--until", metavar="T", help="exclusive")
    made.add_argument("--set", metavar="NAME", help="only the records of this set")


def _effects(parser: options.Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | explain | release | cancel | resolve")

    def action(name: str, text: str, *, changes: bool = True) -> options.Parser:
        made: options.Parser = actions.add_parser(name, help=text, description=text)
        made.add_argument("--json", action="store_true", help="print JSON")
        if changes:
            made.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
        return made

    made = action("list", "the newest effects", changes=False)
    for name in ("kind", "verdict", "reason", "state"):
        made.add_argument(f"--{name}", help="state of the delivery" if name == "state" else None)
    made.add_argument("--limit", type=options.positive, default=50, metavar="N")
    action("explain", "the whole story of one id or key", changes=False).add_argument("what", metavar="ID | KEY")
    action("release", "let suppressed effects out, while their gate is open here").add_argument("ids", nargs="+", type=int, metavar="ID")
    action("cancel", "stop a delivery that has not left").add_argument("key", metavar="KEY")
    made = action("resolve", "say what became of an uncertain or failed delivery")
    made.add_argument("key", metavar="KEY")
    state = made.add_mutually_exclusive_group(required=True)
    for flag, value in (("sent", "sent"), ("retry", "pending"), ("cancel", "cancelled")):
        state.add_argument(f"--{flag}", dest="resolution", action="store_const", const=value)
    made.add_argument("--remote-id", metavar="ID")


def main(argv: Sequence[str] | None = None) -> int:
    return options.guarded(lambda: _main(parse(sys.argv[1:] if argv is None else argv)))


def _main(given: Any) -> int:
    if given.command == "init":
        return init.init(Path(given.folder), dry_run=given.dry_run)
    settings, loaded = read()
    run: dict[str, Callable[[], int]] = {
        "up": lambda: up.up(settings, workers=given.workers, once=given.once),
        "migrate": lambda: _migrate(database_url(settings), given),
        "status": lambda: status.status(settings, json=given.json),
        "sources": lambda: sources.sources(settings, given.action, given.name, json=given.json, dry_run=given.dry_run),
        "runs": lambda: work.runs(settings, given.action, given.id, json=given.json, dry_run=given.dry_run),
        "retry": lambda: work.retry(settings, given.pipeline, given.raw_id, every=given.all, json=given.json, dry_run=given.dry_run),
        "stale": lambda: work.stale(settings, given.action, json=given.json, dry_run=given.dry_run),
        "promote": lambda: promote.promote(settings, loaded, given),
        "rollback": lambda: promote.rollback(settings, given),
        "prune": lambda: prune.prune(settings, given.pipeline, json=given.json, dry_run=given.dry_run),
        "plan": lambda: plan.plan(settings, loaded, given, parse_window(given.since, given.until)),
        "compare": lambda: compare(settings, given, parse_window(given.since, given.until)),
        "replay": lambda: replay.replay(settings, loaded, given, parse_window(given.since, given.until)),
        "effects": lambda: _on_effects(settings, given),
        "explain": lambda: explain.explain(settings, given.raw_id, json=given.json),
        "config": lambda: config.config(settings, loaded, json=given.json),
        "doctor": lambda: doctor.doctor(settings, json=given.json),
        "verify": lambda: verify.verify(settings, json=given.json),
    }
    return run[given.command]()


def _on_effects(settings: Settings, given: Any) -> int:
    run: dict[str, Callable[[], int]] = {
        "list": lambda: effects.listing(settings, given),
        "explain": lambda: effects.explain(settings, given.what, json=given.json),
        "release": lambda: effects.release(settings, given.ids, json=given.json, dry_run=given.dry_run),
        "cancel": lambda: effects.change(settings, given.key, "cancelled", None, json=given.json, dry_run=given.dry_run),
        "resolve": lambda: effects.change(settings, given.key, given.resolution, given.remote_id, json=given.json, dry_run=given.dry_run),
    }
    return run[given.action]()


def _migrate(url: str, given: Any) -> int:
    done = migrate(url, dry_run=given.dry_run)
    if given.json:
        as_json({"applied": list(done.applied), "functions": done.functions, "migration": done.number, "dry_run": given.dry_run})
    else:
        applied = ", ".join(done.applied) or "nothing"
        print(
            f"{'would apply' if given.dry_run else 'applied'} {applied}; {done.functions} files of functions; the schema is at migration {done.number}"
        )
    return 0
