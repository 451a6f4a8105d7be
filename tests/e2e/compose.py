"""Brings docker-compose.yml up for real, runs the main job through a crash, and tears it down. Needs a Docker engine with Compose 2.

Prints one PASS or FAIL line per check. Exit codes: 0 all passed, 1 one failed, 2 no usable engine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, PAGES, TRIES = 1_000, 12, 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Failed(Exception):
    """A check said no; the rest would say nothing more."""


class Stack:
    """One Compose project of its own: it meets no other one, nor its ports, volumes or image."""

    def __init__(self, inbox: Path) -> None:
        self.inbox = inbox
        self.written = 0
        self.prometheus = free_port()
        self.project = f"tailrace-e2e-{os.getpid()}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TAILRACE_", "POSTGRES_", "COMPOSE_"))}
        self.environ = kept | {
            "TAILRACE_IMAGE": "tailrace:e2e",
            "TAILRACE_INBOX": str(inbox),
            "TAILRACE_COLLECTOR_PORT": str(free_port()),
            "PROMETHEUS_PORT": str(self.prometheus),
        }

    def run(self, *args: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(args, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=seconds, check=False)

    def compose(self, *args: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return self.run(*self.command(*args), seconds=seconds)

    def command(self, *args: str) -> tuple[str, ...]:
        return ("docker", "compose", "-p", self.project, *args)

    def sql(self, query: str) -> int:
        done = self.compose("exec", "-T", "postgres", "psql", "-U", "tailrace", "-d", "tailrace", "-Atc", query)
        if done.returncode:
            raise Failed(f"psql: {done.stderr.strip()}")
        return int(done.stdout.strip() or 0)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).stdout.split()

    def inspect(self, container: str, form: str) -> str:
        return self.run("docker", "inspect", "-f", form, container).stdout.strip()

    def metric(self, query: str) -> list[dict]:
        address = f"http://127.0.0.1:{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)["data"]["result"]

    def append(self, count: int = PAGE) -> None:
        """Messages of several channels; every seventh asks for an effect."""
        with (self.inbox / f"channel-{self.written // PAGE % 3}.jsonl").open("a") as file:
            for n in range(self.written, self.written + count):
                file.write(json.dumps({"id": f"m{n}", "text": f"message {n} for {n % 90 + 1} EUR" + (" sale" if n % 7 == 0 else "")}) + "\n")
        self.written += count

    def held_by(self, container: str) -> int:
        """Records that this worker has claimed and not settled."""
        host = self.inspect(container, "{{.Config.Hostname}}")
        return self.sql(f"select coalesce(sum(n_rows), 0) from tailrace.jobs where state = 'c' and worker like '{host}:%'")


def check(what: str, good: object, detail: str = "") -> None:
    print(f"{'PASS' if good else 'FAIL'}  {what}" + (f": {detail}" if detail else ""), flush=True)
    if not good:
        raise Failed(what)


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Looks twice a second, for `seconds` at most; an answer that fails to come counts as not yet."""
    end, never = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except (OSError, Failed, subprocess.TimeoutExpired, ValueError):
            pass
        never.wait(0.5)
    return False


def send(pid: int, number: int) -> None:
    """A signal from outside the container: its restart policy sees a crash and not an order."""
    try:
        os.kill(pid, number)
    except PermissionError:
        subprocess.run(["sudo", "-n", "kill", f"-{number}", str(pid)], check=True)


def kill_while_it_holds(stack: Stack, container: str) -> int:
    """Keeps results from being written, so that claims stay open, and kills the worker. Returns how many records it held."""
    pid = int(stack.inspect(container, "{{.State.Pid}}"))
    lock = "begin; lock table tailrace.results in share mode; select pg_sleep(15)"
    psql = ("exec", "-T", "postgres", "psql", "-q", "-d", "dbname=tailrace user=tailrace application_name=e2e-lock", "-c", lock)
    with subprocess.Popen(stack.command(*psql), cwd=ROOT, env=stack.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as locking:
        until(lambda: stack.sql("select count(*) from pg_locks where mode = 'ShareLock' and granted and relation = 'tailrace.results'::regclass"), 5)
        for _ in range(TRIES):
            stack.append(2 * PAGE)
            if until(lambda: stack.held_by(container), 2):
                break
        held = stack.held_by(container)
        send(pid, signal.SIGKILL)
        stack.sql("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'e2e-lock'")
        locking.wait(20)
    return held


def brings_up(stack: Stack) -> None:
    started = time.monotonic()
    built = stack.compose("build", seconds=900)
    check("the image is built", built.returncode == 0, f"{time.monotonic() - started:.0f} s" if not built.returncode else built.stderr[-1500:])
    size = int(stack.inspect("tailrace:e2e", "{{.Size}}") or 0) // 1_000_000
    user = stack.inspect("tailrace:e2e", "{{.Config.User}}")
    check("the image does not run as root", user.split(":")[0] not in {"", "0", "root"}, f"user {user}, {size} MB")
    started = time.monotonic()
    up = stack.compose("up", "-d", "--wait", "--wait-timeout", "150", "--scale", "worker=2", seconds=240)
    check("everything is up and healthy", up.returncode == 0, f"{time.monotonic() - started:.0f} s" if not up.returncode else up.stderr[-1500:])
    check("two workers run", len(stack.containers("worker")) == 2)


def settles_through_a_crash(stack: Stack) -> None:
    for _ in range(PAGES // 2):
        stack.append()
    check("results come in", until(lambda: stack.sql("select count(*) from tailrace.results") > 0, 60))
    victim = stack.containers("worker")[0]
    held = kill_while_it_holds(stack, victim)
    started = time.monotonic()
    check("a worker is killed in the middle of its work", held, f"it held {held} records")
    for _ in range(PAGES // 2):
        stack.append()
    restarted = until(lambda: stack.inspect(victim, "{{.RestartCount}} {{.State.Health.Status}}") == "1 healthy", 60)
    check("its container restarts", restarted, stack.inspect(victim, "restarts {{.RestartCount}}, {{.State.Health.Status}}"))
    settled = until(lambda: stack.sql("select count(*) from tailrace.results") >= stack.written, 120)
    done = stack.sql("select count(*) from tailrace.results")
    check("everything is settled", settled, f"{done} of {stack.written}, {time.monotonic() - started:.1f} s after the kill")


def lost_nothing(stack: Stack) -> None:
    wanted = stack.written
    raw = stack.sql("select count(*) from tailrace.raw_records")
    distinct = stack.sql("select count(distinct (source_id, external_id)) from tailrace.raw_records")
    check("every line is stored once", raw == distinct == wanted, f"{raw} records, {distinct} keys, {wanted} lines")
    results = stack.sql("select count(distinct raw_id) from tailrace.results where status = 'ok'")
    check("every record has one good result", results == stack.sql("select count(*) from tailrace.results") == wanted, str(results))
    check("no job is left", until(lambda: stack.sql("select count(*) from tailrace.jobs") == 0, 20))
    verified = stack.compose("exec", "-T", "collector", "tailrace", "verify")
    check("tailrace verify finds nothing", verified.returncode == 0, (verified.stdout + verified.stderr).strip().splitlines()[-1])


def shows_metrics(stack: Stack) -> None:
    check("Prometheus reads both workers and the collector", until(lambda: len(stack.metric("up == 1")) == 3, 60))
    check("Prometheus has tailrace_queue_lag_seconds", until(lambda: stack.metric("tailrace_queue_lag_seconds"), 60))
    for row in stack.metric("max by (pipeline, lane) (tailrace_queue_lag_seconds)"):
        print(f"      tailrace_queue_lag_seconds {row['metric']} = {row['value'][1]}")
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.prometheus}/api/v1/rules", timeout=5) as answer:
        rules = [r for group in json.load(answer)["data"]["groups"] for r in group["rules"]]
    check("Prometheus has the alert rules", rules and all(r["health"] in {"ok", "unknown"} for r in rules), f"{len(rules)} rules")


def drains_without_effects(stack: Stack) -> None:
    stack.compose("stop", "worker")
    first = stack.written
    stack.append()
    check("the collector goes on alone", until(lambda: stack.sql("select count(*) from tailrace.raw_records") == stack.written, 60))
    drained = stack.compose("run", "--rm", "-T", "-e", "TAILRACE_EFFECTS__BROADCAST=1", "drain", seconds=180)
    check("drain with an open gate ends with 0", drained.returncode == 0, (drained.stdout or drained.stderr).strip()[-400:])
    asked = sum(n % 7 == 0 for n in range(first, stack.written))
    kept = stack.sql("select count(*) from tailrace.effects where verdict = 'suppressed' and reason = 'drain'")
    check("its effects are suppressed with reason drain", kept == asked, f"{kept} of {asked}")
    check("nothing left", stack.sql("select count(*) from tailrace.deliveries") == 0)


def main() -> int:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        print("error: no `docker compose` here\n  install Docker Engine with Compose 2, or set DOCKER_HOST", file=sys.stderr)
        return 2
    inbox = Path(tempfile.mkdtemp(prefix="tailrace-e2e-"))
    inbox.chmod(0o755)
    stack = Stack(inbox)
    try:
        brings_up(stack)
        settles_through_a_crash(stack)
        lost_nothing(stack)
        shows_metrics(stack)
        drains_without_effects(stack)
        lost_nothing(stack)
    except (Failed, subprocess.SubprocessError, OSError) as error:
        print(f"FAIL  {error}\n{stack.compose('ps', '-a').stdout}\n{stack.compose('logs', '--no-color', '--tail', '25').stdout}", flush=True)
        return 1
    finally:
        down = stack.compose("--profile", "drain", "down", "-v", "--remove-orphans")
        shutil.rmtree(inbox, ignore_errors=True)
        print(f"{'PASS' if down.returncode == 0 else 'FAIL'}  everything is torn down", flush=True)
    print("compose-test passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
