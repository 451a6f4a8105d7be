"""What the programs are given to do: the configuration, and processors that behave well, badly, and deadly."""

CONFIG = """
[sources.inbox]
kind = "files"
path = "inbox"
id_field = "id"

[sources.orders]
kind = "webhook"
insecure = true

[pipelines.chaos]
processor = "./mine.py:chaos"
max_attempts = 6
retry_base = 0.3
retry_after = 2
retry_rounds = 1
deadline = 3

[pipelines.single]
processor = "./mine.py:single"
sources = ["webhook:*"]
max_attempts = 6
retry_base = 0.3
retry_after = 2
retry_rounds = 1
deadline = 3

[effects.post]
sink = "webhook"
url = "{url}/post"
timeout = 2
max_attempts = 60

[effects.single]
sink = "webhook"
url = "{url}/single"
timeout = 2
max_attempts = 60

[effects.once]
sink = "webhook"
url = "{url}/once"
timeout = 2
honours_key = false
max_attempts = 60

[effects.lossy]
sink = "webhook"
url = "{url}/lossy"
timeout = 2
policy = "never_lost"
max_attempts = 60

[worker]
lease_seconds = 2
beat_seconds = 0.6
watch_seconds = 0.3
poll_seconds = 0.5
grace_seconds = 3
max_crashes = 6
claim_records = 400

[collector]
poll_seconds = 0.1
touch_seconds = 2
port = {port}

[database]
pool_size = 5
statement_timeout = 5
connect_seconds = 20

[log]
format = "json"
"""
PROCESSOR = """
import asyncio, os, signal, time
from worker import Done, Effect, Retry, Skip, processor


def end_of(how):
    if how == "exit":
        os._exit(9)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(10_000)
    if how == "raise":
        raise ValueError("this record never works")


def judged(record, ctx, kinds):
    p = record.payload
    end_of(p["how"])
    if p["how"] == "skip":
        return Skip("asked to")
    if p["how"] == "flaky" and ctx.attempt < 2:
        raise RuntimeError("not yet")
    if p["how"] == "again" and ctx.attempt < 1:
        return Retry("later", after=0.5)
    return Done({"id": p["id"], "v": p["v"]}, effects=[Effect(kind, {"id": p["id"]}, key=f"{kind}:{p['id']}") for kind in kinds])


@processor("chaos", version=os.environ.get("CHAOS_VERSION", "v1"), slice_size=10, concurrency=4, code="chaos")
async def chaos(record, ctx):
    how = record.payload["how"]
    await asyncio.sleep(10_000 if how == "late" else 0.4 if how == "slow" else 0.002)
    return judged(record, ctx, ("post", "once", "lossy") if record.id % 3 == 0 else ("post",))


@processor("single", version="s1", slice_size=1, concurrency=2, code="single")
def single(record, ctx):
    how = record.payload["how"]
    if how == "late":
        raise ValueError("this record never works either")
    if how == "slow":
        time.sleep(0.4)
    return judged(record, ctx, ("single",))
"""
