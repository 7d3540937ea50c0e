"""Rows to tuples of columns and back; the store's hot path.

It knows no SQL and no rules. It keeps the rule that a row read is equal to the row written, and that equal mappings are
equal text (canonical JSON), so that a comparison of rows is a comparison of what is stored.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Generic, NoReturn, TypeVar

from cloud_stub.core.rows import (
    AssignmentRow,
    AssignmentState,
    AuditRow,
    DeploymentRow,
    DeviceRow,
    Policy,
    Tally,
    Trip,
    UpdateRef,
    UpdateRow,
)
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.outcomes import Party, Reason

R = TypeVar("R")
Columns = Sequence[Any]
_Convert = Callable[[Any], Any]

JSON_TEXTS_KEPT: Final = (
    8_192  # a fleet's properties, tags and slots repeat: each text is parsed once while it is kept
)


class Stored(dict[str, Any]):
    """A mapping as the store gave it: a plain dict to readers, never changed (rows share it), with its text at hand."""

    __slots__ = ("text",)
    text: str

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a stored mapping is never changed; make a new one")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return mapping_of, (self.text,)


@dataclass(frozen=True, slots=True)
class NoteRow:
    """A note of the store about itself; without a value it is removed."""

    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """How one kind of row and its tuple of columns become each other."""

    columns: tuple[str, ...]
    get: Callable[[R], tuple[Any, ...]]  # a row's fields, unconverted, one for each column
    make: Callable[..., R]
    writers: tuple[tuple[int, _Convert], ...]
    readers: tuple[tuple[int, _Convert], ...]
    writer_of: Mapping[int, _Convert]  # the writers, by place

    def encode(self, row: R) -> tuple[Any, ...]:
        """Return the columns of a row."""
        values = list(self.get(row))
        for index, convert in self.writers:
            values[index] = convert(values[index])
        return tuple(values)

    def encode_part(self, fields: Columns, places: Sequence[int], key: Sequence[int]) -> tuple[Any, ...]:
        """Return some columns of a row's unconverted fields, and behind them its key."""
        writer_of = self.writer_of
        values = [
            writer_of[place](fields[place]) if place in writer_of else fields[place] for place in places
        ]
        values += [fields[place] for place in key]
        return tuple(values)

    def decode(self, columns: Columns) -> R:
        """Return the row of a tuple of columns."""
        values = list(columns)
        for index, convert in self.readers:
            values[index] = convert(values[index])
        return self.make(*values)

    def decode_all(self, rows: Iterable[Columns]) -> list[R]:
        """Return the rows of many tuples of columns."""
        decode = self.decode
        return [decode(columns) for columns in rows]


def text_of(value: Mapping[str, Any]) -> str:
    """Return a mapping as canonical JSON text."""
    if type(value) is Stored:
        return value.text
    return _dump(value if type(value) is dict else dict(value))


@lru_cache(maxsize=JSON_TEXTS_KEPT)
def mapping_of(text: str) -> Stored:
    """Return the mapping of a JSON text."""
    stored = Stored(json.loads(text))
    stored.text = text
    return stored


_dump: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def _flag(value: bool) -> int:
    return 1 if value else 0


def _word(value: StrEnum) -> str:
    return value._value_  # `value` is a descriptor written in Python, and this runs for every row


def _maybe_word(value: StrEnum | None) -> str | None:
    return None if value is None else value._value_


def _words(kind: type[StrEnum]) -> tuple[_Convert, _Convert]:
    return _word, {member.value: member for member in kind}.__getitem__


def _maybe_words(kind: type[StrEnum]) -> tuple[_Convert, _Convert]:
    members: dict[str | None, StrEnum | None] = {member.value: member for member in kind}
    return _maybe_word, {None: None, **members}.__getitem__


def _refs_text(refs: Iterable[UpdateRef]) -> str:
    return _dump([[ref.update, ref.sha256] for ref in refs])


def _refs(text: str) -> tuple[UpdateRef, ...]:
    return tuple(UpdateRef(update, sha256) for update, sha256 in json.loads(text))


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _policy_text(policy: Policy | None) -> str | None:
    if policy is None:
        return None
    values = {field.name: getattr(policy, field.name) for field in fields(Policy)}
    return _dump({**values, "rollback_to": [[ref.update, ref.sha256] for ref in policy.rollback_to]})


def _policy(text: str | None) -> Policy | None:
    if text is None:
        return None
    values = json.loads(text)
    refs = tuple(UpdateRef(update, sha256) for update, sha256 in values.pop("rollback_to"))
    return Policy(rollback_to=refs, **values)


def _trip_text(trip: Trip | None) -> str | None:
    return None if trip is None else _dump({field.name: getattr(trip, field.name) for field in fields(Trip)})


def _trip(text: str | None) -> Trip | None:
    return None if text is None else Trip(**json.loads(text))


def _compatibility_text(value: Iterable[Mapping[str, str]]) -> str:
    return _dump([dict(properties) for properties in value])


def _compatibility(text: str) -> tuple[Mapping[str, str], ...]:
    return tuple(json.loads(text))


_FLAG: Final[tuple[_Convert, _Convert]] = (_flag, bool)
_MAPPING: Final[tuple[_Convert, _Convert]] = (text_of, mapping_of)


def _codec(kind: type[R], converts: Mapping[str, tuple[_Convert, _Convert]]) -> Codec[R]:
    names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
    return _make_codec(
        names, attrgetter(*names), kind, {names.index(name): both for name, both in converts.items()}
    )


def _make_codec(
    columns: tuple[str, ...],
    get: Callable[[R], tuple[Any, ...]],
    make: Callable[..., R],
    places: Mapping[int, tuple[_Convert, _Convert]],
) -> Codec[R]:
    writers = {place: write for place, (write, _) in places.items()}
    readers = tuple((place, read) for place, (_, read) in places.items())
    return Codec(columns, get, make, tuple(writers.items()), readers, writers)


DEVICE: Final = _codec(
    DeviceRow,
    {
        "properties": _MAPPING,
        "tags": _MAPPING,
        "cloned": _FLAG,
        "work_state": _words(WorkflowState),
        "slots": _MAPPING,
        "online": _FLAG,
        "order_stale": _FLAG,
        "order_downgrade": _FLAG,
    },
)
ASSIGNMENT: Final = _codec(
    AssignmentRow,
    {
        "state": _words(AssignmentState),
        "phase": _words(WorkflowState),
        "reason": _maybe_words(Reason),
        "party": _maybe_words(Party),
        "already_there": _FLAG,
        "counted": _FLAG,
        "suspended": _FLAG,
        "guessed": _FLAG,
        "moved_on": _FLAG,
    },
)
UPDATE: Final = _codec(UpdateRow, {"compatibility": (_compatibility_text, _compatibility)})
NOTE: Final = _codec(NoteRow, {})
AUDIT: Final = _codec(AuditRow, {"facts": _MAPPING})

_TALLY: Final = tuple(field.name for field in fields(Tally))
_DEPLOYMENT: Final = tuple(field.name for field in fields(DeploymentRow) if field.name != "tally")


def _deployment(*values: Any) -> DeploymentRow:
    split = len(_DEPLOYMENT)
    return DeploymentRow(*(*values[:split], Tally(*values[split:])))


def _deployment_codec() -> Codec[DeploymentRow]:
    converts: Mapping[str, tuple[_Convert, _Convert]] = {
        "state": _words(DeploymentState),
        "updates": (_refs_text, _refs),
        "policy": (_policy_text, _policy),
        "allow_downgrade": _FLAG,
        "allowed_withdrawn": (_dump, _words_of),
        "trip": (_trip_text, _trip),
    }
    columns = (*_DEPLOYMENT, *(f"tally_{name}" for name in _TALLY))
    get = attrgetter(*_DEPLOYMENT, *(f"tally.{name}" for name in _TALLY))
    return _make_codec(
        columns, get, _deployment, {columns.index(name): both for name, both in converts.items()}
    )


DEPLOYMENT: Final = _deployment_codec()
