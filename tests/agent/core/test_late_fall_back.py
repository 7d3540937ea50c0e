"""A bootloader that goes back by itself, long after a commit: whose failure it is, and how it is settled."""

import pytest

from agent.core import slots as rules
from agent.core.model import Commit, Download, Holds, Prepare, SlotTable
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.outcomes import Result
from tests.agent.builders import a_hold, a_manifest, an_order
from tests.agent.fakes_core import Rig

NEW, THIRD = a_manifest("2.0", release_counter=5), a_manifest("3.0", release_counter=6)


def rig_that_fell_back(below: S) -> Rig:
    """Return a device that runs version 2 from B, has come to a state with version 3, and finds itself back on A."""
    rig = Rig().start().connect()
    rig.answer_hello()
    rig.first_order(an_order(10, NEW), NEW)
    rig.work()
    if below is not S.IDLE:
        rig.order(an_order(11, THIRD, allow_downgrade=True), THIRD)
        rig.work(until=below)
    assert rig.state is below
    rig.slots = SlotTable(rig.slots.slots, "A", "B")
    rig.lose_power()
    return rig


@pytest.mark.parametrize("below", [S.DOWNLOADING, S.INSTALLING, S.READY])
def test_R10_a_late_fall_back_is_no_failure_of_an_order_that_was_not_tried(below: S) -> None:
    """The fix that was being fetched is begun anew after the slots are settled, and succeeds; nothing is its fault."""
    rig = rig_that_fell_back(below)
    if below is S.INSTALLING:
        assert (rig.state, rig.slots.booted) == (S.DOWNLOADING, "B"), (
            "half of an update is nothing to fall back to"
        )
    else:
        assert (rig.state, rig.next(Commit).slot) == (S.IDLE, "A")
    assert below is S.INSTALLING or not [
        effect for effect in rig.waiting if isinstance(effect, Prepare | Download)
    ], "settled first"
    rig.connect()
    rig.work()
    assert [(seen[0], seen[2]["result"]) for seen in rig.seen] == [
        ("d10", Result.SUCCEEDED),
        ("d11", Result.SUCCEEDED),
    ]
    assert rules.faults(rig.slots) == []


def test_R18_a_late_fall_back_is_settled_though_the_disk_refuses_at_first() -> None:
    """It is tried again with back-off; an order that comes meanwhile waits, since no slot may be written yet."""
    rig = rig_that_fell_back(S.IDLE)
    for _ in range(6):
        rig.finish(rig.next(Commit), E.COMMIT_FAILED, detail="EIO")
        assert rig.state is S.IDLE
        assert not commits(rig)
        while not commits(rig):
            rig.tick()
    rig.connect()
    rig.order(an_order(11, THIRD, allow_downgrade=True), THIRD)
    assert not [effect for effect in rig.waiting if isinstance(effect, Prepare)]
    rig.work()
    assert rig.slots.last_known_good == rig.slots.booted
    assert rig.seen[-1][2]["result"] is Result.SUCCEEDED


def test_R18_a_full_disk_does_not_leave_a_late_fall_back_for_the_next_start() -> None:
    """The commit that stood behind a refused record is ordered again by the clock."""
    rig = rig_on_a_full_disk()
    rig.disk_full = False
    while not commits(rig):
        rig.tick()
    rig.connect()
    rig.work()
    assert (rig.slots.last_known_good, rig.slots.slots["B"].holds) == ("A", Holds.BAD)


def rig_on_a_full_disk() -> Rig:
    """Return a device whose record could not be written when it found itself back on A."""
    rig = Rig().start().connect()
    rig.answer_hello()
    rig.first_order(an_order(10, NEW), NEW)
    rig.work()
    rig.slots, rig.disk_full = SlotTable(rig.slots.slots, "A", "B"), True
    rig.lose_power()
    assert not commits(rig)
    return rig


def commits(rig: Rig) -> list[Commit]:
    """Return the commits that wait to be performed."""
    return [effect for effect in rig.waiting if isinstance(effect, Commit)]


def test_R5_a_hold_calls_off_the_order_that_waits_for_the_slots() -> None:
    """It had not begun, and never will."""
    rig = rig_that_fell_back(S.IDLE)
    rig.connect()
    rig.order(an_order(11, THIRD, allow_downgrade=True), THIRD)
    rig.order(a_hold(12, "d11", 1))
    rig.work()
    assert rig.device.record.answer == "canceled"
    assert rig.slots.running.update == "contoso/app:1.0"
    assert [seen[0] for seen in rig.seen] == ["d10", "d10"], "the success, and its fall-back"
    assert rig.device.workflow.next is None
