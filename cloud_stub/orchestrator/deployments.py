"""Deployments within a transaction: made, started, superseded, canceled, retried, tripped, withdrawn.

It holds the order of the steps; the rules themselves are pure (`core/plan.py`, `core/policy.py`, `core/verdicts.py`).
Every move of a deployment goes through the table in `protocol/lifecycle.py`. Source: DESIGN.md section 3; RULES.md
R14, R15, R20 to R24.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Final

from cloud_stub.core import plan as plans
from cloud_stub.core import policy as policies
from cloud_stub.core import verdicts
from cloud_stub.core.commands import DeploymentDraft, PolicyDraft
from cloud_stub.core.rows import (
    AssignmentRow,
    AssignmentState,
    DeploymentRow,
    DeviceRow,
    Policy,
    UpdateRef,
    UpdateRow,
)
from cloud_stub.orchestrator.turn import Turn
from cloud_stub.orchestrator.values import TURN_ROWS_MAX
from cloud_stub.ports import Reader
from protocol.errors import OperatorError
from protocol.lifecycle import DEPLOYMENT, DeploymentEvent, DeploymentState

_E = DeploymentEvent
ENDED_SWEPT_MAX: Final = (
    20  # ended deployments whose pending rows are looked at in one turn; the next ones follow
)
_NEXT_SWEPT: Final = ""  # where `swept` keeps behind which deployment the next turn goes on
_OPEN_STATES: Final = (DeploymentState.ACTIVE, DeploymentState.SCHEDULED)


def planned(reader: Reader, draft: DeploymentDraft) -> plans.Plan:
    """Return what the draft would do with the group as it is.

    Raises:
        OperatorError: it cannot be carried out.
    """
    counts = reader.count_devices().get(draft.group, (0, 0))
    situation = plans.Situation(
        find=reader.update,
        find_sha256=reader.update_by_sha256,
        classes=reader.classes(draft.group),
        members=counts[0],
        running=reader.runs_by_class(draft.group),
        active=reader.active(draft.group),
    )
    return plans.plan(draft, situation)


def create(turn: Turn, draft: DeploymentDraft, plan_digest: str | None, who: str) -> DeploymentRow:
    """Make the deployment that was planned, and start it unless its start lies ahead.

    Raises:
        OperatorError: it cannot be carried out, or the plan has changed since it was shown.
    """
    plan = planned(turn.unit, draft)
    if plan_digest is not None and plan_digest != plan.digest:
        raise OperatorError(
            "The group or its updates have changed since the plan was shown; look at the plan again."
        )
    row = DeploymentRow(
        id=turn.unit.next_deployment_id(),
        group=draft.group,
        state=DeploymentState.SCHEDULED,
        updates=plan.updates,
        created_ms=turn.now_ms,
        created_by=who,
        policy=plan.policy,
        allow_downgrade=draft.allow_downgrade,
        allowed_withdrawn=_withdrawn_of(turn, plan.updates),
        retries=draft.retries,
        retry_delay_ms=draft.retry_delay_ms,
        device_timeout_ms=draft.device_timeout_ms,
        attempt_timeout_ms=draft.attempt_timeout_ms,
        start_at_ms=draft.start_at_ms,
    )
    turn.audit(
        who, "deployment.created", row.id, group=row.group, updates=[ref.update for ref in row.updates]
    )
    if draft.start_at_ms is None or draft.start_at_ms <= turn.now_ms:
        return start(turn, row, who)
    turn.unit.put_deployment(row)
    return row


def start(turn: Turn, row: DeploymentRow, who: str, *, order: bool = True) -> DeploymentRow:
    """Make a deployment the active one of its group; the one before is superseded, with a link both ways."""
    before = turn.unit.active(row.group)
    if before is not None and before.id != row.id:
        ended = replace(_moved(before, _E.SUPERSEDED), ended_ms=turn.now_ms, superseded_by=row.id)
        turn.unit.put_deployment(ended)
        turn.audit(who, "deployment.superseded", before.id, by=row.id)
    started = replace(
        _moved(row, _E.STARTED), started_ms=turn.now_ms, supersedes=before.id if before else row.supersedes
    )
    turn.unit.put_deployment(started)
    turn.audit(who, "deployment.started", row.id, group=row.group)
    if order:
        turn.unit.raise_epochs(row.group, turn.now_ms)
    return started


def cancel(turn: Turn, deployment: str, who: str) -> DeploymentRow:
    """End a deployment for good; devices not past the point of no return stop and stay where they are.

    Raises:
        OperatorError: it has ended already.
    """
    row = _known(turn, deployment)
    if row.state not in _OPEN_STATES:
        raise OperatorError(f"Deployment {row.id} is {row.state} already; there is nothing to cancel.")
    ended = replace(_moved(row, _E.CANCELED), ended_ms=turn.now_ms, ended_why=f"canceled by {who}")
    turn.unit.put_deployment(ended)
    turn.audit(who, "deployment.canceled", row.id, group=row.group)
    if row.state is DeploymentState.ACTIVE:
        for assignment in _all(turn, row.id, (AssignmentState.PENDING, AssignmentState.WORKING)):
            turn.save(assignment, verdicts.cancel_sent(assignment, turn.now_ms))
        turn.unit.raise_epochs(row.group, turn.now_ms)
    return _known(turn, deployment)


def retry(turn: Turn, deployment: str, devices: Sequence[str], who: str) -> int:
    """Give every failed device, or the named ones, a new attempt; return how many (R15).

    Raises:
        OperatorError: the deployment is not active, or a named device has not failed in it.
    """
    row = _known(turn, deployment)
    if row.state is not DeploymentState.ACTIVE:
        raise OperatorError(f"Deployment {row.id} is {row.state}; only an active deployment can be retried.")
    failed = {
        found.device: found for found in _all(turn, row.id, (AssignmentState.FAILED,)) if not found.moved_on
    }
    chosen = list(dict.fromkeys(devices)) or sorted(failed)
    for device in chosen:
        if device not in failed:
            raise OperatorError(
                f"Device {device} has not failed in deployment {row.id}; there is nothing to retry."
            )
    turn.unit.devices(chosen)  # read in one statement what `again` asks for one by one
    for device in chosen:
        again(turn, failed[device], by_operator=True)
    turn.audit(who, "deployment.retried", row.id, devices=len(chosen))
    return len(chosen)


def again(turn: Turn, assignment: AssignmentRow, *, by_operator: bool) -> None:
    """Open a new attempt for one device."""
    device = turn.unit.device(assignment.device)
    if device is None:
        return
    turn.put_device(device, turn.raised(device))
    turn.save(assignment, verdicts.retried(assignment, by_operator=by_operator, now_ms=turn.now_ms))


def trip(turn: Turn, row: DeploymentRow, policy: Policy, failed: int, base: int) -> None:
    """Take the whole group back, in the transaction that reached the numbers (DESIGN.md, "Rollback policy").

    The deployment ends, its updates are withdrawn, and a deployment of `rollback_to` starts, without a policy of its
    own. When nothing can be ordered, every member gets a hold, loudly (R22).
    """
    reading = policies.frozen(policy, failed, base, turn.now_ms)
    ended = replace(
        _moved(row, _E.TRIPPED),
        ended_ms=turn.now_ms,
        trip=reading,
        ended_why=f"{failed} of {base} failed",
    )
    turn.unit.put_deployment(ended)
    turn.audit("policy", "deployment.rolled_back", row.id, **asdict(reading))
    for ref in row.updates:
        update = turn.unit.update_by_sha256(ref.sha256)
        if update is not None:
            withdraw(turn, update, f"deployment {row.id} was rolled back", "policy", by_trip=True)
    back = [turn.unit.update_by_sha256(ref.sha256) for ref in policy.rollback_to]
    if any(update is not None and update.withdrawn_ms is None for update in back):
        rollback = DeploymentRow(
            id=turn.unit.next_deployment_id(),
            group=row.group,
            state=DeploymentState.SCHEDULED,
            updates=policy.rollback_to,
            created_ms=turn.now_ms,
            created_by="policy",
            allow_downgrade=True,
            retries=turn.settings.rollback_retries,
            retry_delay_ms=row.retry_delay_ms,
            device_timeout_ms=row.device_timeout_ms,
            attempt_timeout_ms=row.attempt_timeout_ms,
            supersedes=row.id,
            cause=row.id,
        )
        started = start(turn, rollback, "policy", order=False)
        turn.unit.put_deployment(replace(ended, rollback=started.id))
    else:
        turn.audit("policy", "alert", row.id, sentence="rollback_to cannot be ordered; every member holds")
    turn.unit.raise_epochs(row.group, turn.now_ms)


def withdraw(turn: Turn, update: UpdateRow, why: str, who: str, *, by_trip: bool) -> UpdateRow:
    """Stop offering an update: its other deployments hold the members short of the switch (R22).

    A trip takes back the explicit word too, by which one that was withdrawn already is still offered.

    Raises:
        OperatorError: by hand, when a live policy would go back to it.
    """
    live = turn.unit.list_deployments(states=_OPEN_STATES, limit=None)
    relying = [row for row in live if row.policy and update.ref in row.policy.rollback_to]
    if relying and not by_trip:
        raise OperatorError(
            f"{update.update} is what deployment {relying[0].id} would go back to; cancel that one first."
        )
    for row in relying:
        if row.policy is not None and not row.policy.disarmed:
            disarmed = replace(row.policy, disarmed=f"{update.update} was withdrawn")
            turn.unit.put_deployment(replace(row, policy=disarmed))
            turn.audit(
                who, "alert", row.id, sentence=f"its policy is disarmed: {update.update} was withdrawn"
            )
    withdrawn = update
    if update.withdrawn_ms is None:
        withdrawn = replace(update, withdrawn_ms=turn.now_ms, withdrawn_why=why)
        turn.unit.put_update(withdrawn)
        turn.audit(who, "update.withdrawn", update.update, why=why)
    for row in live:
        if update.ref in row.updates:
            _stop_offering(turn, row, update)
    return withdrawn


def _stop_offering(turn: Turn, row: DeploymentRow, update: UpdateRow) -> None:
    allowed = tuple(sha256 for sha256 in row.allowed_withdrawn if sha256 != update.sha256)
    if allowed != row.allowed_withdrawn:
        turn.unit.put_deployment(replace(row, allowed_withdrawn=allowed))
    if row.state is DeploymentState.ACTIVE:
        turn.unit.raise_epochs(row.group, turn.now_ms)


def start_due(turn: Turn) -> None:
    """Start what is due, with all checks of its creation made again; only the last of a group orders (R21)."""
    groups = set()
    for row in turn.unit.due_schedules(turn.now_ms):
        why = _why_not_start(turn, row)
        if why:
            turn.unit.put_deployment(replace(_moved(row, _E.CANCELED), ended_ms=turn.now_ms, ended_why=why))
            turn.audit("schedule", "alert", row.id, sentence=f"it did not start: {why}")
            continue
        start(turn, row, "schedule", order=False)
        groups.add(row.group)
    for group in sorted(groups):
        turn.unit.raise_epochs(group, turn.now_ms)


def retry_due(turn: Turn) -> None:
    """Open the automatic retries whose wait is over (R15)."""
    for assignment in turn.unit.due_retries(turn.now_ms, TURN_ROWS_MAX):
        again(turn, assignment, by_operator=False)


def time_out_due(turn: Turn) -> None:
    """Fail the devices that began and were silent, or made no headway, for too long on the observed clock (R12)."""
    for assignment in turn.unit.overdue(turn.observed_ms, TURN_ROWS_MAX):
        row = turn.deployment(assignment.deployment)
        device = turn.unit.device(assignment.device)
        if row.state is not DeploymentState.ACTIVE:
            continue  # one before it has tripped the policy
        silent = device is None or device.heard_ms + row.device_timeout_ms < turn.observed_ms
        turn.save(assignment, verdicts.timed_out(assignment, row, silent, turn.now_ms, turn.chance))
        alert_incomplete(turn, turn.deployment(row.id))


def close_passed_over(turn: Turn, swept: dict[str, str]) -> None:
    """Close the pending rows of ended deployments whose devices have accepted a newer order; some in each turn.

    `swept` remembers for each deployment how far it was looked through, since devices may be away for months. What a
    rollback cannot bring back is told at the same pace (R24).
    """
    for row in turn.unit.rollbacks_at_rest():
        alert_incomplete(turn, row)
    ended = turn.unit.ended_with_pending(swept.get(_NEXT_SWEPT, ""), ENDED_SWEPT_MAX)
    swept[_NEXT_SWEPT] = ended[-1].id if len(ended) == ENDED_SWEPT_MAX else ""
    for row in ended:
        found = turn.unit.list_assignments(
            deployment=row.id,
            states=(AssignmentState.PENDING,),
            after=swept.get(row.id, ""),
            limit=TURN_ROWS_MAX,
        )
        swept[row.id] = found[-1].device if len(found) == TURN_ROWS_MAX else ""
        devices = turn.unit.devices([assignment.device for assignment in found])
        for assignment in found:
            device = devices.get(assignment.device)
            if device is not None and _is_past(device, assignment):
                turn.save(assignment, verdicts.passed_over(assignment, turn.now_ms))
        if not turn.deployment(row.id).tally.pending:
            swept.pop(row.id, None)


def _is_past(device: DeviceRow, row: AssignmentRow) -> bool:
    accepted = device.reported_epoch
    return accepted is not None and accepted > row.epoch and device.epoch_in_work != row.epoch


def alert_incomplete(turn: Turn, row: DeploymentRow) -> None:
    """Say once that a rollback has devices which failed for good, or which it cannot order (R22, R24)."""
    key = f"alerted:{row.id}"
    if row.cause is None or row.tally.pending or row.tally.working or turn.unit.note(key):
        return
    if row.tally.failed and turn.unit.waits_for_retry(row.id):
        return
    count = row.tally.failed + _left_behind(turn, row, row.cause)
    if count == 0:
        return
    turn.unit.put_note(key, str(turn.now_ms))
    turn.audit("policy", "alert", row.id, sentence=f"rollback incomplete: {count} devices")


def _left_behind(turn: Turn, row: DeploymentRow, cause: str) -> int:
    """Count the members that were told of the bad update, or run it, and that the rollback is not offered to."""
    if not (row.tally.unprotected or row.tally.incompatible):
        return 0
    outside = _all(turn, row.id, (AssignmentState.UNPROTECTED, AssignmentState.INCOMPATIBLE))
    members = [found.device for found in outside if not found.moved_on]
    told = turn.unit.assignments([(cause, device) for device in members])
    bad = {ref.sha256 for ref in turn.deployment(cause).updates}
    good = {ref.sha256 for ref in row.updates}
    count = 0
    for name, device in turn.unit.devices(members).items():
        before = told.get((cause, name))
        was_told = before is not None and before.sha256 is not None
        count += device.running_sha256 not in good and (was_told or device.running_sha256 in bad)
    return count


def _why_not_start(turn: Turn, row: DeploymentRow) -> str:
    if any(
        other.cause is not None and _number(other) > _number(row)
        for other in turn.unit.list_deployments(group=row.group, limit=None)
    ):
        return "it was made before a rollback of its group"
    try:
        planned(turn.unit, _draft_of(turn, row))
    except OperatorError as error:
        return str(error)
    return ""


def _draft_of(turn: Turn, row: DeploymentRow) -> DeploymentDraft:
    """Return the draft that makes this row, so that every check of creation runs again."""
    return DeploymentDraft(
        row.group,
        tuple(ref.update for ref in row.updates),
        _policy_draft(row.policy) if row.policy else None,
        allow_downgrade=row.allow_downgrade,
        allow_withdrawn=set(_withdrawn_of(turn, row.updates)) <= set(row.allowed_withdrawn),
        retries=row.retries,
    )


def _withdrawn_of(turn: Turn, refs: Sequence[UpdateRef]) -> tuple[str, ...]:
    """Return the sha256 of those updates that are withdrawn now: the plan let them pass by explicit word alone."""
    return tuple(row.sha256 for row in turn.catalog(refs).values() if row.withdrawn_ms is not None)


def _number(row: DeploymentRow) -> tuple[int, str]:
    """Return what orders deployments as they were made, whatever the wall clock said: d10 came after d9."""
    return len(row.id), row.id


def _policy_draft(policy: Policy) -> PolicyDraft:
    back = tuple(ref.update for ref in policy.rollback_to)
    return PolicyDraft(policy.failed_percent, policy.failed_count, back, policy.match, policy.percent_of)


def _moved(row: DeploymentRow, event: DeploymentEvent) -> DeploymentRow:
    return replace(row, state=DEPLOYMENT[row.state][event])


def _known(turn: Turn, deployment: str) -> DeploymentRow:
    row = turn.unit.deployment(deployment)
    if row is None:
        raise OperatorError(f"There is no deployment {deployment}; see `lastgood deploy list`.")
    return row


def _all(turn: Turn, deployment: str, states: Sequence[AssignmentState]) -> list[AssignmentRow]:
    found: list[AssignmentRow] = []
    while page := turn.unit.list_assignments(
        deployment=deployment, states=states, after=found[-1].device if found else ""
    ):
        found.extend(page)
    return found
