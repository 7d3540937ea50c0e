"""What the two slots hold and which one boots, as pure functions from one slot table to the next.

It touches no disk: a backend (`adapters/`) makes each result durable, and virtual devices keep it in memory. It keeps
the slot invariants of DESIGN.md section 5: the booted and the last known good slot are never written, only what was
sealed is put in trial, a trial has a bounded number of starts, and what a power loss leaves is never ambiguous.

`activate` and `revert` write twice (what the slot holds, which slot boots), so their halves are public too: a backend
makes the first half durable, then the second, and `recover` finishes or undoes what stopped in between:

    mark_trial → boot    lost in between: a trial that is not booted → sealed again, the switch had not happened
    mark_bad   → boot    lost in between: a bad slot is booted → boot the last known good one
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from agent.core.model import Holds, Slot, SlotName, SlotTable, other
from protocol.errors import DeviceError

_H = Holds

HOLDS: Final[Mapping[Holds, frozenset[Holds]]] = {
    _H.EMPTY: frozenset({_H.WRITING, _H.INVALID, _H.BAD}),
    _H.INVALID: frozenset({_H.WRITING, _H.INVALID, _H.BAD}),
    _H.WRITING: frozenset({_H.WRITING, _H.SEALED, _H.INVALID, _H.BAD}),
    _H.SEALED: frozenset({_H.WRITING, _H.TRIAL, _H.GOOD, _H.INVALID, _H.BAD}),
    _H.TRIAL: frozenset({_H.WRITING, _H.TRIAL, _H.GOOD, _H.SEALED, _H.INVALID, _H.BAD}),
    _H.GOOD: frozenset({_H.WRITING, _H.TRIAL, _H.GOOD, _H.INVALID, _H.BAD}),
    _H.BAD: frozenset({_H.WRITING, _H.INVALID, _H.BAD}),
    _H.UNKNOWN: frozenset({_H.WRITING, _H.GOOD, _H.INVALID, _H.BAD}),
}
"""What a slot may hold next. `sealed → good` and `unknown → good` happen only to a booted slot (late fall-back)."""

FELL_BACK: Final = "fell_back"  # why the slot is bad that a late fall-back left
REASON_CHARACTERS_MAX: Final = 256  # of the reason a slot is bad: one line of a report

NOTHING_WHOLE: Final = frozenset({_H.EMPTY, _H.INVALID, _H.WRITING, _H.BAD})  # nothing to start, or to commit
_GOES_BACK_TO: Final = frozenset(
    {_H.GOOD, _H.EMPTY, _H.SEALED, _H.UNKNOWN}
)  # empty: a device that never had an update
_TRIED: Final = frozenset({_H.SEALED, _H.GOOD})  # whole and verified, so it may be put in trial


def factory(update: str | None = None, sha256: str | None = None, release_counter: int = 0) -> SlotTable:
    """Return the table of a new device: slot A is booted and last known good, with an update or without one."""
    holds = _H.EMPTY if sha256 is None else _H.GOOD
    return SlotTable({"A": Slot(holds, update, sha256, release_counter), "B": Slot()}, "A", "A")


def begin(table: SlotTable, slot: SlotName, update: str, sha256: str, release_counter: int) -> SlotTable:
    """Return the table in which `slot` is being written; it is durable before the first byte changes.

    Raises:
        DeviceError: the slot is booted or last known good.
    """
    _refuse_in_use(table, slot, "written")
    return _with(table, slot, Slot(_H.WRITING, update, sha256, release_counter))


def seal(table: SlotTable, slot: SlotName) -> SlotTable:
    """Return the table in which what was written is complete; sealing what is sealed changes nothing.

    Raises:
        DeviceError: the slot is not being written.
    """
    held = table.slots[slot]
    if held.holds is _H.SEALED:
        return table
    if held.holds is not _H.WRITING:
        raise DeviceError(f"Slot {slot} cannot be sealed: it is {held.holds}, not being written.")
    return _with(table, slot, replace(held, holds=_H.SEALED))


def activate(table: SlotTable, slot: SlotName, starts: int) -> SlotTable:
    """Return the table in which `slot` is in trial with so many starts and boots: `mark_trial`, then `boot`."""
    return boot(mark_trial(table, slot, starts), slot)


def mark_trial(table: SlotTable, slot: SlotName, starts: int) -> SlotTable:
    """Return the table in which `slot` is in trial, though not booted yet: the first half of `activate`.

    A slot that is already in trial keeps the starts it has left, so that the effect can be run again.

    Raises:
        DeviceError: the slot is booted, or not sealed, or another trial runs; `starts` is below 1.
    """
    held = table.slots[slot]
    if held.holds is _H.TRIAL and held.starts_left:
        return table
    _refuse_in_use(table, slot, "put in trial")
    if table.booted != table.last_known_good:
        raise DeviceError(f"Slot {slot} cannot be put in trial: slot {table.booted} is in trial.")
    if held.holds not in _TRIED or held.sha256 is None:
        raise DeviceError(
            f"Slot {slot} cannot be put in trial: it is {held.holds}, and only a sealed slot is tried."
        )
    if starts < 1:
        raise DeviceError("A trial needs at least one start.")
    return _with(table, slot, replace(held, holds=_H.TRIAL, starts_left=starts, reason=None))


def boot(table: SlotTable, slot: SlotName) -> SlotTable:
    """Return the table in which `slot` boots: the one atomic step of the switch.

    Raises:
        DeviceError: the slot is neither in trial nor the last known good one.
    """
    if slot == table.booted:
        return table
    if slot != table.last_known_good and table.slots[slot].holds is not _H.TRIAL:
        raise DeviceError(
            f"Slot {slot} is not booted: it is {table.slots[slot].holds}, neither in trial nor last known good."
        )
    return replace(table, booted=slot)


def count_start(table: SlotTable, slot: SlotName) -> tuple[SlotTable, bool]:
    """Take one of the trial's starts, and say whether the slot may be started; the table is durable before it is.

    Starts of a slot that is not in trial are not counted (counting after the commit would fall back months later).
    """
    held = table.slots[slot]
    if held.holds is not _H.TRIAL:
        return table, held.holds not in {_H.BAD, _H.INVALID, _H.WRITING}
    if not held.starts_left:
        return table, False
    return _with(table, slot, replace(held, starts_left=held.starts_left - 1)), True


def commit(table: SlotTable, slot: SlotName) -> SlotTable:
    """Return the table in which the booted slot is good and last known good, in one write.

    It also settles a late fall-back: what the bootloader went back to becomes last known good.

    Raises:
        DeviceError: the slot is not booted, or is bad or unfinished.
    """
    held = table.slots[slot]
    if slot != table.booted:
        raise DeviceError(f"Slot {slot} cannot be committed: slot {table.booted} is booted.")
    if held.holds not in {_H.TRIAL, _H.GOOD, _H.SEALED, _H.UNKNOWN}:
        raise DeviceError(f"Slot {slot} cannot be committed: it is {held.holds}.")
    return replace(
        _with(table, slot, replace(held, holds=_H.GOOD, starts_left=None, reason=None)), last_known_good=slot
    )


def revert(table: SlotTable, reason: str) -> SlotTable:
    """Return the table in which the trial is bad and the last known good slot boots: `mark_bad`, then `boot`."""
    marked = mark_bad(table, reason)
    return boot(marked, marked.last_known_good)


def mark_bad(table: SlotTable, reason: str) -> SlotTable:
    """Return the table in which the trial is bad, though it may still be booted: the first half of `revert`.

    Without a trial nothing changes, so that the effect can be run again.
    """
    trial = other(table.last_known_good)
    held = table.slots[trial]
    if held.holds is not _H.TRIAL and (table.booted != trial or held.holds is _H.BAD):
        return table
    return _with(table, trial, _bad(held, reason))


def invalidate(table: SlotTable, slot: SlotName, reason: str | None = None) -> SlotTable:
    """Return the table in which a spare slot is invalid, or bad with a reason: it has no checksum left to trust.

    Raises:
        DeviceError: the slot is booted or last known good.
    """
    _refuse_in_use(table, slot, "invalidated")
    held = table.slots[slot]
    if reason is not None:
        return _with(table, slot, _bad(held, reason))
    return table if held.holds is _H.EMPTY else _with(table, slot, Slot(_H.INVALID, held.update))


def recover(table: SlotTable) -> SlotTable:
    """Return the legal table nearest to what a power loss left; runs at every start, and can be run again.

    A late fall-back (booted is not last known good, and no trial) is left as it is: it is the core's to report first.
    But what holds nothing whole does not stay booted.
    """
    if table.booted != table.last_known_good and table.running.holds in NOTHING_WHOLE:
        return replace(table, booted=table.last_known_good)
    spare = table.spare
    held = table.slots[spare]
    if held.holds is not _H.TRIAL or spare == table.last_known_good:
        return table
    if held.starts_left == 0:  # it was started to the last, and the bootloader gave it up
        return _with(table, spare, _bad(held, FELL_BACK))
    return _with(table, spare, replace(held, holds=_H.SEALED, starts_left=None))


def faults(table: SlotTable) -> list[str]:
    """Return the sentences of all invariants that the table breaks; none for every table these functions make."""
    found = []
    good = table.slots[table.last_known_good]
    if good.holds not in _GOES_BACK_TO:
        found.append(f"The last known good slot {table.last_known_good} is {good.holds}.")
    if table.running.holds in {_H.WRITING, _H.INVALID} or (
        table.running.holds in {_H.EMPTY, _H.BAD}
        and table.booted == table.last_known_good
        and good.holds is not _H.EMPTY
    ):
        found.append(f"The booted slot {table.booted} is {table.running.holds}.")
    if table.booted == table.last_known_good and table.running.holds is _H.TRIAL:
        found.append(f"Slot {table.booted} is in trial and last known good at once.")
    for name, slot in table.slots.items():
        if (slot.starts_left is not None) != (slot.holds is _H.TRIAL) or (slot.starts_left or 0) < 0:
            found.append(f"Slot {name} is {slot.holds} with {slot.starts_left} starts left.")
        if slot.holds in {_H.TRIAL, _H.SEALED, _H.WRITING} and slot.sha256 is None:
            found.append(f"Slot {name} is {slot.holds} without the sha256 of its manifest.")
    return found


def _bad(slot: Slot, reason: str) -> Slot:
    """The sha256 stays, since a report names what failed; only `sealed` and `good` slots are ever trusted by it."""
    return Slot(_H.BAD, slot.update, slot.sha256, slot.release_counter, None, reason[:REASON_CHARACTERS_MAX])


def _with(table: SlotTable, name: SlotName, slot: Slot) -> SlotTable:
    before = table.slots[name].holds
    if slot.holds is not before and slot.holds not in HOLDS[before]:
        raise DeviceError(f"Slot {name} cannot turn from {before} to {slot.holds}.")
    return replace(table, slots={**table.slots, name: slot})


def _refuse_in_use(table: SlotTable, slot: SlotName, what: str) -> None:
    if slot == table.booted:
        raise DeviceError(f"Slot {slot} is not {what}: it is the booted slot.")
    if slot == table.last_known_good:
        raise DeviceError(f"Slot {slot} is not {what}: it is the last known good slot.")
