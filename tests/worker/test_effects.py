"""The gate, and what the database does with what passes it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random

import asyncpg
import pytest

from worker import Done, Effect
from worker.core.errors import ClaimLost
from worker.core.models import Receipt
from worker.effects import Effects

OPEN = {"k": {"policy": "never_twice", "max_age": None, "hold": 0}}
AGED = {"k": {"policy": "never_twice", "max_age": 60, "hold": 0}}
OLD = "2020-01-01T00:00:00Z"


@pytest.fixture
def verdicts(pool):
    async def verdicts():
        return [r["reason"] or r["verdict"] for r in await pool.fetch("select verdict, reason from tailrace.effects order by id")]

    return verdicts


@pytest.fixture
def states(pool):
    async def states():
        return dict(await pool.fetch("select key, state from tailrace.deliveries"))

    return states


@pytest.fixture
async def shadow(pool, live):
    """The id of a second version, which is not live."""
    return await pool.fetchval(
        "insert into tailrace.versions (pipeline_id, name, fingerprint, state, slice_size) values (1, 'c', 'x', 'shadow', 1) returning id"
    )


async def test_each_reason_goes_before_the_next(pool, shadow, decide, verdicts):
    await decide(mode="drain", version=shadow, quiet=True, gates={}, occurred=OLD)
    await decide(version=shadow, quiet=True, gates={}, occurred=OLD)
    await decide(quiet=True, lane=2, gates={}, occurred=OLD)
    await decide(gates={}, occurred=OLD)
    await decide(gates=AGED, occurred=OLD)
    await decide(gates=AGED)
    await decide()
    await decide(body={"x": 2})
    await decide(gates=AGED, occurred=OLD, body={"x": 2})
    assert await verdicts() == ["drain", "shadow", "replay", "gate closed", "stale", "released", "duplicate", "changed", "stale"]
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 1


async def test_the_order_of_members_changes_no_body(live, decide, verdicts):
    await decide(body={"a": 1, "b": 2})
    await decide(body={"b": 2, "a": 1})
    assert await verdicts() == ["released", "duplicate"]


async def test_a_key_twice_in_one_call_is_released_once(live, decide, verdicts):
    await decide({}, {"raw": 2}, {"raw": 3, "body": {"x": 9}}, {"raw": 2, "key": "other"})
    assert await verdicts() == ["released", "duplicate", "changed", "released"]


async def test_a_refused_twin_in_the_same_call_takes_nothing_from_the_other(live, decide, verdicts, states):
    await decide({"occurred": OLD}, {"raw": 2}, gates=AGED)
    await decide({"quiet": True, "lane": 2, "key": "b"}, {"raw": 2, "key": "b"})
    assert await verdicts() == ["stale", "released", "replay", "released"]
    assert await states() == {"a": "pending", "b": "pending"}


async def test_a_body_of_null_and_a_very_long_key_can_be_stored(pool, live, decide, verdicts):
    await decide(body=None)
    long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    await decide(key=long)
    await decide(key=long)
    assert await verdicts() == ["released", "released", "duplicate"]
    claimed = await Effects(pool, "w").claim("k", 9, None, 30)
    assert {c.delivery.key[:7]: c.delivery.body for c in claimed} == {"a": None, "sha256:": {"x": 1}}


async def test_two_workers_release_a_key_once(pool, live, decide):
    many = [{"key": f"k{n}"} for n in range(50)]
    found = await asyncio.gather(*(decide(*(many if n % 2 else many[::-1])) for n in range(4)))
    assert (sum(r["released"] for r in found), sum(r["suppressed"] for r in found)) == (50, 150)
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 50


async def test_two_workers_settle_the_same_key_at_once(pool, register, drain, wishing, feed):
    async def same(record, ctx):
        return Done(effects=[Effect("k", {"n": 1}, key=f"same-{record.payload['n'] % 5}")])

    runnable = await register(same, slice_size=4)
    await feed(40)
    await asyncio.gather(*(drain(runnable, mode="run", gates=OPEN) for _ in range(2)))
    assert dict(await pool.fetch("select coalesce(reason, verdict), count(*) from tailrace.effects group by 1")) == {"released": 5, "duplicate": 35}
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 5


async def test_released_effects_and_deliveries_always_agree(pool, shadow, decide):
    chance = random.Random(7)

    async def one():
        several = [
            {"key": f"k{chance.randrange(12)}", "body": chance.randrange(3), "raw": chance.randrange(3) + 1, "quiet": chance.random() < 0.2,
             "occurred": OLD if chance.random() < 0.2 else None, "kind": chance.choice(["k", "closed"])}
            for _ in range(chance.randrange(1, 9))
        ]  # fmt: skip
        await decide(*several, version=chance.choice([1, 1, shadow]), mode=chance.choice(["run", "run", "drain"]), gates=AGED)

    for _ in range(6):
        await asyncio.gather(*(one() for _ in range(5)))
    released = await pool.fetch("select id, key, kind, target from tailrace.effects where verdict = 'released' order by id")
    delivered = await pool.fetch("select effect_id, key, kind, target from tailrace.deliveries order by effect_id")
    assert [tuple(r) for r in released] == [tuple(d) for d in delivered]
    assert released


async def test_a_drain_suppresses_and_an_open_gate_releases_nothing_of_before(pool, register, feed, drain, wishing, verdicts):
    runnable = await register(wishing)
    await feed(1)
    await drain(runnable, gates=OPEN)
    await feed(1, first=1)
    await drain(runnable, mode="run")
    await feed(1, first=2)
    await drain(runnable, mode="run", gates=OPEN)
    assert await verdicts() == ["drain", "gate closed", "released"]
    assert await pool.fetchval("select count(*) from tailrace.deliveries") == 1


async def test_a_key_without_version_is_delivered_once_whatever_version_asks(pool, register, feed, drain, wishing, verdicts):
    await feed(1)
    await drain(await register(wishing), mode="run", gates=OPEN)
    again = await register(wishing, version="2")
    run = await pool.fetchval("select tailrace.open_run('replay', $1, '{\"quiet\": false}')", again.version_id)
    await pool.execute("select tailrace.advance_run($1, 100)", run)
    await drain(again, mode="run", gates=OPEN)
    assert await verdicts() == ["released", "duplicate"]


async def test_what_waits_too_long_expires_and_is_not_sent_before_that_is_noticed(pool, live, decide, clock, states):
    effects = Effects(pool, "w")
    await decide()
    await decide(key="b", gates=AGED)
    await decide(key="held", gates={"k": {"policy": "never_lost", "max_age": 60, "hold": 600}})
    await clock.advance(601)
    assert [c.delivery.key for c in await effects.claim("k", 1, None, 30)] == ["a"]
    assert [c.delivery.key for c in await effects.claim("k", 9, None, 30)] == ["held"]
    assert await effects.due(["k"]) == {}
    await pool.execute("select * from tailrace.watch(5, 100)")
    assert (await states())["b"] == "failed"
    await decide(key="c")
    await clock.advance(3 * 86400 + 1)
    await pool.execute("select * from tailrace.watch(5, 100)")
    found = await pool.fetchrow(
        "select d.state, d.error, a.event, a.actor from tailrace.deliveries d join tailrace.delivery_attempts a using (key) where key = 'c'"
    )
    assert tuple(found) == ("failed", "expired: it waited too long to be news", "failed", "watchdog")


async def test_a_lost_sender_ends_as_its_policy_says(pool, live, decide, clock, states):
    effects = Effects(pool, "w")
    for policy in ("never_twice", "never_lost", "idempotent"):
        await decide(gates={"k": {"policy": policy, "hold": 0}}, key=policy)
    claimed = {c.delivery.key: c for c in await effects.claim("k", 10, None, 30)}
    await clock.advance(31)
    await pool.execute("select * from tailrace.watch(5, 100)")
    assert await states() == {"never_twice": "uncertain", "never_lost": "pending", "idempotent": "pending"}
    with pytest.raises(ClaimLost, match="no longer ours"):
        await effects.finish(claimed["never_lost"], Receipt("sent"))


async def test_given_back_unsent_costs_no_attempt(pool, live, decide):
    effects = Effects(pool, "w")
    await decide()
    claimed = await effects.claim("k", 1, None, 30)
    await effects.give_back(claimed)
    await effects.give_back(claimed)
    (again,) = await effects.claim("k", 1, None, 30)
    assert again.delivery.attempt == 1
    assert [tuple(r) for r in await pool.fetch("select event, attempt, detail from tailrace.delivery_attempts order by id")] == [
        ("claimed", 1, None), ("retry", 1, "given back unsent"), ("claimed", 1, None),
    ]  # fmt: skip


async def test_a_rate_holds_over_processes_and_time(pool, live, decide, clock):
    await decide(*({"key": f"k{n}"} for n in range(10)))
    await clock.set(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1))
    one, two = Effects(pool, "a"), Effects(pool, "b")
    assert sum([len(await e.claim("k", 10, 3.0, 30)) for e in (one, two)]) == 3
    await clock.advance(1)
    assert sum(len(c) for c in await asyncio.gather(*(e.claim("k", 10, 3.0, 30) for e in (one, two)))) == 3
    await clock.advance(0.1)
    assert await one.claim("k", 10, 3.0, 30) == []
    await clock.advance(3600)
    assert len(await two.claim("k", 10, 3.0, 30)) == 3


async def test_a_held_delivery_can_be_cancelled_in_time(pool, live, decide, clock, states):
    await decide(gates={"k": {"policy": "never_lost", "hold": 60}})
    assert await Effects(pool, "w").claim("k", 1, None, 30) == []
    assert await pool.fetchval("select tailrace.cancel_delivery('a', 'me')")
    await clock.advance(61)
    assert await Effects(pool, "w").claim("k", 1, None, 30) == []
    assert await states() == {"a": "cancelled"}


async def test_whoever_comes_first_of_cancel_and_claim_wins(pool, live, decide, states):
    effects = Effects(pool, "w")
    await decide()
    async with pool.acquire() as person, person.transaction():
        assert await person.fetchval("select tailrace.cancel_delivery('a', 'me')")
        assert await effects.claim("k", 1, None, 30) == []
    assert await states() == {"a": "cancelled"}
    await decide(key="b")
    async with pool.acquire() as sender:
        claiming = sender.transaction()
        await claiming.start()
        assert await Effects(sender, "w").claim("k", 1, None, 30)
        late = asyncio.create_task(pool.fetchval("select tailrace.cancel_delivery('b', 'me')"))
        await pool.fetchval("select 1")
        await claiming.commit()
    assert await late is False
    assert (await states())["b"] == "sending"


@pytest.mark.parametrize(("resolved", "remote"), [("sent", "77"), ("pending", None), ("cancelled", None)])
async def test_a_person_resolves_what_is_uncertain(pool, live, decide, states, resolved, remote):
    effects = Effects(pool, "w")
    await decide()
    (claimed,) = await effects.claim("k", 1, None, 30)
    await effects.finish(claimed, Receipt("uncertain", detail="no answer"))
    assert await states() == {"a": "uncertain"}
    assert await effects.claim("k", 1, None, 30) == []
    assert await pool.fetchval("select tailrace.resolve_delivery('a', $1, $2, 'me')", resolved, remote)
    assert await states() == {"a": resolved}
    assert [c.delivery.attempt for c in await effects.claim("k", 1, None, 30)] == ([2] if resolved == "pending" else [])
    assert not await pool.fetchval("select tailrace.resolve_delivery('a', 'sent', null, 'me')")
    with pytest.raises(asyncpg.PostgresError, match="resolved to sent, pending or cancelled"):
        await pool.fetchval("select tailrace.resolve_delivery('a', 'sending', null, 'me')")


async def test_a_release_by_hand_sends_the_released_effect_to_its_own_target(pool, live, decide, states):
    await decide(target="there", body="first")
    await decide(target="here", body="second")
    await pool.execute("select tailrace.cancel_delivery('a', 'me')")
    later = await pool.fetchval("select max(id) from tailrace.effects")
    assert await pool.fetchval("select tailrace.release_effect($1, 'never_lost', 'me')", later) == "a"
    (claimed,) = await Effects(pool, "w").claim("k", 1, None, 30)
    assert (claimed.delivery.target, claimed.delivery.body, claimed.delivery.policy) == ("here", "second", "never_lost")
    with pytest.raises(asyncpg.PostgresError, match="has a delivery already"):
        await pool.fetchval("select tailrace.release_effect($1, 'never_lost', 'me')", later)


async def test_what_a_receiver_says_can_always_be_written_down(pool, live, decide, states):
    effects = Effects(pool, "w")
    await decide()
    (claimed,) = await effects.claim("k", 1, None, 30)
    await effects.finish(claimed, Receipt("sent", remote_id="a\x00b", detail="\ud800" + "x" * 10_000))
    assert tuple(await pool.fetchrow("select state, remote_id from tailrace.deliveries")) == ("sent", "a\ufffdb")


async def test_the_ledger_and_the_effects_are_append_only(pool, live, decide):
    await decide()
    for table in ("effects", "delivery_attempts", "reviews"):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await pool.execute(f"delete from tailrace.{table}")


async def test_the_worker_may_do_all_this_in_its_role(db_url, pool, live, decide):
    async def prepare(connection):
        await connection.execute("set role tailrace_worker")

    await decide({}, {"key": "b"})
    async with asyncpg.create_pool(db_url, min_size=1, max_size=1, init=prepare, reset=None) as theirs:
        await theirs.fetchrow("select * from tailrace.decide_effects(1, 'run', $1, $2)", json.dumps(OPEN), json.dumps(
            [{"raw": 1, "rerun": 0, "quiet": False, "kind": "k", "key": "c", "target": "", "body": 1, "occurred": None}]))  # fmt: skip
        effects = Effects(theirs, "w")
        assert list(await effects.due(["k"])) == ["k"]
        one, two, three = await effects.claim("k", 3, 5.0, 30)
        await effects.finish(one, Receipt("sent"))
        await effects.give_back([two])
        await effects.finish(three, Receipt("retry", after=5.0))
        await theirs.execute("select tailrace.rescue_deliveries(10)")
    assert sorted(r[0] for r in await pool.fetch("select state from tailrace.deliveries")) == ["pending", "pending", "sent"]


async def sent(pool, key, remote):
    """As a dispatcher would have it."""
    token = await pool.fetchval("select gen_random_uuid()")
    await pool.fetch("select * from tailrace.claim_deliveries($1, 'w', 'k', 9, null, 20)", token)
    await pool.execute("select tailrace.finish_delivery($1, $2, 'sent', $3, null, 0, 'w')", key, token, remote)


async def test_what_was_sent_is_edited_where_the_kind_says_so(pool, live, decide, verdicts):
    edit = {"k": {"policy": "never_twice", "max_age": None, "hold": 0, "on_change": "edit"}}
    await decide(body={"x": 1})
    await decide(body={"x": 2}, gates=edit)
    assert await verdicts() == ["released", "changed"], "nothing to edit yet"
    await sent(pool, "a", "41")
    await decide(body={"x": 2}, gates=edit)
    await decide(body={"x": 2}, gates=edit)
    rows = await pool.fetch("select key, edits, state from tailrace.deliveries order by created_at, key")
    assert [(r["key"][:2], r["edits"]) for r in rows] == [("a", None), ("a~", "a")]
    (claimed,) = await pool.fetch("select key, body, edits from tailrace.claim_deliveries(gen_random_uuid(), 'w', 'k', 9, null, 20)")
    assert (json.loads(claimed["body"]), claimed["edits"]) == ({"x": 2}, "41")
    await decide(body={"x": 1}, gates=edit)
    assert await verdicts() == ["released", "changed", "released", "changed", "released"]
    assert await pool.fetchval("select count(*) from tailrace.deliveries where edits = 'a'") == 2
