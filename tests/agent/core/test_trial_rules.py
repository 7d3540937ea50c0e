"""The gate, the trial, its verdicts and the way back (R4, R5, R10, R11, R18, R25), as a device lives through them."""

from dataclasses import replace

import pytest

from agent.core import slots as rules
from agent.core.model import (
    Activate,
    Commit,
    Download,
    Finished,
    Holds,
    Invalidate,
    Rehash,
    Revert,
    SlotTable,
    Start,
    Stopped,
    StopWork,
    Watch,
)
from agent.core.settings import COMMIT_TRIES_MAX, Settings
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.outcomes import Abandoned, Party, Reason, Result, fault_of
from tests.agent.builders import a_hold, a_manifest, a_slot, an_order, sha_of, slots_running
from tests.agent.fakes_core import Rig

OLD, NEW, THIRD = (
    a_manifest("1.0"),
    a_manifest("2.0", release_counter=5),
    a_manifest("3.0", release_counter=6),
)
MINUTE = 60_000


def rig_at(state: S, *, slots: SlotTable | None = None, order: object = None, **settings: object) -> Rig:
    """Return a device that has come to a state with its first order."""
    rig = Rig(slots=slots, settings=Settings(**settings)).start().connect()  # type: ignore[arg-type]
    rig.answer_hello()
    rig.first_order(order or an_order(10, NEW), NEW)  # type: ignore[arg-type]
    rig.work(until=state)
    assert rig.state is state
    return rig


def test_R4_a_device_switches_only_after_the_cloud_answered_a_hello_said_since_ready() -> None:
    """Neither silence, nor an older nonce, nor another newest epoch opens the gate; the fresh nonce does."""
    rig = rig_at(S.INSTALLING)
    old_nonce = rig.hellos[0].nonce
    rig.perform()
    assert rig.state is S.READY
    fresh = rig.hellos[-1].nonce
    assert fresh not in {None, old_nonce}
    rig.ack(nonce=old_nonce)
    rig.ack(nonce=None)
    rig.ack(nonce=fresh, newest_epoch=11)
    assert rig.state is S.READY
    rig.ack(nonce=fresh)
    assert rig.device.workflow.state is S.SWITCHING


def test_R4_it_asks_again_on_reconnect_and_with_back_off_and_only_this_connection_counts() -> None:
    """An answer to a hello of an earlier connection does not open the gate."""
    rig = rig_at(S.READY)
    before = rig.hellos[-1].nonce
    count = len(rig.hellos)
    rig.tick()
    rig.tick()
    assert len([hello for hello in rig.hellos[count:] if hello.nonce]) >= 1
    rig.disconnect()
    assert rig.device.due() is None
    rig.connect()
    rig.ack(nonce=before)
    assert rig.state is S.READY
    before = rig.hellos[-1].nonce
    rig.connect()  # a takeover: the end of the old connection was never told
    rig.ack(nonce=before)
    assert not [effect for effect in rig.waiting if isinstance(effect, Activate)]
    rig.ack(nonce=rig.hellos[-1].nonce)
    assert rig.next(Activate)


def test_R4_a_restart_in_ready_checks_the_slot_and_asks_again() -> None:
    """What was answered before the power loss does not count after it."""
    rig = rig_at(S.READY)
    nonce = rig.hellos[-1].nonce
    rig.lose_power()
    rig.connect()
    rig.ack(nonce=nonce)
    rig.ack(nonce=rig.hellos[-1].nonce)
    assert rig.state is S.READY, "the slot is still being checked"
    rig.perform(rig.next(Rehash))
    rig.answer_hello()
    assert rig.device.workflow.state is S.SWITCHING


def test_R4_orders_marked_offline_ok_need_no_answer() -> None:
    """A bundle is switched to without a connection."""
    rig = Rig().start().connect()
    rig.first_order(an_order(10, NEW, offline_ok=True), NEW)
    rig.disconnect()
    for _ in range(4):
        rig.perform()
    assert rig.state is S.SWITCHING


def test_R4_what_was_withdrawn_meanwhile_is_never_installed() -> None:
    """A device that waited at the gate through a rollback gets the new order, and abandons the old one."""
    rig = rig_at(S.READY)
    rig.newest_epoch = 11
    rig.answer_hello()
    assert rig.state is S.READY
    rig.order(a_hold(11))
    assert (rig.state, rig.outcomes[-1].abandoned) == (S.IDLE, Abandoned.CANCELED)
    assert not [effect for effect in rig.log if isinstance(effect, Activate)]
    assert rig.slots.slots["B"].holds is Holds.SEALED


def test_a_trial_that_holds_is_committed_and_raises_the_floor_only_then() -> None:
    """Order at commit: intent on the disk, commit, read back, then outcome, last known good and floor in one write."""
    rig = rig_at(S.CONFIRMING)
    assert rig.device.record.floor == 0
    rig.perform(rig.next(Watch))
    rig.answer_hello()
    commit = rig.next(Commit)
    assert rig.record.workflow.commit_tries == 1, "the intent is on the disk before the commit"
    assert rig.record.floor == 0
    rig.perform(commit)
    assert (rig.state, rig.slots.last_known_good, rig.record.floor) == (S.IDLE, "B", 5)
    assert rig.record.outcomes[-1][1].result is Result.SUCCEEDED


def test_R5_R11_a_trial_commits_only_after_the_cloud_answered_in_it() -> None:
    """Health alone is not enough; the answer alone neither."""
    rig = rig_at(S.CONFIRMING)
    rig.perform(rig.next(Watch))
    assert not [effect for effect in rig.waiting if isinstance(effect, Commit)]
    rig.answer_hello()
    assert rig.next(Commit)
    other = rig_at(S.CONFIRMING)
    other.answer_hello()
    assert not [effect for effect in other.waiting if isinstance(effect, Commit)]


def test_R11_needs_cloud_false_commits_on_health_alone() -> None:
    """The setting acts."""
    rig = rig_at(S.CONFIRMING, needs_cloud=False)
    rig.perform(rig.next(Watch))
    assert rig.next(Commit)


@pytest.mark.parametrize(
    ("old_slot_needs_ms", "party"), [(5_000, Party.UPDATE), (40 * MINUTE, Party.NETWORK)]
)
def test_R11_past_its_limit_the_trial_reverts_and_the_old_slot_says_whose_fault_it_was(
    old_slot_needs_ms: int, party: Party
) -> None:
    """The outcome is told only with the time that the old slot then needed to reach the cloud."""
    rig = rig_at(S.CONFIRMING)
    rig.perform(rig.next(Watch))
    rig.disconnect()
    started = rig.now_ms
    while rig.state is S.CONFIRMING:
        rig.tick()
    assert rig.now_ms - started == 30 * MINUTE
    rig.perform(rig.next(Revert))
    assert rig.device.workflow.state is S.IDLE
    reverted_at = rig.now_ms
    rig.tick(old_slot_needs_ms)
    rig.sent.clear()
    rig.connect()
    count = len(rig.states)
    while len(rig.states) == count:
        rig.tick(1_000)
    assert not rig.states[-1].outcomes, "held back until the time is known"
    rig.answer_hello()
    assert rig.held is not None
    outcome = rig.states[-1].outcomes[-1]
    assert outcome.reason is Reason.CLOUD_UNREACHABLE
    assert (outcome.reach_ms, outcome.reach_limit_ms) == (rig.now_ms - reverted_at, 30 * MINUTE)
    assert (
        fault_of(
            outcome.reason, outcome.phase, reach_ms=outcome.reach_ms, reach_limit_ms=outcome.reach_limit_ms
        )
        is party
    )


def test_R10_a_failed_health_check_reverts_by_itself_and_is_the_updates_fault() -> None:
    """The verdict is recorded before the way back, and told after it, with what runs then."""
    rig = rig_at(S.CONFIRMING)
    rig.finish(rig.next(Watch), E.HEALTH_FAILED, detail="http: 500", reason="health_failed")
    assert rig.record.workflow.verdict is not None
    rig.work()
    seen = rig.seen[-1][2]
    assert (seen["reason"], seen["phase"], seen["detail"]) == (
        Reason.HEALTH_FAILED,
        S.CONFIRMING,
        "http: 500",
    )
    assert seen["running_sha256"] == rig.slots.slots["A"].sha256
    assert fault_of(seen["reason"], seen["phase"]) is Party.UPDATE
    assert rig.slots.slots["B"].holds is Holds.BAD


def test_R10_an_application_that_keeps_ending_uses_up_its_starts() -> None:
    """Each end is a counted start more; when none is left the device goes back with starts_exhausted."""
    rig = rig_at(S.CONFIRMING)
    for left in (1, 0):
        rig.do(Stopped("exit 1"))
        assert rig.state is S.RESTARTING
        rig.perform(rig.next(Start))
        assert rig.slots.slots["B"].starts_left == left
    rig.do(Stopped("exit 1"))
    rig.perform(rig.next(Start))
    assert rig.state is S.REVERTING
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.STARTS_EXHAUSTED


def test_R10_a_bootloader_that_went_back_is_failed_fell_back() -> None:
    """After a restart the device runs its last known good slot: that is the verdict, and the spare is bad."""
    rig = rig_at(S.CONFIRMING)
    rig.slots = SlotTable(rig.slots.slots, "A", "A")
    rig.lose_power()
    rig.connect()
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.FELL_BACK
    assert rig.slots.slots["B"].holds is Holds.BAD


@pytest.mark.parametrize("unreadable", [True, False])
def test_a_switch_that_cannot_be_read_back_is_undone(unreadable: bool) -> None:
    """Without evidence that the last known good slot still boots, the device goes back rather than idle in a trial."""
    rig = rig_at(S.SWITCHING)
    activate = rig.next(Activate)
    rig.waiting.remove(activate)
    table = replace(
        rig.slots, slots={name: replace(slot, holds=Holds.UNKNOWN) for name, slot in rig.slots.slots.items()}
    )
    rig.slots = rules.activate(rig.slots, "B", 3)
    rig.do(Finished(activate.tag, E.ACTIVATE_FAILED, "EIO", slots=table if unreadable else None))
    assert rig.state is S.REVERTING
    rig.work()
    assert (rig.state, rig.slots.booted) == (S.IDLE, "A")
    assert rig.seen[-1][2]["reason"] is Reason.ACTIVATE_FAILED


def test_a_commit_that_happened_is_a_success_though_it_could_not_be_read_back() -> None:
    """What the slots say decides, also after the agent had given the commit up; and the floor rises."""
    rig = rig_at(S.CONFIRMING)
    rig.perform(rig.next(Watch))
    rig.answer_hello()
    for _ in range(COMMIT_TRIES_MAX):
        while not [effect for effect in rig.waiting if isinstance(effect, Commit)]:
            rig.tick()
        commit = rig.next(Commit)
        rig.waiting.remove(commit)
        rig.do(Finished(commit.tag, E.COMMIT_FAILED, "EIO"))
    assert rig.state is S.REVERTING
    rig.slots = rules.commit(rig.slots, "B")
    rig.work()
    assert rig.seen[-1][2]["result"] is Result.SUCCEEDED
    assert rig.device.record.floor == 5


def test_R10_failures_before_the_switch_bear_their_phase() -> None:
    """A step that fails is the update's, a disk that is full the device's; the slot has no checksum left."""
    rig = rig_at(S.INSTALLING)
    rig.finish(rig.waiting[-1], E.INSTALL_FAILED, reason="handler_failed", detail="exit 3")
    outcome = rig.outcomes[-1]
    assert (outcome.reason, outcome.phase) == (Reason.HANDLER_FAILED, S.INSTALLING)
    assert fault_of(Reason.HANDLER_FAILED, S.INSTALLING) is Party.UPDATE
    rig.work()
    assert rig.slots.slots["B"].holds is Holds.BAD


def test_bytes_that_differ_are_fetched_once_more_and_then_spoil_the_slot() -> None:
    """A verification mismatch: fresh once; the second time failed(verify_failed), the server's fault."""
    rig = rig_at(S.DOWNLOADING)
    rig.work(until=S.INSTALLING)
    install = rig.waiting[-1]
    rig.finish(install, E.VERIFY_FAILED)
    again = rig.next(Download)
    assert again.fresh
    rig.finish(again, E.VERIFY_FAILED, detail="app.tar differs")
    assert (rig.state, rig.outcomes[-1].reason) == (S.IDLE, Reason.VERIFY_FAILED)
    assert fault_of(Reason.VERIFY_FAILED, S.DOWNLOADING) is Party.SERVER
    rig.work()
    assert rig.slots.slots["B"].holds is Holds.BAD


def test_another_order_in_the_trial_goes_back_at_once_without_commit_or_floor() -> None:
    """Confirming, other target: reverting(replaced), then the next order begins."""
    rig = rig_at(S.CONFIRMING)
    rig.order(an_order(11, THIRD), THIRD)
    assert rig.state is S.REVERTING
    rig.perform(rig.next(Revert))
    assert rig.device.workflow.state is S.DOWNLOADING
    assert rig.device.record.floor == 0
    assert rig.outcomes[-1].abandoned is Abandoned.REPLACED
    rig.work()
    assert rig.slots.running.sha256 == sha_of(THIRD)


def test_another_order_while_the_commit_is_in_hand_waits_for_it() -> None:
    """A commit cannot be called back: its success is told first, then the new order begins."""
    rig = rig_at(S.CONFIRMING)
    rig.perform(rig.next(Watch))
    rig.answer_hello()
    rig.order(an_order(11, THIRD), THIRD)
    assert rig.state is S.CONFIRMING
    rig.work()
    assert [seen[2]["result"] for seen in rig.seen] == [Result.SUCCEEDED, Result.SUCCEEDED]
    assert rig.device.record.floor == 6


def test_a_commit_that_cannot_be_read_back_is_tried_again_and_then_reverted() -> None:
    """COMMIT_TRIES_MAX tries with back-off, then reverting(commit_failed)."""
    rig = rig_at(S.CONFIRMING)
    rig.perform(rig.next(Watch))
    rig.answer_hello()
    for _ in range(COMMIT_TRIES_MAX):
        rig.finish(rig.next(Commit), E.COMMIT_FAILED, detail="read back differs")
        while rig.state is S.CONFIRMING and not [e for e in rig.waiting if isinstance(e, Commit)]:
            rig.tick()
    assert rig.state is S.REVERTING
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.COMMIT_FAILED


def test_a_revert_that_fails_is_told_as_stuck_and_tried_for_ever() -> None:
    """The device is never idle while the trial is booted."""
    rig = rig_at(S.CONFIRMING)
    rig.finish(rig.next(Watch), E.HEALTH_FAILED)
    for _ in range(20):
        rig.finish(rig.next(Revert), E.REVERT_FAILED, detail="fw_setenv: EIO")
        assert rig.state is S.REVERTING
        assert rig.states[-1].work.stuck == "fw_setenv: EIO"
        while not [e for e in rig.waiting if isinstance(e, Revert)]:
            rig.tick()
    rig.work()
    assert rig.state is S.IDLE


def test_R18_a_late_fall_back_withdraws_the_success_and_settles_the_slots() -> None:
    """Long after the commit the bootloader went back: failed(fell_back) for the order in force, nothing reinstalled."""
    rig = rig_at(S.CONFIRMING)
    rig.work()
    rig.slots = SlotTable(rig.slots.slots, "A", "B")
    rig.lose_power()
    rig.connect()
    rig.work()
    assert rig.seen[-1][2]["reason"] is Reason.FELL_BACK
    assert (rig.slots.booted, rig.slots.last_known_good) == ("A", "A")
    assert rig.slots.slots["B"].holds is Holds.BAD
    assert rig.state is S.IDLE
    assert not rules.faults(rig.slots)


def test_R18_without_the_order_that_succeeded_in_force_only_what_runs_changes() -> None:
    """After a newer hold no verdict is touched."""
    rig = rig_at(S.CONFIRMING)
    rig.work()
    rig.order(a_hold(11))
    rig.work()
    rig.slots = SlotTable(rig.slots.slots, "A", "B")
    rig.lose_power()
    rig.connect()
    rig.work()
    assert [seen[2]["result"] for seen in rig.seen] == [Result.SUCCEEDED]
    assert rig.held is not None
    assert rig.held.running is not None
    assert rig.held.running.update == "contoso/app:1.0"


@pytest.mark.parametrize("holds", [Holds.SEALED, Holds.GOOD])
def test_R25_a_flip_is_rehashed_in_this_start_and_needs_no_download(holds: Holds) -> None:
    """The spare still holds the target: re-hash, gate, switch, and an ordinary trial."""
    rig = rig_at(S.DOWNLOADING, slots=slots_running(OLD, a_slot(NEW, holds)))
    assert rig.next(Rehash).slot == "B"
    rig.work()
    assert not [effect for effect in rig.log if isinstance(effect, Download)]
    assert [type(effect) for effect in rig.log if isinstance(effect, Rehash | Activate)] == [Rehash, Activate]
    assert rig.seen[-1][2]["result"] is Result.SUCCEEDED


def test_R25_a_decayed_slot_is_marked_bad_and_downloaded() -> None:
    """A mismatch marks it bad(decayed); the order goes on with a download."""
    rig = rig_at(S.DOWNLOADING, slots=slots_running(OLD, a_slot(NEW, Holds.SEALED)))
    rig.finish(rig.next(Rehash), E.VERIFY_FAILED)
    assert rig.next(Invalidate).reason == "decayed"
    rig.work()
    assert [effect for effect in rig.log if isinstance(effect, Download)]
    assert rig.seen[-1][2]["result"] is Result.SUCCEEDED


def test_R25_a_slot_that_decays_again_ends_the_order() -> None:
    """At the gate a decayed slot is downloaded once; the second time the order fails, and goes round no more."""
    rig = rig_at(S.READY)
    for end in (S.DOWNLOADING, S.IDLE):
        rig.lose_power()
        rig.finish(rig.next(Rehash), E.VERIFY_FAILED)
        assert rig.device.workflow.state is end
        rig.connect()
        rig.work(until=S.READY)
    assert rig.seen[-1][2]["reason"] is Reason.VERIFY_FAILED


def test_R25_a_flip_below_the_floor_is_refused_by_the_slots_own_facts() -> None:
    """Version and release counter are checked for a flip too."""
    older = a_slot(a_manifest("0.9"), Holds.GOOD)
    rig = Rig(slots=slots_running(OLD, older)).start().connect()
    rig.first_order(an_order(10, a_manifest("0.9")))
    assert (rig.state, rig.outcomes[-1].reason) == (S.IDLE, Reason.DOWNGRADE_REFUSED)
    rig.order(an_order(11, a_manifest("0.9"), allow_downgrade=True))
    assert rig.state is S.DOWNLOADING


def test_results_of_earlier_effects_and_starts_change_nothing() -> None:
    """A late answer of what was stopped, of another start, or given twice, is ignored."""
    rig = rig_at(S.DOWNLOADING)
    stale = rig.waiting[-1]
    rig.order(an_order(11, THIRD), THIRD)
    before = rig.device.record
    rig.finish(stale, E.PREPARED, manifest=NEW)
    assert rig.device.record is before
    fresh = rig.waiting[-1]
    rig.finish(fresh, E.PREPARED, manifest=THIRD)
    after = rig.device.record
    rig.finish(fresh, E.PREPARED, manifest=THIRD)
    assert rig.device.record is after
    failing = next(effect for effect in rig.log if isinstance(effect, Download))
    for _ in range(3):
        rig.finish(failing, E.DOWNLOAD_FAILED, transient=True)
    assert rig.device.workflow.tries == 1


def test_orders_that_replace_each_other_leave_an_outcome_each() -> None:
    """Stop, abandon(replaced), start new: the stopped download's slot is invalid, and both outcomes arrive."""
    rig = rig_at(S.INSTALLING)
    effects = rig.device.record.outcomes
    assert effects == ()
    rig.order(an_order(11, THIRD), THIRD)
    assert [type(effect) for effect in rig.log[-4:]].count(StopWork) == 1
    rig.work()
    assert [(seen[0], seen[2]["result"]) for seen in rig.seen] == [
        ("d10", Result.ABANDONED),
        ("d11", Result.SUCCEEDED),
    ]


def test_a_committed_application_that_ends_is_started_again_without_counting() -> None:
    """With back-off, in any state in which no trial runs."""
    rig = rig_at(S.CONFIRMING)
    rig.work()
    waits = []
    for _ in range(4):
        rig.do(Stopped("signal 9"))
        before = rig.now_ms
        while not [e for e in rig.waiting if isinstance(e, Start)]:
            rig.tick()
        waits.append(rig.now_ms - before)
        rig.perform(rig.next(Start))
        rig.answer_hello()
    assert all(0 < wait <= 1_000 * 2**turn for turn, wait in enumerate(waits))
    assert rig.slots.running.holds is Holds.GOOD


def test_due_says_when_the_device_wants_to_be_called() -> None:
    """Nothing is due without a connection and work; a heartbeat is with one."""
    rig = Rig().start()
    assert rig.device.due() is None
    rig.connect()
    rig.answer_hello()
    rig.answer_hello()
    assert rig.device.due() == 60_000
    assert rig.device.waits_for() == "Waits for an order."
