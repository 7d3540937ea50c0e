"""The record and the slot table as bytes on the disk: one frozen format that every agent version reads (R26).

It writes no file (`adapters/` do). It keeps the rule that a field this version does not know is passed through, at the
top and inside `workflow`, `slots` and each slot, so that an agent that was gone back to loses nothing of a newer one's.
A newer format number is read as ours, and kept: formats only ever add fields.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from agent.core.model import SLOTS, Holds, Record, Slot, SlotName, SlotTable, Workflow
from protocol.errors import DeviceError, LastgoodError
from protocol.lifecycle import WorkflowState
from protocol.messages import Assignment, Message, OutcomeReport, Value
from protocol.strict_json import dump, parse

FORMAT: Final = 1
RECORD_BYTES_MAX: Final = 1_048_576  # two orders, one envelope and 32 outcomes stay far below it

_RECORD: Final = frozenset(field.name for field in fields(Record)) - {"unknown"} | {"format"}
_WORKFLOW: Final = frozenset(field.name for field in fields(Workflow))
_TABLE: Final = frozenset({"format", "slots", "booted", "last_known_good"})
_SLOT: Final = frozenset(field.name for field in fields(Slot))
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
    own: dict[str, Any] = {
        "format": FORMAT,
        "instance": record.instance,
        "start": record.start,
        "epoch": record.epoch,
        "envelope": base64.b64encode(record.envelope).decode("ascii")
        if record.envelope is not None
        else None,
        "workflow": _workflow_out(record.workflow),
        "outcomes": [{"first": first, "outcome": _out(outcome)} for first, outcome in record.outcomes],
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
    """Return the record of these bytes.

    Raises:
        DeviceError: they are no record; the sentence says why.
    """
    try:
        raw = parse(data, bytes_max=RECORD_BYTES_MAX)
        envelope = raw.get("envelope")
        ended = raw.get("ended")
        return Record(
            instance=_text(raw["instance"]),
            start=_count(raw.get("start", 0)),
            epoch=_optional_count(raw.get("epoch")),
            envelope=base64.b64decode(envelope, validate=True) if envelope is not None else None,
            workflow=_workflow_in(raw.get("workflow", {})),
            outcomes=tuple(
                (_count(entry["first"]), OutcomeReport.model_validate(entry["outcome"]))
                for entry in raw.get("outcomes", [])
            ),
            outcomes_folded=_count(raw.get("outcomes_folded", 0)),
            ended=(_text(ended[0]), _count(ended[1])) if ended is not None else None,
            answer_epoch=_optional_count(raw.get("answer_epoch")),
            answer=_one_of(raw.get("answer"), _ANSWERS),
            sequence=_count(raw.get("sequence", 0)),
            digest=_text(raw.get("digest", "")),
            floor=_count(raw.get("floor", 0)),
            unknown=_unknown(raw, _RECORD, {"workflow": _WORKFLOW}),
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
        unknown = _unknown(raw, _TABLE, {})
        extras = {name: _unknown(raw["slots"][name], _SLOT, {}) for name in SLOTS}
        if any(extras.values()):
            unknown["slots"] = extras
        return SlotTable(slots, _slot_name(raw["booted"]), _slot_name(raw["last_known_good"]), unknown)
    except _BROKEN as error:
        raise DeviceError(f"The slot table cannot be read: {error}.") from error


def _workflow_out(work: Workflow) -> dict[str, Any]:
    out = {name: getattr(work, name) for name in _WORKFLOW}
    return {**out, "order": _out(work.order), "next": _out(work.next), "verdict": _out(work.verdict)}


def _workflow_in(raw: dict[str, Any]) -> Workflow:
    known = {name: raw[name] for name in _WORKFLOW if name in raw}
    order, waiting, verdict = (known.pop(name, None) for name in ("order", "next", "verdict"))
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
        next=Assignment.model_validate(waiting) if waiting is not None else None,
        slot=_slot_name(slot) if slot is not None else None,
        phase=phase,
        verdict=OutcomeReport.model_validate(verdict) if verdict is not None else None,
        stuck=_text(stuck) if stuck is not None else None,
        **known,
    )


_FRESH: Final = Workflow()


def _slot_out(slot: Slot) -> dict[str, Any]:
    return {name: getattr(slot, name) for name in _SLOT}


def _slot_in(raw: dict[str, Any]) -> Slot:
    return Slot(
        holds=Holds(raw["holds"]),
        update=_text(raw["update"]) if raw.get("update") is not None else None,
        sha256=_text(raw["sha256"]) if raw.get("sha256") is not None else None,
        release_counter=_count(raw.get("release_counter", 0)),
        starts_left=_optional_count(raw.get("starts_left")),
        reason=_text(raw["reason"]) if raw.get("reason") is not None else None,
    )


def _out(model: Message | Value | None) -> dict[str, Any] | None:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True) if model is not None else None


def _unknown(
    raw: Mapping[str, Any], known: frozenset[str], inside: Mapping[str, frozenset[str]]
) -> dict[str, Any]:
    found = {name: value for name, value in raw.items() if name not in known}
    for name, names in inside.items():
        extra = {key: value for key, value in raw.get(name, {}).items() if key not in names}
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
