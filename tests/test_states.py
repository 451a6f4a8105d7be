"""The graph of states, walked: whatever state a row is in, time, the watchdog and a worker bring it to an end, or to a person and say so."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.worker.conftest import append

# Final, or waiting for a person (who is told by `status`, `doctor` or an alert).
ENDS = {
    "deliveries": {"sent", "failed", "cancelled", "uncertain"},
    "runs": {"done", "failed", "cancelled", "paused by a person"},
    "breakers": {"closed", "open for a person"},
}


@pytest.fixture
async def version(pool):
    row = await pool.fetchrow(
        "select * from tailrace.register_version('p', 'v1', 'f', $1, 1, '{%}', 'on_start', 't')",
        json.dumps({"max_attempts": 2, "retry_rounds": 1, "retry_after": 600}),
    )
    await append(pool, "files:a", [{"n": n} for n in range(3)])
    return row["version_id"]


async def settle_all(pool, version):
    """What a worker does with everything that is ready: the first record fails each time, the others are fine."""
    for claim in ("claim_jobs($1, 'w', $2, 0, '{1}', '{0}', 9, 9, 30)", "claim_suspect($1, 'w', $2, 30)"):
        token = uuid.uuid4()
        for row in [r for r in await pool.fetch(f"select * from tailrace.{claim}", token, version) if r["job"]]:
            head = [*row["job"], *[0] * 9][:9]
            attempt, crashes = (head[6], head[7]) if len(row["job"]) > 1 else (0, 0)
            retry = row["id"] == 1
            retries = [{"source": 1, "raw": row["id"], "rerun": 0, "lane": 0, "quiet": False, "attempt": attempt, "crashes": crashes, "counts": True,
                        "error": {"kind": "retry"}, "history": json.loads(row["error"] or "[]")}]  # fmt: skip
            await pool.execute(
                "select * from tailrace.settle($1, 'w', 'run', '{}', '{1}', $2, $3, null, null, $4, $5, $5, $6, $7, null, null, null, null, null, null, null, null, $8, null)",
                version, [row["id"]], [token], [0 if retry else 1], [0], [1 if retry else 0], [] if retry else [row["id"]], json.dumps(retries) if retry else None,
            )  # fmt: skip


@pytest.mark.parametrize("state", ["ready", "claimed", "suspect", "delayed", "lost alone again and again"])
async def test_a_job_ends_whatever_state_it_is_in(pool, version, clock, state):
    token = uuid.uuid4()
    await clock.advance(0)
    if state in ("claimed", "suspect"):
        await pool.fetch("select * from tailrace.claim_jobs($1, 'w', $2, 0, '{1}', '{0}', 9, 9, 30)", token, version)
    if state == "suspect":
        await clock.advance(31)
        await pool.execute("select * from tailrace.watch(5, 200)")
        assert await pool.fetchval("select count(*) from tailrace.jobs where state = 's'") == 3
    if state == "delayed":
        await settle_all(pool, version)
        assert await pool.fetchval("select count(*) from tailrace.jobs where state = 'd'") == 1
    for _ in range(12):
        await clock.advance(5000)
        await pool.execute("select * from tailrace.watch(3, 200)")
        if state == "lost alone again and again":
            await pool.fetch("select * from tailrace.claim_suspect($1, 'w', $2, 30)", uuid.uuid4(), version)
            await pool.fetch("select * from tailrace.claim_jobs($1, 'w', $2, 0, '{1}', '{0}', 9, 9, 30)", uuid.uuid4(), version)
        else:
            await settle_all(pool, version)
    assert await pool.fetchval("select count(*) from tailrace.jobs") == (
        0 if state != "lost alone again and again" else await pool.fetchval("select count(*) from tailrace.jobs where state = 'c'")
    )
    statuses = dict(await pool.fetch("select status, count(*) from tailrace.results group by 1"))
    assert sum(statuses.values()) + await pool.fetchval("select count(*) from tailrace.jobs") == 3


@pytest.mark.parametrize("policy", ["never_twice", "never_lost", "idempotent"])
@pytest.mark.parametrize("state", ["pending", "sending"])
async def test_a_delivery_ends_or_waits_for_a_person(pool, version, clock, state, policy):
    await clock.advance(0)
    gates = json.dumps({"k": {"policy": policy, "max_age": None, "hold": 0}})
    wish = json.dumps([{"raw": 1, "rerun": 0, "lane": 0, "quiet": False, "kind": "k", "key": "a", "body": 1, "occurred": None}])
    await pool.execute("select tailrace.decide_effects($1, 'run', $2, $3)", version, gates, wish)
    if state == "sending":
        await pool.fetch("select * from tailrace.claim_deliveries($1, 'w', 'k', 9, null, 20)", uuid.uuid4())
    for _ in range(6):
        await clock.advance(86400)
        await pool.execute("select * from tailrace.watch(3, 200)")
    assert await pool.fetchval("select state from tailrace.deliveries") in ENDS["deliveries"]


@pytest.mark.parametrize(("kind", "state", "resumes"), [
    ("cover", "active", None), ("replay", "active", None), ("replay", "paused", 60), ("backfill", "active", None), ("backfill", "paused", 60),
])  # fmt: skip
async def test_a_run_ends_or_is_there_for_whoever_goes_on_with_it(pool, version, clock, kind, state, resumes):
    await clock.advance(0)
    await pool.execute("truncate tailrace.jobs")
    if kind == "backfill":
        await pool.execute("select tailrace.open_backfill(1, '{}')")
    else:
        await pool.execute("select tailrace.open_run($1, $2, $3)", kind, version, json.dumps({"lane": 2, "quiet": True, "watch": kind == "replay"}))
    if state == "paused":
        await pool.execute(
            "update tailrace.runs set state = 'paused', resume_at = tailrace.clock() + make_interval(secs => $1) where state = 'active'", resumes
        )
    for _ in range(6):
        await clock.advance(100)
        await pool.execute("select * from tailrace.watch(3, 200)")
        await pool.fetch(
            "select a.* from tailrace.runs r cross join lateral tailrace.advance_run(r.id, 1000) a where r.version_id is not null and r.kind = $1",
            kind,
        )
        for lane in (0, 1, 2):
            rows = await pool.fetch(
                "select * from tailrace.claim_jobs($1, 'w', $2, $3, '{1}', '{0}', 9, 9, 30)", token := uuid.uuid4(), version, lane
            )
            for row in rows:
                await pool.execute(
                    "select * from tailrace.settle($1, 'w', 'drain', '{}', '{1}', $2, $3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null)",
                    version, [row["id"]], [token],
                )  # fmt: skip
    row = await pool.fetchrow("select state, resume_at from tailrace.runs where kind = $1 order by id desc limit 1", kind)
    if kind == "backfill":
        assert await pool.fetchval("select count(*) from tailrace.orphaned_backfills()") == 1, "a running collector finds it"
    else:
        assert row["state"] in ENDS["runs"]


async def test_a_breaker_closes_or_waits_for_a_person(pool, clock):
    await clock.advance(0)
    await pool.execute("select tailrace.hold_calls('{a}', 60, 'flood')")
    await pool.execute("select tailrace.hold_calls('{b}', null, 'denied')")
    for _ in range(5):
        await pool.execute("select tailrace.call_failed('c', 'boom', 5)")
    assert await pool.fetchval("select tailrace.may_call('{a}', 60)") == 60
    await clock.advance(3601)
    for name in ("a", "c"):
        assert await pool.fetchval("select tailrace.may_call($1, 60)", [name]) == 0, "one probe"
        await clock.advance(61)
        assert await pool.fetchval("select tailrace.may_call($1, 60)", [name]) == 0, "a probe that was lost is made up for"
        await pool.execute("select tailrace.call_worked($1)", [name])
    states = {
        r["name"]: "open for a person" if r["breaker"] == "open" and r["open_until"] is None else r["breaker"]
        for r in await pool.fetch("select * from tailrace.quotas")
    }
    assert set(states.values()) <= ENDS["breakers"]


async def test_a_lease_ends_with_its_holder(pool, clock):
    await clock.advance(0)
    assert await pool.fetchval("select tailrace.take_lease('session', 'dead', 15)") == "dead"
    assert await pool.fetchval("select tailrace.take_lease('session', 'mine', 15)") == "dead"
    await clock.advance(16)
    assert await pool.fetchval("select tailrace.take_lease('session', 'mine', 15)") == "mine"
