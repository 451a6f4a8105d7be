"""asyncpg for the daemons: one pool per program, its role, its limits. Only SQL functions are called and views read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import tenacity

from worker.core.errors import ClaimLost, Misconfigured, PositionMoved, Unavailable
from worker.core.settings import DatabaseSettings

T = TypeVar("T")
AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a call on a session that the server is just ending
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.DiskFullError,
    OSError,
    TimeoutError,
)
_WRONG = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
_UNUSABLE = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidParameterValueError,
    asyncpg.UndefinedObjectError,
    asyncpg.ClientConfigurationError,
)
_NO_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError)
Warm = Callable[[asyncpg.Connection], Awaitable[None]]
_SESSION = {"client_min_messages": "warning", "idle_in_transaction_session_timeout": "60000", "lock_timeout": "20000", "jit": "off"}


def shown(url: str) -> str:
    """The address without its password, for messages. What is neither an address nor `name=value` is not shown at all."""
    if "://" not in url and "=" not in url:
        return "***"
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'?|[^&\s]*)", r"\1***", re.sub(r"(://[^:/?#@]*:).*@", r"\1***@", url))


def without_password(text: object, url: str) -> str:
    """What a library says about an address: it may quote the parts that `shown` hides."""
    said, parts = str(text), re.compile(r"[^\s\"'`:/@?#&=%]{3,}")
    for part in sorted(set(parts.findall(url)) - set(parts.findall(shown(url))), key=len, reverse=True):
        said = said.replace(part, "***")
    return said


async def connect_pool(
    url: str, settings: DatabaseSettings, program: str, role: str, size: int, warm: Warm | None = None, *, read_only: bool = False
) -> asyncpg.Pool:
    """A pool whose sessions run under `role`. Raises Misconfigured where waiting cannot help; waits while the server is away.

    `warm` makes the calls whose first run on a session is slow (plans and caches, some 15 ms) before they matter.
    """

    async def prepare(connection: asyncpg.Connection) -> None:
        if settings.pooler == "none" and settings.set_role:
            await connection.execute(f"set role {role}")
        if settings.pooler == "none" and warm:
            with contextlib.suppress(*_NO_SCHEMA):  # check_schema says it better
                await warm(connection)

    extra = {"application_name": f"tailrace {program}"}
    if settings.pooler == "none":
        extra |= _SESSION | {"statement_timeout": str(int(settings.statement_timeout * 1000))}
    if read_only and settings.pooler == "none":
        extra |= {"default_transaction_read_only": "on"}
    cached = {} if settings.pooler == "none" and settings.prepare else {"statement_cache_size": 0}
    async for attempt in _retrying(settings):
        with attempt:
            try:
                return await asyncpg.create_pool(
                    url,
                    min_size=1,
                    max_size=size,
                    setup=None,
                    init=prepare,
                    reset=_keep,
                    server_settings=extra,
                    command_timeout=settings.statement_timeout + 5,
                    timeout=10,
                    max_inactive_connection_lifetime=300,
                    **cached,
                )
            except (*_WRONG, *_UNUSABLE, ValueError, OverflowError) as error:  # a port that is none
                raise _refusal(error, url, role) from error
    raise AssertionError("unreachable")


def _refusal(error: Exception, url: str, role: str) -> Misconfigured:
    """What waiting cannot mend, and what to do about it."""
    said = without_password(error, url)
    if isinstance(error, _WRONG):
        return Misconfigured(f"the database refuses {shown(url)}: {said}", "check DATABASE_URL: user, password and database name")
    if isinstance(error, _UNUSABLE[:-1]):
        return Misconfigured(f"cannot work as {role}: {said}", "run `tailrace migrate` as the owner of the database")
    return Misconfigured(f"DATABASE_URL is not usable: {said}", "write it as postgresql://user:password@host:5432/database")


async def _keep(_connection: asyncpg.Connection) -> None:
    """No reset query when a session returns to the pool: nothing of ours leaves state in it."""


async def open_pool(
    url: str, settings: DatabaseSettings, program: str, role: str, size: int, warm: Warm | None = None, *, read_only: bool = False
) -> asyncpg.Pool:
    """connect_pool plus the check that the schema is there and is the one this program was written for. `read_only`: the database refuses
    every change.
    """
    try:
        pool = await connect_pool(url, settings, program, role, size, warm, read_only=read_only)
        await patiently(settings, check_schema, pool)
    except AWAY as error:
        raise Unavailable(f"no database at {shown(url)}: {without_password(repr(error), url)}", "start it, or correct DATABASE_URL") from error
    return pool


async def patiently(settings: DatabaseSettings, call: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Calls again while the server is away, for at most `connect_seconds`: a start is no reason to end where a running program would wait."""
    async for attempt in _retrying(settings):
        with attempt:
            return await call(*args)
    raise AssertionError("unreachable")


def _retrying(settings: DatabaseSettings) -> tenacity.AsyncRetrying:
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(AWAY),
        wait=tenacity.wait_random_exponential(0.2, max=5),
        stop=tenacity.stop_after_delay(settings.connect_seconds),
        reraise=True,
    )


async def check_schema(pool: asyncpg.Pool) -> None:
    """Raises Misconfigured where the schema is missing, older or newer than this program."""
    from worker.core.schema import latest_migration  # noqa: PLC0415  reads files; only needed here

    try:
        found = await pool.fetchval("select max(number) from tailrace.schema_migrations")
    except _NO_SCHEMA as error:
        raise Misconfigured("this database has no tailrace schema", "run `tailrace migrate`") from error
    wanted = latest_migration()
    if found != wanted:
        older = found is None or found < wanted
        raise Misconfigured(
            f"the database is at migration {found}, this program at {wanted}",
            "run `tailrace migrate`" if older else "update this program: the database was migrated by a newer one",
        )


@contextlib.contextmanager
def mapped() -> Any:
    """Our own SQL error codes as our own errors; codes are listed in sql/README.md."""
    try:
        yield
    except asyncpg.PostgresError as error:
        hint = getattr(error, "hint", "") or ""
        if error.sqlstate == "TR002":
            raise ClaimLost(str(error), hint) from error
        if error.sqlstate == "TR021":
            raise PositionMoved(str(error), hint) from error
        if error.sqlstate in ("TR010", "TR020"):
            raise Misconfigured(str(error), hint) from error
        raise
