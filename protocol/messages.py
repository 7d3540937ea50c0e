"""The messages on the wire, each as a versioned model, built and read in this one module.

It is not about topics (`topics.py`), nor about what a side does with a message. `read` and `write` are inverses;
unknown fields are ignored when reading, and sizes are capped (DESIGN.md section 4). Times end in `_ms`: instants are
UTC milliseconds of the cloud's clock, everything else is a duration.
"""

from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol.errors import MessageRefused
from protocol.identity import DEVICE_ID_PATTERN, SHA256_HEX_PATTERN
from protocol.lifecycle import WorkflowState
from protocol.outcomes import Abandoned, Reason, Result
from protocol.strict_json import MESSAGE_BYTES_MAX, dump, parse
from protocol.topics import Kind

SCHEMA: Final = 1
OUTCOMES_MAX: Final = 32  # in one state; the oldest are folded into a count (R7)
DETAIL_CHARACTERS_MAX: Final = 500  # of free text that explains a failure
PROPERTIES_MAX: Final = 32  # properties or tags of one device
EPOCH_MAX: Final = 2**53 - 1  # the largest integer every JSON reader keeps exact

_PATH_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9.-]*(/[A-Za-z0-9][A-Za-z0-9.-]*)*$"  # relative, and never `..`

DeviceId = Annotated[str, StringConstraints(pattern=DEVICE_ID_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=SHA256_HEX_PATTERN)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
Line = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
Detail = Annotated[str, StringConstraints(max_length=DETAIL_CHARACTERS_MAX, pattern=r"^[^\x00]*$")]
Count = Annotated[int, Field(ge=0, le=EPOCH_MAX)]
Words = Annotated[dict[Word, Line], Field(max_length=PROPERTIES_MAX)]
SlotName = Literal["A", "B"]
M = TypeVar("M", bound="Message")


class Message(BaseModel):
    """What all messages share. A newer writer may add fields; a reader ignores them."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, populate_by_name=True)

    schema_: Annotated[int, Field(alias="schema", ge=1, le=SCHEMA)] = SCHEMA
    device: DeviceId


class Value(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Hello(Message):
    """A device is there: on every connect after SUBACK, at every heartbeat, and to ask at the gate (R4, R6)."""

    instance: Word
    connection: Word
    sequence: Count
    digest: Sha256
    epoch: Count | None = None
    nonce: Word | None = None
    wants_addresses: bool = False  # the addresses it has are refused or expired: refresh the order (R1)
    proof: Annotated[str, StringConstraints(max_length=65_536)] | None = None  # signed order, when ahead (R2)
    refused_count: Count = 0  # messages that this device refused since it started


class SlotReport(Value):
    """What one slot holds, and how it boots."""

    holds: Literal["empty", "invalid", "writing", "sealed", "trial", "good", "bad", "unknown"]
    update: Line | None = None
    sha256: Sha256 | None = None
    starts_left: Count | None = None
    reason: Line | None = None


class Running(Value):
    """The update a device runs, by its true identity and by its name."""

    update: Line
    sha256: Sha256
    release_counter: Count = 0


class WorkReport(Value):
    """The workflow as a device reports it."""

    state: Annotated[WorkflowState, Field(strict=False)] = WorkflowState.IDLE
    deployment: Word | None = None
    epoch: Count | None = None
    attempt: Count | None = None
    target_sha256: Sha256 | None = None
    stuck: Line | None = None


class OutcomeReport(Value):
    """How one attempt ended, keyed (epoch, deployment, attempt) (R7)."""

    epoch: Count
    deployment: Word
    attempt: Count
    result: Annotated[Result, Field(strict=False)]
    phase: Annotated[WorkflowState, Field(strict=False)] = WorkflowState.IDLE
    reason: Annotated[Reason, Field(strict=False)] | None = None
    abandoned: Annotated[Abandoned, Field(strict=False)] | None = None
    detail: Detail = ""
    already_there: bool = False
    running_sha256: Sha256 | None = None
    reach_ms: Count | None = None
    reach_limit_ms: Count | None = None

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.result is Result.FAILED and self.reason is None:
            raise ValueError("a failure needs its reason")
        if self.result is Result.ABANDONED and self.abandoned is None:
            raise ValueError("an abandoned attempt needs its why")
        return self


class Answer(Value):
    """What a device says to the newest hold or cancel it accepted (R5)."""

    epoch: Count
    answer: Literal["canceled", "too_late", "held"]


class State(Message):
    """The whole reported state of a device. `digest` is the device's own over all but instance and sequence."""

    instance: Word
    sequence: Count
    digest: Sha256
    epoch: Count | None = None
    epoch_in_work: Count | None = None
    floor: Count = 0
    properties: Words = {}
    tags: Words = {}
    slots: dict[SlotName, SlotReport] = {}
    booted: SlotName | None = None
    last_known_good: SlotName | None = None
    running: Running | None = None
    work: WorkReport = WorkReport()
    outcomes: Annotated[tuple[OutcomeReport, ...], Field(max_length=OUTCOMES_MAX, strict=False)] = ()
    outcomes_folded: Count = 0
    answer: Answer | None = None
    agent_version: Line = ""
    minimal: bool = False  # identity, epoch, running and outcomes alone, after the whole was refused (R6)


class Progress(Message):
    """Phase and bytes of an attempt; may be lost."""

    deployment: Word
    epoch: Count
    attempt: Count
    phase: Annotated[WorkflowState, Field(strict=False)]
    bytes_done: Count = 0
    bytes_total: Count = 0


class Gone(Message):
    """The last will: the connection with this nonce ended (R9)."""

    connection: Word


class Ack(Message):
    """What the cloud's database has of a device, said after it has it (R6)."""

    instance: Word
    sequence: Count
    digest: Sha256 | None = None
    newest_epoch: Count
    nonce: Word | None = None
    refused: Line | None = None
    heartbeat_ms: Count | None = None
    reconnect_spread_ms: Count | None = None


class Sync(Message):
    """Everyone is asked to say hello within a window, each after a random delay. `device` is `all`."""

    window_ms: Count


class Target(Value):
    """One update manifest: what it is called, where it lies, and the sha256 that is its identity."""

    update: Line
    path: Annotated[str, StringConstraints(max_length=256, pattern=_PATH_PATTERN)]
    size_bytes: Count
    sha256: Sha256


class Repository(Value):
    """Where manifest and files are fetched; `query` is the signed, expiring part of every address there."""

    url: Annotated[str, StringConstraints(max_length=1024, pattern=r"^https?://[\x21-\x7e]+$")]
    query: Annotated[str, StringConstraints(max_length=512, pattern=r"^[\x21-\x7e]*$")] = ""


class Assignment(Message):
    """A device's whole desired state: run a target, or stay as you are. The payload of a signed envelope.

    A `hold` that names a deployment and an attempt cancels that attempt.
    """

    epoch: Count
    issued_ms: Count
    lifetime_ms: Count
    action: Literal["install", "hold"]
    deployment: Word | None = None
    attempt: Count | None = None
    nonce: Word | None = None  # the hello's, for a device without a stored epoch (R3)
    target: Target | None = None
    repository: Repository | None = None
    allow_downgrade: bool = False
    offline_ok: bool = False
    trial_starts: Annotated[int, Field(ge=1, le=16)] | None = None
    snapshot_version: Count | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        needed = (self.deployment, self.attempt, self.target, self.repository)
        if self.action == "install" and None in needed:
            raise ValueError("an install needs its deployment, attempt, target and repository")
        return self


MODELS: Final[dict[Kind, type[Message]]] = {
    Kind.HELLO: Hello,
    Kind.STATE: State,
    Kind.PROGRESS: Progress,
    Kind.GONE: Gone,
    Kind.DESIRED: Assignment,
    Kind.ACK: Ack,
    Kind.SYNC: Sync,
}


def read(model: type[M], data: bytes) -> M:
    """Read one message strictly; the inverse of `write`.

    Raises:
        MessageRefused: `reason` is `too_large`, `not_json`, `schema` or `fields` (not of this model).
    """
    fields = parse(data, bytes_max=MESSAGE_BYTES_MAX)
    schema = fields.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise MessageRefused("schema", f"Its schema is {schema!r}, and this version reads up to {SCHEMA}.")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageRefused("fields", f"Its field {where!r} is not valid: {first['msg']}.") from error


def write(message: Message) -> bytes:
    """Write a message as canonical JSON; fields that are None are left out."""
    return dump(message.model_dump(mode="json", by_alias=True, exclude_none=True))
