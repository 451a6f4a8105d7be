"""No statement costs more because much waits: the same bounds hold at 50,000 waiting records and at 1,000,000 (ROWS=1000000), on tables that were
never analysed, on analysed ones, and after all that waited was done while an old snapshot kept its dead rows.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.sql.plans import BULK, FRESH, LIVE, OTHER, ROWS, SOURCES, fill, measure, work_off

TOKEN = "'00000000-0000-0000-0000-000000000001'::uuid"
SMALL = 250  # rows of small tables (versions, sources, quotas, runs) that may be read one after the other
PLANS = ("force_custom_plan", "force_generic_plan")


@dataclass(frozen=True)
class Case:
    """`buffers` whatever waits; more for each waiting or dead row only where the statement must by nature look at them."""

    sql: str
    buffers: int
    before: str = ""
    waiting: float = 0.0
    dead: float = 0.0
    rows: float = 0.0  # read one after the other, for each waiting row
    plain: int = SMALL  # read one after the other, whatever waits
    warm: bool = True
    worked_off: bool = True  # False: without the state of many dead rows


def claim(version: int, lane: int, each: int = 20, limit: int = 100) -> str:
    return f"select * from tailrace.claim_jobs({TOKEN}, 'w', {version}, {lane}, {{sources}}, array_fill({{first}}::bigint, array[5]), {each}, {limit}, 30)"


def holding(claimed: str) -> str:
    """Claims, and keeps what was claimed in settings of the transaction."""
    return (
        f"create temp table held on commit drop as {claimed}; "
        "select set_config('p.raws', array_agg(coalesce(job[2], id) order by id)::text, true), set_config('p.n', count(*)::text, true), "
        "set_config('p.sources', array_agg(job[1]::int order by id)::text, true), "
        "set_config('p.lefts', array_agg(job[4]::int - 100 order by id)::text, true) from held where job is not null"
    )


def settle(
    version: int, *, nexts: str = "null", lefts: str = "null", ok: int = 1, retried: int = 0, ids: str = "{raws}", more: str = "null, null"
) -> str:
    counts = ", ".join(f"array_fill({n}, array[{{n}}])" for n in (ok, 0, 0, retried))
    text = f"select * from tailrace.settle({version}, 'w', 'run', {{gates}}, {{held}}, {{raws}}, array[{TOKEN}], {nexts}, {lefts}, {counts}, {ids}, null, null, null, null, null, null, null, null, {more})"
    return (
        text.replace("{raws}", "current_setting('p.raws')::bigint[]")
        .replace("{n}", "current_setting('p.n')::int")
        .replace("{held}", "current_setting('p.sources')::int[]")
    )


RETRIES = (
    "(select jsonb_agg(jsonb_build_object('source', s, 'raw', i, 'rerun', 0, 'lane', 0, 'quiet', false, 'attempt', 0, 'crashes', 0, 'counts', true, "
    "'error', jsonb_build_object('kind', 'x'))) from unnest(current_setting('p.raws')::bigint[], current_setting('p.sources')::int[]) u(i, s))"
)
EFFECTS = (
    "(select jsonb_agg(jsonb_build_object('raw', i, 'rerun', 0, 'lane', 0, 'quiet', false, 'kind', 'dm', "
    "'key', 'k' || case when i % 2 = 0 then i else i - {done} end, 'body', jsonb_build_object('i', i), 'occurred', now())) "
    "from unnest(current_setting('p.raws')::bigint[]) i)"
)
PREFIX = "(select array_agg(j order by j) from unnest(current_setting('p.raws')::bigint[]) i, generate_series(i, i + 99) j)"
PAGE = (
    "select * from tailrace.append_raw({source}, '{{\"a\": 1}}', 0, true, null, null, null, "
    "(select array_agg(to_char(g, 'FM00000000') order by g) from generate_series(%s, %s) g), array_fill('create'::text, array[100]), "
    "array_fill('\\x02'::bytea, array[100]), null, null, array_fill('{{}}'::jsonb, array[100]), null, null)"
)
RUN = "select tailrace.open_run('replay', %s, '%s'); update tailrace.runs set position = %s where kind = 'replay'"
ADVANCE = "select a.* from tailrace.runs r, tailrace.advance_run(r.id, 1000) a where r.kind = 'replay'"
FAR = ADVANCE.replace("1000", f"{ROWS // 10}")
STUCK = "select count(*) from tailrace.jobs where state = 'c' and lease_until < tailrace.clock() - interval '30 seconds'"
DONE_BY_OTHER = f"insert into tailrace.results (version_id, raw_id, status, finished_at) select {OTHER}, id, 'ok', now() from tailrace.raw_records where id between {{first}} and {{first}} + 1999"

CASES = {
    "claim, live": Case(claim(LIVE, 0), 3000),
    "claim, catch-up": Case(claim(LIVE, 1), 3000),
    "claim, replay": Case(claim(LIVE, 2), 3000),
    "claim, slices": Case(claim(BULK, 0, 1, 2), 300),
    "claim, a suspect": Case(f"select * from tailrace.claim_suspect({TOKEN}, 'w', {LIVE}, 30, {{first}})", 100),
    "peek": Case(f"select * from tailrace.peek(array[{BULK}, {LIVE}])", 800, dead=0.2),
    "beat": Case(f"select * from tailrace.beat(array[{TOKEN}], array[600], 30)", 2000, before=claim(LIVE, 0)),
    "give back": Case(f"select tailrace.give_back(array[{TOKEN}])", 3000, before=claim(LIVE, 0)),
    "settle": Case(settle(LIVE), 2500, before=holding(claim(LIVE, 0))),
    "settle, retries": Case(settle(LIVE, ok=0, retried=1, ids="'{{}}'", more=f"{RETRIES}, null"), 4000, before=holding(claim(LIVE, 0))),
    "settle, effects": Case(settle(LIVE, more=f"null, {EFFECTS}"), 8000, before=holding(claim(LIVE, 0))),
    "settle, prefix": Case(
        settle(
            BULK, nexts="(select array_agg(i + 100 order by i) from unnest({raws}) i)", lefts="current_setting('p.lefts')::int[]", ok=100, ids=PREFIX
        ),
        1500,
        before=holding(claim(BULK, 0, 1, 2)),
    ),
    "rescue": Case("select * from tailrace.rescue(5, 200)", 12_000, dead=0.5),
    "rescue, nothing lost": Case("select * from tailrace.rescue(5, 200)", 500, before="select tailrace.rescue(5, 10000)", dead=0.5),
    "promote": Case("select tailrace.promote_delayed(100)", 5000, dead=0.1),
    "watch": Case("select * from tailrace.watch(5, 200)", 60000, dead=1.0),
    "swap": Case(f"select tailrace.swap_live({OTHER}, 'me')", 80_000, dead=0.5, warm=False),
    "move": Case(f"select tailrace.move_open_work({LIVE}, {OTHER}, true, 2000)", 80_000, dead=0.5, warm=False),
    "move, some is done": Case(f"select tailrace.move_open_work({LIVE}, {OTHER}, true, 2000)", 100_000, before=DONE_BY_OTHER, dead=0.5, warm=False),
    "hand over": Case(f"select tailrace.hand_over({LIVE}, {OTHER}, 2000)", 100_000, before=DONE_BY_OTHER, dead=0.5, warm=False),
    "job_status, waiting": Case("select * from tailrace.job_status where raw_id = {first} + 3", 150),
    "job_status, done": Case("select * from tailrace.job_status where raw_id = {done} / 2", 150),
    "job_status, by key": Case(
        "select * from tailrace.job_status where source = 'files:s{source}' and external_id = to_char({first} + 3, 'FM00000000')", 150
    ),
    # One record's probe steps over the dead index entries of its source before it; that of a whole source does so for each record.
    "job_status, one source": Case(
        "select * from tailrace.job_status where source = 'files:s{source}' limit 100", 3000, plain=50_000, worked_off=False
    ),
    "effective, one": Case("select * from tailrace.effective_results where raw_id = {done} / 2", 100),
    "approved, one": Case("select * from tailrace.approved_results where raw_id = {done} / 2", 100),
    "queue_lag": Case("select * from tailrace.queue_lag", 4000, waiting=0.1, dead=0.5, rows=1.05),
    "queue_depth": Case("select * from tailrace.queue_depth", 200, waiting=0.1, dead=0.2, rows=1.05),
    "source_lag": Case("select * from tailrace.source_lag", 50),
    "source_silence": Case("select * from tailrace.source_silence", 300),
    "source_gaps": Case("select * from tailrace.source_gaps", 50),
    "source_breakers": Case("select * from tailrace.source_breakers", 50),
    "backfill_progress": Case("select * from tailrace.backfill_progress", 300),
    "unrunnable": Case("select * from tailrace.unrunnable", 200, waiting=0.1, dead=0.2, rows=1.05),
    "delivery_depth": Case("select * from tailrace.delivery_depth", 200, waiting=0.05, dead=0.05, rows=1.05),
    "xmin_holders": Case("select * from tailrace.xmin_holders", 50),
    "stuck claims": Case(STUCK, 200, dead=0.2),
    "due deliveries": Case("select * from tailrace.due_deliveries(array['dm', 'broadcast'])", 50, dead=0.1),
    "claim deliveries": Case(f"select * from tailrace.claim_deliveries({TOKEN}, 'w', 'dm', 20, null, 60)", 1000, dead=0.1),
    "rescue deliveries": Case("select tailrace.rescue_deliveries(50)", 8000, waiting=0.01, dead=0.3),
    "append, new": Case(PAGE % (90000000, 90000099), 6000),
    "append, known": Case(PAGE % ("{first}", "{first} + 99"), 6000),
    "known among": Case(
        "select * from tailrace.known_among({source}, (select array_agg(to_char(g, 'FM00000000')) from generate_series({first}, {first} + 99) g))",
        800,
    ),
    "known between": Case("select * from tailrace.known_between({source}, to_char({first}, 'FM00000000'), to_char({first} + 99, 'FM00000000'))", 100),
    "open a run": Case(f"select tailrace.open_run('replay', {OTHER}, '{{{{}}}}')", 100),
    "advance, nothing begun": Case(ADVANCE, 12_000, before=RUN % (OTHER, "{{}}", "{first}")),
    "advance, all waits": Case(ADVANCE, 8000, before=RUN % (LIVE, "{{}}", "{first}")),
    "advance, all done": Case(ADVANCE, 1000, before=RUN % (LIVE, "{{}}", "{done} - 1000"), plain=11_000),
    "advance, forced": Case(ADVANCE, 12_000, before=RUN % (LIVE, '{{"force": true}}', "{done} - 1000"), plain=11_000),
    "advance, failed": Case(ADVANCE, 1500, before=RUN % (LIVE, '{{"failed": true}}', "{done} - 1000"), plain=11_000),
    "advance, failed, far": Case(FAR, 1500, before=RUN % (LIVE, '{{"failed": true}}', "{done} / 2"), waiting=0.2, plain=11_000, rows=0.3),
    "lane backlog": Case("select tailrace.lane_backlog({source}, 0)", 3000, dead=0.05),
    "open work": Case(f"select * from tailrace.open_work(array[{LIVE}])", 500, waiting=0.1, dead=0.2, rows=1.05),
}


class State:
    """A database with much work, in one of the states of its statistics and its dead rows."""

    def __init__(self, url: str, first: int, dead: int, waiting: int) -> None:
        self.url, self.dead, self.waiting = url, dead, waiting
        sources = [(first // 1000 + k) % SOURCES + 1 for k in range(5)]
        self._values = {"first": first, "done": ROWS // 5, "source": sources[0], "sources": f"array{sources}",
                        "gates": """'{"dm": {"policy": "idempotent", "max_age": 86400, "on_change": "edit"}}'"""}  # fmt: skip

    def shown(self, text: str) -> str:
        return text.format(**self._values)


@pytest.fixture(scope="module")
def states(server_url, template):
    """Makes each state once. An old snapshot stays open beside the one that was worked off."""
    made: dict[str, State] = {}
    prefix = f"tr_plans_{secrets.token_hex(4)}"
    address = lambda name: urlsplit(server_url)._replace(path=f"/{prefix}_{name}").geturl()  # noqa: E731  used here only
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"create database {prefix}_fresh template {template}")
        with psycopg.connect(address("fresh")) as session:
            fill(session)
        for name in ("analysed", "worked_off"):
            admin.execute(f"create database {prefix}_{name} template {prefix}_fresh strategy file_copy")
        with psycopg.connect(address("analysed"), autocommit=True) as session:
            session.execute("analyze")
        with psycopg.connect(address("worked_off")) as old:
            old.execute("set transaction isolation level repeatable read")
            old.execute("select count(*) from tailrace.sources")
            with psycopg.connect(address("worked_off")) as session:
                first = work_off(session)
            made["fresh"] = State(address("fresh"), ROWS // 5 + 1, 0, ROWS)
            made["analysed"] = State(address("analysed"), ROWS // 5 + 1, 0, ROWS)
            made["worked off"] = State(address("worked_off"), first, ROWS, FRESH + ROWS // 5)
            yield made
        for name in ("fresh", "analysed", "worked_off"):
            admin.execute(f"drop database {prefix}_{name} with (force)")


@pytest.mark.parametrize("name", CASES)
def test_no_statement_costs_more_than_its_bound(states, name):
    case = CASES[name]
    over = []
    for state_name, state in states.items():
        if state.dead and not case.worked_off:
            continue
        most = case.buffers + case.waiting * state.waiting + case.dead * state.dead
        with psycopg.connect(state.url, autocommit=True) as session:
            for plans in PLANS:
                cost = measure(session, state.shown(case.sql), state.shown(case.before), plans, warm=case.warm)
                print(f"{name:26} {state_name:10} {plans[6:13]} {cost} of {most:.0f}")
                most_rows = case.plain + case.rows * state.waiting
                if cost.buffers > most or cost.rows > most_rows:
                    over.append(f"{state_name}, {plans}: {cost}, allowed {most:.0f} buffers and {most_rows:.0f} rows")
    assert not over, f"{name}: " + "; ".join(over)
