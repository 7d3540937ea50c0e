"""How one assignment counts in its deployment's tally, and how a tally changes with a row.

Counters change by a row's old → new transition and by nothing else (R14), so that duplicates, reordering and late
reports change nothing they should not. It judges nothing (`policy.py` does).
"""

from dataclasses import fields
from operator import attrgetter
from typing import Final

from cloud_stub.core.rows import AssignmentRow, AssignmentState, Tally

_S = AssignmentState
VERDICTS: Final = frozenset({_S.SUCCEEDED, _S.FAILED})
OPEN: Final = frozenset({_S.PENDING, _S.WORKING})
OUTSIDE: Final = frozenset({_S.INCOMPATIBLE, _S.UNPROTECTED, _S.DROPPED})  # in no denominator

_numbers: Final = attrgetter(*(field.name for field in fields(Tally)))  # what `astuple` copies in depth

_counted_by: Final = attrgetter("state", "already_there", "counted", "suspended", "moved_on")


def counts_against(row: AssignmentRow) -> bool:
    """Return whether a failure stands against the update in this row (R10, R15)."""
    return row.counted and not row.suspended


def contribution(row: AssignmentRow | None) -> Tally:
    """Return what one row adds to a tally; no row adds nothing."""
    if row is None:
        return Tally()
    return Tally(
        pending=int(row.state is _S.PENDING),
        working=int(row.state is _S.WORKING),
        succeeded=int(row.state is _S.SUCCEEDED),
        already_there=int(row.state is _S.SUCCEEDED and row.already_there),
        failed=int(row.state is _S.FAILED),
        counted=int(counts_against(row)),
        canceled=int(row.state is _S.CANCELED),
        incompatible=int(row.state is _S.INCOMPATIBLE),
        unprotected=int(row.state is _S.UNPROTECTED and not row.moved_on),
        dropped=int(row.state is _S.DROPPED),
        moved_on=int(row.moved_on and row.state in VERDICTS),
    )


def counts_alike(one: AssignmentRow, other: AssignmentRow) -> bool:
    """Return whether two rows surely add the same to a tally; what does not count is not looked at."""
    return _counted_by(one) == _counted_by(other)


def changed(tally: Tally, old: AssignmentRow | None, new: AssignmentRow) -> Tally:
    """Return the tally after one row went from `old` to `new`."""
    numbers = zip(_numbers(tally), _numbers(contribution(old)), _numbers(contribution(new)), strict=True)
    return Tally(*(now - before + after for now, before, after in numbers))
