"""Each command as an operator types it."""

from __future__ import annotations

import concurrent.futures
import json

import asyncpg
import psycopg
import pytest

from ops.migrate import migrate
from worker.core.errors import Misconfigured
from worker.core.schema import latest_migration

APPEND = """select * from tailrace.append_raw(1, '{}', 0, true, null, null, null, $1, $2, $3, null, null, $4, null, null)"""


@pytest.fixture
async def stored(pool: asyncpg.Pool) -> int:
    """Three records of files:inbox and their open work; the version's id."""
    version = await pool.fetchval("select version_id from tailrace.register_version('p', 'v1', 'f', '{}', 1, '{%}', 'on_start', 'test')")
    await pool.execute("select tailrace.register_sources('{files:inbox}', array['{}'::jsonb])")
    await pool.execute(APPEND, list("abc"), ["create"] * 3, [b"1", b"2", b"3"], ['{"t": 1}'] * 3)
    return version


async def settle(pool, version, raw, outcome="ok", effects=None):
    token = await pool.fetchval("select gen_random_uuid()")
    await pool.execute("select * from tailrace.claim_jobs($1, 'w', $2, 0, '{1}', $3, 1, 1, 30)", token, version, [raw])
    counts = [[1], [0], [0], [0]] if outcome == "ok" else [[0], [0], [1], [0]]
    await pool.execute(
        "select * from tailrace.settle($1, 'w', 'run', '{}', '{1}', $2, $3, null, null, $4, $5, $6, $7, $2, null, $8, null, null, null, null, null, null, null, $9)",
        version, [raw], [token], *counts, [outcome], json.dumps(effects) if effects else None,
    )  # fmt: skip


WANTED = [{"raw": 1, "rerun": 0, "quiet": False, "kind": "post", "key": "k1", "target": "t", "body": {"text": "hi"}}]


async def test_status_tells_what_is_where(tailrace, stored, pool):
    await settle(pool, stored, 1)
    found = tailrace("status", "--json").value
    assert found["gates"] == {"post": "closed"}
    assert [(p["waiting"], p["ok"]) for p in found["pipelines"]] == [(2, 1)]
    assert "can be run by no worker" in found["warnings"][0]
    text = tailrace("status", TAILRACE_ENQUEUE="0").out
    assert "OFF: raw only" in text
    assert "files:inbox" in text


async def test_every_listing_prints_json_and_text(tailrace, stored):
    for words in (
        ["sources"],
        ["runs"],
        ["stale"],
        ["effects", "list"],
        ["config"],
        ["explain", "1"],
        ["doctor"],
        ["verify"],
        ["migrate", "--dry-run"],
    ):
        assert tailrace(*words).code == 0, words
        assert tailrace(*words, "--json").value is not None, words


def test_unknown_words_name_the_nearest(tailrace):
    for words, meant in (
        (["statsu"], "status"),
        (["status", "--jsn"], "--json"),
        (["effects", "relese", "1"], "release"),
        (["explain", "x"], "RAW_ID"),
    ):
        ended = tailrace(*words)
        assert (ended.code, meant in ended.err) == (2, True), words
    for name, meant in (
        ("TAILRACE_EFFECTS__PST", "post"),
        ("TAILRACE_EFECTS__POST", "TAILRACE_EFFECTS"),
        ("TAILRACE_WORKER__LEASE_SECOND", "lease_seconds"),
    ):
        ended = tailrace("status", **{name: "1"})
        assert (ended.code, meant in ended.err) == (2, True), name


def test_a_wrong_database_is_one_clear_message(tailrace, empty_db_url):
    for url, says in (("postgresql://x@127.0.0.1:1/x", "no database at"), ("mysql://x", "not usable"), (empty_db_url, "tailrace migrate")):
        ended = tailrace("status", DATABASE_URL=url)
        assert (ended.code, says in ended.err, "Traceback" in ended.err) == (2, True, False), url


async def test_a_newer_and_an_edited_schema_are_refused(tailrace, pool, db_url):
    await pool.execute("insert into tailrace.schema_migrations (number, name, digest) values (9999, 'future', 'x')")
    ended = tailrace("status")
    assert (ended.code, "update this program" in ended.err) == (2, True)
    with pytest.raises(Misconfigured, match="newer"):
        migrate(db_url)
    await pool.execute("delete from tailrace.schema_migrations where number = 9999")
    await pool.execute("update tailrace.schema_migrations set digest = 'edited'")
    with pytest.raises(Misconfigured, match="edited"):
        migrate(db_url)


def test_migrating_twice_and_at_once_is_harmless(empty_db_url):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        assert {m.number for m in threads.map(migrate, [empty_db_url] * 3)} == {latest_migration()}
    assert migrate(empty_db_url).applied == ()


async def test_a_function_that_returns_something_else_now_is_replaced(pool, db_url):
    await pool.execute("drop function tailrace.peek(int[])")
    await pool.execute("create function tailrace.peek(p_versions int[]) returns int language sql as 'select 1'")
    migrate(db_url)
    assert await pool.fetch("select version_id, lane, source_id from tailrace.peek('{1}')") == []
    assert await pool.fetchval("select has_function_privilege('tailrace_worker', 'tailrace.peek(int[])', 'execute')")


async def test_secrets_are_hidden_and_origins_told(tailrace, db_url):
    found = {row["setting"]: row for row in tailrace("config", "--json", TAILRACE_WORKER__PORT="9555").value}
    assert (found["worker.port"]["value"], found["worker.port"]["origin"]) == (9555, "TAILRACE_WORKER__PORT")
    assert found["effects.post.path"]["origin"].endswith("tailrace.toml")
    shown = tailrace("config", DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/x").out
    assert "hunter2" not in shown


async def test_retry_opens_failed_records_as_a_rerun(tailrace, stored, pool):
    await settle(pool, stored, 1, "failed")
    await settle(pool, stored, 2, "failed")
    assert tailrace("retry").code == 2
    assert tailrace("retry", "--all", "--dry-run", "--json").value[0]["failed"] == 2
    assert tailrace("retry", "--raw-id", "2", "--json").value[0]["failed"] == 1
    assert [tuple(r) for r in await pool.fetch("select raw_id, rerun, lane, quiet from tailrace.jobs where rerun > 0")] == [(2, 1, 1, False)]
    assert await pool.fetchval("select count(*) from tailrace.results") == 2


async def test_stale_claims_are_reported_and_come_back(tailrace, stored, pool):
    await pool.execute("select * from tailrace.claim_jobs(gen_random_uuid(), 'gone', $1, 0, '{1}', '{0}', 1, 1, 30)", stored)
    await pool.execute("update tailrace.jobs set lease_until = '2000-01-01' where state = 'c'")
    assert len(tailrace("stale", "--json").value["stale"]) == 1
    assert tailrace("stale", "reset", "--dry-run", "--json").value["reset"] == {}
    assert tailrace("stale", "reset", "--json").value["reset"]["rescued"] == 1
    assert tailrace("stale", "--json").value["stale"] == []


async def test_effects_are_listed_explained_released_and_cancelled(tailrace, stored, pool):
    await settle(pool, stored, 1, effects=WANTED)
    listed = tailrace("effects", "list", "--json").value
    assert [(e["verdict"], e["reason"], e["key"]) for e in listed] == [("suppressed", "gate closed", "k1")]
    refused = tailrace("effects", "release", "1")
    assert (refused.code, "TAILRACE_EFFECTS__POST=1" in refused.err) == (1, True)
    assert tailrace("effects", "release", "1", "--dry-run", TAILRACE_EFFECTS__POST="1").code == 0
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 0
    assert tailrace("effects", "release", "1", TAILRACE_EFFECTS__POST="1").code == 0
    again = tailrace("effects", "release", "1", TAILRACE_EFFECTS__POST="1")
    assert (again.code, "has a delivery already" in again.err) == (1, True)
    assert tailrace("effects", "explain", "k1", "--json").value["delivery"]["state"] == "pending"
    assert tailrace("effects", "cancel", "k1", "--json").value["now"] == "cancelled"
    assert tailrace("effects", "cancel", "k1").code == 1
    story = tailrace("effects", "explain", "1").out
    assert "released" in story
    assert "cancelled" in story


async def test_uncertain_deliveries_are_resolved_by_a_person(tailrace, stored, pool):
    await settle(pool, stored, 1, effects=WANTED)
    tailrace("effects", "release", "1", TAILRACE_EFFECTS__POST="1")
    await pool.execute("update tailrace.deliveries set state = 'uncertain'")
    assert tailrace("effects", "resolve", "k1").code == 2
    assert tailrace("effects", "resolve", "k1", "--sent", "--remote-id", "77", "--json").value["now"] == "sent"
    assert await pool.fetchval("select remote_id from tailrace.deliveries") == "77"


async def test_runs_are_paused_resumed_and_cancelled(tailrace, stored, pool):
    run = await pool.fetchval("select tailrace.open_run('replay', $1, '{\"force\": true}')", stored)
    for action, state in (("pause", "paused"), ("resume", "active"), ("cancel", "cancelled")):
        assert tailrace("runs", action, str(run), "--json").value["now"] == state
    assert (await pool.fetchrow("select * from tailrace.advance_run($1, 10)", run))["state"] == "cancelled"
    assert tailrace("runs", "pause", "999").code == 2


PLANTED = {
    "revision holes": "update tailrace.raw_records set revision = 5 where id = 1",
    "slices whose row count is wrong": "update tailrace.jobs set raw_id_to = 3, n_rows = 1 where raw_id = 2",
    "overlapping slices": "update tailrace.jobs set raw_id_to = 3, n_rows = 2 where raw_id = 2",
    "records both open and done (same rerun)": "insert into tailrace.results (version_id, raw_id, status, finished_at) values (1, 2, 'ok', now())",
    "gaps: records of a live version that are neither open nor done": "delete from tailrace.jobs where raw_id = 3",
    "results without a raw record": "insert into tailrace.results (version_id, raw_id, status, finished_at) values (1, 99, 'ok', now())",
    "cursors that count other records than raw holds": "update tailrace.cursors set records = 99",
    "duplicates: one revision stored twice in a row": "insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at) "
    "select source_id, external_id, 2, op, digest, now(), now() from tailrace.raw_records where id = 1",
    "deliveries without an effect": "insert into tailrace.deliveries (key, effect_id, kind, policy, next_at, expires_at, created_at, updated_at) "
    "values ('x', 99, 'k', 'never_lost', now(), now(), now(), now())",
    "pipelines whose live pointer and version disagree": "update tailrace.versions set state = 'retired'",
}


@pytest.mark.parametrize("check", PLANTED)
async def test_verify_finds_what_is_planted(tailrace, stored, pool, check):
    assert tailrace("verify", "--json").code == 0
    await pool.execute("alter table tailrace.raw_records disable trigger immutable")
    await pool.execute(PLANTED[check])
    ended = tailrace("verify", "--json")
    assert ended.code == 1
    assert ended.value[check]["breaches"] >= 1


def test_init_writes_a_configuration_that_loads_and_overwrites_nothing(tailrace, tmp_path):
    assert tailrace("init", str(tmp_path / "new"), "--dry-run").code == 0
    assert not (tmp_path / "new").exists()
    assert tailrace("init", str(tmp_path / "new")).code == 0
    assert tailrace("config", TAILRACE_CONFIG=str(tmp_path / "new" / "tailrace.toml")).code == 0
    assert tailrace("init", str(tmp_path / "new")).code == 2


async def test_doctor_says_what_is_wrong(tailrace, pool):
    assert tailrace("doctor").code == 0
    await pool.execute("update tailrace.schema_migrations set digest = 'x'")
    ended = tailrace("doctor")
    assert (ended.code, "differ" in ended.out) == (1, True)


async def test_roles_may_do_only_their_part(db_url, stored):
    def refused(role, statement):
        with psycopg.connect(db_url, autocommit=True) as connection:
            connection.execute(f"set role {role}")
            try:
                connection.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                return True
            return False

    assert refused("tailrace_collector", "select * from tailrace.results")
    assert refused("tailrace_collector", "delete from tailrace.jobs")
    assert refused("tailrace_worker", "insert into tailrace.raw_records (source_id) values (1)")
    assert refused("tailrace_worker", "update tailrace.raw_records set op = 'delete'")
    assert refused("tailrace_worker", "delete from tailrace.results")
    assert refused("tailrace_reader", "select tailrace.give_back('{}')")
    assert refused("tailrace_reader", "delete from tailrace.jobs")
    assert not refused("tailrace_reader", "select * from tailrace.job_status")


async def test_a_shared_limit_that_holds_a_source_is_shown_and_reset_with_it(tailrace, pool):
    await pool.execute("""select tailrace.register_sources('{x:a}', array['{"limits": ["x:money"]}'::jsonb])""")
    await pool.execute("select tailrace.hold_calls('{x:money}', 600, 'the budget of 5 is spent')")
    (row,) = tailrace("sources", "--json").value
    assert (row["breaker"], row["reason"]) == ("open", "the budget of 5 is spent")
    tailrace("sources", "retry", "x:a")
    assert tailrace("sources", "--json").value[0]["breaker"] == "closed"
