"""Whose fault a failure is: the whole table of (phase, reason), against R10 and R11."""

from itertools import product

import pytest

from protocol.lifecycle import WorkflowState
from protocol.outcomes import BEFORE_NO_RETURN, Party, Reason, fault_of

S, R, P = WorkflowState, Reason, Party

BEFORE = {  # written once more, by hand, from R10
    R.INCOMPATIBLE: P.DEVICE,
    R.DOWNGRADE_REFUSED: P.DEVICE,
    R.BELOW_FLOOR: P.DEVICE,
    R.UNSUPPORTED: P.DEVICE,
    R.NO_SPACE: P.DEVICE,
    R.DISK: P.DEVICE,
    R.NETWORK: P.NETWORK,
    R.SERVER: P.SERVER,
    R.VERIFY_FAILED: P.SERVER,
    R.HANDLER_FAILED: P.UPDATE,
    R.TIMED_OUT: P.NETWORK,
    # These can only be after a switch, in whichever phase the agent noticed them.
    R.ACTIVATE_FAILED: P.UPDATE,
    R.STARTS_EXHAUSTED: P.UPDATE,
    R.FELL_BACK: P.UPDATE,
    R.HEALTH_FAILED: P.UPDATE,
    R.COMMIT_FAILED: P.UPDATE,
    R.CLOUD_UNREACHABLE: P.UPDATE,
    R.RECORD_LOST: P.UPDATE,
}


@pytest.mark.parametrize(
    ("phase", "reason"), list(product([S.IDLE, S.DOWNLOADING, S.INSTALLING, S.READY], R))
)
def test_R10_before_the_switch_the_reason_decides(phase: WorkflowState, reason: Reason) -> None:
    """Transport, server, time-outs and a full disk are not the update's; a handler's exit code is."""
    assert fault_of(reason, phase) is BEFORE[reason]


@pytest.mark.parametrize(
    ("phase", "reason"), list(product([S.SWITCHING, S.RESTARTING, S.CONFIRMING, S.REVERTING], R))
)
def test_R10_from_activate_on_every_failure_is_the_updates(phase: WorkflowState, reason: Reason) -> None:
    """`timed_out`, `starts_exhausted` and `fell_back` included."""
    assert fault_of(reason, phase) is P.UPDATE


@pytest.mark.parametrize(
    ("reach_ms", "limit_ms", "party"),
    [(0, 10, P.UPDATE), (10, 10, P.UPDATE), (11, 10, P.NETWORK), (None, 10, P.UPDATE), (11, None, P.UPDATE)],
)
@pytest.mark.parametrize("phase", S)
def test_R11_the_old_slots_time_to_the_cloud_decides(
    phase: WorkflowState, reach_ms: int | None, limit_ms: int | None, party: Party
) -> None:
    """Within the limit it is the update's fault, beyond it the network's; unknown counts, for safety."""
    assert fault_of(R.CLOUD_UNREACHABLE, phase, reach_ms=reach_ms, reach_limit_ms=limit_ms) is party


@pytest.mark.parametrize(
    ("phase", "reason"), list(product(S, [reason for reason in R if reason is not R.CLOUD_UNREACHABLE]))
)
def test_R11_the_times_excuse_no_other_reason(phase: WorkflowState, reason: Reason) -> None:
    """A failed health check stays the update's however slow the network was."""
    assert fault_of(reason, phase, reach_ms=10**9, reach_limit_ms=1) is fault_of(reason, phase)


def test_R10_the_table_lists_no_reason_that_needs_a_switch() -> None:
    """What is listed for before the switch is what can honestly occur there."""
    assert set(BEFORE_NO_RETURN) == {reason for reason in R if reason not in _AFTER}


_AFTER = {
    R.ACTIVATE_FAILED,
    R.STARTS_EXHAUSTED,
    R.FELL_BACK,
    R.HEALTH_FAILED,
    R.COMMIT_FAILED,
    R.CLOUD_UNREACHABLE,
    R.RECORD_LOST,
}
