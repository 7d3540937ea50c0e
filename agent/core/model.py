"""The values the agent's core works on: slots, orders, outcomes, the record, events and effects.

It holds no rules (`workflow.py`, `device.py` do). Effects are imperatives that adapters carry out; what comes of
them returns as an event with the effect's tag, and a result with another tag is ignored (RULES.md, the agent's table).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from protocol.lifecycle import WorkflowEvent, WorkflowState
from protocol.messages import Assignment, OutcomeReport
from protocol.topics import Kind

SlotName = Literal["A", "B"]
SLOTS: Final[tuple[SlotName, SlotName]] = ("A", "B")


def other(slot: SlotName) -> SlotName:
    """Return the slot that is not this one."""
    return "B" if slot == "A" else "A"


class Holds(StrEnum):
    """What a slot holds: ours to say, and apart from which slot boots (DESIGN.md section 5)."""

    EMPTY = "empty"  # never written
    INVALID = "invalid"  # begun, or stopped half-way: never to be started
    WRITING = "writing"
    SEALED = "sealed"  # complete and verified, never started
    TRIAL = "trial"
    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"  # its state could not be read: a legal answer, and not "bad"


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot: what it holds, and the update whose bytes are in it."""

    holds: Holds = Holds.EMPTY
    update: str | None = None  # provider/name:version
    sha256: str | None = None  # of the manifest: the true identity
    release_counter: int = 0
    starts_left: int | None = None  # only in trial
    reason: str | None = None  # only when bad


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Both slots, which one is booted, and which one to go back to. The backend's evidence of what runs."""

    slots: Mapping[SlotName, Slot]
    booted: SlotName
    last_known_good: SlotName
    unknown: Mapping[str, Any] = field(default_factory=dict)  # fields of a newer agent, passed through (R26)

    @property
    def spare(self) -> SlotName:
        """The slot that may be written: never the booted one, never the last known good."""
        return other(self.booted)

    @property
    def running(self) -> Slot:
        """What the booted slot holds."""
        return self.slots[self.booted]


@dataclass(frozen=True, slots=True)
class Tag:
    """Which effect a result belongs to: the epoch in work, a number that grows, and the agent's start."""

    epoch: int
    ordinal: int
    start: int


@dataclass(frozen=True, slots=True)
class Workflow:
    """Where the device stands with the order in work. `step` is the only one who makes a new one."""

    state: WorkflowState = WorkflowState.IDLE
    order: Assignment | None = None  # the order in work; `epoch_in_work` is its epoch
    next: Assignment | None = None  # one place, newest wins
    slot: SlotName | None = None  # the slot this order is installed into
    phase: Literal["", "manifest", "files", "rehash"] = ""  # of downloading
    verdict: OutcomeReport | None = None  # decided on entering `reverting`, told at its end
    tries: int = 0  # downloads that failed in this order
    refetched: bool = False  # a verification failed once, and was fetched anew
    refreshed: bool = False  # new addresses were asked for once
    health_held: bool = False  # the soak is over; what is missing is the cloud's answer
    cloud_reached: bool = False  # the cloud answered a hello that was said in this trial (R11)
    commit_tries: int = 0
    stuck: str | None = None  # why `reverting` cannot end
    ordinal: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """What the agent keeps across a power loss, in one atomic write (R1, R26). Never evidence of what runs."""

    instance: str
    start: int = 0  # how often the agent was started
    epoch: int | None = None  # the highest epoch accepted
    envelope: bytes | None = None  # as it was signed, for R1 and R2
    workflow: Workflow = field(default_factory=Workflow)
    outcomes: tuple[
        tuple[int, OutcomeReport], ...
    ] = ()  # with the sequence that told each first, 0 while untold
    outcomes_folded: int = 0
    ended: tuple[str, int] | None = None  # deployment and attempt of the newest outcome, acknowledged or not
    answer_epoch: int | None = None
    answer: Literal["canceled", "too_late", "held"] | None = None
    sequence: int = 0
    digest: str = ""  # of the state that bears this sequence
    floor: int = 0
    unknown: Mapping[str, Any] = field(default_factory=dict)  # fields of a newer agent, passed through


# --- Events: what happened -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The agent starts. `record` is None on a new device, and when it was there and could not be read."""

    slots: SlotTable
    record: Record | None


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has granted the subscriptions (SUBACK); `connection` is this connection's nonce."""

    connection: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection to the broker ended."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message arrived. For `desired` the payload is the signed envelope as it came."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of an effect."""

    tag: Tag
    event: WorkflowEvent
    detail: str = ""  # one sentence for people
    reason: str = ""  # a value of `protocol.outcomes.Reason` when it failed
    transient: bool = False  # worth trying again after a wait
    refresh: bool = False  # the server refused the address: new ones may help
    manifest: bytes | None = None  # with PREPARED: the verified manifest
    slots: SlotTable | None = None  # the table as the backend read it back


@dataclass(frozen=True, slots=True)
class Observed:
    """The slots were probed again (after an effect, or because something changed them)."""

    slots: SlotTable


@dataclass(frozen=True, slots=True)
class Described:
    """The device's properties and tags changed."""

    properties: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The application that was started from the booted slot ended by itself."""

    detail: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """Bytes of the work in hand; told to the cloud at a limited rate, and lost without harm."""

    tag: Tag
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; `due` had asked to be called now."""


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """The record could not be written (EIO, ENOSPC): nothing that depended on it was done."""

    detail: str


Event = (
    Started
    | Connected
    | Disconnected
    | Delivered
    | Finished
    | Observed
    | Described
    | Stopped
    | Progressed
    | Ticked
    | SaveFailed
)


# --- Effects: what to do ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Write the record, durably, before anything that stands behind it in the list."""

    record: Record


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a message to the cloud, if there is a connection; what must not be lost is sent again by the core."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True)
class Prepare:
    """Fetch and verify the manifest (port `Trust`) → PREPARED, DOWNLOAD_FAILED or VERIFY_FAILED."""

    tag: Tag
    order: Assignment


@dataclass(frozen=True, slots=True)
class Download:
    """Begin the slot (durably invalid before the first byte) and fetch all files, resuming what is there.

    → DOWNLOADED, DOWNLOAD_FAILED or VERIFY_FAILED.
    """

    tag: Tag
    order: Assignment
    manifest: bytes
    slot: SlotName
    fresh: bool = False  # drop what was fetched before


@dataclass(frozen=True, slots=True)
class Install:
    """Carry out the steps into the slot, and seal it → INSTALLED, INSTALL_FAILED or VERIFY_FAILED."""

    tag: Tag
    order: Assignment
    manifest: bytes
    slot: SlotName


@dataclass(frozen=True, slots=True)
class Rehash:
    """Hold a sealed slot against its manifest (R25) → REHASHED or VERIFY_FAILED."""

    tag: Tag
    slot: SlotName


@dataclass(frozen=True, slots=True)
class Activate:
    """Make the slot boot, in trial with `starts` starts, and read it back → ACTIVATED or ACTIVATE_FAILED."""

    tag: Tag
    slot: SlotName
    starts: int


@dataclass(frozen=True, slots=True)
class Start:
    """Count a start, durably, and start what the slot holds → STARTED, STARTS_EXHAUSTED, FELL_BACK or HEALTH_FAILED.

    HEALTH_FAILED: the application could not be started at all. A slot that is not in trial is started without counting,
    and nothing waits for the result: so the application of the booted slot comes up with the agent.
    """

    tag: Tag
    slot: SlotName


@dataclass(frozen=True, slots=True)
class Watch:
    """Run the health checks over the soak → HEALTH_PASSED once; HEALTH_FAILED when one fails, until the next effect."""

    tag: Tag
    slot: SlotName


@dataclass(frozen=True, slots=True)
class Commit:
    """Mark the slot good and make it the last known good, in one durable write → COMMITTED or COMMIT_FAILED."""

    tag: Tag
    slot: SlotName


@dataclass(frozen=True, slots=True)
class Revert:
    """Mark the trial bad, boot the last known good, and start it → REVERTED or REVERT_FAILED."""

    tag: Tag
    reason: str


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Mark a slot that is neither booted nor last known good `invalid` (no reason) or `bad`."""

    slot: SlotName
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StopWork:
    """Stop the download, installation or checks in hand; their results are ignored from now on."""


Effect = (
    Save
    | Publish
    | Prepare
    | Download
    | Install
    | Rehash
    | Activate
    | Start
    | Watch
    | Commit
    | Revert
    | Invalidate
    | StopWork
)


class Chance(Protocol):
    """Where the core gets its randomness from."""

    def uniform(self) -> float:
        """Return a number from 0 up to, not including, 1."""

    def token(self) -> str:
        """Return 22 characters that nobody can guess."""
