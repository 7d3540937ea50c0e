"""What a power loss means: for every state of the record, and everything the slots can say, what to go on with.

It is consulted once, at the agent's start (event RESTARTED). It keeps the rule that the record is never evidence of
what runs: the slot table, as `recover` left it, decides (DESIGN.md section 5). It is total; a test holds it to that.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Final

from agent.core import getting, trying
from agent.core.model import Holds, SlotName, SlotTable, Workflow
from agent.core.steps import Acts, Facts, Happening, begin_revert, end, failed, spoil
from protocol.lifecycle import WorkflowState as _S
from protocol.outcomes import Reason


class Evidence(StrEnum):
    """What the slots say about the slot that the order in work is installed into."""

    TRIAL = "trial"  # it is booted, in trial
    COMMITTED = "committed"  # it is booted, and last known good
    WHOLE = "whole"  # it is not booted, and holds the whole target
    OTHER = "other"  # it is not booted, and holds anything else
    ASTRAY = "astray"  # what is booted is neither last known good nor in trial


class Resume(StrEnum):
    """What to go on with."""

    STAY = "stay"
    DOWNLOAD = "download"  # at the last durable piece, if there is one
    RECHECK = "recheck"  # hold the sealed slot against its manifest, then ask at the gate
    START = "start"  # count a start, then start the trial
    SUCCEED = "succeed"  # the commit was made, only its outcome is missing
    FALL_BACK = "fall_back"  # the device went back by itself: failed(fell_back)
    REVERT_LOST = "revert_lost"  # a trial runs that the record knows nothing of: failed(record_lost)
    REVERT_UNKNOWN = "revert_unknown"  # what the switch did cannot be read: failed(activate_failed)
    REVERT_AGAIN = "revert_again"
    SETTLE = "settle"  # a late fall-back: what is booted becomes last known good, the other slot bad
    ANEW = "anew"  # so it is, below an order that had not been tried: settle, then begin the order anew


_E = Evidence
_R = Resume

RESUME: Final[Mapping[_S, Mapping[Evidence, Resume]]] = {
    _S.IDLE: {
        _E.TRIAL: _R.REVERT_LOST,
        _E.COMMITTED: _R.STAY,
        _E.WHOLE: _R.STAY,
        _E.OTHER: _R.STAY,
        _E.ASTRAY: _R.SETTLE,
    },
    _S.DOWNLOADING: {
        _E.TRIAL: _R.REVERT_LOST,
        _E.COMMITTED: _R.ANEW,
        _E.WHOLE: _R.RECHECK,
        _E.OTHER: _R.DOWNLOAD,
        _E.ASTRAY: _R.ANEW,
    },
    _S.INSTALLING: {
        _E.TRIAL: _R.REVERT_LOST,
        _E.COMMITTED: _R.ANEW,
        _E.WHOLE: _R.RECHECK,
        _E.OTHER: _R.DOWNLOAD,
        _E.ASTRAY: _R.ANEW,
    },
    _S.READY: {
        _E.TRIAL: _R.REVERT_LOST,
        _E.COMMITTED: _R.ANEW,
        _E.WHOLE: _R.RECHECK,
        _E.OTHER: _R.DOWNLOAD,
        _E.ASTRAY: _R.ANEW,
    },
    _S.SWITCHING: {
        _E.TRIAL: _R.START,
        _E.COMMITTED: _R.SUCCEED,
        _E.WHOLE: _R.RECHECK,
        _E.OTHER: _R.FALL_BACK,
        _E.ASTRAY: _R.REVERT_UNKNOWN,
    },
    _S.RESTARTING: {
        _E.TRIAL: _R.START,
        _E.COMMITTED: _R.SUCCEED,
        _E.WHOLE: _R.FALL_BACK,
        _E.OTHER: _R.FALL_BACK,
        _E.ASTRAY: _R.REVERT_UNKNOWN,
    },
    _S.CONFIRMING: {
        _E.TRIAL: _R.START,
        _E.COMMITTED: _R.SUCCEED,
        _E.WHOLE: _R.FALL_BACK,
        _E.OTHER: _R.FALL_BACK,
        _E.ASTRAY: _R.REVERT_UNKNOWN,
    },
    _S.REVERTING: dict.fromkeys(Evidence, _R.REVERT_AGAIN),
}


def evidence_of(slots: SlotTable, slot: SlotName | None, target_sha256: str | None) -> Evidence:
    """Return what the slots say about `slot`, into which the update with this manifest sha256 is installed.

    Without an order in work `slot` is None, and the spare slot is meant.
    """
    running = slots.running
    if slots.booted != slots.last_known_good:
        return Evidence.TRIAL if running.holds is Holds.TRIAL else Evidence.ASTRAY
    if slot == slots.booted:
        return Evidence.COMMITTED
    held = slots.slots[slot or slots.spare]
    whole = (
        held.holds in {Holds.SEALED, Holds.GOOD} and held.sha256 is not None and held.sha256 == target_sha256
    )
    return Evidence.WHOLE if whole else Evidence.OTHER


def restarted(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Go on with the order in work as the table says; `happening.order` is the order in force, for a late fall-back."""
    target = work.order.target if work.order else None
    evidence = evidence_of(facts.slots, work.slot, target.sha256 if target else None)
    return _ACTIONS[RESUME[work.state][evidence]](work, happening, facts, acts)


def _stay(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    return work


def _download(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    return getting.prepare(replace(work, slot=facts.slots.spare), facts, acts)


def _recheck(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    return getting.recheck(work, facts, acts)


def _succeed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    if trying.is_committed(work, facts.slots):
        return trying.succeed(work, facts, acts)
    return _fall_back(work, happening, facts, acts)


def _fall_back(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    verdict = failed(work, facts, Reason.FELL_BACK, "After a restart the device runs its other slot.")
    if facts.slots.booted != facts.slots.last_known_good:
        work = getting.settle(work, replace(happening, order=None), facts, acts)
    else:
        spoil(work, facts, acts, Reason.FELL_BACK)
    return end(work, verdict, acts)


def _anew(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The order had no part in what boots now, so it is no failure of its update (R10); it waits as `next`."""
    idle = Workflow(next=work.next or work.order, ordinal=work.ordinal)
    return getting.settle(idle, happening, facts, acts)


def _revert_lost(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    detail = "A trial was booted that the agent's record knew nothing of."
    verdict = failed(work, facts, Reason.RECORD_LOST, detail) if work.order is not None else None
    return begin_revert(work, facts, acts, verdict, Reason.RECORD_LOST)


def _revert_unknown(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    verdict = failed(work, facts, Reason.ACTIVATE_FAILED, "After a restart nothing says what the switch did.")
    return begin_revert(work, facts, acts, verdict, Reason.ACTIVATE_FAILED)


_ACTIONS: Final[Mapping[Resume, Callable[[Workflow, Happening, Facts, Acts], Workflow]]] = {
    Resume.STAY: _stay,
    Resume.DOWNLOAD: _download,
    Resume.RECHECK: _recheck,
    Resume.START: trying.start_or_give_way,
    Resume.SUCCEED: _succeed,
    Resume.FALL_BACK: _fall_back,
    Resume.REVERT_LOST: _revert_lost,
    Resume.REVERT_UNKNOWN: _revert_unknown,
    Resume.REVERT_AGAIN: trying.revert_again,
    Resume.SETTLE: getting.settle,
    Resume.ANEW: _anew,
}
