"""The rollback policy's arithmetic, as data and as properties (DESIGN.md section 3; R13, R23)."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_stub.core import counting, policy
from cloud_stub.core.rows import (
    AssignmentRow,
    AssignmentState,
    GroupCount,
    Policy,
    Tally,
    UpdateRef,
    UpdateRow,
)
from protocol.outcomes import Party, Reason

BACK = (UpdateRef("acme/app:1.0", "0" * 64),)
percents = st.integers(1, 100)
counts = st.integers(1, 200)
sizes = st.integers(0, 5_000)
matches = st.sampled_from(["all", "any"])


@pytest.mark.parametrize(
    ("percent", "count", "match", "failed", "base", "expected"),
    [
        (10, 5, "all", 5, 50, True),  # both, exactly
        (10, 5, "all", 5, 51, False),  # the share lacks a little
        (10, 5, "all", 4, 40, False),  # the number lacks one
        (10, 5, "any", 5, 1_000, True),
        (10, 5, "any", 4, 40, True),
        (10, 5, "any", 3, 40, False),
        (100, 1, "all", 1, 1, True),
        (1, 1, "all", 0, 0, False),  # nothing failed
        (33, 1, "all", 33, 100, True),
        (33, 1, "all", 1, 3, True),  # 33.3 %: in integers 100 >= 99
        (34, 1, "all", 1, 3, False),
        (10, 5, "all", 3, 3, True),  # R23: shrank below the number, and all have failed
        (10, 5, "all", 2, 3, False),
    ],
)
def test_R23_a_policy_trips_by_these_numbers_and_no_others(
    percent: int, count: int, match: str, failed: int, base: int, expected: bool
) -> None:
    """The border is exact, in integers."""
    assert policy.trips(Policy(percent, count, BACK, match), failed, base) is expected  # type: ignore[arg-type]


@given(percents, counts, matches, st.integers(0, 500), st.integers(1, 500))
def test_the_decision_is_the_definition_in_fractions(
    percent: int, count: int, match: str, failed: int, base: int
) -> None:
    """It agrees with the definition written in exact fractions, for a group that has not shrunk below the number."""
    if base < count:
        return
    enough, share = failed >= count, Fraction(failed, base) >= Fraction(percent, 100)
    expected = failed > 0 and ((enough and share) if match == "all" else (enough or share))
    assert policy.trips(Policy(percent, count, BACK, match), failed, base) is expected  # type: ignore[arg-type]


@given(percents, counts, matches, st.integers(1, 5_000))
def test_the_number_that_is_shown_is_the_first_that_trips(
    percent: int, count: int, match: str, base: int
) -> None:
    """`failures_needed` trips, and one fewer does not."""
    rule = Policy(percent, count, BACK, match)  # type: ignore[arg-type]
    needed = policy.failures_needed(rule, base)
    assert needed is not None
    assert policy.trips(rule, needed, base)
    assert not policy.trips(rule, needed - 1, base)


def test_a_disarmed_policy_never_trips() -> None:
    """A policy whose way back was withdrawn acts no more (R22)."""
    assert not policy.trips(Policy(1, 1, BACK, disarmed="withdrawn"), 100, 100)


def test_R13_the_two_bases() -> None:
    """`group` counts members and those moved on; `attempted` counts verdicts by a real attempt."""
    tally = Tally(pending=5, working=3, succeeded=10, already_there=4, failed=3, counted=2, moved_on=1)
    assert policy.base_of(Policy(1, 1, BACK), tally, 20) == 21
    assert policy.base_of(Policy(1, 1, BACK, percent_of="attempted"), tally, 20) == 8


def test_R13_the_unprotected_are_in_no_base() -> None:
    """Members that the policy cannot take back, and that were offered nothing, are neither failed nor members."""
    update = UpdateRow("acme/app:2.0", "a", 2, b"{}", 0, ({"model": "x"},), 1, 0)
    group = [GroupCount("model=x", {"model": "x"}, 8), GroupCount("model=y", {"model": "y"}, 5)]
    assert policy.protected_members([update.ref], {"a": update}, group, Tally(unprotected=4)) == 4


@given(percents, counts, matches, st.integers(1, 200))
def test_R13_the_span_that_is_told_of_those_that_tried_holds(
    percent: int, count: int, match: str, base: int
) -> None:
    """With `attempted` the first failure that can trip and the last that must are both told, and true."""
    rule = Policy(percent, count, BACK, match, "attempted")  # type: ignore[arg-type]
    if match == "all" and base < count:
        return  # not armed: told in other words
    trips = [n for n in range(1, base + 1) if policy.trips(rule, n, n, base)]
    needed, told = policy.failures_needed(rule, base), policy.arithmetic(rule, base)
    assert f"{needed} failed" in told
    assert ("from " in told) == (trips[0] != needed)
    assert trips[0] == needed or f"from {trips[0]} failed" in told


def test_R23_reachability_is_told_with_its_arithmetic() -> None:
    """A threshold that the group cannot reach is shown as not armed, with the number of members it needs."""
    rule = Policy(10, 5, BACK)
    assert "Not armed until 5 members: the group has 3" in policy.arithmetic(rule, 3)
    assert "no compatible member" in policy.arithmetic(rule, 0)
    assert "with 120 compatible members that is 12 failed" in policy.arithmetic(rule, 120)


rows = st.builds(
    AssignmentRow,
    st.just("d1"),
    st.just("pi"),
    st.sampled_from(list(AssignmentState)),
    st.just("class"),
    counted=st.booleans(),
    suspended=st.booleans(),
    already_there=st.booleans(),
    moved_on=st.booleans(),
    reason=st.sampled_from([None, Reason.HEALTH_FAILED]),
    party=st.sampled_from([None, Party.UPDATE]),
)


@given(st.lists(rows, min_size=1, max_size=20))
def test_R14_counters_follow_every_transition(history: list[AssignmentRow]) -> None:
    """After any history of one row the tally is what its last state contributes."""
    tally, before = Tally(), None
    for row in history:
        tally = counting.changed(tally, before, row)
        before = row
    assert tally == counting.contribution(history[-1])


def test_R15_a_suspended_failure_does_not_count() -> None:
    """A counted failure stands whatever the state, until it is suspended or cleared."""
    row = AssignmentRow("d1", "pi", AssignmentState.PENDING, "class", counted=True)
    assert counting.contribution(row).counted == 1
    assert counting.contribution(replace(row, suspended=True)).counted == 0
