"""The API's plain sentences: a policy's numbers, where a deployment stands, why devices failed.

They decide nothing (`core/policy.py` does); page, JSON and command line show the same words.
"""

from collections.abc import Mapping
from typing import Final

from cloud_stub.core import policy as policies
from cloud_stub.core.rows import DeploymentRow, Policy, Tally, Trip
from protocol.lifecycle import DeploymentState
from protocol.outcomes import Party, Reason

_WHAT_HAPPENED: Final[Mapping[Reason, str]] = {
    Reason.INCOMPATIBLE: "the device is none that the manifest names",
    Reason.DOWNGRADE_REFUSED: "an older version, without --allow-downgrade",
    Reason.BELOW_FLOOR: "its release counter is below the device's floor",
    Reason.UNSUPPORTED: "the device lacks a handler that the manifest asks for",
    Reason.NO_SPACE: "too little free space",
    Reason.DISK: "the device's disk refused",
    Reason.NETWORK: "the transfer broke off",
    Reason.SERVER: "the repository's answer was no use",
    Reason.VERIFY_FAILED: "the bytes differed from their sha256, twice",
    Reason.HANDLER_FAILED: "a step of the update failed",
    Reason.ACTIVATE_FAILED: "the switch could not be made",
    Reason.STARTS_EXHAUSTED: "the trial used up its starts",
    Reason.FELL_BACK: "the device fell back to its other slot",
    Reason.HEALTH_FAILED: "a health check did not hold",
    Reason.COMMIT_FAILED: "the trial held, and could not be made permanent",
    Reason.CLOUD_UNREACHABLE: "the trial could not reach the cloud",
    Reason.RECORD_LOST: "the agent's record was unreadable in a trial",
    Reason.TIMED_OUT: "silent or stuck for longer than allowed",
}


def failure(reason: Reason | None) -> str:
    """Return what happened, for people; the reason itself stands beside it."""
    return _WHAT_HAPPENED[reason] if reason else "no reason was given"


def fault(party: Party | None) -> str:
    """Return whose fault a failure is, and whether it counts in a policy (R10)."""
    if party is None:
        return "nobody's yet"
    return "the update's" if party is Party.UPDATE else f"the {party}'s: not counted"


def policy_rule(policy: Policy) -> str:
    """Return the policy as it was written, in one clause."""
    joined = "and" if policy.match == "all" else "or"
    back = " or ".join(ref.update for ref in policy.rollback_to)
    rule = _thresholds(policy.failed_count, policy.failed_percent, policy.percent_of, joined)
    return f"goes back to {back} when {rule}"


def policy_now(row: DeploymentRow, policy: Policy, members: int) -> str:
    """Return a policy's numbers in one sentence, such as `4 of 120 failed (3.3 %); goes back at 12.`

    `members` counts the current compatible, protected members of the group.
    """
    if row.trip:
        return trip(row.trip)
    now = policies.reading(policy, row.tally, members)
    if policy.disarmed:
        return f"Disarmed: {policy.disarmed}. It does not act."
    if row.state is DeploymentState.SCHEDULED:
        return policies.arithmetic(policy, now.base if policy.percent_of == "group" else members)
    if row.state is not DeploymentState.ACTIVE:
        return f"{now.failed} failed by the update's fault, and the policy did not trip; the deployment has ended."
    of = "" if policy.percent_of == "group" else " attempted"
    counts = f"{now.failed} of {now.base}{of} failed ({now.percent:.1f} %)"
    if not is_armed(policy, row.tally, members):
        return f"{counts}. {policies.arithmetic(policy, members + row.tally.moved_on)}"
    if policy.percent_of == "group":
        return f"{counts}; goes back at {now.needed}."
    joined = "and" if policy.match == "all" else "or"
    return f"{counts}; goes back when {_thresholds(policy.failed_count, policy.failed_percent, 'attempted', joined)}."


def is_armed(policy: Policy, tally: Tally, members: int) -> bool:
    """Return whether the group as it stands can reach the policy's thresholds (R23)."""
    base = members + tally.moved_on
    return not policy.disarmed and base > 0 and (policy.match == "any" or base >= policy.failed_count)


def trip(numbers: Trip) -> str:
    """Return the numbers that tripped a policy, as they were frozen (R16)."""
    percent = 100 * numbers.failed / numbers.base if numbers.base else 0.0
    joined = "and" if numbers.match == "all" else "or"
    rule = _thresholds(numbers.failed_count, numbers.failed_percent, numbers.percent_of, joined)
    of = "" if numbers.percent_of == "group" else " attempted"
    return f"Went back: {numbers.failed} of {numbers.base}{of} failed ({percent:.1f} %); the policy was: when {rule}."


def headline(row: DeploymentRow, retrying: int, undecided: int) -> str:
    """Return in one sentence where a deployment stands; members without an order yet have not begun either."""
    tally = row.tally
    if row.state is DeploymentState.SCHEDULED:
        return "It has not started yet."
    begun = tally.working + tally.succeeded + tally.failed + tally.canceled
    if row.state is DeploymentState.ACTIVE and not begun + tally.pending + undecided:
        return "No device that it fits is in the group yet."
    runs = "runs" if tally.succeeded == 1 else "run"
    verb = (
        runs if row.state is DeploymentState.ACTIVE else "committed"
    )  # what they run now is another deployment's affair
    parts = [f"{_devices(tally.succeeded)} {verb} it"]
    if tally.already_there:
        parts[0] += f" ({tally.already_there} did before)"
    rest = (
        (tally.working, "working"),
        (tally.pending + undecided, "not begun"),
        (tally.failed - retrying, "failed"),
        (retrying, "failed and waiting to retry"),
        (tally.canceled, "canceled"),
        (tally.incompatible, "incompatible"),
        (tally.unprotected, "unprotected"),
    )
    text = ", ".join(parts + [f"{count} {what}" for count, what in rest if count]) + "."
    is_open = tally.pending or tally.working or retrying or undecided
    return f"Settled: {text}" if row.state is DeploymentState.ACTIVE and not is_open else text


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _thresholds(failed_count: int, failed_percent: int, percent_of: str, joined: str) -> str:
    devices = "device" if failed_count == 1 else "devices"
    whole = "the group" if percent_of == "group" else "those that tried it"
    return f"{failed_count} {devices} {joined} {failed_percent} % of {whole} have failed"
