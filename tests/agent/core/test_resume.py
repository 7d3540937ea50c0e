"""What a power loss means in every state, whatever the slots say; and a record that is lost, or cannot be written."""

from dataclasses import replace

import pytest

from agent.core import slots as rules
from agent.core.model import Commit, Holds, Invalidate, Prepare, Rehash, Revert, Save, SlotTable, Start, Watch
from agent.core.resume import RESUME, Evidence, Resume, evidence_of
from protocol.lifecycle import WorkflowState as S
from protocol.outcomes import Party, Reason, Result, fault_of
from tests.agent.builders import a_manifest, a_slot, an_order, sha_of, slots_in_trial, slots_running
from tests.agent.fakes_core import Rig, come_to

OLD, NEW = a_manifest("1.0"), a_manifest("2.0")
MOMENTS = [S.DOWNLOADING, S.INSTALLING, S.READY, S.SWITCHING, S.RESTARTING, S.CONFIRMING, S.REVERTING]


def rig_at(state: S) -> Rig:
    """Return a device that works on its first order and has come to a state."""
    return come_to(state, an_order(10, NEW), NEW)


def test_the_resume_table_is_total() -> None:
    """Every state meets everything that the slots can say, and every word of it is used."""
    assert set(RESUME) == set(S)
    assert all(set(row) == set(Evidence) for row in RESUME.values())
    assert {action for row in RESUME.values() for action in row.values()} == set(Resume)


@pytest.mark.parametrize(
    ("slots", "evidence"),
    [
        (slots_in_trial(OLD, NEW), Evidence.TRIAL),
        (SlotTable({"A": a_slot(OLD), "B": a_slot(NEW)}, "B", "B"), Evidence.COMMITTED),
        (slots_running(OLD, a_slot(NEW, Holds.SEALED)), Evidence.WHOLE),
        (slots_running(OLD, a_slot(OLD, Holds.SEALED)), Evidence.OTHER),
        (slots_running(OLD), Evidence.OTHER),
        (SlotTable({"A": a_slot(OLD), "B": a_slot(NEW)}, "B", "A"), Evidence.ASTRAY),
        (SlotTable({"A": a_slot(OLD), "B": a_slot(NEW, Holds.UNKNOWN)}, "B", "A"), Evidence.ASTRAY),
    ],
)
def test_what_the_slots_say_is_read_from_the_slots_alone(slots: SlotTable, evidence: Evidence) -> None:
    """The record is never evidence of what runs."""
    assert evidence_of(slots, "B", sha_of(NEW)) is evidence


@pytest.mark.parametrize("state", MOMENTS)
def test_after_a_power_loss_in_any_state_the_order_comes_to_its_one_outcome(state: S) -> None:
    """Nothing that was under way is lost, and nothing is told twice."""
    rig = rig_at(state)
    rig.lose_power()
    rig.connect()
    rig.work()
    assert rig.state is S.IDLE
    assert len(rig.seen) == 1
    assert rig.seen[0][2]["result"] is (Result.FAILED if state is S.REVERTING else Result.SUCCEEDED)
    assert rules.faults(rig.slots) == []


def test_a_power_loss_between_commit_and_its_record_is_a_success() -> None:
    """The slot is good though the record says confirming: the verdict is read from the slot."""
    rig = rig_at(S.CONFIRMING)
    rig.slots = rules.commit(rig.slots, "B")
    rig.lose_power()
    assert rig.state is S.IDLE
    assert rig.outcomes[-1].result is Result.SUCCEEDED


def test_a_power_loss_between_the_record_and_the_switch_asks_at_the_gate_again() -> None:
    """`switching` on the disk, the old slot booted: the switch had not happened."""
    rig = rig_at(S.SWITCHING)
    rig.slots = rules.mark_trial(rig.slots, "B", 3)
    rig.lose_power()
    assert rig.state is S.READY
    assert rig.next(Rehash)


def test_every_start_of_a_trial_counts_before_it_happens() -> None:
    """Power losses use up the starts; then the device goes back."""
    rig = rig_at(S.CONFIRMING)
    for left in (1, 0):
        rig.lose_power()
        rig.perform(rig.next(Start))
        assert rig.slots.slots["B"].starts_left == left
        assert rig.state is S.CONFIRMING
    rig.lose_power()
    rig.perform(rig.next(Start))
    assert rig.state is S.REVERTING
    rig.connect()
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.STARTS_EXHAUSTED


def test_a_lost_record_with_a_trial_booted_goes_back() -> None:
    """Nobody knows what the trial was for: the last known good slot it is, under a new instance without an epoch."""
    rig = rig_at(S.CONFIRMING)
    rig.start(record_lost=True)
    assert rig.state is S.REVERTING
    assert rig.next(Revert).reason == Reason.RECORD_LOST
    rig.connect()
    rig.work()
    assert (rig.state, rig.slots.booted, rig.device.record.epoch) == (S.IDLE, "A", None)
    assert rig.held is not None
    assert rig.held.slots["B"].reason == "record_lost"


def test_R3_after_a_lost_record_nothing_begins_before_an_answered_hello() -> None:
    """Without an epoch the first order has to echo a nonce, so no slot is written on anyone's old word."""
    rig = rig_at(S.DOWNLOADING)
    rig.start(record_lost=True)
    assert rig.state is S.IDLE
    rig.order(an_order(10, NEW))
    assert (rig.state, rig.device.refused) == (S.IDLE, {"nonce": 1})
    rig.connect()
    rig.first_order(an_order(11, NEW))
    assert rig.next(Prepare)


def test_a_record_older_than_a_trial_goes_back_and_says_whose_order_was_in_work() -> None:
    """A record restored from a copy knows nothing of the trial that is booted."""
    rig = rig_at(S.DOWNLOADING)
    rig.slots = slots_in_trial(OLD, NEW)
    rig.lose_power()
    rig.connect()
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.RECORD_LOST
    assert fault_of(Reason.RECORD_LOST, S.DOWNLOADING) is Party.UPDATE


@pytest.mark.parametrize("state", [S.IDLE, S.DOWNLOADING, S.INSTALLING, S.READY])
def test_the_application_of_the_booted_slot_starts_with_the_agent(state: S) -> None:
    """In every state without a trial; its start is not counted."""
    rig = Rig().start() if state is S.IDLE else rig_at(state)
    rig.lose_power()
    start = rig.next(Start)
    assert (start.slot, start.tag.ordinal) == ("A", 0)


@pytest.mark.parametrize("state", [S.IDLE, S.DOWNLOADING, S.INSTALLING, S.READY])
def test_the_application_of_the_booted_slot_starts_though_the_disk_refuses_the_record(state: S) -> None:
    """An order may fail for want of a disk; what is committed runs all the same."""
    rig = Rig().start() if state is S.IDLE else rig_at(state)
    rig.disk_full = True
    rig.lose_power()
    start = rig.next(Start)
    assert (rig.state, start.slot, start.tag.ordinal) == (S.IDLE, "A", 0)


# --- a disk that refuses the record ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.DOWNLOADING, S.INSTALLING, S.READY])
def test_a_disk_that_refuses_before_the_point_of_no_return_ends_the_order_as_failed_disk(state: S) -> None:
    """Nothing that depended on the record is done; the outcome is told from memory."""
    rig = rig_at(state)
    rig.disk_full = True
    before = len(rig.log)
    if state is not S.READY:
        rig.perform(rig.waiting[-1])
    else:
        rig.answer_hello()
    assert rig.state is S.IDLE
    assert (rig.outcomes[-1].reason, fault_of(Reason.DISK, rig.outcomes[-1].phase)) == (
        Reason.DISK,
        Party.DEVICE,
    )
    done = [type(effect) for effect in rig.log[before:]]
    assert done.count(Save) == 1, "one try, the next by the clock"
    assert [outcome.reason for outcome in rig.states[-1].outcomes] == [Reason.DISK]
    rig.disk_full = False
    rig.tick(60_000)
    assert rig.record.outcomes


def test_a_full_disk_is_tried_again_with_back_off() -> None:
    """The record is written as soon as the disk takes it."""
    rig = rig_at(S.DOWNLOADING)
    rig.disk_full = True
    rig.perform(rig.waiting[-1])
    saves = len([e for e in rig.log if isinstance(e, Save)])
    end = rig.now_ms + 300_000
    while rig.now_ms < end:
        rig.tick()
    tries = len([e for e in rig.log if isinstance(e, Save)]) - saves
    assert 5 <= tries <= 40
    rig.disk_full = False
    rig.tick(60_000)
    assert rig.record == rig.device.record


def test_a_trial_that_cannot_record_its_commit_goes_back() -> None:
    """After the point of no return the slots decide: it cannot commit, so it reverts, and the verdict is told."""
    rig = rig_at(S.CONFIRMING)
    rig.perform(rig.next(Watch))
    rig.disk_full = True
    rig.answer_hello()
    assert rig.state is S.REVERTING
    assert not [e for e in rig.waiting if isinstance(e, Commit)]
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.COMMIT_FAILED
    assert rig.slots.booted == "A"


def test_a_trial_goes_on_from_memory_while_the_disk_refuses() -> None:
    """Started and watched without a record; when the disk takes it again before the commit, the trial succeeds."""
    rig = rig_at(S.SWITCHING)
    rig.disk_full = True
    rig.perform()
    assert rig.state is S.RESTARTING
    rig.perform(rig.next(Start))
    assert rig.next(Watch)
    rig.disk_full = False
    rig.work()
    assert rig.seen[-1][2]["result"] is Result.SUCCEEDED


def test_an_invalidate_is_never_done_on_a_slot_in_use_for_want_of_a_record() -> None:
    """A late fall-back on a full disk leaves both slots as they are, and is settled at a later start."""
    rig = rig_at(S.CONFIRMING)
    rig.work()
    rig.slots = SlotTable(rig.slots.slots, "A", "B")
    rig.disk_full = True
    rig.lose_power()
    assert not [e for e in rig.waiting if isinstance(e, Invalidate | Commit)]
    rig.disk_full = False
    rig.lose_power()
    rig.connect()
    rig.work()
    assert (rig.slots.last_known_good, rig.slots.slots["B"].holds) == ("A", Holds.BAD)
    assert replace(rig.slots.slots["A"]) == a_slot(OLD)
