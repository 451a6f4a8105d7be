"""The checker finds each kind of damage, and nothing where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

CHECK = Path(__file__).with_name("check.py")
GATES = '{"post": {"policy": "idempotent", "max_age": null, "hold": 0}, "once": {"policy": "never_twice", "max_age": null, "hold": 0}}'
HISTORY = [
    "select tailrace.register_sources(array['files:inbox'], array['{}'::jsonb])",
    "select tailrace.register_version('chaos', 'v1', 'f', '{}', 1, '{%}', 'on_start', 'test')",
    """select tailrace.append_raw(1, '{}', 0, true, null, null, null, array['f1', 'f2'], array['create', 'create'], array['a', 'b']::bytea[], null, null,
       array['{"id": "f1", "v": 1, "how": "quick"}', '{"id": "f2", "v": 1, "how": "exit"}']::jsonb[], null, null)""",
    "delete from tailrace.jobs",
    """insert into tailrace.results (version_id, raw_id, status, output, finished_at) values (1, 1, 'ok', '{"id": "f1", "v": 1}', now()), (1, 2, 'failed', null, now())""",
    f"""select tailrace.decide_effects(1, 'run', '{GATES}', '[{{"raw": 1, "rerun": 0, "quiet": false, "kind": "post", "key": "post:f1", "body": 1}},
       {{"raw": 1, "rerun": 0, "quiet": false, "kind": "once", "key": "once:f1", "body": 1}}]')""",
    "update tailrace.deliveries set state = 'sent'",
]
LEDGER = [
    {"source": "files:inbox", "id": "f1", "v": 1, "how": "quick"}, {"source": "files:inbox", "id": "f2", "v": 1, "how": "exit"},
    {"complete": "v1", "pipeline": "chaos"},
]  # fmt: skip
RECEIVED = [{"kind": "post", "key": "post:f1", "did": "processed"}, {"kind": "post", "key": "post:f1", "did": "repeat"},
            {"kind": "once", "key": "once:f1", "did": "processed"}]  # fmt: skip
JOB = "insert into tailrace.jobs (version_id, source_id, raw_id, raw_id_to, n_rows, run_at) values (1, 1, 1, 1, 1, now())"
AGAIN = """insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at, payload)
  select source_id, external_id, {}, op, digest, occurred_at, observed_at, payload from tailrace.raw_records where id = 1"""
UNFENCED = "alter table tailrace.results drop constraint results_pkey"
DAMAGE = {
    "duplicated: one content, two raw rows": AGAIN.format(2),
    "duplicated: holes or repeats in revisions": AGAIN.format(3),
    "duplicated: two results": f"{UNFENCED}; insert into tailrace.results select * from tailrace.results where raw_id = 1",
    "duplicated: one wish written twice": """insert into tailrace.effects (version_id, raw_id, rerun, kind, key, body, body_hash, verdict, reason, created_at)
        select version_id, raw_id, rerun, kind, key, body, body_hash, 'suppressed', 'duplicate', now() from tailrace.effects where id = 1""",
    "both open and done": JOB,
    "never became quiet: open jobs": JOB,
    "never became quiet: deliveries under way": "update tailrace.deliveries set state = 'pending' where kind = 'post'",
    "never became quiet: open runs": "select tailrace.open_run('replay', 1, '{}')",
    "the result of another record": 'update tailrace.results set output = \'{"id": "f2", "v": 1}\' where raw_id = 1',
    "effects without a result of their record": "delete from tailrace.results where raw_id = 1",
    "lost: raw without a result": "delete from tailrace.results where raw_id = 2",
    "innocents buried": "update tailrace.results set status = 'failed' where raw_id = 1",
    "a wrong end": "update tailrace.results set status = 'ok' where raw_id = 2",
    "released, but without a delivery": "delete from tailrace.deliveries where kind = 'post'",
    "released, but never delivered": "update tailrace.deliveries set state = 'failed' where kind = 'post'",
    "uncertain where the policy knows": "update tailrace.deliveries set state = 'uncertain' where kind = 'post'",
    "cancelled by nobody": "update tailrace.deliveries set state = 'cancelled' where kind = 'once'",
}


@pytest.fixture
def check(db_url, tmp_path):
    """`check(damage, ledger, received)`: the exit code, and which checks failed."""

    def run(damage: str = "", ledger: list = LEDGER, received: list = RECEIVED) -> tuple[int, set[str]]:
        with psycopg.connect(db_url) as connection:
            for statement in [*HISTORY, damage]:
                connection.execute(statement)
        for name, lines in (("ledger", ledger), ("received", received)):
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [
            sys.executable,
            "-I",
            str(CHECK),
            "--database",
            db_url,
            "--written",
            str(tmp_path / "ledger"),
            "--received",
            str(tmp_path / "received"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert not done.stderr
        return done.returncode, {line[7:].rsplit(maxsplit=1)[0].strip() for line in done.stdout.splitlines() if line.startswith("  FAIL ")}

    return run


def test_a_good_history_passes(check):
    assert check() == (0, set())


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_in_the_database_is_found(check, name):
    code, failed = check(DAMAGE[name])
    assert code == 1
    assert name in failed


@pytest.mark.parametrize(("name", "ledger", "received"), [
    ("lost: acknowledged, but not in raw", [*LEDGER, {"source": "files:inbox", "id": "f3", "v": 1, "how": "quick"}], RECEIVED),
    ("lost: versions that nobody registered", [*LEDGER, {"complete": "v2", "pipeline": "chaos"}], RECEIVED),
    ("delivered twice", LEDGER, [*RECEIVED, RECEIVED[2]]),
    ("left without being released", LEDGER, [*RECEIVED, {"kind": "post", "key": "post:f2", "did": "processed"}]),
    ("released, but never delivered", LEDGER, RECEIVED[1:]),
])  # fmt: skip
def test_damage_outside_is_found(check, name, ledger, received):
    assert check("", ledger, received) == (1, {name})
