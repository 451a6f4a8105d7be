"""A slice that was lost comes back in halves until 64 records are left, then one by one: few jobs, few claims, and every record has an outcome."""

from __future__ import annotations

import math

import pytest

from tests.sql.test_queue import Queue

SINGLES = 64  # largest slice that comes back as singles
CRASHES = 5


class Hunt:
    """Workers that die of the records in `poison`, and what they leave behind."""

    def __init__(self, queue, poison):
        self.queue, self.poison = queue, set(poison)
        self.claims, self.most_jobs = 0, 0

    async def run(self):
        while await self.queue.pool.fetchval("select exists (select from tailrace.jobs)"):
            await self.queue.pool.execute("update tailrace.jobs set run_at = '2000-01-01' where state = 'd'")
            await self.queue.watch(CRASHES)
            token, heads, ids = await self.queue.suspect()
            if not heads:
                token, heads, ids = await self.queue.claim(1)
            if heads:
                await self._work(token, ids)

    async def _work(self, token, ids):
        self.claims += 1
        before = await self.queue.pool.fetchval("select count(*) from tailrace.jobs")
        if not self.poison & set(ids):
            await self.queue.settle(token, [ids[0]], ids)
            return
        await self.queue.expire()
        await self.queue.watch(CRASHES)
        back = [n for (n,) in await self.queue.pool.fetch("select n_rows from tailrace.jobs where raw_id between $1 and $2", ids[0], ids[-1])]
        assert sum(back) in (len(ids), len(ids) - 1)  # one less: buried
        assert len(back) == 2 if len(ids) > SINGLES else set(back) <= {1}
        assert not back or max(back) <= max(1, (len(ids) + 1) // 2)
        self.most_jobs = max(self.most_jobs, before + len(back) - 1)


@pytest.mark.parametrize(("records", "poison"), [(500, [250]), (500, [1, 500]), (10_000, [1]), (10_000, [5_001, 9_999])])
async def test_a_lost_slice_is_halved_and_never_exploded(pool, records, poison):
    queue = await Queue.made(pool, slice_size=records)
    await queue.append([str(n) for n in range(records)])
    hunt = Hunt(queue, poison)
    await hunt.run()
    halvings = math.ceil(math.log2(records / SINGLES))
    assert hunt.most_jobs <= len(poison) * (halvings + SINGLES)
    assert hunt.claims <= 1 + len(poison) * (2 * halvings + SINGLES + CRASHES)
    found = dict(await pool.fetch("select status, count(*) from tailrace.results group by 1"))
    assert found == {"ok": records - len(poison), "failed": len(poison)}
    assert [r["raw_id"] for r in await pool.fetch("select raw_id from tailrace.results where status = 'failed' order by 1")] == poison
