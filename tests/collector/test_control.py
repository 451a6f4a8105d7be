"""The size of the next chunk: a pure choice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collector.control import Bounds, decide

BOUNDS = Bounds(10, 1000, 10.0)


def chunk(size=100, records=None, seconds=1.0, error=None, remaining=None, limit="api"):
    decision = {"remaining": remaining, "limit": limit}
    return {"size": size, "records": size if records is None else records, "seconds": seconds, "error": error, "decision": decision}


def quota(remaining, limit=5000, resets_in=600.0, name="api"):
    return {"name": name, "remaining": remaining, "limit": limit, "resets_in": resets_in}


def test_it_grows_while_all_goes_well_and_stops_at_the_ceiling():
    sizes, recent = [], []
    for _ in range(6):
        sizes.append(decide(recent, [], BOUNDS).size)
        recent.append(chunk(sizes[-1]))
    assert sizes == [100, 201, 403, 807, 1000, 1000]


def test_a_failure_halves_it_and_it_grows_slowly_afterwards():
    assert decide([chunk(400), chunk(400, error="502")], [], BOUNDS).size == 200
    assert decide([chunk(400, error="502"), chunk(200)], [], BOUNDS).size == 251
    assert decide([chunk(12, error="502")], [], BOUNDS).size == 10


def test_one_that_took_too_long_is_shortened_to_the_time_it_should_take():
    assert decide([chunk(400, seconds=16.0)], [], BOUNDS).size == 250
    assert decide([chunk(400, seconds=1000.0)], [], BOUNDS).size == 200


def test_what_is_left_of_a_limit_bounds_it_and_a_tenth_is_left_to_the_tail():
    recent = [chunk(100, remaining=1000), chunk(200, remaining=900)]  # one unit a record
    decision = decide(recent, [quota(700)], BOUNDS)
    assert (decision.size, decision.wait) == (200, 0)
    assert "api" in decision.because
    assert decide(recent, [quota(700)], BOUNDS, sharers=2).size == 100


def test_what_is_left_of_one_limit_says_nothing_about_the_cost_in_another():
    recent = [chunk(100, remaining=900, limit="calls"), chunk(100, remaining=850, limit="calls")]
    money = quota(4.5, limit=20, resets_in=86400.0, name="money")  # 850 calls less 4.5 dollars is no price
    assert (decide(recent, [money], BOUNDS).size, decide(recent, [money], BOUNDS).wait) == (201, 0)
    recent.append(chunk(100, remaining=4.6, limit="money"))
    assert decide(recent, [money], BOUNDS).units_per_record == (4.6 - 4.5) / 100


def test_a_limit_that_is_used_up_is_waited_for():
    decision = decide([chunk(100, remaining=600)], [quota(500)], BOUNDS)
    assert decision.wait == 600
    assert "500 of 5000" in decision.because


def test_a_limit_without_an_end_is_no_reason_to_wait():
    assert decide([chunk()], [quota(0, resets_in=None)], BOUNDS).wait == 0


@given(
    st.lists(st.builds(chunk, st.integers(1, 5000), st.integers(0, 5000), st.floats(0, 1e6), st.sampled_from([None, "x"]), st.integers(0, 9999))),
    st.lists(st.builds(quota, st.floats(-10, 5000), st.sampled_from([None, 0, 1, 5000]), st.sampled_from([None, 0.0, 600.0])), max_size=2),
    st.integers(1, 9),
)
def test_it_is_always_within_its_bounds(recent, quotas, sharers):
    decision = decide(recent, quotas, BOUNDS, sharers)
    assert 10 <= decision.size <= 1000
    assert 0 <= decision.wait <= 600
    assert decision.because
