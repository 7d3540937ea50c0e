"""Every pair of the agent's table, over everything the slots and the order can say."""

from dataclasses import replace
from itertools import product

import pytest

from agent.core.model import Effect, Holds, Invalidate, SlotTable, StopWork, Workflow
from agent.core.settings import Settings
from agent.core.steps import Conclude, Facts, Happening, Reply, Wait
from agent.core.workflow import TABLE, TableBroken, check_move, step
from protocol.lifecycle import PAST_NO_RETURN, WORKFLOW
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.messages import Assignment
from protocol.outcomes import Reason, Result
from tests.agent.builders import (
    PROPERTIES,
    a_hold,
    a_manifest,
    a_slot,
    an_order,
    slots_in_trial,
    slots_running,
)
from tests.agent.fakes_core import SeededChance

OLD, NEW, THIRD = a_manifest("1.0"), a_manifest("2.0"), a_manifest("3.0")
TABLES: dict[str, SlotTable] = {
    "untouched": slots_running(OLD),
    "sealed": slots_running(OLD, a_slot(NEW, Holds.SEALED)),
    "bad": slots_running(OLD, a_slot(NEW, Holds.BAD, reason="handler_failed")),
    "trial": slots_in_trial(OLD, NEW),
    "committed": SlotTable({"A": a_slot(OLD), "B": a_slot(NEW)}, "B", "B"),
    "astray": SlotTable({"A": a_slot(OLD), "B": a_slot(NEW)}, "B", "A"),
}


def works(state: S) -> list[Workflow]:
    """Return every kind of work that a device can have in this state."""
    if state is S.IDLE:
        return [Workflow()]
    work = Workflow(state, order=an_order(10, NEW), slot="B", ordinal=4)
    if state is S.DOWNLOADING:
        spent = replace(work, phase="files", tries=99, refetched=True, refreshed=True)
        return [replace(work, phase=phase) for phase in ("manifest", "files", "rehash")] + [spent]
    if state is S.READY:
        return [work, replace(work, phase="rehash"), replace(work, refetched=True, phase="rehash")]
    if state is S.INSTALLING:
        return [work, replace(work, refetched=True)]
    if state is S.SWITCHING:
        return [
            work,
            *(replace(work, next=order) for order in (an_order(11, NEW), an_order(11, THIRD), a_hold(11))),
        ]
    if state is S.CONFIRMING:
        held = replace(work, health_held=True)
        tries = replace(held, cloud_reached=True, commit_tries=1)
        return [work, held, tries, replace(tries, next=an_order(11, THIRD)), replace(tries, commit_tries=99)]
    return [work, replace(work, next=an_order(11, THIRD))]


def happenings(event: E) -> list[Happening]:
    """Return every kind of this event."""
    orders: dict[E, list[Assignment]] = {
        E.ORDERED_SAME: [an_order(12, NEW)],
        E.ORDERED_OTHER: [an_order(12, THIRD), an_order(12, a_manifest("0.5")), an_order(12, NEW)],
        E.HELD: [a_hold(12), a_hold(12, "d10", 1)],
    }
    if event in orders:
        return [Happening(event, order) for order in orders[event]]
    if event is E.PREPARED:
        return [
            Happening(event, manifest=data)
            for data in (NEW, a_manifest("2.0", compatibility={"model": "x"}), b"{}")
        ]
    if event is E.DOWNLOAD_FAILED:
        return [
            Happening(event, transient=True),
            Happening(event, refresh=True),
            Happening(event, reason="disk"),
        ]
    return [Happening(event, detail="it was so", read_back=read_back) for read_back in (True, False)]


def facts_of(slots: SlotTable, **changes: object) -> Facts:
    """Return the facts of a device with these slots."""
    return replace(Facts(slots, PROPERTIES, 0, 1, Settings(), SeededChance(), manifest=NEW), **changes)  # type: ignore[arg-type]


def cases(state: S, event: E) -> list[tuple[Workflow, Happening, Facts]]:
    """Return every combination for one pair."""
    floors = (0, 7) if state is S.IDLE else (0,)
    return [
        (work, happening, facts_of(slots, floor=floor))
        for work, happening, slots, floor in product(works(state), happenings(event), TABLES.values(), floors)
    ]


PAIRS = [pytest.param(state, event, id=f"{state}-{event}") for state, event in product(S, E)]


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_pair_moves_as_the_table_says_or_not_at_all(state: S, event: E) -> None:
    """A listed pair reaches exactly the states that the table names; an unlisted one changes and does nothing."""
    reached = set()
    for work, happening, facts in cases(state, event):
        after, acts = step(work, happening, facts)
        if event not in WORKFLOW[state]:
            assert after is work
            assert acts == []
        elif after is not work or acts:
            reached.add(after.state)
    assert reached == WORKFLOW[state].get(event, set())


def test_the_functions_and_the_lifecycle_name_the_same_pairs() -> None:
    """The table of functions has the keys of the lifecycle, so that no pair is without its function."""
    assert {state: set(row) for state, row in TABLE.items()} == {
        state: set(row) for state, row in WORKFLOW.items()
    }


def test_a_move_that_the_lifecycle_does_not_list_is_an_error_of_ours() -> None:
    """`step` holds every function to the lifecycle with this check."""
    for before, event, after in product(S, E, S):
        if after in WORKFLOW[before].get(event, ()):
            check_move(before, event, after)
        else:
            with pytest.raises(TableBroken):
                check_move(before, event, after)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_way_to_idle_has_one_outcome_and_every_effect_a_tag_of_its_own(state: S, event: E) -> None:
    """Whoever had an order in work and is idle after has concluded exactly once more than it adopted."""
    for work, happening, facts in cases(state, event):
        after, acts = step(work, happening, facts)
        outcomes = [act.outcome for act in acts if isinstance(act, Conclude)]
        waits = after.next is not None and after.next is work.order  # below a late fall-back: it begins anew
        ended = state is not S.IDLE and after.state is S.IDLE and not waits
        if ended and (state is not S.REVERTING or work.verdict is not None):
            assert len(outcomes) >= 1
            assert outcomes[-1].epoch in {10, 11}, "of the order in work, or of the one that was adopted"
        tags = [act.tag.ordinal for act in acts if hasattr(act, "tag")]
        assert len(tags) == len(set(tags))
        assert all(ordinal > work.ordinal for ordinal in tags)
        assert not tags or after.ordinal == max(tags)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_R5_R10_phase_and_parties_are_decided_by_the_point_of_no_return(state: S, event: E) -> None:
    """A failure bears the state it happened in, and past `switching` no cancel ends an attempt."""
    for work, happening, facts in cases(state, event):
        after, acts = step(work, happening, facts)
        for act in acts:
            if isinstance(act, Conclude) and act.outcome.result is Result.FAILED:
                assert act.outcome.phase is (state if state is not S.REVERTING else act.outcome.phase)
            if isinstance(act, Reply) and event is E.HELD and state in PAST_NO_RETURN:
                assert after.state is state


def test_no_slot_in_use_is_ever_to_be_spoiled() -> None:
    """Whatever happens, `Invalidate` never names the booted or the last known good slot."""
    for state, event in product(S, E):
        for work, happening, facts in cases(state, event):
            _, acts = step(work, happening, facts)
            in_use = {facts.slots.booted, facts.slots.last_known_good}
            assert not [act for act in acts if isinstance(act, Invalidate) and act.slot in in_use]


def test_downloads_have_a_budget_and_back_off_with_jitter() -> None:
    """Transient failures wait longer each time, `download_tries_max` tries in all, then the order fails."""
    facts = facts_of(TABLES["untouched"])
    work = replace(works(S.DOWNLOADING)[0])
    waits = []
    for _ in range(facts.settings.download_tries_max):
        work, acts = step(work, Happening(E.DOWNLOAD_FAILED, reason="network", transient=True), facts)
        waits += [act.delay_ms for act in acts if isinstance(act, Wait)]
    assert work.state is S.IDLE
    assert len(waits) == facts.settings.download_tries_max - 1
    assert all(wait is not None and 0 < wait <= 2_000 * 2**turn for turn, wait in enumerate(waits))
    assert len(set(waits)) == len(waits)


def failures(
    state: S, happening: Happening, work: Workflow | None = None
) -> list[tuple[Reason | None, list[Effect]]]:
    """Return the reasons with which an event ends the work, and the effects beside."""
    _, acts = step(work or works(state)[0], happening, facts_of(TABLES["untouched"]))
    effects: list[Effect] = [act for act in acts if isinstance(act, Invalidate | StopWork)]
    return [(act.outcome.reason, effects) for act in acts if isinstance(act, Conclude)]


@pytest.mark.parametrize(
    ("manifest", "order", "reason"),
    [
        (a_manifest("2.0", compatibility={"model": "other"}), {}, Reason.INCOMPATIBLE),
        (a_manifest("0.9"), {}, Reason.DOWNGRADE_REFUSED),
        (a_manifest("2.0", handler="lastgood/rocket:1"), {}, Reason.UNSUPPORTED),
        (b'{"updateId": 1}', {}, Reason.UNSUPPORTED),
    ],
)
def test_what_does_not_fit_is_refused_before_the_slot_is_touched(
    manifest: bytes, order: dict[str, object], reason: Reason
) -> None:
    """Device, version and handlers are checked on the manifest; the spare slot stays as it is."""
    data = manifest if b"handler" in manifest else NEW
    work = replace(works(S.DOWNLOADING)[0], order=an_order(10, data, **order))
    facts = facts_of(TABLES["untouched"], settings=Settings(handlers=frozenset({"archive"})))
    after, acts = step(work, Happening(E.PREPARED, manifest=manifest), facts)
    assert after.state is S.IDLE
    assert [act.outcome.reason for act in acts if isinstance(act, Conclude)] == [reason]
    assert len(acts) == 1


def test_a_downgrade_needs_the_signed_word_and_never_passes_the_floor() -> None:
    """`allow_downgrade` lets an older version in, and not a release counter below the floor (DESIGN section 7)."""
    old = a_manifest("0.9", release_counter=4)
    work = replace(works(S.DOWNLOADING)[0], order=an_order(10, old, allow_downgrade=True))
    after, _ = step(work, Happening(E.PREPARED, manifest=old), facts_of(TABLES["untouched"], floor=4))
    assert after.phase == "files"
    after, acts = step(work, Happening(E.PREPARED, manifest=old), facts_of(TABLES["untouched"], floor=5))
    assert after.state is S.IDLE
    assert [act.outcome.reason for act in acts if isinstance(act, Conclude)] == [Reason.BELOW_FLOOR]
