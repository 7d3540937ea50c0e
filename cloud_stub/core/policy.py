"""The rollback policy: when it trips, from which numbers, and whether it can.

It fails closed: a policy that cannot act as written is refused when the deployment is made. It sends
nothing and changes no row. Source: DESIGN.md section 3, "Rollback policy"; RULES.md R13, R20, R23.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cloud_stub.core.commands import PolicyDraft
from cloud_stub.core.places import Catalog, first_that_fits, why_unprotected
from cloud_stub.core.rows import GroupCount, Policy, Tally, Trip, UpdateRef, UpdateRow
from protocol.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy's numbers at one moment."""

    failed: int
    base: int
    needed: int | None  # failures at which it trips with this base; None when no number of them would

    @property
    def percent(self) -> float:
        """The failed share in percent, for people; the decision itself is made in integers."""
        return 100 * self.failed / self.base if self.base else 0.0


def trips(policy: Policy, failed: int, base: int, group: int | None = None) -> bool:
    """Return whether the policy trips at these numbers, in integers.

    A group that shrank below `failed_count` trips when every compatible member has failed (R23). `group` is the base
    `group` where `base` is another one: the first failure of all that tried is not yet the failure of all.
    """
    if failed == 0 or policy.disarmed:
        return False
    whole = base if group is None else group
    enough = failed >= policy.failed_count or (0 < whole <= failed)
    share = 100 * failed >= policy.failed_percent * base
    return (enough and share) if policy.match == "all" else (enough or share)


def base_of(policy: Policy, tally: Tally, members: int) -> int:
    """Return the denominator (R13). `members` counts the current compatible, protected members."""
    if policy.percent_of == "group":
        return members + tally.moved_on
    return tally.succeeded - tally.already_there + tally.counted


def reading(policy: Policy, tally: Tally, members: int) -> Reading:
    """Return the policy's numbers, with the number of failures that would trip it."""
    base = base_of(policy, tally, members)
    return Reading(tally.counted, base, failures_needed(policy, members + tally.moved_on))


def failures_needed(policy: Policy, base: int) -> int | None:
    """Return how many failures of a base of devices trip the policy; None when the base is empty."""
    for_share = -(-policy.failed_percent * base // 100)
    if base <= 0:
        return None
    if policy.match == "any":
        return max(1, min(policy.failed_count, for_share))
    return max(1, min(max(policy.failed_count, for_share), base))


def arithmetic(policy: Policy, base: int) -> str:
    """Return in one sentence what it takes to trip the policy in a group of `base` compatible members (R23)."""
    joined = "and" if policy.match == "all" else "or"
    whole = "the group" if policy.percent_of == "group" else "those that tried it"
    devices = "1 device" if policy.failed_count == 1 else f"{policy.failed_count} devices"
    rule = f"{devices} {joined} {policy.failed_percent} % of {whole} have failed"
    needed = failures_needed(policy, base)
    if needed is None:
        return f"Not armed: the group has no compatible member yet; it goes back when {rule}."
    if policy.match == "all" and base < policy.failed_count:
        return (
            f"Not armed until {policy.failed_count} members: the group has {base}, and the policy asks that {rule}; "
            f"until then it goes back only when all {base} have failed."
        )
    members = "1 compatible member" if base == 1 else f"{base} compatible members"
    # the first that try it, all of them having failed
    first = 1 if policy.match == "any" else policy.failed_count
    if policy.percent_of == "attempted" and first < needed:
        return (
            f"Goes back when {rule}: with {members} that is from {first} failed, if they are the first to try it, "
            f"to {needed} failed, when all have tried it."
        )
    return f"Goes back when {rule}: with {members} that is {needed} failed."


def frozen(policy: Policy, failed: int, base: int, at_ms: int) -> Trip:
    """Return the numbers of a trip, to be kept as they were (R16)."""
    return Trip(
        at_ms, failed, base, policy.failed_count, policy.failed_percent, policy.match, policy.percent_of
    )


def protected_members(
    updates: Sequence[UpdateRef], catalog: Catalog, classes: Sequence[GroupCount], tally: Tally
) -> int:
    """Count the members that an update of the offer fits, and that the policy can take back.

    Whom it cannot take back, by class or by floor, has an assignment that says so, and is in no base (R13, R17, R20).
    """
    fitting = sum(
        group_class.members
        for group_class in classes
        if first_that_fits(updates, catalog, group_class.properties)
    )
    return max(0, fitting - tally.unprotected)


def checked(
    draft: PolicyDraft, updates: Sequence[UpdateRow], back: Sequence[UpdateRow], classes: Sequence[GroupCount]
) -> Policy:
    """Return the policy of a draft, or refuse it: it must exist, differ from the update, and fit every class.

    Raises:
        OperatorError: it could not act as written; the sentence gives the numbers.
    """
    _check_numbers(draft)
    offered = {update.sha256 for update in updates}
    for target in back:
        if target.sha256 in offered:
            raise OperatorError(
                f"rollback_to is {target.update}, the update itself; name a version to go back to."
            )
        if target.withdrawn_ms is not None:
            raise OperatorError(f"rollback_to is {target.update}, which was withdrawn; name another version.")
    policy = Policy(
        draft.failed_percent,
        draft.failed_count,
        tuple(row.ref for row in back),
        draft.match,
        draft.percent_of,
    )
    _check_floors_of_updates(updates, back)
    catalog = {row.sha256: row for row in (*updates, *back)}
    refs = [row.ref for row in updates]
    for group_class in classes:
        update = first_that_fits(refs, catalog, group_class.properties)
        if update is None:
            continue
        why = why_unprotected(
            policy.rollback_to, catalog, update, group_class.properties, group_class.floor_max
        )
        if why:
            raise OperatorError(
                f"The policy cannot take {group_class.members} devices of class {group_class.class_key!r} back: {why}. "
                "Name an update that fits with another --rollback-to."
            )
    return policy


def _check_numbers(draft: PolicyDraft) -> None:
    if not 1 <= draft.failed_percent <= 100:
        raise OperatorError(f"failed_percent is {draft.failed_percent}; it must be from 1 to 100.")
    if draft.failed_count < 1:
        raise OperatorError(f"failed_count is {draft.failed_count}; it must be 1 or more.")
    if not draft.rollback_to:
        raise OperatorError("The policy names no update to go back to; give rollback_to.")


def _check_floors_of_updates(updates: Sequence[UpdateRow], back: Sequence[UpdateRow]) -> None:
    """Refuse pairs that fit a common class but whose counters bar the way back, also while the group is empty (R20)."""
    for target in back:
        for update in updates:
            shared = any(
                dict(wanted) in [dict(other) for other in update.compatibility]
                for wanted in target.compatibility
            )
            if shared and target.release_counter < update.release_counter:
                raise OperatorError(
                    f"The way back is barred: the release counter of {target.update} is {target.release_counter}, and "
                    f"that of {update.update} is {update.release_counter}. Publish the older version again with a "
                    f"counter of at least {update.release_counter}."
                )
