"""Seconds and memory of `tailrace compare` over ROWS=1000000 records: a server of its own, two versions whose results SQL makes up."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ops import cli
from ops.migrate import migrate
from worker.core import embedded

ROWS = int(os.environ.get("ROWS", "1000000"))
SETUP = """
insert into tailrace.sources (name, kind) select 'files:s' || i, 'files' from generate_series(1, 50) i;
insert into tailrace.pipelines (name) values ('p');
insert into tailrace.versions (pipeline_id, name, fingerprint, state, slice_size) select 1, 'v' || i, 'f' || i, 'candidate', 100 from generate_series(1, 2) i;
create table tailrace.results_v1 partition of tailrace.results for values in (1);
create table tailrace.results_v2 partition of tailrace.results for values in (2);
"""
RAW = """insert into tailrace.raw_records (source_id, external_id, revision, op, digest, occurred_at, observed_at, payload)
select 1 + i % 50, i::text, 1, 'create', '\\x00', now(), now(), jsonb_build_object('text', repeat('selling a thing ', 6)) from generate_series(1, {rows}) i"""
RESULT = """insert into tailrace.results (version_id, raw_id, status, output, error, meta, started_at, finished_at)
select {v}, i, case when i % 100 = {v} then 'failed' when i % 50 = 9 then 'skipped' else 'ok' end,
  case when i % 100 <> {v} and i % 50 <> 9 then jsonb_build_object('kind', (array['sale', 'wanted', 'swap'])[1 + i % 3], 'price', case when i % {m} = 0 then i + {v} else i end,
    'title', 'thing number ' || i, 'tags', jsonb_build_array(i % 7, i % 11), 'urgent', i % 13 = 0, 'note', repeat('words of the model ', 4)) end,
  case when i % 100 = {v} then jsonb_build_array(jsonb_build_object('kind', 'retry', 'message', 'TimeoutError: after ' || i)) end,
  jsonb_build_object('cost', 0.001 * (i % 9), 'tokens_in', 100 + i % 40, 'tokens_out', 20 + i % 8, 'latency', 0.2 + (i % 100) / 100.0), now(), now()
from generate_series(1, {rows}) i"""
EFFECT = """insert into tailrace.effects (version_id, raw_id, rerun, kind, key, target, body, body_hash, verdict, reason, created_at)
select {v}, i, 0, 'post', 'post::' || i, '', jsonb_build_object('n', i, 'v', b), decode(md5(b::text), 'hex'), 'suppressed', 'replay', now()
from generate_series(1, {rows}) i cross join lateral (select case when i % 20 = 0 then {v} else 0 end as b) c where i % 5 = 0 or i % 100 = {v}"""


def fill(connection: psycopg.Connection) -> None:
    connection.execute(SETUP)
    connection.execute(RAW.format(rows=ROWS))
    for v in (1, 2):
        connection.execute(RESULT.format(v=v, m=20 + v, rows=ROWS))
        connection.execute(EFFECT.format(v=v, rows=ROWS))
    connection.execute("vacuum (analyze)")


def main() -> int:
    base = Path(tempfile.mkdtemp(prefix="tailrace-compare-"))
    base.chmod(0o755)
    try:
        url = embedded.start(base / "data", fsync=False)
        migrate(url)
        began = time.monotonic()
        with psycopg.connect(url, autocommit=True) as connection:
            fill(connection)
        print(f"{ROWS:,} records filled in {time.monotonic() - began:.0f} s", flush=True)
        return measured(url)
    finally:
        embedded.stop(base / "data")
        shutil.rmtree(base, ignore_errors=True)


def measured(url: str) -> int:
    os.environ["DATABASE_URL"] = url
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="tailrace-page-"))
    os.chdir(folder)
    code = cli.main(["compare", "p", "v1", "v2", "--html", str(folder / "page.html")])
    seconds, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{ROWS:,} records: {seconds:.1f} s, client {peak:.0f} MB at its peak, page {(folder / 'page.html').stat().st_size:,} bytes")
    shutil.rmtree(folder)
    return code or int(seconds > 60 or peak > 500)


if __name__ == "__main__":
    raise SystemExit(main())
