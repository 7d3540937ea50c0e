"""A newer order comes while one is in work: the two first columns of the agent's table, state by state (R16)."""

import pytest

from agent.core.model import Activate, Download, Finished, Holds, Revert, Start, StopWork
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.outcomes import Abandoned, Reason, Result
from tests.agent.builders import a_manifest, an_order, sha_of
from tests.agent.fakes_core import Rig, come_to

NEW = a_manifest("2.0", release_counter=5)
THIRD = a_manifest("3.0", release_counter=6)
STARTS = 3  # of a trial


def rig_at(state: S) -> Rig:
    """Return a device that has come to a state with its first order."""
    return come_to(state, an_order(10, NEW), NEW)


def told(rig: Rig) -> list[tuple[str, int, Result, object]]:
    """Return the outcomes that the cloud has, in the order in which it got them."""
    return [
        (deployment, attempt, said["result"], said["abandoned"] or said["reason"])
        for deployment, attempt, said in rig.seen
    ]


@pytest.mark.parametrize(
    "state", [S.DOWNLOADING, S.INSTALLING, S.READY, S.SWITCHING, S.RESTARTING, S.CONFIRMING]
)
def test_R16_the_target_in_work_is_adopted_in_every_state(state: S) -> None:
    """What was done is not done again: one download, one switch, one start; a switch is read back first."""
    rig = rig_at(state)
    asked = len(rig.hellos)
    rig.order(an_order(11, NEW, attempt=2))
    assert rig.state is state
    if state is S.SWITCHING:
        assert not rig.outcomes, "queued until the switch is read back"
        rig.perform(rig.next(Activate))
    assert rig.outcomes[-1].abandoned is Abandoned.RETRIED
    if state is S.READY:
        assert rig.hellos[asked:][-1].nonce, "the gate is asked again"
    rig.work()
    assert told(rig) == [
        ("d10", 1, Result.ABANDONED, Abandoned.RETRIED),
        ("d11", 2, Result.SUCCEEDED, None),
    ]
    done = [
        type(effect)
        for effect in rig.log
        if isinstance(effect, Download | Activate | Start) and effect.slot == "B"
    ]
    assert done == [Download, Activate, Start]
    assert not [effect for effect in rig.log if isinstance(effect, StopWork)]


@pytest.mark.parametrize("state", [S.DOWNLOADING, S.INSTALLING])
def test_another_target_before_the_gate_stops_the_work_and_leaves_no_half_slot(state: S) -> None:
    """Stop, abandon(replaced), spare invalid, start new."""
    rig = rig_at(state)
    rig.order(an_order(11, THIRD), THIRD)
    assert [effect for effect in rig.log if isinstance(effect, StopWork)]
    assert (rig.state, rig.outcomes[-1].abandoned) == (S.DOWNLOADING, Abandoned.REPLACED)
    assert rig.slots.slots["B"].holds not in {Holds.SEALED, Holds.GOOD}
    rig.work()
    assert rig.slots.running.sha256 == sha_of(THIRD)


def test_another_target_at_the_gate_leaves_the_spare_sealed_until_its_own_begin() -> None:
    """A flip back to it needs no download for so long."""
    rig = rig_at(S.READY)
    rig.order(an_order(11, THIRD), THIRD)
    assert (rig.state, rig.outcomes[-1].abandoned) == (S.DOWNLOADING, Abandoned.REPLACED)
    assert rig.slots.slots["B"].holds is Holds.SEALED
    rig.work()
    assert rig.slots.running.sha256 == sha_of(THIRD)


def test_another_target_in_the_switch_waits_for_it_to_be_read_back() -> None:
    """Then the trial is undone before it has begun, and no start is counted."""
    rig = rig_at(S.SWITCHING)
    rig.order(an_order(11, THIRD), THIRD)
    assert (rig.state, rig.outcomes) == (S.SWITCHING, [])
    rig.perform(rig.next(Activate))
    assert rig.state is S.REVERTING
    assert rig.slots.slots["B"].starts_left == STARTS
    rig.work()
    assert told(rig)[0] == ("d10", 1, Result.ABANDONED, Abandoned.REPLACED)
    assert (rig.slots.running.sha256, rig.device.record.floor) == (sha_of(THIRD), 6)


@pytest.mark.parametrize("started", [False, True])
def test_another_target_in_the_restart_goes_back_and_counts_no_start_that_was_none(started: bool) -> None:
    """Reverting(replaced) at once; what was not started has used up nothing."""
    rig = rig_at(S.CONFIRMING if started else S.RESTARTING)
    rig.order(an_order(11, THIRD), THIRD)
    assert rig.state is S.REVERTING
    assert rig.slots.slots["B"].starts_left == STARTS - started
    rig.perform(rig.next(Revert))
    assert (rig.slots.booted, rig.slots.last_known_good, rig.device.record.floor) == ("A", "A", 0)
    assert (rig.device.workflow.state, rig.outcomes[-1].abandoned) == (S.DOWNLOADING, Abandoned.REPLACED)
    rig.work()
    assert rig.slots.running.sha256 == sha_of(THIRD)


@pytest.mark.parametrize("target", [NEW, THIRD], ids=["same", "other"])
def test_an_order_on_the_way_back_waits_and_the_verdict_stands(target: bytes) -> None:
    """Reverting: queued, whichever its target; the bad slot is not flipped to but filled anew."""
    rig = rig_at(S.REVERTING)
    rig.order(an_order(11, target, attempt=2), target)
    assert rig.state is S.REVERTING
    rig.perform(rig.next(Revert))
    assert rig.device.workflow.state is S.DOWNLOADING
    assert rig.slots.slots["B"].holds is Holds.BAD
    rig.work()
    assert told(rig) == [
        ("d10", 1, Result.FAILED, Reason.HEALTH_FAILED),
        ("d11", 2, Result.SUCCEEDED, None),
    ]
    assert len([effect for effect in rig.log if isinstance(effect, Download)]) == 2


@pytest.mark.parametrize("target", [NEW, THIRD], ids=["same", "other"])
def test_an_order_that_waits_survives_a_power_loss(target: bytes) -> None:
    """`next` is in the record."""
    rig = rig_at(S.REVERTING)
    rig.order(an_order(11, target, attempt=2), target)
    rig.lose_power()
    rig.connect()
    rig.work()
    assert [(deployment, result) for deployment, _, result, _ in told(rig)] == [
        ("d10", Result.FAILED),
        ("d11", Result.SUCCEEDED),
    ]


def test_of_the_orders_that_wait_the_newest_wins_and_the_others_never_begin() -> None:
    """One place: what was overtaken was told as accepted, and is abandoned without work."""
    rig = rig_at(S.REVERTING)
    rig.order(an_order(11, THIRD), THIRD)
    rig.order(an_order(12, a_manifest("4.0", release_counter=7)), a_manifest("4.0", release_counter=7))
    assert rig.state is S.REVERTING
    failing = rig.next(Revert)
    rig.do(Finished(failing.tag, E.REVERT_FAILED, "fw_setenv: EIO", slots=rig.slots))
    while not [effect for effect in rig.waiting if isinstance(effect, Revert) and effect is not failing]:
        rig.tick()
    rig.waiting.remove(failing)
    rig.work()
    assert [deployment for deployment, *_ in told(rig)][-1] == "d12"
    assert ("d11", 1, Result.SUCCEEDED, None) not in told(rig)
    assert len([effect for effect in rig.log if isinstance(effect, Download)]) == 2
