"""Why a device is where it is: sentences that read as sentences, and none that is untrue."""

from dataclasses import replace

import pytest

from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow
from cloud_stub.core.why import why
from protocol.lifecycle import PAST_NO_RETURN, DeploymentState, WorkflowState

DEVICE = DeviceRow("pi-1", 0, class_key="model=one", last_seen_ms=1_000, online=True)
ACTIVE = DeploymentRow("d1", "lab", DeploymentState.ACTIVE, (), 0, "tester")
ROW = AssignmentRow("d1", "pi-1", AssignmentState.SUCCEEDED, "model=one", update="me/app:1.0")


@pytest.mark.parametrize("state", WorkflowState)
def test_a_trial_goes_on_without_its_deployment(state: WorkflowState) -> None:
    """Past the switch a canceled device runs to its verdict (R5): "it stays as it is" would be untrue."""
    sentence = why(replace(DEVICE, work_state=state), None, None, 2_000)[0]
    assert ("runs to its verdict (R5)" in sentence) == (state in PAST_NO_RETURN)
    assert ("it stays as it is" in sentence) == (state not in PAST_NO_RETURN)


@pytest.mark.parametrize("detail", ["The application ended.", "the disk is full", ""])
def test_what_a_device_said_is_quoted_in_a_sentence(detail: str) -> None:
    """A detail with a full stop of its own gets no second one."""
    failed = replace(ROW, state=AssignmentState.FAILED, detail=detail)
    sentence = why(DEVICE, ACTIVE, failed, 2_000)[0]
    assert ".." not in sentence
    assert f"{detail.rstrip('.') or 'no detail'}. It stays on its last known good" in sentence


@pytest.mark.parametrize(
    ("already_there", "how"), [(True, "ran me/app:1.0 already"), (False, "committed me/app:1.0")]
)
def test_what_runs_is_named(already_there: bool, how: str) -> None:
    """A device that is where it should be is told so, with the deployment."""
    assert how in why(DEVICE, ACTIVE, replace(ROW, already_there=already_there), 2_000)[0]


@pytest.mark.parametrize("row", [None, replace(ROW, state=AssignmentState.PENDING)])
@pytest.mark.parametrize("reason", ["acme/app:2.0 was withdrawn", "the cloud's data was restored"])
def test_R22_a_hold_is_told_first_with_its_reason(row: AssignmentRow | None, reason: str) -> None:
    """While nothing is offered (R2, R22), "it offers" and "it is being decided" would be untrue."""
    device = replace(DEVICE, order_action="hold", order_why=reason)
    [sentence, *_] = why(device, ACTIVE, row, 2_000)
    assert sentence == f"It is told to hold, and not offered deployment d1: {reason}."
    assert "being decided" in why(replace(device, order_stale=True), ACTIVE, None, 2_000)[0]


def test_R5_a_trial_that_is_told_to_hold_runs_to_its_verdict() -> None:
    """Both are told: the hold, and that the trial goes on."""
    row = replace(ROW, state=AssignmentState.WORKING, phase=WorkflowState.CONFIRMING)
    told = why(replace(DEVICE, order_action="hold", order_why="it was withdrawn"), ACTIVE, row, 2_000)
    assert "told to hold" in told[0]
    assert "runs to its verdict (R5)" in told[1]
