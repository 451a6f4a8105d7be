"""The source github from the command line, at the stand-in, killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from collector.breaker import PROBE
from tests.collector.contract import standin

ROOT = Path(__file__).resolve().parents[2]
REPO = "river/delta"
SIZE = 900  # about 36 requests of 25
PROBED = 2 * PROBE  # the bound where a process may be killed while it probes: the next one waits for that probe's end

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture
async def stood(shared, tmp_path):
    (tmp_path / "pulls.jsonl").write_text(json.dumps({"repo": REPO, "prs": SIZE}))
    service = await asyncio.to_thread(standin, "github", "--data", str(tmp_path / "pulls.jsonl"))
    yield service
    await asyncio.to_thread(service.stop)


@pytest.fixture
def program(stood, db_url, tmp_path):
    """`async with program("live") as process`: it is killed at the end, if it still runs."""
    (tmp_path / "tailrace.toml").write_text(
        f'[collector]\nport = 0\n[sources."github:{REPO}"]\nkind = "github"\nbase_url = "{stood.url}"\ntoken_env = "TOKEN"\nlookback = "4000d"\nevery = 0.3\n'
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": db_url, "TAILRACE_CONFIG": str(tmp_path / "tailrace.toml")}

    @contextlib.asynccontextmanager
    async def start(*args):
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.DEVNULL}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "collector", *args, env=env | {"TOKEN": "ghs_of-the-test-only"}, cwd=tmp_path, **pipes
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.communicate()

    return start


async def truth(stood):
    """What the stand-in holds, by number, asked in its own way."""
    found, after = {}, None
    query = 'query($after: String) { repository(owner: "river", name: "delta") { pullRequests(first: 100, after: $after) { pageInfo { hasNextPage endCursor } nodes { number title databaseId author { login } } } } }'  # fmt: skip
    async with httpx.AsyncClient(headers={"Authorization": "token another"}) as client:
        while True:
            answer = await client.post(f"{stood.url}/graphql", json={"query": query, "variables": {"after": after}})
            page = answer.json()["data"]["repository"]["pullRequests"]
            found |= {str(n["number"]): n for n in page["nodes"]}
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                return found


async def count(pool):
    return await pool.fetchval("select count(*) from tailrace.raw_records")


async def newest(pool):
    rows = await pool.fetch(
        "select distinct on (external_id) external_id, revision, payload, meta from tailrace.raw_records order by external_id, revision desc"
    )
    return {r["external_id"]: (r["revision"], json.loads(r["payload"]), json.loads(r["meta"] or "{}")) for r in rows}


@pytest.mark.parametrize("size", [["--chunk-size=25"], []], ids=["25 at a time", "as it chooses"])
async def test_a_history_is_complete_whatever_happens_to_it(stood, program, pool, eventually, size):
    first, second, third = (4, 10, 15) if size else (1, 4, 6)
    faults = [
        {"do": "rate_limited", "seconds": 1.5, "after": first},
        {"do": "bad_gateway", "times": 2, "after": second},
        {"do": "partial", "after": third},
    ]
    for fault in faults:
        await asyncio.to_thread(stood.fault, op="graphql", where="CREATED_AT", **fault)
    for stored in (SIZE // 5, SIZE // 2):
        async with program("backfill", *size, "--source", f"github:{REPO}"):
            await eventually(lambda n=stored: reached(pool, n), PROBED)
    async with program("backfill", *size, "--source", f"github:{REPO}", "--json") as process:
        said, _ = await asyncio.wait_for(process.communicate(), PROBED)
        assert process.returncode == 0
    found, wanted = await newest(pool), await truth(stood)
    assert {k: r[1]["title"] for k, r in found.items()} == {k: n["title"] for k, n in wanted.items()}
    assert await count(pool) == SIZE
    assert sum(json.loads(said)[0][k] for k in ("appended",)) <= SIZE
    defective = {k for k, r in found.items() if "defect" in r[2]}
    assert defective == {k for k, n in wanted.items() if n["databaseId"] is None or n["author"] is None} != set()
    assert (await asyncio.to_thread(stood.counters))["faults"] == {"rate_limited": 1, "bad_gateway": 2, "partial": 1}
    chunks = await pool.fetch("select size, records, error, decision from tailrace.chunks order by id")
    if size:
        assert {c["size"] for c in chunks} == {25}
        assert {c["records"] for c in chunks if not c["error"]} == {25}
    else:
        assert all(b["size"] <= max(a["size"] // 2, 10) for a, b in itertools.pairwise(chunks) if "502" in (a["error"] or ""))
    async with program("backfill", *size, "--source", f"github:{REPO}", "--json") as process:
        said, _ = await asyncio.wait_for(process.communicate(), 120)
    assert (json.loads(said)[0]["appended"], json.loads(said)[0]["seen"]) == (0, SIZE)
    spans = await pool.fetchrow(
        "select (select count(*) from unnest(ids)) as ids, (select count(*) from unnest(times)) as times from tailrace.coverage"
    )
    assert tuple(spans) == (1, 1)


async def reached(pool, number):
    return await count(pool) >= number


async def test_news_are_complete_although_polls_are_killed_in_the_middle(stood, program, pool, eventually):
    await asyncio.to_thread(stood.fault, op="graphql", where="UPDATED_AT", do="slow", seconds=0.2, times=0)
    async with program("live"):
        await eventually(lambda: reached(pool, 300), 60)
    assert await count(pool) < SIZE
    edited = [{"repo": REPO, "number": n, "title": f"edited {n}", "updatedAt": "2026-01-01T00:00:00Z"} for n in range(1, SIZE, 9)]
    new = [
        {"repo": REPO, "number": n, "title": f"new {n}", "updatedAt": "2026-01-02T00:00:00Z", "createdAt": "2026-01-02T00:00:00Z"}
        for n in range(SIZE + 1, SIZE + 50)
    ]
    await asyncio.to_thread(stood.control, "pulls", edited + new)
    async with program("live"):
        await eventually(lambda: reached(pool, 700), 60)
    wanted = {k: n["title"] for k, n in (await truth(stood)).items()}

    async def agrees():
        return {k: r[1]["title"] for k, r in (await newest(pool)).items()} == wanted

    async with program("live") as process:
        await eventually(agrees, 60)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
    assert {r[0] for r in (await newest(pool)).values()} <= {1, 2}
    async with program("backfill", "--source", f"github:{REPO}", "--json") as process:
        said, _ = await asyncio.wait_for(process.communicate(), 120)
    assert (json.loads(said)[0]["appended"], json.loads(said)[0]["seen"]) == (0, SIZE + 49)


async def test_the_sizes_of_chunks_follow_the_quota_and_the_rest_is_left_to_the_tail(stood, program, pool, eventually):
    await asyncio.to_thread(stood.control, "rate", {"remaining": 515, "reset_in": 3600, "resource": "graphql"})
    async with program("backfill", "--source", f"github:{REPO}"):
        run = await eventually(lambda: pool.fetchrow("select * from tailrace.runs where state = 'paused'"), 60)
    assert run["reason"] == "github:graphql: 500 of 5000 left, the rest is for the tail"
    assert 3400 < (run["resume_at"] - run["updated_at"]).total_seconds() <= 3600
    chunks = await pool.fetch("select size, records, decision from tailrace.chunks order by id")
    assert [(c["size"], c["records"]) for c in chunks] == [(100, 100), (201, 201), (44, 44)]
    assert [json.loads(c["decision"]).get("remaining") for c in chunks] == [None, 511, 502]
    assert json.loads(chunks[2]["decision"])["because"] == "what github:graphql allows until it begins anew"
