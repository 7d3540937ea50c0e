"""What to do when the disk refuses the record: nothing that depended on it (the agent's table, last paragraph).

It tries nothing again (`saving.py`). Before the point of no return the order ends as failed(disk), from memory; past
it the slots decide: the trial goes on as far as it can without a record, and back instead of to a commit.
"""

from dataclasses import replace
from typing import Final

from agent.core.model import Commit, Effect, Invalidate, Revert, Start, StopWork, Watch, Workflow
from agent.core.settings import COMMIT_WAIT_MOST_MS
from agent.core.steps import Acts, Facts, Wait, begin_revert, end, failed, spoil
from protocol.lifecycle import PAST_NO_RETURN, WorkflowState
from protocol.outcomes import Reason

_WITHOUT_RECORD: Final = (StopWork, Invalidate, Start, Watch, Revert)  # right whatever the record says


def go_on_without_record(
    work: Workflow, facts: Facts, durable: WorkflowState, withheld: list[Effect], detail: str
) -> tuple[Workflow, Acts]:
    """Return where the work stands now, and what is to be done though `withheld` could not be.

    `durable` is the state that the disk still holds, and so what a power loss would leave.
    """
    acts: Acts = []
    trial_runs = facts.slots.booted != facts.slots.last_known_good
    past = work.state in PAST_NO_RETURN and (durable in PAST_NO_RETURN or trial_runs)
    if work.state is not WorkflowState.IDLE and not past:
        # The committed application is no part of the order: it starts all the same.
        acts += [effect for effect in withheld if isinstance(effect, Start) and effect.tag.ordinal == 0]
        return _end(work, facts, acts, detail), acts
    if work.state is WorkflowState.CONFIRMING and any(isinstance(effect, Commit) for effect in withheld):
        verdict = failed(work, facts, Reason.COMMIT_FAILED, detail)
        return begin_revert(work, facts, acts, verdict, Reason.COMMIT_FAILED), acts
    acts += [effect for effect in withheld if isinstance(effect, _WITHOUT_RECORD)]
    if work.state is WorkflowState.IDLE and any(isinstance(effect, Commit) for effect in withheld):
        acts.append(Wait(COMMIT_WAIT_MOST_MS))  # a late fall-back stays to be settled
    return work, acts


def _end(work: Workflow, facts: Facts, acts: Acts, detail: str) -> Workflow:
    if work.state in PAST_NO_RETURN:  # in memory alone: nothing durable says that there is no way back
        work = replace(work, state=WorkflowState.READY)
    acts.append(StopWork())
    if work.state is WorkflowState.INSTALLING or work.phase == "files":
        spoil(work, facts, acts, None)
    return end(work, failed(work, facts, Reason.DISK, detail), acts)
