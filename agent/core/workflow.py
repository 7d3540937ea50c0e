"""The agent's table: one `step` over one literal table, keyed like `protocol.lifecycle.WORKFLOW`.

It knows no messages, no record and no clock: it says what to do (`Effect`), and what to remember, tell or wait for
(`Decision`, carried out by `device.py`). What a state does not list, it ignores. The functions stand in `getting.py`
(until the point of no return), `trying.py` (past it) and `resume.py` (after a power loss). Source: RULES.md.
"""

from collections.abc import Mapping
from typing import Final

from agent.core import getting, resume, trying
from agent.core.model import Workflow
from agent.core.steps import Acts, Facts, Handler, Happening
from protocol.errors import LastgoodError
from protocol.lifecycle import WORKFLOW
from protocol.lifecycle import WorkflowEvent as _E
from protocol.lifecycle import WorkflowState as _S


class TableBroken(LastgoodError):
    """A move that the lifecycle does not list: a bug of ours, never of a peer or a device."""


def step(work: Workflow, happening: Happening, facts: Facts) -> tuple[Workflow, Acts]:
    """Return the workflow after an event, and what to do; an event that the state does not list changes nothing.

    Nor does one that the state lists and the work in hand has no use for, such as a re-hash that nobody asked for.

    Raises:
        TableBroken: the move is none of `protocol.lifecycle.WORKFLOW`.
    """
    handler = TABLE[work.state].get(happening.event)
    acts: Acts = []
    if handler is None:
        return work, acts
    after = handler(work, happening, facts, acts)
    if after is not work:
        check_move(work.state, happening.event, after.state)
    return after, acts


def check_move(before: _S, event: _E, after: _S) -> None:
    """Hold a move to the lifecycle.

    Raises:
        TableBroken: the lifecycle does not list it.
    """
    if after not in WORKFLOW[before].get(event, ()):
        raise TableBroken(f"{event} leads from {before} to {after}, which the table does not list.")


TABLE: Final[Mapping[_S, Mapping[_E, Handler]]] = {
    _S.IDLE: {
        _E.ORDERED_SAME: getting.already_there,
        _E.ORDERED_OTHER: getting.take,
        _E.HELD: getting.answer_hold,
        _E.FELL_BACK: getting.settle,
        _E.COMMITTED: getting.settled,
        _E.COMMIT_FAILED: getting.settle_later,
        _E.TIMER: getting.settle,
        _E.RESTARTED: resume.restarted,
    },
    _S.DOWNLOADING: {
        _E.ORDERED_SAME: getting.adopt,
        _E.ORDERED_OTHER: getting.stop_for_other,
        _E.HELD: getting.stop_for_hold,
        _E.PREPARED: getting.prepared,
        _E.REHASHED: getting.become_ready,
        _E.DOWNLOADED: getting.downloaded,
        _E.DOWNLOAD_FAILED: getting.download_failed,
        _E.VERIFY_FAILED: getting.verify_failed,
        _E.RESTARTED: resume.restarted,
        _E.TIMER: getting.try_again,
    },
    _S.INSTALLING: {
        _E.ORDERED_SAME: getting.adopt,
        _E.ORDERED_OTHER: getting.stop_for_other,
        _E.HELD: getting.stop_for_hold,
        _E.INSTALLED: getting.become_ready,
        _E.INSTALL_FAILED: getting.install_failed,
        _E.VERIFY_FAILED: getting.verify_failed,
        _E.RESTARTED: resume.restarted,
    },
    _S.READY: {
        _E.ORDERED_SAME: getting.adopt,
        _E.ORDERED_OTHER: getting.ready_for_other,
        _E.HELD: getting.ready_for_hold,
        _E.REHASHED: getting.become_ready,
        _E.GATE_OPENED: getting.switch,
        _E.VERIFY_FAILED: getting.verify_failed,
        _E.RESTARTED: resume.restarted,
    },
    _S.SWITCHING: {
        _E.ORDERED_SAME: trying.queue,
        _E.ORDERED_OTHER: trying.queue,
        _E.HELD: trying.queue,
        _E.ACTIVATED: trying.activated,
        _E.ACTIVATE_FAILED: trying.activate_failed,
        _E.RESTARTED: resume.restarted,
    },
    _S.RESTARTING: {
        _E.ORDERED_SAME: getting.adopt,
        _E.ORDERED_OTHER: trying.give_way,
        _E.HELD: trying.answer_too_late,
        _E.STARTED: trying.started,
        _E.HEALTH_FAILED: trying.health_failed,
        _E.STARTS_EXHAUSTED: trying.starts_exhausted,
        _E.FELL_BACK: trying.fell_back,
        _E.RESTARTED: resume.restarted,
    },
    _S.CONFIRMING: {
        _E.ORDERED_SAME: getting.adopt,
        _E.ORDERED_OTHER: trying.give_way,
        _E.HELD: trying.answer_too_late,
        _E.STOPPED: trying.stopped,
        _E.HEALTH_PASSED: trying.health_passed,
        _E.HEALTH_FAILED: trying.health_failed,
        _E.CLOUD_REACHED: trying.cloud_reached,
        _E.COMMITTED: trying.committed,
        _E.COMMIT_FAILED: trying.commit_failed,
        _E.STARTS_EXHAUSTED: trying.starts_exhausted,
        _E.FELL_BACK: trying.fell_back,
        _E.RESTARTED: resume.restarted,
        _E.TIMER: trying.confirming_timer,
    },
    _S.REVERTING: {
        _E.ORDERED_SAME: trying.queue,
        _E.ORDERED_OTHER: trying.queue,
        _E.HELD: trying.answer_too_late,
        _E.REVERTED: trying.reverted,
        _E.REVERT_FAILED: trying.revert_failed,
        _E.RESTARTED: resume.restarted,
        _E.TIMER: trying.revert_again,
    },
}
