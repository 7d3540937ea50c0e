"""What a device tells: its state and hello as payloads, and how its record follows them.

It sends nothing and waits for nothing (`conversation.py`). It keeps the rules that a sequence number grows exactly when
the content does, that number and digest are recorded before anything bears them, and that an outcome stays on the disk
until an acknowledgement covers it (R6, R7, R8).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from operator import is_
from typing import Any

from agent.core.model import Record, Slot, SlotTable, Workflow
from agent.core.steps import clean
from protocol.lifecycle import WorkflowState
from protocol.messages import (
    EPOCH_MAX,
    OUTCOMES_MAX,
    SCHEMA,
    Answer,
    Assignment,
    OutcomeReport,
    Progress,
    Running,
    SlotReport,
    State,
    WorkReport,
    write,
)
from protocol.outcomes import Reason
from protocol.strict_json import dump

# Of an acknowledgement: it leaves room for every report that a device will ever make.
SEQUENCE_HEARD_MAX = EPOCH_MAX // 2
LINE_CHARACTERS_MAX = 256  # of a `Line` on the wire
_NOT_IN_THE_DIGEST = {"instance", "sequence", "digest"}
_NO_DIGEST = "0" * 64


class Report:
    """The newest content of one device, made anew only when something it is made of has changed."""

    __slots__ = ("_agent_version", "_device", "_made_of", "content", "is_new")

    def __init__(self, device: str, agent_version: str) -> None:
        self._device = device
        self._agent_version = agent_version
        self._made_of: tuple[object, ...] = ()
        self.content = Content({}, "")
        self.is_new = False  # the newest look gave the record a new sequence number

    def look(
        self,
        record: Record,
        slots: SlotTable,
        properties: Mapping[str, str],
        tags: Mapping[str, str],
        *,
        minimal: bool,
    ) -> Record:
        """Bring the content up to date, and return the record, with the next sequence number if it is new."""
        made_of = _made_of(record, slots, properties, tags, minimal)
        self.is_new = False
        if self._made_of and all(map(is_, made_of, self._made_of)):
            return record
        content = content_of(
            self._device, record, slots, properties, tags, self._agent_version, minimal=minimal
        )
        after = numbered(record, content)
        self.content, self.is_new = content, after is not record
        self._made_of = _made_of(after, slots, properties, tags, minimal)
        return after


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a state without instance, sequence and digest, and its digest."""

    fields: Mapping[str, Any]
    digest: str


def content_of(
    device: str,
    record: Record,
    slots: SlotTable,
    properties: Mapping[str, str],
    tags: Mapping[str, str],
    agent_version: str,
    *,
    minimal: bool,
) -> Content:
    """Return what the device reports now; `minimal` leaves identity, epoch, running and outcomes alone (R6)."""
    if minimal:
        state = State(
            device=device,
            instance=record.instance,
            sequence=0,
            digest=_NO_DIGEST,
            epoch=record.epoch,
            running=_running(slots.running),
            outcomes=told(record),
            outcomes_folded=record.outcomes_folded,
            minimal=True,
        )
    else:
        state = _whole(device, record, slots, properties, tags, agent_version)
    fields = state.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_NOT_IN_THE_DIGEST)
    return Content(fields, sha256(dump(fields)).hexdigest())


def _made_of(
    record: Record, slots: SlotTable, properties: object, tags: object, minimal: bool
) -> tuple[object, ...]:
    """Every object that the content is made of; the same objects make the same content."""
    work = record.workflow
    return (
        work.state,
        work.order,
        work.stuck,
        record.instance,
        record.digest,
        record.epoch,
        record.outcomes,
        record.outcomes_folded,
        record.floor,
        record.answer_epoch,
        slots,
        properties,
        tags,
        minimal,
    )


def _whole(
    device: str,
    record: Record,
    slots: SlotTable,
    properties: Mapping[str, str],
    tags: Mapping[str, str],
    agent_version: str,
) -> State:
    work = record.workflow
    return State(
        device=device,
        instance=record.instance,
        sequence=0,
        digest=_NO_DIGEST,
        epoch=record.epoch,
        epoch_in_work=work.order.epoch if work.order else None,
        floor=record.floor,
        properties=dict(properties),
        tags=dict(tags),
        slots={name: _slot(slot) for name, slot in slots.slots.items()},
        booted=slots.booted,
        last_known_good=slots.last_known_good,
        running=_running(slots.running),
        work=_work(work),
        outcomes=told(record),
        outcomes_folded=record.outcomes_folded,
        answer=_answer(record),
        agent_version=agent_version,
    )


def payload_of(content: Content, record: Record) -> bytes:
    """Return the message that carries a content under the record's instance, sequence and digest."""
    return dump(
        {**content.fields, "instance": record.instance, "sequence": record.sequence, "digest": record.digest}
    )


def hello_of(
    device: str,
    record: Record,
    connection: str,
    *,
    nonce: str | None,
    wants_addresses: bool,
    proof: bool,
    refused_count: int,
) -> bytes:
    """Return a hello; with `proof` it carries the signed order of the epoch that the cloud seems to have lost (R2)."""
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "device": device,
        "instance": record.instance,
        "connection": connection,
        "sequence": record.sequence,
        "digest": record.digest or _NO_DIGEST,
        "wants_addresses": wants_addresses,
        "refused_count": refused_count,
    }
    if record.epoch is not None:
        fields["epoch"] = record.epoch
    if nonce is not None:
        fields["nonce"] = nonce
    if proof and record.envelope is not None:
        fields["proof"] = record.envelope.decode("ascii", errors="replace")
    return dump(fields)


def progress_of(
    device: str, order: Assignment, phase: WorkflowState, bytes_done: int, bytes_total: int
) -> bytes:
    """Return a progress message of the order in work."""
    progress = Progress(
        device=device,
        deployment=order.deployment or "",
        epoch=order.epoch,
        attempt=order.attempt or 0,
        phase=phase,
        bytes_done=bytes_done,
        bytes_total=bytes_total,
    )
    return write(progress)


def numbered(record: Record, content: Content) -> Record:
    """Return the record with the next sequence number if the content is new; outcomes told first bear it too."""
    if content.digest == record.digest:
        return record
    sequence = record.sequence + 1
    outcomes = tuple(
        (first or (0 if lacks_reach(outcome) else sequence), outcome) for first, outcome in record.outcomes
    )
    return replace(record, sequence=sequence, digest=content.digest, outcomes=outcomes)


def with_outcome(record: Record, outcome: OutcomeReport) -> Record:
    """Return the record with one outcome more; beyond `OUTCOMES_MAX` the oldest is folded into the count (R7).

    A key has one outcome: only a late fall-back follows a verdict of the same attempt, and takes its place (R18).
    """
    same = [old for _, old in record.outcomes if _key(old) == _key(outcome)]
    if any(old.reason is outcome.reason and old.result is outcome.result for old in same):
        return record
    kept = [entry for entry in record.outcomes if _key(entry[1]) != _key(outcome)] + [(0, outcome)]
    surplus = max(0, len(kept) - OUTCOMES_MAX)
    return replace(
        record,
        outcomes=tuple(kept[surplus:]),
        outcomes_folded=record.outcomes_folded + surplus,
        ended=(outcome.deployment, outcome.attempt),
    )


def acknowledged(record: Record, sequence: int) -> Record:
    """Return the record without the outcomes that the cloud has: those carried first by `sequence` or before (R7)."""
    kept = tuple(entry for entry in record.outcomes if not 0 < entry[0] <= sequence)
    folded = 0 if sequence == record.sequence else record.outcomes_folded
    if len(kept) == len(record.outcomes) and folded == record.outcomes_folded:
        return record
    return replace(record, outcomes=kept, outcomes_folded=folded)


def told(record: Record) -> tuple[OutcomeReport, ...]:
    """Return the outcomes to report: all but one that still lacks the time its old slot needed (R11)."""
    return tuple(outcome for _, outcome in record.outcomes if not lacks_reach(outcome))


def lacks_reach(outcome: OutcomeReport) -> bool:
    """Return whether an outcome waits for the old slot to reach the cloud before it is told (R11)."""
    return outcome.reason is Reason.CLOUD_UNREACHABLE and outcome.reach_ms is None


def with_reach(record: Record, reach_ms: int) -> Record:
    """Return the record in which outcomes that lacked it bear the time the old slot needed, in milliseconds (R11)."""
    return replace(
        record,
        outcomes=tuple(
            (first, outcome.model_copy(update={"reach_ms": reach_ms}) if lacks_reach(outcome) else outcome)
            for first, outcome in record.outcomes
        ),
    )


def _key(outcome: OutcomeReport) -> tuple[int, str, int]:
    return outcome.epoch, outcome.deployment, outcome.attempt


def _running(slot: Slot) -> Running | None:
    if slot.update is None or slot.sha256 is None:
        return None
    return Running(update=slot.update, sha256=slot.sha256, release_counter=slot.release_counter)


def _slot(slot: Slot) -> SlotReport:
    return SlotReport(
        holds=slot.holds.value,
        update=slot.update,
        sha256=slot.sha256,
        starts_left=slot.starts_left,
        reason=clean(slot.reason, LINE_CHARACTERS_MAX) if slot.reason is not None else None,
    )


def _work(work: Workflow) -> WorkReport:
    order = work.order
    if order is None:
        return WorkReport(state=work.state, stuck=work.stuck)
    return WorkReport(
        state=work.state,
        deployment=order.deployment,
        epoch=order.epoch,
        attempt=order.attempt,
        target_sha256=order.target.sha256 if order.target else None,
        stuck=work.stuck,
    )


def _answer(record: Record) -> Answer | None:
    if record.answer_epoch is None or record.answer is None:
        return None
    return Answer(epoch=record.answer_epoch, answer=record.answer)
