"""The process ends at each named point; after a new start everything is as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from ops.verify import verify
from worker.core.crashpoint import POINTS
from worker.core.settings import Settings

CONFIG = """
[sources.many]
kind = "files"
path = "many"
id_field = "id"

[sources.few]
kind = "files"
path = "few"
id_field = "id"

[sources.calls]
kind = "webhook"
insecure = true

[sources."shelf:old"]
kind = "shelf:healed"

[sources."shelf:new"]
kind = "shelf:shelf"

[pipelines.p]
processor = "./mine.py"

[effects.post]
sink = "webhook"
url = "{url}"
honours_key = {honours_key}

[collector]
page_records = 200
poll_seconds = 0.05

[worker]
watch_seconds = 0.2
poll_seconds = 0.2
settle_seconds = 0.05
grace_seconds = 0.5
claim_records = 80
"""
PROCESSOR = """
import asyncio
from pathlib import Path

from worker import Done, Effect, Fail, Outage, Retry, Skip, processor


@processor("p", version="1", slice_size=40, concurrency=2)
async def p(record, ctx):
    n = record.payload["id"]
    await asyncio.sleep(0.003)
    while Path("hold").exists():
        await asyncio.sleep(0.02)
    if n == 13 and Path("outage").exists():
        Path("outage").unlink()
        raise Outage("the provider is away", seconds=0.5)
    if n % 40 == 20 and ctx.attempt == 0:
        return Retry("not yet", after=0)
    if n % 10 == 9:
        return Skip("nine")
    if n % 10 == 8:
        return Fail("eight")
    wishes = [Effect("post", {"n": n}, key=f"post:{record.source}:{n}")] if n % 2 == 0 else []
    return Done({"n": n, "attempt": ctx.attempt}, effects=wishes)
"""
# Two sources of another make: a tail, for which only one may use the session, and one that also heals what it missed.
SHELF = """
import asyncio
import time
from pathlib import Path

from pydantic import BaseModel

from collector.record import digest_of
from collector.sources import Page, source
from collector.sources.answers import Limited
from worker.core.models import RawRecord


class Options(BaseModel):
    pass


@source("shelf", Options)
class Shelf:
    def __init__(self, name, options, settings):
        self.name, self.caught_up, self.exclusive, self.exclusive_history, self.limits = name, False, ("session of " + name,), (), ()

    def describe(self):
        return "a shelf"

    def pages(self, first, position):
        for at in range(position.get("at", first), first + 10, 5):
            yield Page(
                [RawRecord(str(n), digest_of(b"%d" % n), '{"id": %d}' % n) for n in range(at, at + 5)], {"at": at + 5}, ids=(at, at + 5)
            )

    async def tail(self, position, stop):
        if self.name == "shelf:new":
            with Path("asked.txt").open("a") as asked:
                asked.write(f"{time.time()}\\n")
            if Path("limit").exists():
                Path("limit").unlink()
                raise Limited("shelf", 1.0, "too many questions")
        for page in self.pages(0, position):
            yield page
        self.caught_up = True
        await stop.wait()


@source("healed", Options)
class Healed(Shelf):
    def __init__(self, name, options, settings):
        super().__init__(name, options, settings)
        self.gap = asyncio.Event()

    async def heal(self, position, tail, known):
        for page in self.pages(100, position):
            yield page
"""
MANY, FEW, CALLS, SHELVED = 250, 40, 8, 30
RECORDS = MANY + FEW + CALLS + SHELVED
DRAINED = f"""
select (select count(*) from tailrace.raw_records) = {RECORDS} and (select count(*) from tailrace.results where rerun = %s) = {RECORDS}
  and not exists (select from tailrace.jobs) and not exists (select from tailrace.runs where state <> 'done')
  and not exists (select from tailrace.deliveries where state in ('pending', 'sending'))
"""
# What must be the same as without a crash. Ids, times and who did it may differ.
TABLES = {
    "raw": "select s.name, r.external_id, r.revision, r.op, r.digest, r.payload, r.body from tailrace.raw_records r join tailrace.sources s on s.id = r.source_id",
    "results": """select s.name, r.external_id, x.rerun, x.status, x.output, x.meta from tailrace.results x
        join tailrace.raw_records r on r.id = x.raw_id join tailrace.sources s on s.id = r.source_id""",
    "effects": "select key, rerun, kind, target, body, verdict, reason from tailrace.effects",
    "deliveries": "select key, state from tailrace.deliveries",
    "coverage": "select s.name, c.ids::text from tailrace.coverage c join tailrace.sources s on s.id = c.source_id where c.ids <> '{}'",
    "cursors": "select s.name, sum(c.records) from tailrace.cursors c join tailrace.sources s on s.id = c.source_id group by 1",
    "settled": "select sum(ok), sum(skipped), sum(failed), sum(retried) from tailrace.settled",
    "versions": "select p.name, v.name, v.state from tailrace.versions v join tailrace.pipelines p on p.id = v.pipeline_id",
}


class World:
    """Five sources, one pipeline, one receiver, the programs, and what can be seen of them from outside."""

    def __init__(self, run: Any, url: str, receiver: Any, *, honours_key: bool) -> None:
        self.run, self.url, self.folder, self.receiver = run, url, run.folder, receiver
        self.known = 0
        self._unanswered = set(range(CALLS))
        self._http = httpx.Client(timeout=10)
        self._connection = psycopg.connect(url, autocommit=True)
        run.config(CONFIG.format(url=receiver.url, honours_key=str(honours_key).lower()))
        (self.folder / "mine.py").write_text(PROCESSOR)
        (self.folder / "shelf.py").write_text(SHELF)
        for name, count in (("many", MANY), ("few", FEW)):
            (self.folder / name).mkdir()
            (self.folder / name / "a.jsonl").write_text("".join(json.dumps({"id": n}) + "\n" for n in range(count)))

    def start(self, program: str, point: str = "") -> subprocess.Popen[bytes]:
        """The collector watches little, so that it is a worker who rescues and steps runs."""
        env = {"CRASHPOINT": point} if point else {}
        if program == "worker":
            return self.run.start("worker", TAILRACE_EFFECTS__POST="1", **env)
        return self.run.start(*program.split(), TAILRACE_WORKER__WATCH_SECONDS="60", **env)

    def do(self, query: str, *given: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(query, given or None)
        return cursor.fetchall() if cursor.description else []

    def call(self) -> bool:
        """A caller of the webhook that sends again what was not answered with 202. True when all is answered."""
        logs = sorted(self.folder.glob("log-*-collector.txt"), key=lambda p: int(p.name.split("-")[1]))
        port = re.findall(r"on 127\.0\.0\.1:(\d+)", logs[-1].read_text()) if logs else []
        for n in sorted(self._unanswered) if port else []:
            try:
                answer = self._http.post(f"http://127.0.0.1:{port[0]}/webhook/calls", json={"id": n}, headers={"Idempotency-Key": f"call-{n}"})
            except httpx.TransportError:
                break
            if answer.status_code == 202:
                self._unanswered.discard(n)
                self.known += answer.json()["known"]
        return not self._unanswered

    def collected(self) -> bool:
        return self.call() and self.do("select count(*) from tailrace.raw_records") == [(RECORDS,)]

    def drained(self, rerun: int = 0) -> bool:
        return self.call() and self.do(DRAINED, rerun) == [(True,)]

    def tables(self) -> dict[str, list[Any]]:
        return {name: sorted(self.do(query), key=repr) for name, query in TABLES.items()}

    def close(self) -> None:
        self.run.end()
        print(self.run.logs())
        self.receiver.close()
        self._http.close()
        self._connection.close()


@pytest.fixture
def worlds(flow, server_url, template, tmp_path) -> Callable[..., Any]:
    """`with worlds(...) as world`: one on a database and in a folder of its own."""

    @contextlib.contextmanager
    def make(*, honours_key: bool = True) -> Iterator[World]:
        name = f"tr_test_{secrets.token_hex(6)}"
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"create database {name} template {template} strategy file_copy")
            folder = tmp_path / name
            folder.mkdir()
            url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
            world = World(flow.programs(folder, url), url, flow.receiver(), honours_key=honours_key)
            try:
                yield world
            finally:
                world.close()
                admin.execute(f"drop database {name} with (force)")

    return make


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
async def undisturbed(worlds, kept, eventually) -> dict[str, Any]:
    """The tables after a run without a crash, and what the receiver got; made once."""
    if not kept:
        with worlds() as world:
            world.start("collector live")
            world.start("worker")
            await eventually(world.drained, 60)
            tables, bodies = world.tables(), world.receiver.bodies
            assert set(world.receiver.calls.values()) == {1}
            assert len(bodies) == len(tables["effects"]) > 100
            assert {status for _, _, _, status, *_ in tables["results"]} == {"ok", "skipped", "failed"}
            kept.update(tables=tables, bodies=bodies)
    return kept


@dataclass(frozen=True)
class Case:
    """`points`: where the program ends, one start after the other. `when`: the query whose truth brings a SIGTERM."""

    program: str
    points: tuple[str, ...]
    honours_key: bool = True
    present: str = ""  # the file that processor or source look for
    collected_first: bool = False
    when: str = ""
    silent: bool = False  # the receiver takes, but does not answer, until the program has ended

    def __str__(self) -> str:
        return " ".join([self.program, *self.points, *([] if self.honours_key else ["never_twice"])])


CLAIMED = "select exists (select from tailrace.jobs where state = 'c')"
AHEAD = "select count(*) > 8 from tailrace.deliveries where state = 'sending'"
LIVE = "collector live"
BACKFILL = "collector backfill --source files:many"
CASES = [
    Case(LIVE, ("after-lease-before-read", "after-heal-before-next")),
    Case(LIVE, ("after-fetch-before-append:5",)),
    Case(LIVE, ("after-append-before-commit",)),
    Case(LIVE, ("after-append-before-next:5",)),
    Case(LIVE, ("after-commit-before-answer:4",)),
    Case(LIVE, ("after-limit-before-wait",), present="limit"),
    Case(BACKFILL, ("after-append-before-commit", "after-append-before-next")),
    Case("worker", ("after-register-before-claim", "after-advance-before-next:2"), collected_first=True),
    Case("worker", ("after-claim-before-process:3", "after-rescue-before-claim", "after-claim-before-process:2")),
    Case("worker", ("after-outage-before-retry", "after-prefix-before-rest:2"), present="outage"),
    Case("worker", ("after-process-before-settle:3",)),
    Case("worker", ("after-settle-before-next:3",)),
    Case("worker", ("after-stop-before-give-back",), present="hold", when=CLAIMED),
    Case("worker", ("after-give-back-before-exit",), present="hold", when=CLAIMED),
    Case("worker", ("after-stop-before-unclaim",), when=AHEAD, silent=True),
    *(
        Case("worker", (point,), honours_key)
        for point in ("after-claim-before-send", "after-send-before-mark:5", "after-mark-before-next:20")
        for honours_key in (True, False)
    ),
]
ELSEWHERE = {"after-open-before-advance"}  # has a test of its own
STORED = "select count(*) from tailrace.raw_records r join tailrace.sources s on s.id = r.source_id where s.name = "
LEFT = {  # what is in the database just after the end
    "after-append-before-commit": (f"{STORED} 'files:many'", 0),
    "after-commit-before-answer": (f"{STORED} 'webhook:calls'", 4),
    "after-heal-before-next": ("select records from tailrace.cursors where lane = 1", 5),
    "after-limit-before-wait": ("select count(*) from tailrace.quotas where name = 'source:shelf:new' and breaker = 'open'", 1),
    "after-register-before-claim": ("select count(*) from tailrace.versions where state = 'live'", 1),
    "after-advance-before-next": ("select state from tailrace.runs where position > 0", "active"),
    "after-claim-before-process": ("select count(*) > 0 from tailrace.jobs where state = 'c'", True),
    "after-outage-before-retry": ("select count(*) from tailrace.quotas where name like 'version:%' and breaker = 'open'", 1),
    "after-settle-before-next": ("select count(*) > 0 from tailrace.results", True),
    "after-prefix-before-rest": (
        "select count(*) > 0 from tailrace.jobs j join tailrace.results x using (token) where j.state = 'c' and j.n_rows < 40 and x.raw_id < j.raw_id",
        True,
    ),
    "after-rescue-before-claim": ("select count(*) > 0 from tailrace.jobs where state = 's' and crashes = 1", True),
    "after-stop-before-give-back": ("select count(*) > 0 from tailrace.jobs where state = 'c'", True),
    "after-give-back-before-exit": ("select count(*) from tailrace.jobs where state <> 'r' or attempt > 0 or crashes > 0", 0),
}


def test_every_point_has_its_case():
    assert {point.partition(":")[0] for case in CASES for point in case.points} | ELSEWHERE == set(POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_after_an_end_at_any_point_all_is_as_without(case, worlds, undisturbed, eventually):
    with worlds(honours_key=case.honours_key) as world:
        await begin(world, case, eventually)
        in_flight: set[str] = set()
        for point in case.points:
            await end_at(world, case, point, eventually)
            if case.program == "worker":
                in_flight |= sending(world, point)
                a_minute_passes(world)
        world.start(case.program)
        if case.program == BACKFILL:
            world.start(LIVE)
        await eventually(world.drained, 60)
        compare(world, case, undisturbed, in_flight)


async def begin(world: World, case: Case, eventually: Any) -> None:
    """All but the program that is going to end."""
    if case.present:
        (world.folder / case.present).touch()
    if case.silent:
        world.receiver.answers.clear()
    if case.collected_first:  # ids far apart, so that the run over them has many steps
        world.do("alter sequence tailrace.raw_records_id_seq increment by 2500")
    world.start("worker" if case.program != "worker" else LIVE)
    if case.collected_first:
        await eventually(world.collected, 30)


async def end_at(world: World, case: Case, point: str, eventually: Any) -> None:
    program = world.start(case.program, point)
    if case.when:
        await eventually(lambda: (world.call(), world.do(case.when) == [(True,)])[1], 30)
        program.send_signal(signal.SIGTERM)
    await eventually(lambda: (world.call(), program.poll() is not None)[1], 30)
    assert program.returncode == -signal.SIGKILL
    name = point.partition(":")[0]
    assert f"this process ends {name}\n" in world.run.logs()
    if case.present:
        (world.folder / case.present).unlink(missing_ok=True)
    assert verify(Settings(database_url=world.url), json=False) == 0, "no start is needed to mend what is stored"
    query, expected = LEFT.get(name, ("select 0", 0))
    assert world.do(query) == [(expected,)]


def sending(world: World, point: str) -> set[str]:
    """The keys of which nobody knows whether they left, just after the end of a worker."""
    found = {state: {key for key, s in world.do("select key, state from tailrace.deliveries") if s == state} for state in ("sending", "sent")}
    posted = set(world.receiver.calls)
    match point.partition(":")[0]:
        case "after-claim-before-send":
            assert found["sending"]
            assert not posted
        case "after-send-before-mark":
            assert found["sending"] & posted
        case "after-mark-before-next":
            assert len(found["sent"]) >= 20
            assert found["sent"] <= posted
        case "after-stop-before-unclaim":
            assert found["sending"] - posted
    return found["sending"]


def a_minute_passes(world: World) -> None:
    """For the leases of a worker that is gone; a receiver that was silent answers again."""
    world.receiver.answers.set()
    for table, state in (("jobs", "c"), ("deliveries", "sending")):
        world.do(f"update tailrace.{table} set lease_until = lease_until - interval '1 minute' where state = '{state}'")


def compare(world: World, case: Case, undisturbed: dict[str, Any], in_flight: set[str]) -> None:
    expected, calls = dict(undisturbed["tables"]), world.receiver.calls
    if case.honours_key:
        assert world.receiver.bodies == undisturbed["bodies"]
        assert {key for key, count in calls.items() if count > 1} <= in_flight
    else:
        expected["deliveries"] = [(key, "uncertain" if key in in_flight else state) for key, state in expected["deliveries"]]
        assert set(calls.values()) == {1}
        assert set(undisturbed["bodies"]) - in_flight <= set(calls)
    for name, rows in world.tables().items():
        assert rows == expected[name], f"{name}: {set(map(repr, rows)) ^ set(map(repr, expected[name]))}"
    assert verify(Settings(database_url=world.url), json=False) == 0
    match case.points[-1].partition(":")[0]:
        case "after-commit-before-answer":
            assert world.known == 1
        case "after-limit-before-wait":
            first, second = (float(line) for line in (world.folder / "asked.txt").read_text().split())
            assert second - first >= 1


@pytest.mark.slow
async def test_a_run_that_was_opened_is_stepped_by_others(worlds, undisturbed, eventually):
    with worlds() as world:
        world.start(LIVE)
        world.start("worker")
        await eventually(world.drained, 60)
        opened = world.run.run("collector", "enqueue", "--force", CRASHPOINT="after-open-before-advance")
        assert opened.returncode == -signal.SIGKILL
        await eventually(lambda: world.drained(rerun=1), 60)
        again = [(*row[:2], 0, *row[3:]) for row in world.tables()["results"] if row[2] == 1]
        assert sorted(again, key=repr) == undisturbed["tables"]["results"]
        assert set(world.receiver.calls.values()) == {1}
        verified = world.run.run("ops", "verify")
        assert verified.returncode == 0, verified.stdout
