"""The second half of the agent's table: switching, restarting, confirming and reverting, past the point of no return.

It fetches nothing (`getting.py`). It keeps the rules that what the slots say is believed, and not what was tried; that
the verdict is decided once; and that a device in a bad trial goes on going back until it is back.
"""

from dataclasses import replace

from agent.core.getting import adopt
from agent.core.model import Commit, Holds, Revert, SlotTable, Start, StopWork, Watch, Workflow
from agent.core.settings import (
    COMMIT_TRIES_MAX,
    COMMIT_WAIT_FIRST_MS,
    COMMIT_WAIT_MOST_MS,
    REVERT_WAIT_FIRST_MS,
    REVERT_WAIT_MOST_MS,
    backoff,
)
from agent.core.steps import (
    Acts,
    Ask,
    Facts,
    Happening,
    Wait,
    abandoned,
    answer_to,
    begin_revert,
    clean,
    end,
    failed,
    order_of,
    reason_of,
    slot_of,
    spoil,
    succeeded,
    tagged,
)
from protocol.lifecycle import WorkflowEvent as _E
from protocol.lifecycle import WorkflowState as _S
from protocol.messages import Assignment
from protocol.outcomes import Abandoned, Reason

# --- orders past the point of no return ------------------------------------------------------------------------


def queue(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Keep the order for later; one place, the newest wins."""
    return replace(work, next=order_of(happening))


def answer_too_late(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Past the point of no return the attempt runs to its verdict; an order that still waited is called off (R5)."""
    hold = order_of(happening)
    acts.append(answer_to(hold, work, facts, stopped=False))
    return replace(work, next=None)


def give_way(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Leave the trial for another target at once; a commit in hand is waited for, since it cannot be called back."""
    if is_committing(work):
        return queue(work, happening, facts, acts)
    work = replace(work, next=order_of(happening))
    return begin_revert(work, facts, acts, abandoned(work, facts, Abandoned.REPLACED), "replaced")


def is_committing(work: Workflow) -> bool:
    """Return whether a commit was recorded as intended, so that it may have happened."""
    return work.state is _S.CONFIRMING and work.commit_tries > 0


# --- switching -------------------------------------------------------------------------------------------------


def activated(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The slot was read back as the one that boots: start it, unless another order has come meanwhile."""
    if facts.slots.booted != work.slot:
        return activate_failed(work, happening, facts, acts)
    return start_or_give_way(work, happening, facts, acts)


def start_or_give_way(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The trial is booted: start it, adopt what waits with the same target, or go back for what waits with another."""
    waiting = work.next
    if waiting is not None and waiting.action == "hold":
        acts.append(answer_to(waiting, work, facts, stopped=False))
        work = replace(work, next=None)
    elif waiting is not None and _target(waiting) == _target(order_of(work)):
        work = adopt(replace(work, next=None), Happening(_E.ORDERED_SAME, waiting), facts, acts)
    elif waiting is not None:
        return begin_revert(work, facts, acts, abandoned(work, facts, Abandoned.REPLACED), "replaced")
    return start(work, happening, facts, acts)


def activate_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The switch was not made when the last known good slot is read as the one that boots; else it is undone."""
    verdict = failed(work, facts, reason_of(happening, Reason.ACTIVATE_FAILED), happening.detail)
    unknown = not happening.read_back or facts.slots.slots[slot_of(work, facts)].holds is Holds.UNKNOWN
    if unknown or facts.slots.booted != facts.slots.last_known_good:
        return begin_revert(work, facts, acts, verdict, Reason.ACTIVATE_FAILED)
    waiting = work.next
    if waiting is not None and waiting.action == "hold":
        acts.append(answer_to(waiting, work, facts, stopped=True))
        return end(replace(work, next=None), abandoned(work, facts, Abandoned.CANCELED), acts)
    return end(work, verdict, acts)


# --- restarting and confirming ---------------------------------------------------------------------------------


def start(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Use one of the trial's starts; soak and the cloud's answer begin anew."""
    fresh = replace(work, state=_S.RESTARTING, health_held=False, cloud_reached=False, commit_tries=0)
    work, tag = tagged(fresh, facts)
    acts.append(Start(tag, slot_of(work, facts)))
    return work


def started(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The trial runs: watch its health, and say hello from it (R11)."""
    work, tag = tagged(replace(work, state=_S.CONFIRMING), facts)
    acts.append(Watch(tag, slot_of(work, facts)))
    if facts.settings.needs_cloud:
        acts += [Ask(), Wait(facts.settings.cloud_limit_ms)]
    return work


def stopped(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The application ended in its trial: start it once more, counted. A commit in hand is waited for."""
    if is_committing(work):
        return replace(work, health_held=False)
    acts.append(StopWork())
    return start(work, happening, facts, acts)


def health_passed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The whole soak held; the commit waits for the cloud's answer alone."""
    return _commit_when_held(replace(work, health_held=True), facts, acts)


def cloud_reached(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The cloud answered in this trial; its limit no longer runs (R11)."""
    if work.cloud_reached:
        return work
    acts.append(Wait(None))
    return _commit_when_held(replace(work, cloud_reached=True), facts, acts)


def health_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """A check did not hold, or the application could not be started: go back."""
    reason = reason_of(happening, Reason.HEALTH_FAILED)
    return begin_revert(
        work, facts, acts, failed(work, facts, reason, happening.detail), f"{reason}: {happening.detail}"
    )


def starts_exhausted(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The trial has used up its starts: go back."""
    verdict = failed(work, facts, Reason.STARTS_EXHAUSTED, happening.detail)
    return begin_revert(work, facts, acts, verdict, Reason.STARTS_EXHAUSTED)


def fell_back(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The device is back on its last known good slot, though the agent did not go back: that is the verdict."""
    verdict = failed(work, facts, Reason.FELL_BACK, happening.detail)
    if facts.slots.booted != facts.slots.last_known_good:  # it is not back, whatever was said
        return begin_revert(work, facts, acts, verdict, Reason.FELL_BACK)
    spoil(work, facts, acts, Reason.FELL_BACK)
    return end(work, verdict, acts)


def committed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """What was read back decides: the slot is good and last known good, or the commit has failed."""
    return commit_failed(work, happening, facts, acts)


def commit_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Try again, a few times; then the trial ends, and at once when another order waits."""
    if is_committed(work, facts.slots):
        return succeed(work, facts, acts)
    if work.commit_tries == 0:
        return work  # no commit was ordered in this trial
    if work.next is not None:
        return begin_revert(work, facts, acts, abandoned(work, facts, Abandoned.REPLACED), "replaced")
    if work.commit_tries >= COMMIT_TRIES_MAX or not work.health_held:
        verdict = failed(work, facts, Reason.COMMIT_FAILED, happening.detail)
        return begin_revert(work, facts, acts, verdict, Reason.COMMIT_FAILED)
    chance = facts.chance.uniform()
    acts.append(Wait(backoff(work.commit_tries, COMMIT_WAIT_FIRST_MS, COMMIT_WAIT_MOST_MS, chance)))
    return work


def confirming_timer(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Commit again, or give up waiting for the cloud (R11)."""
    if is_committing(work):
        return _commit(work, facts, acts)
    if work.cloud_reached or not facts.settings.needs_cloud:
        return work
    detail = f"The cloud did not answer the trial within {facts.settings.cloud_limit_ms // 1000} s."
    verdict = failed(work, facts, Reason.CLOUD_UNREACHABLE, detail)
    return begin_revert(work, facts, acts, verdict, Reason.CLOUD_UNREACHABLE)


def succeed(work: Workflow, facts: Facts, acts: Acts) -> Workflow:
    """The slot is committed: record success and floor, which rises only here (DESIGN.md section 7)."""
    return end(work, succeeded(work, facts), acts, floor=facts.slots.running.release_counter)


def is_committed(work: Workflow, slots: SlotTable) -> bool:
    """Return whether the slots say that the trial in work is good, booted and last known good."""
    return work.slot == slots.booted == slots.last_known_good and slots.running.holds is Holds.GOOD


# --- reverting -------------------------------------------------------------------------------------------------


def reverted(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """The last known good slot is read back as booted: tell the verdict that was recorded, and take what waits.

    When that is the trial's own, a commit had happened though it could not be read back: what the slots say decides.
    """
    if is_committed(work, facts.slots):
        return succeed(work, facts, acts)
    if facts.slots.booted != facts.slots.last_known_good:
        return revert_failed(work, happening, facts, acts)
    verdict = work.verdict
    if verdict is not None:
        verdict = verdict.model_copy(update={"running_sha256": facts.slots.running.sha256})
    return end(work, verdict, acts)


def revert_failed(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Never idle while the trial is booted: report `stuck`, and try again for ever, with a capped back-off."""
    tries = work.tries + 1
    acts.append(Wait(backoff(tries, REVERT_WAIT_FIRST_MS, REVERT_WAIT_MOST_MS, facts.chance.uniform())))
    return replace(work, tries=tries, stuck=clean(happening.detail, 256) or "The device could not go back.")


def revert_again(work: Workflow, happening: Happening, facts: Facts, acts: Acts) -> Workflow:
    """Repeat the revert: every effect can be run again."""
    why = work.verdict.reason or work.verdict.abandoned if work.verdict else Reason.RECORD_LOST
    work, tag = tagged(work, facts)
    acts.append(Revert(tag, str(why)))
    return work


def _commit_when_held(work: Workflow, facts: Facts, acts: Acts) -> Workflow:
    reached = work.cloud_reached or not facts.settings.needs_cloud
    if is_committing(work) or not (work.health_held and reached):
        return work
    return _commit(work, facts, acts)


def _commit(work: Workflow, facts: Facts, acts: Acts) -> Workflow:
    work, tag = tagged(replace(work, commit_tries=work.commit_tries + 1), facts)
    acts.append(Commit(tag, slot_of(work, facts)))
    return work


def _target(order: Assignment) -> str | None:
    return order.target.sha256 if order.target is not None else None
