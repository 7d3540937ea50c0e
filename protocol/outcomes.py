"""How an attempt can end, why it can fail, and whose fault each failure is.

It decides nothing about a deployment: it only says which failures a rollback policy may count. Source: RULES.md
R10 and R11, and DESIGN.md section 2 (outcome, verdict).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from protocol.lifecycle import PAST_NO_RETURN, WorkflowState


class Result(StrEnum):
    """How an attempt ended; the first two are verdicts."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


class Abandoned(StrEnum):
    """Why an attempt ended without a verdict."""

    CANCELED = "canceled"
    REPLACED = "replaced"
    MOVED = "moved"
    RETRIED = "retried"


class Party(StrEnum):
    """Who is at fault when an attempt fails; only the update's failures count in a policy."""

    UPDATE = "update"
    DEVICE = "device"
    SERVER = "server"
    NETWORK = "network"


class Reason(StrEnum):
    """Why an attempt failed: the closed list."""

    INCOMPATIBLE = "incompatible"  # the device is none that the manifest names
    DOWNGRADE_REFUSED = "downgrade_refused"  # an older version, without a signed `allow_downgrade`
    BELOW_FLOOR = "below_floor"  # the image's release counter is below the device's floor
    UNSUPPORTED = "unsupported"  # the manifest asks for a handler this device has not
    NO_SPACE = "no_space"  # too little free space, seen before the download or while writing
    DISK = "disk"  # the device's disk refused to read or write
    NETWORK = "network"  # the address could not be reached, or the transfer broke off, beyond the budget
    SERVER = "server"  # the server answered, and the answer was no use
    VERIFY_FAILED = "verify_failed"  # bytes differ from their sha256, twice
    HANDLER_FAILED = "handler_failed"  # a step of the update failed, by its exit code or its content
    ACTIVATE_FAILED = "activate_failed"  # the switch could not be made
    STARTS_EXHAUSTED = "starts_exhausted"  # the trial used up its starts
    FELL_BACK = "fell_back"  # the device runs its other slot, though nobody told the agent to go back
    HEALTH_FAILED = "health_failed"  # a health check did not hold
    COMMIT_FAILED = "commit_failed"  # the trial held, and could not be made permanent
    CLOUD_UNREACHABLE = "cloud_unreachable"  # the trial could not reach the cloud within its limit (R11)
    RECORD_LOST = "record_lost"  # the agent's record was unreadable while a trial was booted
    TIMED_OUT = "timed_out"  # the cloud's guess after a silence


BEFORE_NO_RETURN: Final[Mapping[Reason, Party]] = {
    Reason.INCOMPATIBLE: Party.DEVICE,
    Reason.DOWNGRADE_REFUSED: Party.DEVICE,  # the same order again would not help, so not the server's
    Reason.BELOW_FLOOR: Party.DEVICE,
    Reason.UNSUPPORTED: Party.DEVICE,
    Reason.NO_SPACE: Party.DEVICE,
    Reason.DISK: Party.DEVICE,
    Reason.NETWORK: Party.NETWORK,
    Reason.SERVER: Party.SERVER,
    Reason.VERIFY_FAILED: Party.SERVER,
    Reason.HANDLER_FAILED: Party.UPDATE,
    Reason.TIMED_OUT: Party.NETWORK,
}
"""Faults before the point of no return; a reason not listed cannot honestly occur there, and is the device's."""


def fault_of(
    reason: Reason, phase: WorkflowState, *, reach_ms: int | None = None, reach_limit_ms: int | None = None
) -> Party:
    """Return who is at fault for a failure in `phase`.

    `reach_ms` is the time the old slot needed to reach the cloud after a revert, and `reach_limit_ms` the limit the
    trial had, both in milliseconds: when the old slot was no quicker than the limit, it was the network (R11).
    `fell_back` is the update's wherever the agent noticed it, since the device had been switched (R10, R18).
    """
    if reason is Reason.CLOUD_UNREACHABLE:
        beyond = reach_ms is not None and reach_limit_ms is not None and reach_ms > reach_limit_ms
        return Party.NETWORK if beyond else Party.UPDATE
    if phase in PAST_NO_RETURN or reason in _AFTER_SWITCH:
        return Party.UPDATE
    return BEFORE_NO_RETURN.get(reason, Party.DEVICE)


_AFTER_SWITCH: Final = frozenset(
    {
        Reason.ACTIVATE_FAILED,
        Reason.STARTS_EXHAUSTED,
        Reason.FELL_BACK,
        Reason.HEALTH_FAILED,
        Reason.COMMIT_FAILED,
        Reason.RECORD_LOST,
    }
)
