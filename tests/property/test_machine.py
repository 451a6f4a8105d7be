"""The state machine of sql/: any order of its arrows keeps the invariants, and the machine sees when a guard is missing."""

from __future__ import annotations

import contextlib
import secrets
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.machine import Machine

RUNS = {"default": (25, 30), "long": (500, 50)}
_QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture
def machine(server_url, template):
    """A class of machines, each run of which has a database of its own. `spoil` is SQL or a function that weakens it first."""

    def make(spoil=None):
        @contextlib.contextmanager
        def database():
            name = f"tr_machine_{secrets.token_hex(4)}"
            with psycopg.connect(server_url, autocommit=True) as admin:
                admin.execute(f"create database {name} template {template} strategy file_copy")
                url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
                try:
                    if spoil:
                        with psycopg.connect(url, autocommit=True) as session:
                            spoil(session)
                    yield url
                finally:
                    admin.execute(f"drop database {name} with (force)")

        return type("Fresh", (Machine,), {"open_database": staticmethod(database)})

    return make


def profile(runs, steps, **more):
    return settings(max_examples=runs, stateful_step_count=steps, deadline=None, suppress_health_check=_QUIET, database=None, **more)


def test_any_order_of_the_arrows_keeps_the_invariants(machine, request):
    name = "long" if settings.get_current_profile_name() == "long" else "default"
    run_state_machine_as_test(machine(), settings=profile(*RUNS[name], derandomize=name == "default", print_blob=True))


def rewritten(function, old, new):
    """Replaces a part of a function's text in the test's database; fails where it is not there."""

    def spoil(session):
        (text,) = session.execute("select pg_get_functiondef(%s::regproc)", [f"tailrace.{function}"]).fetchone()
        assert old in text, f"{function} no longer says {old!r}: name another guard to take out"
        session.execute(text.replace(old, new).encode())

    return spoil


def without_token(session):
    rewritten("settle", "j.token = any (p_tokens) and j.state = 'c' and", "")(session)
    rewritten("settle", "and j.token = u.token", "")(session)


def without_count(session):
    rewritten("settle", "if v_rows <> v_given or", "if false and")(session)


def without_key(session):
    session.execute("alter table tailrace.deliveries drop constraint deliveries_pkey")
    rewritten("decide_effects", "on conflict (key) do nothing", "")(session)


@pytest.mark.parametrize("spoil", [without_token, without_count, without_key])
def test_the_machine_sees_a_missing_guard(machine, spoil):
    only = profile(60, 40, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, psycopg.Error)) as found:
        run_state_machine_as_test(machine(spoil), settings=only)
    assert "no longer says" not in str(found.value)
