"""A Postgres that belongs to one run: own folder, own port, fsync on; restarted, crashed and filled up by the driver. PgBouncer before it on demand."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import asyncpg

DATABASE, LOGIN = "tailrace", "chaos"
_CONF = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = on
max_connections = 44
superuser_reserved_connections = 6
shared_buffers = 32MB
min_wal_size = 4MB
max_wal_size = 64MB
checkpoint_timeout = 30s
jit = off
timezone = 'UTC'
"""
_ROLES = ("tailrace_collector", "tailrace_worker", "tailrace_operator", "tailrace_reader")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """All methods block; the driver calls them in threads."""

    def __init__(self, base: Path, bin_dir: Path, *, sync: str, pooler: bool, megabytes: int) -> None:
        self.bin, self.base, self.sync = bin_dir, base, sync
        self.port, self.mount, self.data = free_port(), base / "disk", base / "disk" / "data"
        self.pooler_port = free_port() if pooler else None
        self._pooler: subprocess.Popen[bytes] | None = None
        self._megabytes = megabytes
        self.bounded = ""  # why the disk cannot be filled; empty: it can
        self._user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None

    @property
    def entry(self) -> int:
        """The port that programs are led to."""
        return self.pooler_port or self.port

    def url(self, user: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{DATABASE}"

    def _run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        group = None if self._user is None else pwd.getpwuid(self._user).pw_gid
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
        out = self.base / f"out-{secrets.token_hex(3)}"
        with out.open("w+") as sink:
            done = subprocess.run(
                [str(self.bin / command[0]), *command[1:]], user=self._user, group=group, extra_groups=None if self._user is None else [],
                cwd="/", env=env, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, check=False, timeout=120,
            )  # fmt: skip
        text = out.read_text(errors="replace")
        out.unlink()
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {text[-2000:]}")
        return subprocess.CompletedProcess(done.args, done.returncode, text, "")

    def create(self, more: dict[str, str] | None = None) -> None:
        """initdb on a disk of bounded size where root may mount one. `more`: settings of the server."""
        self.mount.mkdir()
        self.bounded = "only root can mount a disk of bounded size"
        if os.geteuid() == 0:
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={self._megabytes}m", "tmpfs", str(self.mount)], capture_output=True, text=True, check=False
            )
            self.bounded = "" if mounted.returncode == 0 else f"mount -t tmpfs: {mounted.stderr.strip()}"
        log = self.base / "postgres.log"
        log.touch()
        if self._user is not None:
            for path in (self.mount, log):
                os.chown(path, self._user, -1)
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--wal-segsize=1")
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(_CONF + f"port = {self.port}\n" + "".join(f"{k} = {v}\n" for k, v in (more or {}).items()))
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.base / "postgres.log"), "-w", "-t", "60", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop", check=False)

    def running(self) -> bool:
        return self._run("pg_ctl", "-D", str(self.data), "status", check=False).returncode == 0

    def ensure(self) -> bool:
        """Starts it where it gave up (it does when it cannot recover on a full disk). True: it had to."""
        if self.running():
            return False
        self.start()
        return True

    def version(self) -> str:
        return self._run("postgres", "--version").stdout.split("(PostgreSQL)")[-1].split()[0]

    def prepare(self) -> list[str]:
        """The statements that make database and login, to be run by a superuser; in two parts, before and after the migration."""
        return [f"grant {role} to {LOGIN}" for role in _ROLES] + [f"alter database {DATABASE} set synchronous_commit = {self.sync}"]

    def fill(self) -> int:
        """Leaves no room on the disk. Returns the bytes that were put there."""
        ballast, written = self.mount / "ballast", 0
        with ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        written += file.write(b"x" * size)
                except OSError:
                    continue
        return written

    def empty(self) -> None:
        (self.mount / "ballast").unlink(missing_ok=True)

    def start_pooler(self, database: str = DATABASE) -> None:
        """PgBouncer in transaction mode, for one database or (`*`) for all."""
        if self.pooler_port is None:
            return
        users, config, log = self.base / "users.txt", self.base / "pgbouncer.ini", self.base / "pgbouncer.log"
        users.write_text(f'"{LOGIN}" ""\n"postgres" ""\n')
        config.write_text(
            f"[databases]\n{database} = host=127.0.0.1 port={self.port}{'' if database == '*' else f' dbname={database}'}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.pooler_port}\nauth_type = trust\nauth_file = {users}\npool_mode = transaction\nmax_client_conn = 200\n"
            "default_pool_size = 20\nunix_socket_dir =\nserver_login_retry = 1\nserver_check_delay = 0\nquery_wait_timeout = 10\n"
        )
        program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
        if program is None:
            raise RuntimeError("POOLER=1 needs pgbouncer: apt-get install -y pgbouncer")
        with log.open("ab") as out:
            self._pooler = subprocess.Popen([program, str(config)], user=self._user, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def kill_pooler(self) -> None:
        if self._pooler is not None:
            self._pooler.send_signal(signal.SIGKILL)
            self._pooler.wait()
            self._pooler = None

    def remove(self) -> None:
        """Stops everything and gives the disk back."""
        self.kill_pooler()
        if self.data.exists():
            self.stop("immediate")
        if not self.bounded:
            subprocess.run(["umount", "-l", str(self.mount)], check=False)

    async def connect(self, user: str = "postgres") -> asyncpg.Connection:
        """A session that does not go through the proxy."""
        return await asyncpg.connect(self.url(user), timeout=5, command_timeout=10, statement_cache_size=0)

    async def ask(self, query: str, *args: object) -> list[asyncpg.Record]:
        """One statement in a session of its own, by the superuser."""
        connection = await self.connect()
        try:
            return await connection.fetch(query, *args)
        finally:
            connection.terminate()
