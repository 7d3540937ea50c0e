"""What the functions of the agent's table share: what happened, what they know and decide, how an order ends.

It holds no table (`workflow.py` does). It keeps the rule that every way to idle passes `end`, so that no order ends
without its outcome, and that every effect bears a tag of its own, so that late results can be told apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from agent.core.model import (
    Chance,
    Effect,
    Holds,
    Invalidate,
    Revert,
    SlotName,
    SlotTable,
    StopWork,
    Tag,
    Workflow,
)
from agent.core.settings import Settings
from protocol.lifecycle import WorkflowEvent, WorkflowState
from protocol.messages import Assignment, OutcomeReport
from protocol.outcomes import Abandoned, Reason, Result


@dataclass(frozen=True, slots=True)
class Happening:
    """One event of the table, with what came with it. With RESTARTED and FELL_BACK `order` is the order in force."""

    event: WorkflowEvent
    order: Assignment | None = None
    detail: str = ""
    reason: str = ""
    transient: bool = False
    refresh: bool = False
    manifest: bytes | None = None
    read_back: bool = False  # the slots were read with it; else `Facts.slots` is what they were before


@dataclass(frozen=True, slots=True)
class Facts:
    """What a move may know beside the workflow: the slots as they were last read back, and what the device is."""

    slots: SlotTable
    properties: Mapping[str, str]
    floor: int
    start: int
    settings: Settings
    chance: Chance
    manifest: bytes | None = None  # of the order in work, once it is prepared
    ended: tuple[str, int] | None = None  # deployment and attempt of the newest outcome


@dataclass(frozen=True, slots=True)
class Conclude:
    """Remember an outcome until the cloud has it; `floor` rises at a commit."""

    outcome: OutcomeReport
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a hold or cancel in the next state (R5)."""

    epoch: int
    answer: Literal["canceled", "too_late", "held"]


@dataclass(frozen=True, slots=True)
class Wait:
    """Feed TIMER after so many milliseconds, or no more (None). A new state ends every wait."""

    delay_ms: int | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Say hello with a fresh nonce now; older answers no longer count (R4, R11)."""

    addresses: bool = False  # new ones are wanted (R1)


Decision = Conclude | Reply | Wait | Ask
Acts = list[Effect | Decision]
Handler = Callable[[Workflow, Happening, Facts, Acts], Workflow]


def order_of(given: Workflow | Happening) -> Assignment:
    """Return the order, where the table makes sure that there is one."""
    if given.order is None:
        raise LookupError(f"{given!r} has no order.")  # a bug of ours; `test_workflow` feeds every pair
    return given.order


def slot_of(work: Workflow, facts: Facts) -> SlotName:
    """Return the slot that the order in work is installed into."""
    return work.slot or facts.slots.spare


def tagged(work: Workflow, facts: Facts) -> tuple[Workflow, Tag]:
    """Return the workflow with its next ordinal, and the tag that bears it."""
    ordinal = work.ordinal + 1
    return replace(work, ordinal=ordinal), Tag(work.order.epoch if work.order else 0, ordinal, facts.start)


def end(work: Workflow, outcome: OutcomeReport | None, acts: Acts, *, floor: int = 0) -> Workflow:
    """Go idle with this outcome; `next` and the count of ordinals stay (the agent's table: `end(o)`)."""
    if outcome is not None:
        acts.append(Conclude(outcome, floor))
    return Workflow(next=work.next, ordinal=work.ordinal)


def succeeded(work: Workflow, facts: Facts, *, already_there: bool = False) -> OutcomeReport:
    """Return the outcome of an attempt that runs and is committed."""
    return _outcome(work, facts, Result.SUCCEEDED, already_there=already_there)


def failed(work: Workflow, facts: Facts, reason: Reason, detail: str = "") -> OutcomeReport:
    """Return the outcome of an attempt that failed in the present state (R10: the phase decides whose fault it is)."""
    limit = facts.settings.cloud_limit_ms if reason is Reason.CLOUD_UNREACHABLE else None
    return _outcome(work, facts, Result.FAILED, reason=reason, detail=detail, reach_limit_ms=limit)


def abandoned(work: Workflow, facts: Facts, why: Abandoned) -> OutcomeReport:
    """Return the outcome of an attempt that ended without a verdict."""
    return _outcome(work, facts, Result.ABANDONED, abandoned=why)


def begin_revert(
    work: Workflow, facts: Facts, acts: Acts, verdict: OutcomeReport | None, why: str
) -> Workflow:
    """Stop the trial and go back; the verdict is recorded now, and told when the last known good slot runs."""
    work, tag = tagged(
        replace(work, state=WorkflowState.REVERTING, phase="", verdict=verdict, tries=0), facts
    )
    acts += [StopWork(), Revert(tag, why)]
    return work


def reason_of(happening: Happening, otherwise: Reason) -> Reason:
    """Return the reason that an adapter gave, or another when it gave none that the contract knows."""
    try:
        return Reason(happening.reason)
    except ValueError:
        return otherwise


def spoil(work: Workflow, facts: Facts, acts: Acts, reason: str | None) -> None:
    """Take the checksum from the slot in work, unless it is in use: it must be written anew before it is trusted."""
    slots = facts.slots
    if work.slot is None or work.slot in {slots.booted, slots.last_known_good}:
        return
    if slots.slots[work.slot].holds is not Holds.EMPTY or reason is not None:
        acts.append(Invalidate(work.slot, reason))


def ordered(order: Assignment, work: Workflow, slots: SlotTable) -> Happening:
    """Return what an accepted order means to the work in hand: its own target, another one, or to stay."""
    if order.action == "hold" or order.target is None:
        return Happening(WorkflowEvent.HELD, order)
    wanted = order.target.sha256
    if work.state is WorkflowState.IDLE:
        same = runs_committed(slots, wanted)
    else:
        same = work.order is not None and work.order.target is not None and work.order.target.sha256 == wanted
    return Happening(WorkflowEvent.ORDERED_SAME if same else WorkflowEvent.ORDERED_OTHER, order)


def runs_committed(slots: SlotTable, sha256: str) -> bool:
    """Return whether the update with this manifest sha256 is booted and committed."""
    running = slots.running
    return slots.booted == slots.last_known_good and running.holds is Holds.GOOD and running.sha256 == sha256


def answer_to(hold: Assignment, work: Workflow, facts: Facts, *, stopped: bool) -> Reply:
    """Return what the device says to a hold or cancel (R5); `stopped`: the order in work could still be called off."""
    named = (hold.deployment, hold.attempt)
    if None in named:
        return Reply(hold.epoch, "held" if stopped else "too_late")
    if work.order is not None and named == (work.order.deployment, work.order.attempt):
        return Reply(hold.epoch, "canceled" if stopped else "too_late")
    if named == facts.ended:
        return Reply(hold.epoch, "held" if stopped else "too_late")
    return Reply(hold.epoch, "canceled")  # it had not begun, and now it never will


def _outcome(
    work: Workflow,
    facts: Facts,
    result: Result,
    *,
    reason: Reason | None = None,
    abandoned: Abandoned | None = None,
    detail: str = "",
    already_there: bool = False,
    reach_limit_ms: int | None = None,
) -> OutcomeReport:
    order = order_of(work)
    return OutcomeReport(
        epoch=order.epoch,
        deployment=order.deployment or "",
        attempt=order.attempt or 0,
        result=result,
        phase=work.state,
        reason=reason,
        abandoned=abandoned,
        detail=clean(detail),
        already_there=already_there,
        running_sha256=facts.slots.running.sha256,
        reach_limit_ms=reach_limit_ms,
    )


def clean(text: str, characters_max: int = 500) -> str:
    """Return text that every field of a message takes: one line, no control characters, not too long."""
    if len(text) <= characters_max and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text[:characters_max])
