"""What a deployment would do, answered before anything is sent; what is then created is the plan that was shown.

It changes nothing. A draft that cannot be carried out is refused here with the same words as at its creation, since
the creation calls the same function. Source: DESIGN.md section 3 (`plan`), RULES.md R20 to R23.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from cloud_stub.core import policy as policies
from cloud_stub.core.commands import DeploymentDraft
from cloud_stub.core.places import Catalog, first_that_fits, why_not_safe
from cloud_stub.core.rows import DeploymentRow, GroupCount, Policy, UpdateRef, UpdateRow
from protocol.errors import OperatorError
from protocol.identity import Version, check_group
from protocol.strict_json import dump

RETRIES_MAX = 10  # automatic attempts of one device: more only hides a broken update
TIMEOUT_MS_MIN = 1_000


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """What would happen to members of one device class; those that their floor bars are in one of their own."""

    class_key: str
    members: int
    update: str | None  # the update of the offer that fits, or None
    already_there: int
    refuse: int  # members that run a newer version, and refuse an older one
    back_to: str | None  # the update its policy would take it back to
    why_not: str  # why nothing is offered to it, or empty


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole answer of a dry run."""

    group: str
    updates: tuple[UpdateRef, ...]
    policy: Policy | None
    classes: tuple[ClassPlan, ...]
    members: int  # all, those without a class included
    unknown_class: int  # members that have not reported yet: judged when they do
    supersedes: str | None  # the deployment it would replace at its start
    policy_sentence: str
    warnings: tuple[str, ...]
    digest: str  # of all that decides what would happen: creation refuses another one

    @property
    def to_update(self) -> int:
        """Members that would install something."""
        return sum(
            row.members - row.already_there - row.refuse
            for row in self.classes
            if row.update and not row.why_not
        )

    @property
    def already_there(self) -> int:
        """Members that run it already."""
        return sum(row.already_there for row in self.classes if row.update and not row.why_not)

    @property
    def refuse(self) -> int:
        """Members that run a newer version: their attempt would fail, by no fault of the update's."""
        return sum(row.refuse for row in self.classes)

    @property
    def incompatible(self) -> int:
        """Members that no update of the offer fits."""
        return sum(row.members for row in self.classes if not row.update)

    @property
    def failures_needed(self) -> int | None:
        """How many failures would trip the policy, with the members of this moment."""
        return (
            policies.failures_needed(self.policy, self.to_update + self.already_there + self.refuse)
            if self.policy
            else None
        )


@dataclass(frozen=True, slots=True)
class Situation:
    """What a plan is made from."""

    find: Callable[[str], UpdateRow | None]  # an update by name
    find_sha256: Callable[[str], UpdateRow | None]  # an update by its identity
    classes: Sequence[GroupCount]
    members: int
    running: Mapping[str, Mapping[tuple[str, int], int]]  # class key → (sha256 it runs, its floor) → members
    active: DeploymentRow | None


def plan(draft: DeploymentDraft, situation: Situation) -> Plan:
    """Return what the draft would do.

    Raises:
        OperatorError: it cannot be carried out; the sentence says what is missing, and the numbers.
    """
    check_group(draft.group)
    _check_numbers(draft)
    updates = [_known(name, situation.find, "update") for name in draft.updates]
    if not updates:
        raise OperatorError("The deployment names no update; give at least one.")
    for update in updates:
        if update.withdrawn_ms is not None and not draft.allow_withdrawn:
            raise OperatorError(
                f"{update.update} was withdrawn ({update.withdrawn_why}); deploying it again needs --allow-withdrawn."
            )
    policy, back = _policy_of(draft, updates, situation)
    catalog = {row.sha256: row for row in (*updates, *back)}
    newer = _newer_than(draft, situation)
    rows = tuple(
        row
        for group_class in situation.classes
        for row in _class_plans(
            group_class, updates, policy, catalog, situation.running.get(group_class.class_key, {}), newer
        )
    )
    known = sum(group_class.members for group_class in situation.classes)
    result = Plan(
        group=draft.group,
        updates=tuple(update.ref for update in updates),
        policy=policy,
        classes=rows,
        members=situation.members,
        unknown_class=situation.members - known,
        supersedes=situation.active.id if situation.active else None,
        policy_sentence="",
        warnings=tuple(_warnings(draft, situation, sum(row.refuse for row in rows))),
        digest="",
    )
    fitting = sum(row.members for row in rows if row.update and not row.why_not)
    sentence = (
        policies.arithmetic(policy, fitting)
        if policy
        else "No policy: a failing update stays until somebody acts."
    )
    return replace(result, policy_sentence=sentence, digest=_digest(draft, result))


def _policy_of(
    draft: DeploymentDraft, updates: Sequence[UpdateRow], situation: Situation
) -> tuple[Policy | None, Sequence[UpdateRow]]:
    if draft.policy is None:
        return None, ()
    back = [_known(name, situation.find, "rollback_to") for name in draft.policy.rollback_to]
    return policies.checked(draft.policy, updates, back, situation.classes), back


def _known(name: str, find: Callable[[str], UpdateRow | None], what: str) -> UpdateRow:
    row = find(name)
    if row is None:
        raise OperatorError(f"{what} {name} is not imported; see `lastgood update list`, or import it first.")
    return row


def _class_plans(
    group_class: GroupCount,
    updates: Sequence[UpdateRow],
    policy: Policy | None,
    catalog: Catalog,
    running: Mapping[tuple[str, int], int],
    newer: Callable[[str, UpdateRow], bool],
) -> Iterator[ClassPlan]:
    update = first_that_fits([row.ref for row in updates], catalog, group_class.properties)
    if update is None:
        yield ClassPlan(
            group_class.class_key, group_class.members, None, 0, 0, None, _why_unfit(updates, group_class)
        )
        return
    refs = policy.rollback_to if policy else None
    target = first_that_fits(refs or (), catalog, group_class.properties)
    back = target.update if target else None
    barred: dict[int, str] = {}
    for floor in {floor for _, floor in running}:
        why = why_not_safe(update, refs, catalog, group_class.properties, floor)
        if why:
            barred[floor] = why
    held = sum(members for (_, floor), members in running.items() if floor in barred)
    there = sum(
        members
        for (sha256_run, floor), members in running.items()
        if sha256_run == update.sha256 and floor not in barred
    )
    refuse = sum(
        members
        for (sha256_run, floor), members in running.items()
        if floor not in barred and newer(sha256_run, update)
    )
    if group_class.members > held:
        yield ClassPlan(
            group_class.class_key, group_class.members - held, update.update, there, refuse, back, ""
        )
    if held:
        yield ClassPlan(group_class.class_key, held, update.update, 0, 0, back, barred[max(barred)])


def _newer_than(draft: DeploymentDraft, situation: Situation) -> Callable[[str, UpdateRow], bool]:
    """Return whether devices that run something refuse an update as older than that (their own rule)."""
    if draft.allow_downgrade:
        return lambda _sha256, _update: False
    found: dict[str, UpdateRow | None] = {}

    def newer(sha256_run: str, update: UpdateRow) -> bool:
        if sha256_run not in found:
            found[sha256_run] = situation.find_sha256(sha256_run)
        row = found[sha256_run]
        if row is None:
            return False
        (runs, _, version), (name, _, offered) = row.update.rpartition(":"), update.update.rpartition(":")
        return runs == name and Version.parse(offered) < Version.parse(version)

    return newer


def _why_unfit(updates: Sequence[UpdateRow], group_class: GroupCount) -> str:
    wanted = " or ".join(
        " and ".join(f"{key}={value}" for key, value in sorted(properties.items()))
        for update in updates
        for properties in update.compatibility
    )
    return f"it asks for {wanted}; the class is {group_class.class_key}"


def _warnings(draft: DeploymentDraft, situation: Situation, refuse: int) -> list[str]:
    found = []
    if situation.active and not draft.start_at_ms:
        found.append(f"Deployment {situation.active.id} is active in the group and will be superseded.")
    if refuse:
        who = "1 device runs" if refuse == 1 else f"{refuse} devices run"
        found.append(f"{who} a newer version already, and will refuse this one without --allow-downgrade.")
    return found


def _check_numbers(draft: DeploymentDraft) -> None:
    if not 0 <= draft.retries <= RETRIES_MAX:
        raise OperatorError(f"retries is {draft.retries}; it must be from 0 to {RETRIES_MAX}.")
    for name in ("device_timeout_ms", "attempt_timeout_ms", "retry_delay_ms"):
        if getattr(draft, name) < TIMEOUT_MS_MIN:
            raise OperatorError(f"{name} is {getattr(draft, name)}; it must be at least {TIMEOUT_MS_MIN} ms.")


def _digest(draft: DeploymentDraft, result: Plan) -> str:
    deciding = [
        result.group,
        [ref.sha256 for ref in result.updates],
        [ref.sha256 for ref in result.policy.rollback_to] if result.policy else None,
        [draft.policy.failed_percent, draft.policy.failed_count, draft.policy.match, draft.policy.percent_of]
        if draft.policy
        else None,
        [[row.class_key, row.update, row.back_to, row.why_not] for row in result.classes],
        result.supersedes,
        draft.start_at_ms,
        draft.allow_downgrade,
        draft.allow_withdrawn,
        draft.retries,
        draft.retry_delay_ms,
        draft.device_timeout_ms,
        draft.attempt_timeout_ms,
    ]
    return sha256(dump(deciding)).hexdigest()[:16]
