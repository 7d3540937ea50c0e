"""The two tables, pair by pair, against DESIGN.md section 3 and the agent's table of RULES.md."""

from itertools import product

import pytest

from protocol.lifecycle import (
    DEPLOYMENT,
    PAST_NO_RETURN,
    WORKFLOW,
    DeploymentEvent,
    DeploymentState,
    WorkflowEvent,
    WorkflowState,
)

D, E = DeploymentState, DeploymentEvent
S, W = WorkflowState, WorkflowEvent

DEPLOYMENT_MOVES = {  # DESIGN.md section 3, written once more, by hand
    (D.SCHEDULED, E.STARTED): D.ACTIVE,
    (D.SCHEDULED, E.CANCELED): D.CANCELED,
    (D.ACTIVE, E.SUPERSEDED): D.SUPERSEDED,
    (D.ACTIVE, E.CANCELED): D.CANCELED,
    (D.ACTIVE, E.TRIPPED): D.ROLLED_BACK,
}


@pytest.mark.parametrize(("state", "event"), list(product(D, E)))
def test_a_deployment_moves_as_the_design_says(state: DeploymentState, event: DeploymentEvent) -> None:
    """Every pair: the move that the design names, and none where it names none."""
    assert DEPLOYMENT[state].get(event) == DEPLOYMENT_MOVES.get((state, event))


def test_the_three_ends_of_a_deployment_are_final() -> None:
    """Canceled, superseded and rolled back have no way out; the others have one, and all can be reached."""
    assert {state for state in D if not DEPLOYMENT[state]} == {D.SUPERSEDED, D.CANCELED, D.ROLLED_BACK}
    assert {to for moves in DEPLOYMENT.values() for to in moves.values()} == set(D) - {D.SCHEDULED}


@pytest.mark.parametrize("state", S)
def test_every_state_of_the_work_answers_orders_and_a_restart(state: WorkflowState) -> None:
    """An order, a hold and a power loss can come at any time, so no state may be silent about them."""
    assert {W.ORDERED_SAME, W.ORDERED_OTHER, W.HELD, W.RESTARTED} <= set(WORKFLOW[state])
    assert all(WORKFLOW[state].values()), "a pair that is listed leads somewhere"


@pytest.mark.parametrize(("state", "event"), list(product(S, W)))
def test_R5_nothing_past_the_point_of_no_return_goes_back_before_it(
    state: WorkflowState, event: WorkflowEvent
) -> None:
    """From `switching` on, work ends or goes on to a verdict; only a switch that was not made is `ready` again."""
    before = {S.DOWNLOADING, S.INSTALLING} | (
        {S.READY} if (state, event) != (S.SWITCHING, W.RESTARTED) else set()
    )
    if state in PAST_NO_RETURN:
        assert not WORKFLOW[state].get(event, frozenset()) & before


@pytest.mark.parametrize(("state", "event"), list(product(S, W)))
def test_R4_the_gate_alone_leads_to_the_switch(state: WorkflowState, event: WorkflowEvent) -> None:
    """`switching` is entered from `ready`, when the cloud has said that the order still stands, and no other way."""
    if S.SWITCHING in WORKFLOW[state].get(event, frozenset()) and state is not S.SWITCHING:
        assert (state, event) == (S.READY, W.GATE_OPENED)


@pytest.mark.parametrize("state", [S.SWITCHING, S.RESTARTING, S.CONFIRMING, S.REVERTING])
def test_R5_a_hold_after_the_switch_changes_nothing(state: WorkflowState) -> None:
    """The answer is `too_late`, and the trial runs to its verdict."""
    assert WORKFLOW[state][W.HELD] == {state}


@pytest.mark.parametrize("state", [S.DOWNLOADING, S.INSTALLING, S.READY])
def test_R5_a_hold_before_the_switch_ends_the_attempt(state: WorkflowState) -> None:
    """The attempt is abandoned, and the device stays where it is."""
    assert WORKFLOW[state][W.HELD] == {S.IDLE}


@pytest.mark.parametrize("state", S)
def test_R16_the_same_target_again_is_adopted_in_place(state: WorkflowState) -> None:
    """A new attempt at the target in work never begins it anew."""
    assert WORKFLOW[state][W.ORDERED_SAME] == {state}


def test_a_trial_that_is_given_up_is_reverted_and_reverting_ends_only_in_the_old_slot() -> None:
    """Reverting is never left while the trial is booted: only `reverted` ends it."""
    assert {event for event, to in WORKFLOW[S.REVERTING].items() if S.IDLE in to} == {W.REVERTED}
    for event in (W.HEALTH_FAILED, W.STARTS_EXHAUSTED):
        assert WORKFLOW[S.CONFIRMING][event] == {S.REVERTING}
    assert S.REVERTING in WORKFLOW[S.CONFIRMING][W.ORDERED_OTHER] <= {S.REVERTING, S.CONFIRMING}


def test_every_state_can_be_reached_and_left_to_idle() -> None:
    """No dead end, and no island."""
    for start, goals in ((S.IDLE, set(S)), *((state, {S.IDLE}) for state in S)):
        seen, open_states = {start}, [start]
        while open_states:
            for targets in WORKFLOW[open_states.pop()].values():
                open_states += [to for to in targets if to not in seen]
                seen |= targets
        assert goals <= seen


def test_the_point_of_no_return_is_switching() -> None:
    """R5 and R10 name the same four states."""
    assert {S.SWITCHING, S.RESTARTING, S.CONFIRMING, S.REVERTING} == PAST_NO_RETURN
