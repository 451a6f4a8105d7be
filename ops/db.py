"""psycopg for the commands: one session, the operator's role, errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from worker.core.db import shown, without_password
from worker.core.embedded import database_url
from worker.core.errors import Misconfigured, TailraceError, Unavailable
from worker.core.schema import latest_migration
from worker.core.settings import Settings

ROLE = "tailrace_operator"
Row = dict[str, Any]
Connection = psycopg.Connection[Row]


def open_url(url: str) -> Connection:
    """A session, or why there is none. Raises Unavailable or Misconfigured."""
    try:
        return psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=10, application_name="tailrace ops")
    except psycopg.ProgrammingError as error:
        raise Misconfigured(
            f"DATABASE_URL is not usable: {without_password(error, url)}".strip(), "write it as postgresql://user:password@host:5432/database"
        ) from error
    except psycopg.OperationalError as error:
        reason = without_password(str(error).strip().splitlines()[-1], url)
        wrong = any(word in reason for word in ("does not exist", "authentication failed", "no pg_hba.conf"))
        hint = "check user, password and database name in DATABASE_URL" if wrong else "start the server, or correct DATABASE_URL"
        raise (Misconfigured if wrong else Unavailable)(f"no database at {shown(url)}: {reason}", hint) from error


@contextmanager
def connected(settings: Settings, *, checked: bool = True) -> Iterator[Connection]:
    """A session under the operator's role on a database with our schema. SQL errors of ours (TR...) become messages."""
    with open_url(database_url(settings)) as connection:
        connection.execute("set client_min_messages = warning")
        if checked:
            check_schema(connection)
            if settings.database.set_role and settings.database.pooler == "none":
                connection.execute(f"set role {ROLE}")
        try:
            yield connection
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith("TR"):
                raise TailraceError(error.diag.message_primary or str(error), error.diag.message_hint or "") from error
            raise


def check_schema(connection: Connection) -> None:
    """Raises Misconfigured where the schema is missing, older or newer than this program."""
    try:
        found = one(connection, "select max(number) as n from tailrace.schema_migrations")["n"]
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise Misconfigured("this database has no tailrace schema", "run `tailrace migrate`") from error
    if found is None or found < latest_migration():
        raise Misconfigured(f"the database is at migration {found}, this program at {latest_migration()}", "run `tailrace migrate`")
    if found > latest_migration():
        raise Misconfigured(f"the database is at migration {found}, this program at {latest_migration()}", "update this program")


def rows(connection: Connection, query: str, parameters: Sequence[Any] | Row = ()) -> list[Row]:
    return connection.execute(query, parameters).fetchall()


def one(connection: Connection, query: str, parameters: Sequence[Any] | Row = ()) -> Row:
    found = rows(connection, query, parameters)
    return found[0] if found else {}
