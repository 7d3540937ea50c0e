"""What a report means for the assignment it is about: begun, moved, succeeded, failed, ended, fallen back.

It changes one row and touches nothing else; whether a policy trips is judged by whoever saves the row. A non-final
state never overwrites a verdict of the same attempt. Source: DESIGN.md section 3 rules 7 to 10; RULES.md R5, R10 to
R12, R15, R16, R18.
"""

from dataclasses import replace
from typing import Final, Literal

from cloud_stub.core.chance import Chance
from cloud_stub.core.counting import OPEN, OUTSIDE
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow
from protocol.lifecycle import PAST_NO_RETURN, DeploymentState, WorkflowState
from protocol.messages import OutcomeReport
from protocol.outcomes import Abandoned, Party, Reason, Result, fault_of

_S = AssignmentState
RETRY_DELAY_MS_MAX: Final = 3_600_000  # an hour between tries: a fleet that waits longer looks dead
ELSEWHERE_DELAY_MS: Final = (
    30_000  # the first wait after a failure of server or network; doubles up to the maximum
)


def began(
    row: AssignmentRow, phase: WorkflowState, bytes_done: int, bytes_total: int, now_ms: int, observed_ms: int
) -> AssignmentRow:
    """Return the row after a device reported that it works on this attempt; no bytes means that none were told."""
    if row.state not in OPEN or phase is WorkflowState.IDLE:
        return row
    transferred = bytes_done != 0 and bytes_done != row.bytes_done
    moved = phase is not row.phase or transferred or row.state is _S.PENDING
    return replace(
        row,
        state=_S.WORKING,
        phase=phase,
        began_ms=row.began_ms or now_ms,
        moved_ms=observed_ms if moved else row.moved_ms,
        bytes_done=bytes_done or row.bytes_done,
        bytes_total=bytes_total or row.bytes_total,
        updated_ms=now_ms,
    )


def settled(
    row: AssignmentRow,
    deployment: DeploymentRow,
    outcome: OutcomeReport,
    newest_epoch: int | None,
    now_ms: int,
    chance: Chance,
) -> AssignmentRow:
    """Return the row after an outcome of one of its attempts.

    `newest_epoch` is the newest epoch the device accepted, for R18.
    """
    if outcome.attempt == row.attempt - 1 and row.state in OPEN and row.reason is Reason.TIMED_OUT:
        return _told_late(row, outcome, now_ms)
    if outcome.attempt != row.attempt:
        return row
    if outcome.reason is Reason.FELL_BACK and row.state is _S.SUCCEEDED:
        return _fallen_back(row, deployment, outcome, newest_epoch, now_ms)
    if row.state not in OPEN and not _is_presumed(row, outcome):
        return row
    if outcome.result is Result.SUCCEEDED:
        return _succeeded(row, outcome, now_ms)
    if outcome.result is Result.ABANDONED:
        return _abandoned(row, outcome, now_ms)
    return _failed(row, deployment, outcome, now_ms, chance)


def runs_something_else(
    row: AssignmentRow, deployment: DeploymentRow, device: DeviceRow, now_ms: int
) -> AssignmentRow:
    """Return the row after its device, which had succeeded, reports another version (R18)."""
    withdrawn = (
        row.state is _S.SUCCEEDED
        and deployment.state is DeploymentState.ACTIVE
        and device.reported_epoch == row.epoch
        and device.work_state is WorkflowState.IDLE
        and device.running_sha256 is not None
        and device.running_sha256 != row.sha256
    )
    return (
        _withdrawn(row, "it runs another version than the one it had committed", now_ms) if withdrawn else row
    )


def timed_out(
    row: AssignmentRow, deployment: DeploymentRow, silent: bool, now_ms: int, chance: Chance
) -> AssignmentRow:
    """Return the row after the cloud gave up waiting: a guess that the device's own verdict replaces (R16)."""
    if row.state is not _S.WORKING:
        return row
    detail = (
        "it was silent for longer than the device time-out"
        if silent
        else "it made no headway within the attempt time-out"
    )
    party = fault_of(Reason.TIMED_OUT, row.phase)
    failed = _with_failure(row, Reason.TIMED_OUT, party, detail, now_ms)
    # a failure that counted before stands, whatever the device will say
    alone = failed.counted and not row.counted
    return _with_retry(replace(failed, guessed=alone), deployment, now_ms, chance)


def is_under_newer_order(row: AssignmentRow, device: DeviceRow, outcome: OutcomeReport) -> bool:
    """Return whether an outcome ends the row's attempt under an older epoch than that of the order in force for it.

    So one that was merely abandoned goes on: the device takes up the newer order, or has adopted it (R16).
    """
    return (
        (device.order_action, device.order_deployment, device.order_attempt)
        == ("install", row.deployment, row.attempt)
        and not device.order_stale
        and outcome.attempt == row.attempt
        and outcome.epoch < row.epoch
    )


def retried(row: AssignmentRow, *, by_operator: bool, now_ms: int) -> AssignmentRow:
    """Return the row with a new attempt; only an operator's retry suspends a counted failure (R15).

    Reason and `guessed` stay: they say what ended the attempt before, whose own verdict may still come (R16).
    """
    elsewhere = row.party in (Party.SERVER, Party.NETWORK)
    return replace(
        row,
        state=_S.PENDING,
        attempt=row.attempt + 1,
        phase=WorkflowState.IDLE,
        suspended=by_operator or row.suspended,
        retries_used=row.retries_used + (0 if by_operator or elsewhere else 1),
        retry_at_ms=None,
        cancel=None,
        began_ms=None,
        bytes_done=0,
        bytes_total=0,
        updated_ms=now_ms,
    )


def left(row: AssignmentRow, now_ms: int) -> AssignmentRow:
    """Return the row after its device left the group: dropped before its attempt started, else moved on (rule 3)."""
    if row.state is _S.PENDING:
        row = _ended_without_verdict(row, _S.DROPPED, "left the group before it began", now_ms)
    return replace(row, moved_on=True, retry_at_ms=None, updated_ms=now_ms)


def passed_over(row: AssignmentRow, now_ms: int) -> AssignmentRow:
    """Return a pending row of an ended deployment after its device accepted a newer order: it will never begin."""
    if row.state is not _S.PENDING:
        return row
    if row.cancel is None:
        return _ended_without_verdict(row, _S.DROPPED, "a newer order came before it began", now_ms)
    return _ended_without_verdict(replace(row, cancel="canceled"), _S.CANCELED, "canceled", now_ms)


def cancel_sent(row: AssignmentRow, now_ms: int) -> AssignmentRow:
    """Return an open row after its cancel was ordered; the device answers `canceled` or `too_late` (R5)."""
    return replace(row, cancel="sent", updated_ms=now_ms) if row.state in OPEN else row


def cancel_answered(row: AssignmentRow, answer: str, now_ms: int) -> AssignmentRow:
    """Return the row after the device's answer to a cancel."""
    if row.cancel is None or answer not in ("canceled", "too_late"):
        return row
    if answer == "too_late":
        return replace(row, cancel="too_late", updated_ms=now_ms)
    row = replace(row, cancel="canceled", updated_ms=now_ms)
    return _ended_without_verdict(row, _S.CANCELED, "canceled", now_ms) if row.state in OPEN else row


def _is_presumed(row: AssignmentRow, outcome: OutcomeReport) -> bool:
    """Return whether a closed row only says what the cloud presumed, which the device's own verdict replaces (R16).

    A time-out is presumed; so is that a member which left had not begun, and that it runs what it last said it ran.
    So is a failure of the device's own disk before the switch: an agent that could not record it resumes the attempt
    after a power loss, and may tell another end of it. And so is that an attempt ordered anew stays failed: past the
    switch no hold stops what its older epoch's failure crossed, and it succeeds under the newer one (R5, R7).
    """
    if outcome.result is Result.ABANDONED:
        return False
    if row.state is _S.FAILED:
        unrecorded = (
            row.reason is Reason.DISK and row.party is Party.DEVICE and outcome.reason is not Reason.DISK
        )
        tried_anew = outcome.result is Result.SUCCEEDED and outcome.epoch == row.epoch
        return (
            row.reason is Reason.TIMED_OUT
            or unrecorded
            or (tried_anew and row.reason is not Reason.FELL_BACK)
        )
    if row.state is _S.SUCCEEDED:
        return row.already_there and outcome.result is Result.FAILED
    return row.state in (*OUTSIDE, _S.CANCELED) and row.sha256 is not None


def _told_late(row: AssignmentRow, outcome: OutcomeReport, now_ms: int) -> AssignmentRow:
    """Return a row that is open again after a time-out, now that the device says how that attempt really ended.

    Only what counts follows (R16); the attempt that is open goes on.
    """
    stands = row.counted and not row.guessed
    if outcome.result is Result.FAILED:
        reason = outcome.reason or Reason.HANDLER_FAILED
        party = fault_of(
            reason, outcome.phase, reach_ms=outcome.reach_ms, reach_limit_ms=outcome.reach_limit_ms
        )
        counted = stands or party is Party.UPDATE
        return replace(row, reason=reason, party=party, detail=outcome.detail, counted=counted, guessed=False)
    if outcome.result is Result.SUCCEEDED and outcome.running_sha256 == row.sha256:
        began_ms = row.began_ms or now_ms  # it did switch, so that it will not be called already there (R13)
        return replace(row, reason=None, party=None, counted=False, guessed=False, began_ms=began_ms)
    return row


def _after_verdict(row: AssignmentRow) -> Literal["sent", "canceled", "too_late"] | None:
    return "too_late" if row.cancel == "sent" else row.cancel  # it ran to its verdict all the same (R5)


def _succeeded(row: AssignmentRow, outcome: OutcomeReport, now_ms: int) -> AssignmentRow:
    if outcome.running_sha256 != row.sha256:
        return row  # success is judged by what runs, and not by the word alone (rule 10)
    return replace(
        row,
        state=_S.SUCCEEDED,
        phase=WorkflowState.IDLE,
        reason=None,
        party=None,
        detail="",
        already_there=outcome.already_there and row.began_ms is None and not row.counted,
        counted=False,
        suspended=False,
        guessed=False,
        retry_at_ms=None,
        cancel=_after_verdict(row),
        updated_ms=now_ms,
    )


def _failed(
    row: AssignmentRow, deployment: DeploymentRow, outcome: OutcomeReport, now_ms: int, chance: Chance
) -> AssignmentRow:
    reason = outcome.reason or Reason.HANDLER_FAILED
    party = fault_of(reason, outcome.phase, reach_ms=outcome.reach_ms, reach_limit_ms=outcome.reach_limit_ms)
    failed = _with_failure(replace(row, phase=outcome.phase), reason, party, outcome.detail, now_ms)
    return _with_retry(failed, deployment, now_ms, chance)


def _with_failure(
    row: AssignmentRow, reason: Reason, party: Party, detail: str, now_ms: int
) -> AssignmentRow:
    """Return the failed row. A guess about this attempt that counted is withdrawn when the truth does not count."""
    stands = row.counted and not (row.guessed and row.state is _S.FAILED)
    return replace(
        row,
        state=_S.FAILED,
        already_there=False,
        cancel=_after_verdict(row),
        reason=reason,
        party=party,
        detail=detail,
        counted=stands or party is Party.UPDATE,
        suspended=False,
        guessed=False,
        updated_ms=now_ms,
    )


def _with_retry(row: AssignmentRow, deployment: DeploymentRow, now_ms: int, chance: Chance) -> AssignmentRow:
    if deployment.state is not DeploymentState.ACTIVE or row.moved_on:
        return replace(row, retry_at_ms=None)  # nobody would be offered it again
    if row.party in (Party.SERVER, Party.NETWORK):
        tries = row.tries_elsewhere + 1
        wait = _full_jitter(ELSEWHERE_DELAY_MS, tries - 1, chance)
        return replace(row, tries_elsewhere=tries, retry_at_ms=now_ms + wait)
    if row.retries_used < deployment.retries:
        return replace(
            row, retry_at_ms=now_ms + _full_jitter(deployment.retry_delay_ms, row.retries_used, chance)
        )
    return replace(row, retry_at_ms=None)


def _full_jitter(first_ms: int, doublings: int, chance: Chance) -> int:
    ceiling = min(RETRY_DELAY_MS_MAX, first_ms * 2 ** min(doublings, 16))
    return int(chance.uniform() * ceiling)


def _abandoned(row: AssignmentRow, outcome: OutcomeReport, now_ms: int) -> AssignmentRow:
    if row.state not in OPEN:
        return row
    if outcome.abandoned is Abandoned.CANCELED:
        ended = _ended_without_verdict(row, _S.CANCELED, "canceled", now_ms)
        return replace(ended, cancel="canceled")
    ended = _ended_without_verdict(row, _S.DROPPED, f"abandoned: {outcome.abandoned or 'unknown'}", now_ms)
    return replace(ended, cancel="canceled") if row.cancel == "sent" else ended


def _ended_without_verdict(
    row: AssignmentRow, state: AssignmentState, detail: str, now_ms: int
) -> AssignmentRow:
    """Return the row without a verdict of this attempt; a failure that a retry suspended counts again (R15)."""
    if row.counted:
        return replace(
            row, state=_S.FAILED, suspended=False, detail=detail, retry_at_ms=None, updated_ms=now_ms
        )
    return replace(
        row,
        state=state,
        phase=WorkflowState.IDLE,
        suspended=False,
        detail=detail,
        retry_at_ms=None,
        updated_ms=now_ms,
    )


def _fallen_back(
    row: AssignmentRow,
    deployment: DeploymentRow,
    outcome: OutcomeReport,
    newest_epoch: int | None,
    now_ms: int,
) -> AssignmentRow:
    if deployment.state is not DeploymentState.ACTIVE or newest_epoch != outcome.epoch:
        return row
    return _withdrawn(row, outcome.detail or "it went back to its other slot", now_ms)


def _withdrawn(row: AssignmentRow, detail: str, now_ms: int) -> AssignmentRow:
    return replace(
        row,
        state=_S.FAILED,
        already_there=False,
        reason=Reason.FELL_BACK,
        party=Party.UPDATE,
        detail=detail,
        counted=True,
        suspended=False,
        retry_at_ms=None,
        updated_ms=now_ms,
    )


def short_of_the_switch(row: AssignmentRow) -> bool:
    """Return whether the attempt could still be stopped, as far as the cloud knows (R5)."""
    return row.state is _S.PENDING or (row.state is _S.WORKING and row.phase not in PAST_NO_RETURN)
