"""The arrows of the queue, one by one, on the SQL alone."""

from __future__ import annotations

import datetime as dt
import json
import uuid

import asyncpg
import pytest


@pytest.fixture
async def queue(pool):
    return await Queue.made(pool)


class Queue:
    """A client whose methods are the SQL functions."""

    def __init__(self, pool, version):
        self.pool, self.version = pool, version

    @classmethod
    async def made(cls, pool, slice_size=1):
        row = await pool.fetchrow("select * from tailrace.register_version('p', 'v1', 'f', '{}', $1, '{%}', 'on_start', 'test')", slice_size)
        await pool.execute("select tailrace.register_sources('{files:a,files:b}', array['{}', '{}']::jsonb[])")
        return cls(pool, row["version_id"])

    async def append(self, keys, source=1, **how):
        n = len(keys)
        return await self.pool.fetchrow(
            "select * from tailrace.append_raw($1, '{}', 0, true, null, null, null, $2, $3, $4, null, $5, $6, null, null)",
            source, keys, how.get("ops", ["create"] * n), how.get("digests", [k.encode() for k in keys]), how.get("times"), ["{}"] * n,
        )  # fmt: skip

    async def claim(self, limit=10, source=1, lease=30.0, lane=0):
        token = uuid.uuid4()
        rows = await self.pool.fetch(
            "select * from tailrace.claim_jobs($1, 'w', $2, $3, $4, $5, $6, $6, $7)", token, self.version, lane, [source], [0], limit, lease
        )
        return token, [r["job"] for r in rows if r["job"]], [r["id"] for r in rows]

    async def suspect(self, lease=30.0):
        token = uuid.uuid4()
        rows = await self.pool.fetch("select * from tailrace.claim_suspect($1, 'w', $2, $3)", token, self.version, lease)
        return token, [r["job"] for r in rows if r["job"]], [r["id"] for r in rows]

    async def settle(self, token, raws, ids, *, nexts=None, lefts=None, source=1, retries=None, ok=None):
        n = len(raws)
        ok = ok or [len(ids) // n] * n
        return await self.pool.fetchrow(
            "select * from tailrace.settle($1, 'w', 'run', '{}', $2, $3, $4, $5, $6, $7, $8, $8, $9, $10, null, null, null, null, null, null, null, null, $11, null)",
            self.version, [source], raws, [token], nexts, lefts, ok, [0] * n, [len(retries or []) if i == 0 else 0 for i in range(n)], ids,
            json.dumps(retries) if retries else None,
        )  # fmt: skip

    async def jobs(self):
        return await self.pool.fetch("select raw_id, raw_id_to, n_rows, state::text, crashes, attempt from tailrace.jobs order by raw_id")

    async def expire(self):
        await self.pool.execute("update tailrace.jobs set lease_until = '2000-01-01' where state = 'c'")

    async def watch(self, crashes=5):
        return await self.pool.fetchrow("select * from tailrace.watch($1, 200)", crashes)


async def test_a_claim_takes_each_slice_once(queue):
    await queue.append(["a", "b", "c"])
    assert [(await queue.claim(2))[2] for _ in range(3)] == [[1, 2], [3], []]


async def test_a_claim_gives_the_records_of_a_slice_in_order_whatever_the_planner_does(pool):
    queue = await Queue.made(pool, slice_size=6)
    await queue.append([str(n) for n in range(6, 18)])
    # On a small table without statistics the index over the external ids is as good as any.
    await pool.execute(
        "update pg_index set indisvalid = false where indexrelid in ('tailrace.raw_records_source'::regclass, 'tailrace.raw_records_pkey'::regclass)"
    )
    _, heads, ids = await queue.claim(2)
    assert [head[1] for head in heads] == [1, 7]
    assert ids == list(range(1, 13))


async def test_only_the_holder_settles(queue):
    await queue.append(["a"])
    token, _, ids = await queue.claim()
    with pytest.raises(asyncpg.PostgresError) as lost:
        await queue.settle(uuid.uuid4(), [1], ids)
    assert lost.value.sqlstate == "TR002"
    assert await queue.pool.fetchval("select count(*) from tailrace.results") == 0
    await queue.settle(token, [1], ids)
    assert await queue.jobs() == []
    with pytest.raises(asyncpg.PostgresError) as twice:
        await queue.settle(token, [1], ids)
    assert twice.value.sqlstate == "TR002"


async def test_a_late_worker_loses_its_whole_transaction(queue):
    await queue.append(["a", "b"])
    token, _, ids = await queue.claim()
    await queue.expire()
    await queue.watch()
    suspect, _, again = await queue.suspect()
    with pytest.raises(asyncpg.PostgresError):
        await queue.settle(token, [1, 2], ids)
    await queue.settle(suspect, [1], again)
    assert await queue.pool.fetchval("select count(*) from tailrace.results") == 1


async def test_the_count_of_outcomes_must_match(pool):
    queue = await Queue.made(pool, slice_size=3)
    await queue.append(["a", "b", "c"])
    token, _, ids = await queue.claim()
    with pytest.raises(asyncpg.PostgresError) as wrong:
        await queue.settle(token, [1], ids[:2])
    assert wrong.value.sqlstate == "TR003"
    assert len(await queue.jobs()) == 1


async def test_a_prefix_settles_and_the_rest_stays_ours(pool):
    queue = await Queue.made(pool, slice_size=5)
    await queue.append(list("abcde"))
    token, _, ids = await queue.claim()
    await queue.settle(token, [1], ids[:2], nexts=[3], lefts=[3])
    assert [tuple(j) for j in await queue.jobs()] == [(3, 5, 3, "c", 0, 0)]
    await queue.settle(token, [3], ids[2:])
    assert await queue.jobs() == []
    assert await pool.fetchval("select sum(ok) from tailrace.settled") == 5


async def test_a_lost_small_slice_comes_back_as_singles_a_large_one_as_halves(pool):
    queue = await Queue.made(pool, slice_size=100)
    await queue.append([f"k{n}" for n in range(100)])
    await queue.claim()
    await queue.expire()
    assert (await queue.watch())["rescued"] == 1
    assert [tuple(j) for j in await queue.jobs()] == [(1, 50, 50, "s", 1, 0), (51, 100, 50, "s", 1, 0)]
    await queue.suspect()
    await queue.expire()
    await queue.watch()
    jobs = await queue.jobs()
    assert len(jobs) == 51
    assert {j["n_rows"] for j in jobs if j["raw_id"] <= 50} == {1}


async def test_suspects_run_alone_and_are_buried_after_the_limit(queue, clock):
    await queue.append(["a"])
    await queue.claim()
    for _ in range(2):
        await queue.expire()
        await queue.watch(crashes=3)
        await clock.advance(3600)
        await queue.watch(crashes=3)
        assert (await queue.claim())[1] == []
        assert len((await queue.suspect())[1]) == 1
    await queue.expire()
    assert (await queue.watch(crashes=3))["buried"] == 1
    row = await queue.pool.fetchrow("select * from tailrace.results")
    assert row["status"] == "failed"
    assert [e["kind"] for e in json.loads(row["error"])] == ["lease lost"] * 3
    assert await queue.jobs() == []


async def test_beats_extend_only_what_is_held_and_never_past_the_cap(queue, clock):
    await queue.append(["a"])
    token, _, _ = await queue.claim(lease=30)
    other = uuid.uuid4()
    assert await queue.pool.fetch("select * from tailrace.beat($1, $2, 30)", [token, other], [1000.0, 1000.0]) == [(token,)]
    await queue.pool.execute("select tailrace.beat($1, $2, 30)", [token], [5.0])
    assert await queue.pool.fetchval("select extract(epoch from lease_until - claimed_at)::int from tailrace.jobs") == 5
    await clock.advance(6)
    assert await queue.pool.fetch("select * from tailrace.beat($1, $2, 30)", [token], [1000.0]) == []


async def test_giving_back_costs_nothing(queue):
    await queue.append(["a"])
    token, _, _ = await queue.claim()
    assert await queue.pool.fetchval("select tailrace.give_back($1)", [token]) == 1
    assert [tuple(j) for j in await queue.jobs()] == [(1, 1, 1, "r", 0, 0)]


async def test_slices_hold_only_their_source_when_ids_interleave(pool):
    queue = await Queue.made(pool, slice_size=2)
    for n in range(4):
        await queue.append([f"a{n}"], source=1)
        await queue.append([f"b{n}"], source=2)
    await pool.execute("delete from tailrace.jobs")
    run = await pool.fetchval("select tailrace.open_run('replay', $1, '{}')", queue.version)
    await pool.execute("select tailrace.advance_run($1, 100)", run)
    _, _, ids = await queue.claim(source=1, lane=2)
    assert ids == [1, 3, 5, 7]
    assert await pool.fetchval("select sum(n_rows) from tailrace.jobs") == 8


async def test_job_status_has_one_row_per_record_and_version(pool):
    queue = await Queue.made(pool, slice_size=2)
    await queue.append(["a", "b", "c"])
    token, _, ids = await queue.claim(1)
    assert [r["status"] for r in await pool.fetch("select status from tailrace.job_status order by raw_id")] == [
        "processing",
        "processing",
        "pending",
    ]
    await queue.settle(token, [1], ids)
    assert [r["status"] for r in await pool.fetch("select status from tailrace.job_status order by raw_id")] == ["ok", "ok", "pending"]
    run = await pool.fetchval("select tailrace.open_run('replay', $1, '{\"force\": true}')", queue.version)
    await pool.execute("select tailrace.advance_run($1, 100)", run)
    assert [r["status"] for r in await pool.fetch("select status from tailrace.job_status order by raw_id")] == ["pending"] * 3
    assert await pool.fetchval("select array_agg(rerun order by raw_id) from tailrace.jobs") == [1, 0]


async def test_a_forced_run_never_touches_claimed_work_and_keeps_the_old_output(pool):
    queue = await Queue.made(pool)
    await queue.append(["a", "b"])
    token, _, ids = await queue.claim(1)
    await queue.settle(token, [1], ids)
    held, _, _ = await queue.claim(1)
    run = await pool.fetchval("select tailrace.open_run('replay', $1, '{\"force\": true}')", queue.version)
    step = await pool.fetchrow("select * from tailrace.advance_run($1, 100)", run)
    assert (step["records"], step["skipped"]) == (1, 1)
    assert await pool.fetchval("select token from tailrace.jobs where raw_id = 2") == held
    again, _, ids = await queue.claim(lane=2)
    await queue.pool.execute(
        "select tailrace.settle($1, 'w', 'run', '{}', '{1}', '{1}', $2, null, null, '{1}', '{0}', '{0}', '{0}', '{1}', '{1}', null, null, null, null, null, null, null, null, null)",
        queue.version, [again],
    )  # fmt: skip
    assert await pool.fetchval("select array_agg(rerun order by rerun) from tailrace.results where raw_id = 1") == [0, 1]


async def test_raw_is_immutable_for_its_owner_too(queue):
    await queue.append(["a"])
    for statement in ("update tailrace.raw_records set op = 'delete'", "delete from tailrace.raw_records", "truncate tailrace.raw_records"):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await queue.pool.execute(statement)
        assert refused.value.sqlstate == "TR001"


async def test_edits_are_revisions_and_older_ones_never_are(queue):
    times = [f"2026-01-0{n}T00:00:00Z" for n in (1, 2, 3)]
    t = [dt.datetime.fromisoformat(x) for x in times]
    await queue.append(["a"], digests=[b"1"], times=[t[1]])
    first = await queue.append(["a"], digests=[b"1"], times=[t[2]])
    older = await queue.append(["a"], digests=[b"0"], times=[t[0]])
    newer = await queue.append(["a", "a"], digests=[b"2", b"3"], times=[t[2], t[2]])
    gone = await queue.append(["a"], digests=[b"deleted"], ops=["delete"])
    assert (first["unchanged"], older["stale"], newer["appended"], gone["appended"]) == (1, 1, 2, 1)
    rows = await queue.pool.fetch("select revision, op from tailrace.raw_records order by id")
    assert [tuple(r) for r in rows] == [(1, "create"), (2, "update"), (3, "update"), (4, "delete")]


async def test_reading_by_xid_sees_every_record_once(queue, db_url, eventually):
    slow = await asyncpg.connect(db_url)
    try:
        await queue.append(["a"])
        start = await queue.pool.fetchval("select '0'::xid8::text")
        begun = slow.transaction()
        await begun.start()
        await slow.execute(
            "select tailrace.append_raw(2, '{}', 0, true, null, null, null, '{late}', '{create}', array['\\x01'::bytea], null, null, '{\"{}\"}', null, null)"
        )
        await queue.append(["b"])
        seen, at = [], start

        async def read():
            nonlocal at
            horizon = await queue.pool.fetchval("select tailrace.raw_horizon()::text")
            rows = await queue.pool.fetch("select external_id from tailrace.read_raw($1::text::xid8, $2::text::xid8)", at, horizon)
            seen.extend(r["external_id"] for r in rows)
            at = horizon
            return "c" in seen

        await read()
        assert "late" not in seen
        await begun.commit()
        await queue.append(["c"])
        await eventually(read)  # others on this server may hold the horizon
        assert sorted(seen) == ["a", "b", "c", "late"]
    finally:
        await slow.close()


async def test_the_first_version_covers_what_raw_holds_and_a_later_one_takes_over_open_work(pool):
    await pool.execute("select tailrace.register_sources('{files:a}', array['{}'::jsonb])")
    await pool.execute(
        "select tailrace.append_raw(1, '{}', 0, true, null, null, null, '{a,b}', '{create,create}', array['\\x01', '\\x02']::bytea[], null, null, '{\"{}\",\"{}\"}', null, null)"
    )
    register = "select * from tailrace.register_version('p', $1, $2, '{}', 1, '{%}', $3, 'test')"
    one = await pool.fetchrow(register, "v1", "f1", "on_start")
    assert (one["state"], one["created"]) == ("live", True)
    await pool.execute("select tailrace.advance_run(id, 1000) from tailrace.runs")
    assert await pool.fetchval("select array_agg(lane) from tailrace.jobs") == [2, 2]
    two = await pool.fetchrow(register, "v2", "f2", "on_start")
    assert (two["state"], two["live"]) == ("live", "v2")
    assert await pool.fetchval("select array_agg(distinct version_id) from tailrace.jobs") == [two["version_id"]]
    three = await pool.fetchrow(register, "v3", "f3", "manual")
    assert (three["state"], three["live"]) == ("candidate", "v2")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await pool.fetchrow(register, "v2", "another", "on_start")
    assert refused.value.sqlstate == "TR010"
    assert await pool.fetchval("select count(*) from tailrace.live_history where live_until is null") == 1


async def test_a_suspect_that_came_to_an_outcome_alone_is_none_any_more(queue):
    await queue.append(["a"])
    await queue.claim()
    await queue.expire()
    await queue.watch()
    token, jobs, ids = await queue.suspect()
    assert jobs
    again = {
        "source": 1,
        "raw": 1,
        "rerun": 0,
        "lane": 0,
        "quiet": False,
        "attempt": 0,
        "crashes": 1,
        "counts": True,
        "after": 0,
        "error": {"kind": "retry"},
    }
    history = json.loads(await queue.pool.fetchval("select error from tailrace.jobs"))
    await queue.settle(token, [1], [], retries=[again | {"history": history}], ok=[0])
    await queue.watch()
    assert [tuple(j)[3:] for j in await queue.jobs()] == [("r", 1, 1)]
    token, _, ids = await queue.claim()
    assert ids == [1]
    await queue.expire()
    await queue.watch()
    assert [tuple(j)[3:5] for j in await queue.jobs()] == [("d", 2)]
