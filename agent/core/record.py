"""The record and the slot table as bytes on the disk: one frozen format that every agent version reads (R26).

It writes no file (`adapters/` do). It keeps the rule that an agent that was gone back to loses nothing of a newer one's
that it can keep. A newer format number is read as ours, and kept: formats only ever add fields and words.

A field that this version does not know is passed through: at the top, inside `workflow`, `slots` and each slot, and
inside an order or outcome for as long as that stays as it was read. One that has changed since is written in our words
alone, for nobody here could say whether a field of the old one holds for the new one too. (So a newer version adds its
fields inside an outcome, never beside it.)

A word that this version does not know costs that one thing, never the record: a workflow is read as idle, so that the
slots decide (`resume.py`); an outcome, or the verdict of a revert, is folded into the count (R7), for one kept aside is
never acknowledged and so would never leave the disk; a waiting order and an answer are dropped; a slot holds `unknown`.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Final, NoReturn, TypeVar

from pydantic import ValidationError

from agent.core.model import SLOTS, Holds, Record, Slot, SlotName, SlotTable, Workflow
from protocol.errors import DeviceError, LastgoodError
from protocol.lifecycle import WorkflowState
from protocol.messages import OUTCOMES_MAX, Assignment, Message, OutcomeReport, Value
from protocol.strict_json import dump, parse

T = TypeVar("T")

FORMAT: Final = 1
RECORD_BYTES_MAX: Final = 1_048_576  # two orders, one envelope and 32 outcomes stay far below it

_RECORD: Final = frozenset(field.name for field in fields(Record)) - {"unknown"} | {"format"}
_WORKFLOW: Final = frozenset(field.name for field in fields(Workflow))
_WORKFLOW_PARTS: Final = ("order", "next", "verdict")
_TABLE: Final = frozenset({"format", "slots", "booted", "last_known_good"})
_SLOT: Final = frozenset(field.name for field in fields(Slot))
_NO_PARTS: Final[Mapping[Any, Any]] = {}
_PARTS: Final = "outcomes"  # a name no unknown field has: there `unknown` keeps parts as they were read
_BROKEN: Final = (
    LastgoodError,
    ValidationError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    binascii.Error,
)
_PHASES: Final = frozenset({"", "manifest", "files", "rehash"})
_ANSWERS: Final = frozenset({"canceled", "too_late", "held"})


def encode(record: Record) -> bytes:
    """Return the record as bytes; the inverse of `decode`."""
    parts = record.unknown.get(_PARTS, {})
    own: dict[str, Any] = {
        "format": FORMAT,
        "instance": record.instance,
        "start": record.start,
        "epoch": record.epoch,
        "envelope": base64.b64encode(record.envelope).decode("ascii")
        if record.envelope is not None
        else None,
        "workflow": _workflow_out(record.workflow, parts),
        "outcomes": [{"first": first, "outcome": _out(outcome, parts)} for first, outcome in record.outcomes],
        "outcomes_folded": record.outcomes_folded,
        "ended": list(record.ended) if record.ended is not None else None,
        "answer_epoch": record.answer_epoch,
        "answer": record.answer,
        "sequence": record.sequence,
        "digest": record.digest,
        "floor": record.floor,
    }
    return dump(_merged(own, record.unknown))


def decode(data: bytes) -> Record:
    """Return the record of these bytes, whatever a newer agent has put into workflow, outcomes and answer.

    Raises:
        DeviceError: they are no record; the sentence says why.
    """
    try:
        raw = parse(data, bytes_max=RECORD_BYTES_MAX)
        envelope = raw.get("envelope")
        ended = raw.get("ended")
        work = _fields(raw.get("workflow"))
        workflow = _workflow_in(work)
        outcomes, folded = _outcomes_in(raw.get("outcomes", []))
        if work.get("verdict") is not None and workflow.verdict is None:
            folded += 1  # it was decided, and it was to be told
        unknown = _unknown(raw, _RECORD, {"workflow": _WORKFLOW})
        parts = [(getattr(workflow, name), work.get(name)) for name in _WORKFLOW_PARTS]
        parts += [(outcome, given) for _, outcome, given in outcomes]
        if richer := {part: given for part, given in parts if part and given != _out(part)}:
            unknown[_PARTS] = richer
        return Record(
            instance=_text(raw["instance"]),
            start=_count(raw.get("start", 0)),
            epoch=_optional_count(raw.get("epoch")),
            envelope=base64.b64decode(envelope, validate=True) if envelope is not None else None,
            workflow=workflow,
            outcomes=tuple((first, outcome) for first, outcome, _ in outcomes),
            outcomes_folded=_count(raw.get("outcomes_folded", 0)) + folded,
            ended=(_text(ended[0]), _count(ended[1])) if ended is not None else None,
            answer_epoch=_understood(_count, raw.get("answer_epoch")),
            answer=_understood(_answer, raw.get("answer")),
            sequence=_count(raw.get("sequence", 0)),
            digest=_text(raw.get("digest", "")),
            floor=_count(raw.get("floor", 0)),
            unknown=unknown,
        )
    except _BROKEN as error:
        raise DeviceError(f"The agent's record cannot be read: {error}.") from error


def encode_slots(table: SlotTable) -> bytes:
    """Return the slot table as bytes; the inverse of `decode_slots`."""
    own: dict[str, Any] = {
        "format": FORMAT,
        "slots": {name: _slot_out(slot) for name, slot in table.slots.items()},
        "booted": table.booted,
        "last_known_good": table.last_known_good,
    }
    return dump(_merged(own, table.unknown))


def decode_slots(data: bytes) -> SlotTable:
    """Return the slot table of these bytes.

    Raises:
        DeviceError: they are no slot table; the sentence says why.
    """
    try:
        raw = parse(data, bytes_max=RECORD_BYTES_MAX)
        slots: dict[SlotName, Slot] = {name: _slot_in(raw["slots"][name]) for name in SLOTS}
        unknown = _unknown(raw, _TABLE, {"slots": frozenset(SLOTS)})
        extras = {name: _unknown(raw["slots"][name], _SLOT, {}) for name in SLOTS}
        if any(extras.values()):
            unknown["slots"] = {**unknown.get("slots", {}), **extras}
        return SlotTable(slots, _slot_name(raw["booted"]), _slot_name(raw["last_known_good"]), unknown)
    except _BROKEN as error:
        raise DeviceError(f"The slot table cannot be read: {error}.") from error


def _workflow_out(work: Workflow, parts: Mapping[Any, Any]) -> dict[str, Any]:
    out = {name: getattr(work, name) for name in _WORKFLOW}
    return {**out, **{name: _out(out[name], parts) for name in _WORKFLOW_PARTS}}


def _workflow_in(raw: dict[str, Any]) -> Workflow:
    """Return the workflow; of one that is not understood stay the count of ordinals and the order that waits."""
    return _understood(_known_workflow, raw) or Workflow(
        next=_understood(Assignment.model_validate, raw.get("next")),
        ordinal=_understood(_count, raw.get("ordinal")) or 0,
    )


def _known_workflow(raw: dict[str, Any]) -> Workflow:
    known = {name: raw[name] for name in _WORKFLOW if name in raw}
    order, waiting, verdict = (known.pop(name, None) for name in _WORKFLOW_PARTS)
    state = WorkflowState(known.pop("state", WorkflowState.IDLE))
    slot = known.pop("slot", None)
    phase = _one_of(known.pop("phase", ""), _PHASES)
    stuck = known.pop("stuck", None)
    for name, value in known.items():
        _flag(value) if isinstance(getattr(_FRESH, name), bool) else _count(value)
    if state is not WorkflowState.IDLE and state is not WorkflowState.REVERTING and order is None:
        _broken("a state without its order")
    return Workflow(
        state=state,
        order=Assignment.model_validate(order) if order is not None else None,
        next=_understood(Assignment.model_validate, waiting),
        slot=_slot_name(slot) if slot is not None else None,
        phase=phase,
        verdict=_understood(OutcomeReport.model_validate, verdict),
        stuck=_text(stuck) if stuck is not None else None,
        **known,
    )


_FRESH: Final = Workflow()


def _outcomes_in(raw: object) -> tuple[list[tuple[int, OutcomeReport, Any]], int]:
    """Return the outcomes, each with what it was read from, and how many more there are that no report can tell."""
    entries = raw if isinstance(raw, list) else [raw]
    known = [entry for entry in (_understood(_outcome, given) for given in entries) if entry is not None]
    kept = known[-OUTCOMES_MAX:]
    return kept, len(entries) - len(kept)


def _outcome(entry: Mapping[str, Any]) -> tuple[int, OutcomeReport, Any]:
    given = entry["outcome"]
    return _count(entry["first"]), OutcomeReport.model_validate(given), given


def _answer(value: object) -> Any:
    return _one_of(value, _ANSWERS)


def _slot_out(slot: Slot) -> dict[str, Any]:
    return {name: getattr(slot, name) for name in _SLOT}


def _slot_in(raw: dict[str, Any]) -> Slot:
    slot = Slot(
        holds=_understood(Holds, _text(raw["holds"])) or Holds.UNKNOWN,
        update=_text(raw["update"]) if raw.get("update") is not None else None,
        sha256=_text(raw["sha256"]) if raw.get("sha256") is not None else None,
        release_counter=_count(raw.get("release_counter", 0)),
        starts_left=_optional_count(raw.get("starts_left")),
        reason=_text(raw["reason"]) if raw.get("reason") is not None else None,
    )
    if slot.holds != raw["holds"]:  # starts and reason belong to the word that is not understood
        slot = replace(slot, starts_left=None, reason=None)
    return slot


def _out(model: Message | Value | None, parts: Mapping[Any, Any] = _NO_PARTS) -> dict[str, Any] | None:
    """Return a part as it was read, with all that it bears, when it is one of those; else as we write it."""
    if model is None:
        return None
    return parts.get(model) or model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _unknown(
    raw: Mapping[str, Any], known: frozenset[str], inside: Mapping[str, frozenset[str]]
) -> dict[str, Any]:
    found = {name: value for name, value in raw.items() if name not in known}
    for name, names in inside.items():
        extra = {key: value for key, value in _fields(raw.get(name)).items() if key not in names}
        if extra:
            found[name] = extra
    if isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        found["format"] = raw["format"]
    return found


def _merged(own: dict[str, Any], unknown: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what was unknown beside what is known; only the format number of a newer agent replaces ours."""
    for name, value in unknown.items():
        if isinstance(own.get(name), dict) and isinstance(value, Mapping):
            own[name] = _merged(dict(own[name]), value)
        elif name not in own or name == "format":
            own[name] = value
    return own


def _understood(read: Callable[[Any], T], value: object) -> T | None:
    """Return what `read` makes of a value, or None: a newer agent may mean what this version does not know."""
    try:
        return read(value)
    except _BROKEN:
        return None


def _fields(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        _broken(f"{value!r} where a count belongs")
    return value


def _optional_count(value: object) -> int | None:
    return None if value is None else _count(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        _broken(f"{value!r} where true or false belongs")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        _broken(f"{value!r} where a text belongs")
    return value


def _slot_name(value: object) -> SlotName:
    for name in SLOTS:
        if value == name:
            return name
    return _broken(f"{value!r} is no slot")


def _one_of(value: Any, words: frozenset[str]) -> Any:
    if value is not None and value not in words:
        _broken(f"{value!r} is not one of {', '.join(sorted(words))}")
    return value


def _broken(what: str) -> NoReturn:
    raise ValueError(what)
