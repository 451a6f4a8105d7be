"""`make bench`: rates and CPU per record, beside a bare loop of the same durable work in the same run. Markdown to stdout, JSON to a file.

CPU is client plus server, from the kernel's accounts of this process, its children and the server's processes: it hardly moves with noise, rates do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import uvloop

from ops import benchbare, benchversions, benchwork
from ops.migrate import migrate
from worker.core import db, embedded
from worker.core.settings import DatabaseSettings

CLOCK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; `ratio` is to the bare loop."""

    what: str
    rate: float
    cpu_us: float | None = None
    ratio: float | None = None
    note: str = ""


def server_cpu(data: Path) -> float:
    """Seconds that the processes of the server in this folder have used."""
    pid, total = int((data / "postmaster.pid").read_text().split()[0]), 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if pid in (int(path.parent.name), int(fields[1])):
            total += (int(fields[11]) + int(fields[12]) + (int(fields[13]) + int(fields[14]) if int(path.parent.name) == pid else 0)) / CLOCK
    return total


class Bench:
    """One server, a fresh database per measurement."""

    def __init__(self, data: Path, records: int) -> None:
        self.data, self.records, self.url = data, records, ""

    async def fresh(self) -> None:
        admin = await asyncpg.connect(embedded.url(self.data).replace("/tailrace?", "/postgres?"))
        await admin.execute("drop database if exists bench with (force)")
        await admin.execute("create database bench")
        await admin.execute("checkpoint")
        await admin.close()
        self.url = embedded.url(self.data).replace("/tailrace?", "/bench?")
        await asyncio.to_thread(migrate, self.url)

    @contextmanager
    def measured(self, records: int) -> Iterator[dict[str, float]]:
        cpu, clock = server_cpu(self.data) + sum(os.times()[:4]), time.monotonic()
        found: dict[str, float] = {}
        yield found
        found["seconds"] = found.get("seconds", time.monotonic() - clock)
        found["rate"] = records / found["seconds"]
        found["cpu_us"] = (server_cpu(self.data) + sum(os.times()[:4]) - cpu) / records * 1e6

    async def pool(self, role: str, size: int = 8) -> asyncpg.Pool:
        return await db.open_pool(self.url, DatabaseSettings(), "bench", role, size)

    async def intake(self) -> list[Line]:
        """1 kB records from a file, as `collector backfill` stores them: keyed, with slices, cursor and coverage; against a staged COPY."""
        lines = [json.dumps({"id": n, "text": "x" * 960, "views": n % 7}).encode() for n in range(self.records // 4)]
        await self.fresh()
        with self.measured(len(lines)) as bare:
            await benchbare.intake(self.url, lines)
        await self.fresh()
        with self.measured(len(lines)) as ours:
            ours["seconds"] = await benchwork.intake(self.url, lines)
        return [_line("raw intake, 1 kB records", ours, bare), Line("  bare: staged COPY, on conflict do nothing", bare["rate"], bare["cpu_us"])]

    async def drain(self, slice_size: int, processes: int) -> list[Line]:
        """A no-op processor, one result row per record, against the bare loop: claim, read, insert results, delete."""
        records = self.records if slice_size > 1 else self.records // 3
        found = []
        for target in (benchbare.drain, benchwork.drain):
            await self.fresh()
            await benchwork.fill(self.url, records, slice_size)
            seconds, cpu = await benchwork.spread(target, self.url, slice_size, processes, lambda: server_cpu(self.data))
            found.append({"rate": records / seconds, "cpu_us": cpu / records * 1e6})
        bare, ours = found
        name = f"drain, slices of {slice_size}, {processes} process{'es' if processes > 1 else ''}"
        return [_line(name, ours, bare), Line("  bare loop", bare["rate"], bare["cpu_us"])]

    async def enqueue(self) -> list[Line]:
        await self.fresh()
        version = await benchwork.fill(self.url, self.records, 500, open_work=False)
        async with await self.pool("tailrace_worker", 2) as pool:
            run = await pool.fetchval("select tailrace.open_run('cover', $1, '{}')", version)
            with self.measured(self.records) as m:
                await pool.execute("select tailrace.advance_run($1, 1000000000)", run)
        return [Line("bulk enqueue of stored records, slices of 500", m["rate"], m["cpu_us"])]

    async def latency(self) -> list[Line]:
        await self.fresh()
        waits = sorted(await benchwork.latency(self.url, 300))
        p50, p99 = waits[len(waits) // 2] * 1000, waits[int(len(waits) * 0.99)] * 1000
        return [Line("commit to processor start, idle worker", 0, note=f"p50 {p50:.2f} ms, p99 {p99:.2f} ms")]

    async def claims(self) -> list[Line]:
        """Claim time: with few and with many rows waiting, and while an old snapshot keeps all dead rows."""
        found = []
        for waiting in (10_000, 1_000_000):
            await self.fresh()
            await benchwork.fill(self.url, waiting, 1)
            first, _ = await benchwork.claim_times(self.url, 9000)
            found.append(first)
        lines = [Line("claim of 500 singles, 1,000,000 waiting", 0, note=f"{found[1]:.1f} ms, {found[1] / found[0]:.2f} x that with 10,000")]
        await self.fresh()
        await benchwork.fill(self.url, 200_000, 1)
        first, last = await benchwork.claim_times(self.url, 200_000, snapshot=True)
        return [
            *lines,
            Line("the same under an old snapshot, to the end", 0, note=f"first tenth {first:.1f} ms, last {last:.1f} ms: {last / first:.2f} x"),
        ]

    async def versions(self) -> list[Line]:
        """Plans, replays and swaps over ten times the records, and live work beside a replay."""
        found = await benchversions.measured(self, self.records * 10) + await benchversions.beside_a_replay(self, self.records * 10, 300)
        return [Line(what, 0, note=figure) for what, figure in found]


def _line(what: str, ours: dict[str, float], bare: dict[str, float]) -> Line:
    return Line(what, ours["rate"], ours["cpu_us"], ours["rate"] / bare["rate"])


def shown(lines: list[Line]) -> str:
    rows = ["| what | records/s | CPU µs a record | ratio to the bare loop |", "|---|---:|---:|---:|"]
    for line in lines:
        rate = f"{line.rate:,.0f}" if line.rate else line.note
        cpu = f"{line.cpu_us:.1f}" if line.cpu_us is not None else ""
        rows.append(f"| {line.what} | {rate} | {cpu} | {'' if line.ratio is None else f'{line.ratio:.2f}'} |")
    return "\n".join(rows)


async def _all(bench: Bench, only: str) -> list[Line]:
    parts: dict[str, Callable[[], Awaitable[list[Line]]]] = {
        "drain500x1": lambda: bench.drain(500, 1),
        "drain500x2": lambda: bench.drain(500, 2),
        "drain1x1": lambda: bench.drain(1, 1),
        "drain1x2": lambda: bench.drain(1, 2),
        "enqueue": bench.enqueue,
        "intake": bench.intake,
        "latency": bench.latency,
        "claims": bench.claims,
        "versions": bench.versions,
    }
    lines = []
    for name, part in parts.items():
        if only in name:
            print(f"  {name} ...", file=sys.stderr, flush=True)
            lines += await part()
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--records", type=int, default=400_000, metavar="N")
    parser.add_argument("--only", default="", metavar="PART", help="parts whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as base:
        Path(base).chmod(0o755)
        data = Path(base).resolve() / "data"
        embedded.start(data)
        try:
            lines = uvloop.run(_all(Bench(data, given.records), given.only))
        finally:
            embedded.stop(data)
    print(shown(lines))
    if given.json:
        given.json.write_text(json.dumps([{n: getattr(line, n) for n in Line.__slots__} for line in lines], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
