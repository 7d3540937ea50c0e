"""Which orders are obeyed (R1, R2, R3), and what a device answers to the others."""

import pytest

from agent.core.model import Delivered, Prepare, Save, SlotTable, StopWork
from agent.core.settings import Settings
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.messages import Ack, Repository, write
from protocol.outcomes import Abandoned, Result
from protocol.topics import Kind
from tests.agent.builders import DEVICE, STRANGER, a_hold, a_manifest, a_slot, an_order, signed
from tests.agent.fakes_core import Rig

NEW, THIRD = a_manifest("2.0"), a_manifest("3.0")


def rig_with_order(epoch: int = 10, **settings: object) -> Rig:
    """Return a connected device that has accepted its first order and fetches the manifest."""
    rig = Rig(settings=Settings(**settings)).start().connect()  # type: ignore[arg-type]
    rig.answer_hello()
    rig.first_order(an_order(epoch, NEW), NEW)
    assert rig.state is S.DOWNLOADING
    return rig


def test_R1_epoch_envelope_and_workflow_are_one_write_before_any_act() -> None:
    """The effects of an accepted order begin with one Save that holds all three."""
    rig = Rig().start().connect()
    envelope = signed(an_order(10, NEW, nonce=rig.hellos[-1].nonce))
    effects = rig.do(Delivered(Kind.DESIRED, envelope))
    save, prepare = effects[0], effects[1]
    assert isinstance(save, Save)
    assert isinstance(prepare, Prepare)
    assert (save.record.epoch, save.record.envelope) == (10, envelope)
    assert save.record.workflow.order == prepare.order
    assert len([effect for effect in effects if isinstance(effect, Save)]) == 1


def test_R1_a_lower_epoch_is_refused_and_counted() -> None:
    """An order that was overtaken changes nothing."""
    rig = rig_with_order(10)
    before = rig.device.record
    rig.order(an_order(9, THIRD))
    assert rig.device.record is before
    assert rig.device.refused == {"epoch": 1}


def test_R1_the_same_order_again_is_a_duplicate_without_effect() -> None:
    """A duplicate is neither acted on nor counted."""
    rig = rig_with_order(10)
    before = rig.device.record
    assert rig.do(Delivered(Kind.DESIRED, before.envelope or b"")) == []
    assert rig.device.record is before
    assert rig.device.refused == {}


def test_R1_a_newer_issue_time_refreshes_addresses_and_leaves_the_workflow() -> None:
    """The order in work gets the new repository; state, tries and epoch stay."""
    rig = rig_with_order(10)
    new = Repository(url="https://mirror.example/files", query="sig=2")
    rig.order(an_order(10, NEW, issued_ms=2_000_000, repository=new))
    work = rig.device.workflow
    assert work.state is S.DOWNLOADING
    assert work.order is not None
    assert work.order.repository == new
    assert rig.record.envelope == rig.device.record.envelope
    assert rig.device.refused == {}


@pytest.mark.parametrize(
    "other",
    [
        an_order(10, THIRD, issued_ms=2_000_000),
        an_order(10, NEW, attempt=2),
        an_order(10, NEW, deployment="another"),
        a_hold(10, "d10", 1),
    ],
)
def test_R1_the_same_epoch_with_another_meaning_is_refused_as_a_conflict(other: object) -> None:
    """Target, deployment, attempt and action belong to an epoch once and for all."""
    rig = rig_with_order(10)
    before = rig.device.record
    rig.order(other)  # type: ignore[arg-type]
    assert rig.device.record is before
    assert rig.device.refused == {"epoch_conflict": 1}


def test_R1_refused_addresses_ask_for_new_ones_once_and_then_fail_by_the_server() -> None:
    """403 makes the next hello want addresses; fresh ones are tried at once, and a second 403 ends the order."""
    rig = rig_with_order(10)
    rig.finish(rig.next(Prepare), E.DOWNLOAD_FAILED, reason="server", refresh=True)
    assert rig.hellos[-1].wants_addresses
    assert not [effect for effect in rig.waiting if isinstance(effect, Prepare)]
    rig.order(an_order(10, NEW, issued_ms=2_000_000, repository=Repository(url="https://b.example")))
    rig.tick()
    again = rig.next(Prepare)
    assert again.order.repository.url == "https://b.example"
    rig.finish(again, E.DOWNLOAD_FAILED, reason="server", refresh=True)
    assert (rig.state, rig.outcomes[-1].reason) == (S.IDLE, "server")
    rig.tick(60_000)
    assert not rig.hellos[-1].wants_addresses


def test_R1_an_order_whose_lifetime_is_surely_over_is_refused() -> None:
    """Cloud time is at least what the order in force says, plus what passed since; a later order came too late."""
    rig = rig_with_order(10)
    rig.now_ms += 5_000
    rig.order(an_order(11, THIRD, issued_ms=1_000_020, lifetime_ms=4_000))
    assert rig.device.refused == {"expired": 1}
    rig.order(an_order(11, THIRD, issued_ms=1_000_020, lifetime_ms=5_000))
    assert rig.device.record.epoch == 11


def test_R1_a_cloud_whose_clock_was_set_back_is_still_obeyed() -> None:
    """One order signed by a clock that ran ahead must not make the device deaf."""
    rig = rig_with_order(10)
    rig.order(an_order(11, THIRD, issued_ms=9_000_000_000_000))
    rig.order(an_order(12, NEW, issued_ms=1_000_020, lifetime_ms=1_000))
    assert rig.device.record.epoch == 12
    rig.lose_power()
    rig.order(an_order(13, THIRD, issued_ms=1_000_030, lifetime_ms=1_000))
    assert rig.device.record.epoch == 13


def test_R1_while_busy_past_the_point_of_no_return_one_order_waits_and_the_newest_wins() -> None:
    """`next` has one place; epoch accepted and epoch in work are both reported."""
    rig = rig_with_order(10)
    rig.work(until=S.SWITCHING)
    rig.order(an_order(11, THIRD), THIRD)
    rig.order(an_order(12, THIRD))
    assert rig.state is S.SWITCHING
    assert rig.device.workflow.next is not None
    assert rig.device.workflow.next.epoch == 12
    assert (rig.states[-1].epoch, rig.states[-1].epoch_in_work) == (12, 10)
    rig.work()
    assert [(seen[0], seen[2]["result"]) for seen in rig.seen] == [
        ("d10", Result.ABANDONED),
        ("d12", Result.SUCCEEDED),
    ]


def test_R2_a_device_ahead_of_the_cloud_proves_its_epoch_with_the_signed_order() -> None:
    """An ack that names a lower epoch gets a hello with the envelope at once, and until the cloud has caught up."""
    rig = rig_with_order(10)
    rig.newest_epoch = 4
    rig.ack()
    assert rig.hellos[-1].proof is not None
    assert rig.hellos[-1].proof.encode() == rig.device.record.envelope
    count = len(rig.hellos)
    rig.ack()
    assert len(rig.hellos) == count, "one proof at once, the next with the next hello"
    rig.newest_epoch = 10
    rig.ack()
    rig.tick(60_000)
    assert rig.hellos[-1].proof is None


def test_R3_the_first_order_must_echo_a_nonce_of_this_devices_own_hello() -> None:
    """Without a stored epoch an old order, however well signed, is not obeyed."""
    rig = Rig().start().connect()
    rig.order(an_order(10, NEW))
    rig.order(an_order(10, NEW, nonce="somebody-elses"))
    assert rig.device.refused == {"nonce": 2}
    assert rig.device.record.epoch is None
    rig.first_order(an_order(10, NEW), NEW)
    assert rig.device.record.epoch == 10


def test_R3_a_new_record_takes_its_floor_from_the_good_slots() -> None:
    """The release-counter floor of a device without a record is the highest of what it runs or ran."""
    slots = SlotTable(
        {
            "A": a_slot(a_manifest("1.0", release_counter=6)),
            "B": a_slot(a_manifest("1.1", release_counter=8)),
        },
        "A",
        "A",
    )
    assert Rig(slots=slots).start().device.record.floor == 8


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"not json", "not_json"),
        (b'{"payload": "", "payloadType": "x", "signatures": []}', "envelope"),
        (signed(an_order(11, NEW), STRANGER), "signature"),
        (signed(an_order(11, NEW, device="another")), "device"),
        (signed(an_order(11, NEW).model_copy(update={"target": None})), "fields"),
        (signed(a_hold(11, deployment="d10")), "fields"),
        (b"x" * 300_000, "too_large"),
    ],
)
def test_what_is_not_a_signed_order_for_this_device_is_counted_and_never_stored(
    payload: bytes, reason: str
) -> None:
    """Bad signature, another device, or nonsense: no state changes, and the count travels in hello."""
    rig = rig_with_order(10)
    before = rig.device.record
    assert rig.do(Delivered(Kind.DESIRED, payload)) == []
    assert rig.device.record is before
    assert rig.device.refused == {reason: 1}
    rig.tick(60_000)
    assert rig.hellos[-1].refused_count == 1


def test_an_ack_for_another_instance_or_device_changes_nothing() -> None:
    """What was said to the folder before this one, or to a twin, is not ours to act on (R8)."""
    rig = rig_with_order(10)
    before = rig.device.record
    rig.ack(instance="another", sequence=99)
    other = Ack(device="another", instance=before.instance, sequence=9, newest_epoch=10)
    rig.do(Delivered(Kind.ACK, write(other)))
    assert rig.device.record is before
    assert rig.device.refused == {"device": 1}


def test_R16_a_retry_of_the_running_target_is_adopted_and_starts_are_kept() -> None:
    """The old attempt ends as retried, the new one goes on in the same trial, without a new start."""
    rig = rig_with_order(10)
    rig.work(until=S.CONFIRMING)
    starts = rig.slots.slots["B"].starts_left
    effects = rig.do(Delivered(Kind.DESIRED, signed(an_order(11, NEW, attempt=2))))
    rig.newest_epoch = 11
    assert not [effect for effect in effects if isinstance(effect, StopWork)]
    assert rig.outcomes[-1].abandoned is Abandoned.RETRIED
    rig.work()
    assert rig.slots.slots["B"].starts_left is None
    assert starts == 2
    assert [(seen[0], seen[1], seen[2]["result"]) for seen in rig.seen] == [
        ("d10", 1, Result.ABANDONED),
        ("d11", 2, Result.SUCCEEDED),
    ]


def test_R16_an_order_for_what_already_runs_is_a_success_without_work() -> None:
    """The target is booted and committed: nothing is fetched, and the outcome says so."""
    rig = Rig().start().connect()
    rig.first_order(an_order(10, a_manifest("1.0")))
    assert rig.state is S.IDLE
    assert rig.outcomes[-1].already_there
    assert rig.device.record.outcomes[-1][1].running_sha256 == rig.slots.running.sha256


@pytest.mark.parametrize("state", [S.DOWNLOADING, S.INSTALLING, S.READY])
def test_R5_a_cancel_before_the_point_of_no_return_ends_the_attempt(state: S) -> None:
    """The outcome is abandoned(canceled), and the answer says canceled."""
    rig = rig_with_order(10)
    rig.work(until=state)
    rig.order(a_hold(11, "d10", 1))
    assert rig.state is S.IDLE
    assert rig.outcomes[-1].abandoned is Abandoned.CANCELED
    assert rig.states[-1].answer is not None
    assert (rig.states[-1].answer.answer, rig.states[-1].answer.epoch) == ("canceled", 11)


@pytest.mark.parametrize("state", [S.SWITCHING, S.RESTARTING, S.CONFIRMING])
def test_R5_a_cancel_after_it_is_too_late_and_the_trial_runs_to_its_verdict(state: S) -> None:
    """The answer is too_late, and the attempt succeeds all the same."""
    rig = rig_with_order(10)
    rig.work(until=state)
    rig.order(a_hold(11, "d10", 1))
    rig.work()
    assert rig.seen[-1][2]["result"] is Result.SUCCEEDED
    assert rig.states[-1].answer is not None
    assert rig.states[-1].answer.answer == "too_late"


def test_R5_an_idle_device_answers_by_whether_the_attempt_has_an_outcome() -> None:
    """`canceled` for an attempt that never began, `held` for one that ended, and for a plain hold."""
    rig = rig_with_order(10)
    rig.work()
    answers = []
    for epoch, hold in enumerate([a_hold(11, "d10", 1), a_hold(12, "d99", 1), a_hold(13)], start=11):
        rig.order(hold)
        assert rig.device.record.answer_epoch == epoch
        answers.append(rig.device.record.answer)
    assert answers == ["held", "canceled", "held"]


def test_a_switch_that_was_not_made_lets_a_waiting_cancel_win() -> None:
    """The agent's table, switching: queued, and `canceled` when the last known good slot still boots."""
    rig = rig_with_order(10)
    rig.work(until=S.SWITCHING)
    rig.order(a_hold(11, "d10", 1))
    rig.finish(rig.waiting[0], E.ACTIVATE_FAILED, detail="the link was not renamed")
    assert rig.state is S.IDLE
    assert (rig.outcomes[-1].abandoned, rig.device.record.answer) == (Abandoned.CANCELED, "canceled")


def test_an_order_for_a_device_is_never_taken_by_another() -> None:
    """The device in the payload decides, not the topic it came on."""
    rig = Rig().start().connect()
    rig.order(an_order(10, NEW, device="press-18", nonce=rig.hellos[-1].nonce))
    assert rig.device.device == DEVICE
    assert rig.device.record.epoch is None
    assert rig.device.refused == {"device": 1}
