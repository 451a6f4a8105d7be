"""What a processor may return or do, and what becomes of the record."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading

import pytest

from worker import Done, Effect, Fail, Outage, Retry, Skip


async def results(pool, column="output"):
    rows = await pool.fetch(f"select raw_id, {column} as v from tailrace.results order by raw_id, rerun")
    return [row["v"] if column != "output" else json.loads(row["v"]) if row["v"] else None for row in rows]


async def test_each_outcome_ends_where_it_belongs(pool, register, feed, drain, statuses):
    async def f(record, ctx):
        match record.payload["n"]:
            case 0:
                return Done({"seen": record.external_id}, confidence=0.5, needs_review=True, meta={"model": "m"})
            case 1:
                return Skip("nothing")
            case 2:
                return Fail("never")
            case 3:
                return Retry("later", after=3600)
        return None

    await register(f)
    await feed(5)
    worker = await drain(await register(f))
    assert await statuses() == {"ok": 2, "skipped": 1, "failed": 1, "pending": 1}
    assert worker.settler.totals == {"ok": 2, "skipped": 1, "failed": 1, "retried": 1}
    row = await pool.fetchrow("select * from tailrace.results order by raw_id limit 1")
    assert (json.loads(row["output"]), row["confidence"], row["needs_review"], json.loads(row["meta"])) == ({"seen": "k0"}, 0.5, True, {"model": "m"})
    later = await pool.fetchrow("select * from tailrace.job_status where status = 'pending'")
    assert (later["attempt"], later["error"]) == (1, "later")
    assert dict(await pool.fetchrow("select sum(ok) ok, sum(skipped) s, sum(failed) f, sum(retried) r from tailrace.settled")) == {
        "ok": 2,
        "s": 1,
        "f": 1,
        "r": 1,
    }


@pytest.mark.parametrize(("raises", "says"), [
    (lambda: 1 / 0, "ZeroDivisionError"),
    (lambda: "text", "returned str"),
    (lambda: Done({"a": {1, 2}}), "not JSON"),
    (lambda: Done("a\x00b"), "NUL"),
    (lambda: Done(effects=[Effect("k", {"x": "\x00"})]), "NUL"),
])  # fmt: skip
async def test_an_exception_and_an_outcome_that_cannot_be_kept_are_failed_attempts(pool, register, feed, drain, raises, says):
    def f(record, ctx):
        return raises() if record.payload["n"] == 1 else Done(record.payload)

    runnable = await register(f, slice_size=10)
    await feed(3)
    await drain(runnable)
    assert await results(pool) == [{"n": 0}, {"n": 2}]
    row = await pool.fetchrow("select attempt, error from tailrace.job_status where status = 'pending'")
    assert row["attempt"] == 1
    assert says in row["error"]


async def test_attempts_are_used_up_and_then_the_record_waits_for_a_person(pool, register, feed, drain, clock):
    calls = []

    async def f(record, ctx):
        calls.append(ctx.attempt)
        return Retry("no luck", after=0)

    runnable = await register(f, max_attempts=2, retry_rounds=1)
    await feed(1)
    for _ in range(3):
        await drain(runnable)
        await clock.advance(60)
    assert calls == [0, 1, 2]
    row = await pool.fetchrow("select status, error from tailrace.results")
    assert row["status"] == "failed"
    assert len(json.loads(row["error"])) == 3
    assert await pool.fetchval("select count(*) from tailrace.jobs") == 0


async def test_an_outage_uses_up_no_attempt_and_stops_claiming(pool, register, feed, drain, clock):
    calls = []

    async def f(record, ctx):
        calls.append(record.id)
        if len(calls) == 1:
            raise Outage("provider is down", seconds=60)
        return Done()

    runnable = await register(f, concurrency=1)
    await feed(3)
    await drain(runnable, claim_records=1)
    assert len(calls) == 1
    assert await pool.fetchval("select max(attempt) from tailrace.jobs") == 0
    await clock.advance(61)
    await drain(runnable)
    assert await pool.fetchval("select count(*) from tailrace.results") == 3


async def test_an_overdue_record_is_cancelled_and_its_neighbours_go_on(pool, register, feed, drain):
    async def f(record, ctx):
        if record.payload["n"] == 1:
            await asyncio.Event().wait()
        return Done(record.payload)

    runnable = await register(f, slice_size=3, deadline=0.2)
    await feed(3)
    await drain(runnable)
    assert await results(pool) == [{"n": 0}, {"n": 2}]
    assert "deadline" in await pool.fetchval("select error from tailrace.job_status where status = 'pending'")


async def test_a_batch_gives_one_outcome_per_record(pool, register, feed, drain):
    def f(records, ctx):
        return [Done({"of": len(records), "n": r.payload["n"]}) for r in records]

    runnable = await register(f, slice_size=4, batch=True)
    await feed(6)
    await drain(runnable)
    assert await results(pool) == [{"of": 4, "n": n} for n in range(4)] + [{"of": 2, "n": n} for n in (4, 5)]


async def test_a_batch_with_too_few_outcomes_is_a_failed_attempt_of_all(pool, register, feed, drain, statuses):
    async def f(records, ctx):
        return [Done()]

    runnable = await register(f, slice_size=4, batch=True)
    await feed(4)
    await drain(runnable)
    assert await statuses() == {"pending": 4}


async def test_plain_functions_run_in_threads_and_never_on_the_loop(register, feed, drain, pool):
    names = set()

    def f(record, ctx):
        names.add(threading.current_thread().name)
        return Done()

    runnable = await register(f, concurrency=2)
    await feed(10)
    await drain(runnable)
    assert threading.main_thread().name not in names
    assert await pool.fetchval("select count(*) from tailrace.results") == 10


async def test_any_executor_will_do(register, feed, drain, pool):
    ran = []

    class Mine(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function, /, *args, **kwargs):
            ran.append(function)
            return super().submit(function, *args, **kwargs)

    def f(record, ctx):
        return Done()

    runnable = await register(f, executor=Mine(1), slice_size=5)
    await feed(10)
    await drain(runnable)
    assert len(ran) == 2
    assert await pool.fetchval("select count(*) from tailrace.results") == 10


async def test_a_tombstone_and_a_body_reach_the_processor(pool, register, drain):
    seen = []

    async def f(record, ctx):
        seen.append((record.op, record.payload, record.body, record.meta))
        return Done()

    runnable = await register(f)
    await pool.execute("select tailrace.register_sources('{files:a}', array['{}'::jsonb])")
    await pool.execute(
        "select tailrace.append_raw(1, '{}', 0, true, null, null, null, '{a,a}', '{create,delete}', array['\\x01', '\\x02']::bytea[], null, null, "
        "null, array['\\xff'::bytea, null], array['{\"file\": \"f\"}'::jsonb, null])"
    )
    await drain(runnable)
    assert seen == [("create", None, b"\xff", {"file": "f"}), ("delete", None, None, {})]


async def test_a_limit_of_records_is_kept_to_the_letter_and_the_rest_given_back(pool, register, feed, drain, statuses):
    async def f(record, ctx):
        return Done()

    runnable = await register(f, slice_size=10)
    await feed(25)
    worker = await drain(runnable, max_jobs=14)
    assert worker.done == 14
    assert await statuses() == {"ok": 14, "pending": 11}
    assert await pool.fetchval("select count(*) from tailrace.jobs where state <> 'r'") == 0
    await drain(runnable)
    assert await statuses() == {"ok": 25}
