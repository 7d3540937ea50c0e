"""How rows become views: pure functions, one for each view.

They decide nothing and read nothing; `looks.py` reads which rows belong together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from cloud_stub.api import sentences
from cloud_stub.api.views import (
    AssignmentView,
    AuditView,
    ClassView,
    DeploymentDetail,
    DeploymentView,
    DeviceDetail,
    DeviceView,
    FailureView,
    FileView,
    GroupView,
    PlanClassView,
    PlanView,
    PolicyView,
    RunsView,
    SlotView,
    TallyView,
    TripView,
    UpdateDetail,
    UpdateName,
    UpdateView,
)
from cloud_stub.core import policy as policies
from cloud_stub.core.plan import Plan
from cloud_stub.core.rows import (
    AssignmentRow,
    AssignmentState,
    AuditRow,
    DeploymentRow,
    DeviceRow,
    GroupCount,
    UpdateRef,
    UpdateRow,
)
from protocol.lifecycle import DeploymentState
from protocol.manifest import read_manifest
from protocol.outcomes import Party, Reason

_FAILURE_DEVICES_SHOWN: Final = 5  # examples beside a reason; the whole list is at /deployments/{id}/devices


def device_view(row: DeviceRow) -> DeviceView:
    """Show a device in a list."""
    return DeviceView.model_validate(_device_fields(row))


def device_detail(row: DeviceRow, history: Iterable[AssignmentRow]) -> DeviceDetail:
    """Show a device in full, its newest assignment first."""
    newest_first = sorted(
        history, key=lambda assignment: (assignment.epoch, assignment.updated_ms), reverse=True
    )
    return DeviceDetail(
        **_device_fields(row),
        created_ms=row.created_ms,
        properties=dict(row.properties),
        tags=dict(row.tags),
        slots=[_slot_view(row, name) for name in sorted(row.slots)],
        floor=row.floor,
        agent_version=row.agent_version,
        outcomes_folded=row.outcomes_folded,
        assignments=[assignment_view(assignment) for assignment in newest_first],
    )


def assignment_view(row: AssignmentRow) -> AssignmentView:
    """Show how one device does in one deployment."""
    fields = {name: getattr(row, name) for name in AssignmentView.model_fields if hasattr(row, name)}
    said = sentences.failure(row.reason) if row.state is AssignmentState.FAILED else ""
    return AssignmentView(**fields, reason_sentence=said)


def group_view(
    group: str,
    counts: tuple[int, int],
    runs: Mapping[tuple[str, str], int],
    classes: Sequence[GroupCount],
    active: DeploymentRow | None,
) -> GroupView:
    """Show a group; `counts` are its members and those online."""
    ordered = sorted(runs.items(), key=lambda item: (-item[1], item[0]))
    return GroupView(
        group=group,
        members=counts[0],
        online=counts[1],
        runs=[
            RunsView(update=name or None, sha256=sha or None, count=count) for (name, sha), count in ordered
        ],
        classes=[
            ClassView(device_class=c.class_key, members=c.members, floor_max=c.floor_max) for c in classes
        ],
        active=active.id if active else None,
        offers=[ref.update for ref in active.updates] if active else [],
    )


def update_view(row: UpdateRow) -> UpdateView:
    """Show an update in a list."""
    return UpdateView.model_validate(_update_fields(row))


def update_detail(row: UpdateRow) -> UpdateDetail:
    """Show an update in full: its files and steps as the manifest has them."""
    manifest = read_manifest(row.manifest)
    return UpdateDetail(
        **_update_fields(row),
        files=[
            FileView(filename=name, size_bytes=file.sizeInBytes, sha256=file.sha256)
            for name, file in manifest.files.items()
        ],
        steps=[
            f"{step.handler} ({', '.join(step.files)})" if step.files else step.handler
            for step in manifest.steps
        ],
    )


def deployment_view(row: DeploymentRow, members: int) -> DeploymentView:
    """Show a deployment; `members` counts the group's current compatible, protected members."""
    return DeploymentView.model_validate(_deployment_fields(row, members))


def deployment_detail(
    row: DeploymentRow, members: int, failed: Iterable[AssignmentRow], in_group: int
) -> DeploymentDetail:
    """Show a deployment in full; `failed` are its assignments in state failed, `in_group` all the group's members."""
    rows, tally = list(failed), row.tally
    active = row.state is DeploymentState.ACTIVE
    retrying = sum(assignment.retry_at_ms is not None for assignment in rows) if active else 0
    ended = tally.succeeded + tally.failed + tally.canceled
    told = ended + tally.pending + tally.working + tally.incompatible + tally.unprotected - tally.moved_on
    undecided = max(0, in_group - told) if active else 0
    return DeploymentDetail(
        **_deployment_fields(row, members),
        headline=sentences.headline(row, retrying, undecided),
        settled=active and ended > 0 and not (tally.pending or tally.working or retrying or undecided),
        retrying=retrying,
        undecided=undecided,
        failures=_failures(rows),
    )


def plan_view(plan: Plan) -> PlanView:
    """Show a plan."""
    return PlanView(
        group=plan.group,
        updates=_names(plan.updates),
        members=plan.members,
        to_update=plan.to_update,
        already_there=plan.already_there,
        refuse=plan.refuse,
        incompatible=plan.incompatible,
        unknown_class=plan.unknown_class,
        classes=[
            PlanClassView(
                device_class=row.class_key,
                members=row.members,
                update=row.update,
                already_there=row.already_there,
                refuse=row.refuse,
                back_to=row.back_to,
                why_not=row.why_not,
            )
            for row in plan.classes
        ],
        supersedes=plan.supersedes,
        failures_needed=plan.failures_needed,
        policy_sentence=plan.policy_sentence,
        warnings=list(plan.warnings),
        digest=plan.digest,
    )


def audit_view(row: AuditRow) -> AuditView:
    """Show an entry of the audit log."""
    return AuditView(
        **{**{name: getattr(row, name) for name in AuditView.model_fields}, "facts": dict(row.facts)}
    )


def _device_fields(row: DeviceRow) -> dict[str, Any]:
    came_from = "override" if row.group_override else "tag" if row.group_tag else "default"
    return {
        "id": row.id,
        "group": row.group,
        "group_from": came_from,
        "device_class": row.class_key,
        "online": row.online,
        "last_seen_ms": row.last_seen_ms,
        "runs": row.running_update,
        "runs_sha256": row.running_sha256,
        "phase": row.work_state,
        "cloned": row.cloned,
        "epoch": row.epoch,
        "reported_epoch": row.reported_epoch,
        "ordered": row.order_update if row.order_action == "install" else row.order_action,
        "ordered_by": row.order_deployment,
        "ordered_why": row.order_why,
    }


def _slot_view(row: DeviceRow, name: str) -> SlotView:
    slot = row.slots[name]
    return SlotView(
        name=name,
        holds=str(slot.get("holds", "unknown")),
        update=_text(slot.get("update")),
        sha256=_text(slot.get("sha256")),
        starts_left=left if isinstance(left := slot.get("starts_left"), int) else None,
        reason=_text(slot.get("reason")),
        booted=row.booted == name,
        last_known_good=row.last_known_good == name,
        trial=slot.get("holds") == "trial",
    )


def _text(value: object) -> str | None:
    return str(value) if value else None


def _update_fields(row: UpdateRow) -> dict[str, Any]:
    return {
        "update": row.update,
        "sha256": row.sha256,
        "description": row.description,
        "release_counter": row.release_counter,
        "compatibility": [dict(wanted) for wanted in row.compatibility],
        "bytes_total": row.bytes_total,
        "imported_ms": row.imported_ms,
        "withdrawn_ms": row.withdrawn_ms,
        "withdrawn_why": row.withdrawn_why,
    }


def _deployment_fields(row: DeploymentRow, members: int) -> dict[str, Any]:
    own = {name: getattr(row, name) for name in DeploymentView.model_fields if hasattr(row, name)}
    return {
        **own,
        "updates": _names(row.updates),
        "policy": _policy_view(row, members),
        "trip": TripView(**asdict(row.trip), sentence=sentences.trip(row.trip)) if row.trip else None,
        "tally": TallyView(**asdict(row.tally)),
    }


def _policy_view(row: DeploymentRow, members: int) -> PolicyView | None:
    policy = row.policy
    if policy is None:
        return None
    now = policies.reading(policy, row.tally, members)
    return PolicyView(
        failed_percent=policy.failed_percent,
        failed_count=policy.failed_count,
        match=policy.match,
        percent_of=policy.percent_of,
        rollback_to=_names(policy.rollback_to),
        rule=sentences.policy_rule(policy),
        disarmed=policy.disarmed,
        armed=sentences.is_armed(policy, row.tally, members),
        failed=row.trip.failed if row.trip else now.failed,
        base=row.trip.base if row.trip else now.base,
        needed=now.needed,
        sentence=sentences.policy_now(row, policy, members),
    )


def _names(refs: Iterable[UpdateRef]) -> list[UpdateName]:
    return [UpdateName(update=ref.update, sha256=ref.sha256) for ref in refs]


def _failures(rows: Iterable[AssignmentRow]) -> list[FailureView]:
    kinds: dict[tuple[Reason | None, Party | None], list[AssignmentRow]] = {}
    for row in rows:
        kinds.setdefault((row.reason, row.party), []).append(row)
    found = [
        FailureView(
            reason=reason,
            sentence=sentences.failure(reason),
            party=party,
            fault=sentences.fault(party),
            count=len(members),
            counted=sum(row.counted and not row.suspended for row in members),
            devices=[row.device for row in members[:_FAILURE_DEVICES_SHOWN]],
        )
        for (reason, party), members in kinds.items()
    ]
    return sorted(found, key=lambda failure: (-failure.count, str(failure.reason)))
