"""The rows that the cloud's rules work on, as frozen values.

They are not tables (the store's adapter has those) and hold no rules. Field names are the columns' names; times end in
`_ms` and are UTC milliseconds of the cloud's clock unless they are durations. Rows are never deleted (R13).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from protocol.identity import DEFAULT_GROUP
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.outcomes import Party, Reason


class AssignmentState(StrEnum):
    """Where one device stands in one deployment."""

    PENDING = "pending"  # ordered, not begun: never counted as failed
    WORKING = "working"  # it began; `phase` says how far it is
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"  # it stopped because it was told to
    INCOMPATIBLE = "incompatible"  # a member, in no denominator
    UNPROTECTED = (
        "unprotected"  # fits the update, but the policy has nothing to take its class back to (R17, R20)
    )
    DROPPED = "dropped"  # left the group before its attempt started


@dataclass(frozen=True, slots=True)
class UpdateRef:
    """An update by its name and its true identity."""

    update: str  # provider/name:version
    sha256: str


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One imported update; immutable but for `withdrawn_ms`."""

    update: str
    sha256: str
    size_bytes: int  # of the manifest
    manifest: bytes
    release_counter: int
    compatibility: tuple[Mapping[str, str], ...]
    bytes_total: int  # of its files
    imported_ms: int
    description: str = ""
    withdrawn_ms: int | None = None
    withdrawn_why: str = ""

    @property
    def ref(self) -> UpdateRef:
        """The update by name and identity."""
        return UpdateRef(self.update, self.sha256)


@dataclass(frozen=True, slots=True)
class Policy:
    """When a group goes back by itself, and to what (DESIGN.md section 3)."""

    failed_percent: int  # 1 to 100
    failed_count: int  # 1 or more
    rollback_to: tuple[UpdateRef, ...]  # one, or one for each device class: the first that fits
    match: Literal["all", "any"] = "all"
    percent_of: Literal["group", "attempted"] = "group"
    disarmed: str = ""  # why it no longer acts (R22), empty while it does


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over the assignments of one deployment; changed only by a row's old → new transition (R14)."""

    pending: int = 0
    working: int = 0
    succeeded: int = 0
    already_there: int = 0  # of the succeeded: ran it before, in neither numerator nor base `attempted`
    failed: int = 0  # in state failed, whoever is at fault
    counted: int = 0  # against the update: counted and not suspended, whatever the state (R15)
    canceled: int = 0
    incompatible: int = 0
    unprotected: int = 0  # of the current members: they are in no base (R13)
    dropped: int = 0
    moved_on: int = 0  # left the group with a verdict: of the above, and still in the base `group` (R13)


@dataclass(frozen=True, slots=True)
class Trip:
    """The numbers that tripped a policy, frozen (R16)."""

    at_ms: int
    failed: int
    base: int
    failed_count: int
    failed_percent: int
    match: str
    percent_of: str


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """One deployment: an offer (class → update: the first update that fits) to one group."""

    id: str
    group: str
    state: DeploymentState
    updates: tuple[UpdateRef, ...]
    created_ms: int
    created_by: str
    policy: Policy | None = None
    allow_downgrade: bool = False
    allowed_withdrawn: tuple[
        str, ...
    ] = ()  # sha256 of those deployed by the explicit word, though withdrawn (R22)
    retries: int = 0  # automatic ones, for each device, of failures that are the update's or the device's
    retry_delay_ms: int = 60_000  # before the first; doubles, with full jitter
    device_timeout_ms: int = 3_600_000  # silent
    attempt_timeout_ms: int = 7_200_000  # stuck: no change of phase or bytes
    start_at_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    ended_why: str = ""
    supersedes: str | None = None
    superseded_by: str | None = None
    cause: str | None = None  # the deployment whose trip made this one
    rollback: str | None = None  # the deployment that this one's trip made
    trip: Trip | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """What one device was told in one deployment, and how it went. Keyed (deployment, device)."""

    deployment: str
    device: str
    state: AssignmentState
    class_key: str
    update: str | None = None  # the one its class is offered
    sha256: str | None = None
    attempt: int = 1
    epoch: int = 0  # of the order that opened this attempt
    phase: WorkflowState = WorkflowState.IDLE
    reason: Reason | None = None
    party: Party | None = None
    detail: str = ""
    already_there: bool = False
    counted: bool = (
        False  # a failure by the update's fault stands against it, until a success clears it (R15)
    )
    suspended: bool = False  # an operator's retry is open, during which no failure counts (R15)
    guessed: bool = False  # it counts by a time-out alone: the device's own verdict takes that back (R16)
    moved_on: bool = False
    retries_used: int = 0
    tries_elsewhere: int = 0  # failures of server or network so far: they only lengthen the wait (R15)
    retry_at_ms: int | None = None
    cancel: Literal["sent", "canceled", "too_late"] | None = None
    began_ms: int | None = None
    moved_ms: int = 0  # on the observed clock (R12): the last change of phase or bytes
    bytes_done: int = 0
    bytes_total: int = 0
    updated_ms: int = 0


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device: what the cloud wants of it, and what it last reported. The row is its outbox (DESIGN.md 4)."""

    id: str
    created_ms: int
    password_hash: str = ""
    # its place
    group: str = DEFAULT_GROUP  # effective: override, else tag, else default
    group_tag: str | None = None
    group_override: str | None = None
    class_key: str | None = None  # None until it has reported properties
    properties: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    # what it reported
    instance: str | None = None
    instance_before: str | None = None
    instance_since_ms: int = 0
    cloned: bool = False
    sequence: int = 0
    digest: str | None = None
    reported_epoch: int | None = None
    epoch_in_work: int | None = None
    running_update: str | None = None
    running_sha256: str | None = None
    running_counter: int = 0
    floor: int = 0
    work_state: WorkflowState = WorkflowState.IDLE
    slots: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    booted: str | None = None
    last_known_good: str | None = None
    outcomes_folded: int = 0
    agent_version: str = ""
    answer_epoch: int | None = None  # of the newest hold or cancel it answered
    answer: Literal["canceled", "too_late", "held"] | None = None
    # whether it is there
    connection: str | None = None
    online: bool = False
    last_seen_ms: int | None = None
    heard_ms: int = 0  # the same on the observed clock, which only runs while the cloud could hear it (R12)
    # what it is told
    epoch: int = 0
    published_epoch: int = 0  # the epoch actually sent; the outbox is `epoch > published_epoch`
    order_stale: bool = False  # the epoch was raised, and what it orders is decided before it is sent
    order_action: Literal["install", "hold"] | None = None
    order_deployment: str | None = None
    order_attempt: int | None = None
    order_update: str | None = None
    order_sha256: str | None = None
    order_downgrade: bool = False
    order_why: str = ""


@dataclass(frozen=True, slots=True)
class GroupCount:
    """One device class within one group: how many members have it, and its properties."""

    class_key: str
    properties: Mapping[str, str]
    members: int
    floor_max: int = 0  # the highest release-counter floor a member reports (R20)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One entry of the audit log; `chain` is the sha256 over the previous chain and this entry, so tampering shows."""

    number: int
    at_ms: int
    who: str
    what: str
    about: str
    facts: Mapping[str, object]
    chain: str
