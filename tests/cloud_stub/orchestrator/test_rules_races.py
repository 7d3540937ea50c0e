"""The cloud's side of RULES.md where things meet at the wrong time; each test bears the number of its rule."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import (
    AddDevices,
    CancelDeployment,
    MoveDevice,
    PolicyDraft,
    RetryDeployment,
)
from cloud_stub.core.places import class_key_of, properties_of
from cloud_stub.core.rows import AssignmentState
from cloud_stub.orchestrator import Asked, Delivered, Linked
from protocol import messages
from protocol.errors import ServiceError
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.messages import Hello, Progress
from protocol.outcomes import Reason, Result
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import Cloud, Pi, accepted
from tests.cloud_stub.orchestrator.rule_bench import POLICY, V1, V2, V3, fail, running

S = AssignmentState
W = WorkflowState


def silence(cloud: Cloud, seconds: int = 10) -> None:
    """Let time pass in which nobody says anything."""
    for _ in range(seconds):
        cloud.wait(1_000)


def test_R4_an_acknowledgement_speaks_of_the_end_of_its_batch(cloud: Cloud) -> None:
    """A hello at the gate and the failure that trips the policy arrive in one batch: the gate stays shut."""
    pis = running(cloud, 4)
    cloud.deploy("north", V2, policy=POLICY)
    waiting, first, second = pis[:3]
    cloud.begin(waiting, W.READY)
    fail(cloud, first)
    order = cloud.begin(second, W.CONFIRMING)
    second.sequence += 1
    second.outcomes = [outcome(second, order.epoch, order.deployment or "", 1, Reason.HEALTH_FAILED)]
    before = waiting.epoch
    hello = Hello(
        device=waiting.id,
        instance="one",
        connection="c1",
        sequence=waiting.sequence,
        digest="0" * 64,
        epoch=waiting.epoch,
        nonce="gate",
    )
    cloud.feed(
        Delivered(Kind.HELLO, waiting.id, messages.write(hello)),
        Delivered(Kind.STATE, second.id, messages.write(cloud.state_of(second))),
    )
    told = next(ack for ack in waiting.acks if ack.nonce == "gate")
    assert told.newest_epoch > (before or 0)
    target = accepted(waiting).target
    assert target is not None
    assert target.update == V1


def test_R5_a_cancel_that_a_newer_order_overtook_is_closed(cloud: Cloud) -> None:
    """The device never saw the cancel; what it accepted since says that the canceled attempt never began."""
    pi = cloud.pi("a", "north")
    first = cloud.deploy("north", V1)
    cloud.do(CancelDeployment(first))
    assert cloud.row(first, "a").cancel == "sent"
    second = cloud.deploy("north", V2)
    cloud.begin(pi)
    for _ in range(15):
        cloud.live(1_000)
    row = cloud.row(first, "a")
    assert (row.state, row.cancel) == (S.CANCELED, "canceled")
    assert cloud.row(second, "a").state is S.WORKING
    cloud.check_tallies()


def test_R5_a_verdict_says_that_a_cancel_came_too_late(cloud: Cloud) -> None:
    """A cancel without an answer is not shown as sent for ever beside a verdict."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1)
    order = cloud.begin(pi, W.CONFIRMING)
    cloud.do(CancelDeployment(deployment))
    cloud.succeed(pi, order)
    assert cloud.row(deployment, "a").cancel == "too_late"


def test_R8_a_clone_counts_nowhere(cloud: Cloud) -> None:
    """Nobody knows which of the two failed, or which is silent."""
    pi = running(cloud, 1)[0]
    deployment = cloud.deploy("north", V2, device_timeout_ms=3_000)
    order = cloud.begin(pi, W.CONFIRMING)
    for instance in ("two", "one"):
        pi.instance, pi.sequence = instance, 0
        cloud.hello(pi)
    cloud.end(pi, order, Result.FAILED, Reason.HEALTH_FAILED, W.CONFIRMING)
    silence(cloud, 20)
    assert cloud.row(deployment, pi.id).state is S.WORKING
    assert cloud.deployment(deployment).tally.counted == 0


def test_R8_a_new_instance_is_not_ordered_what_failed_on_the_old_one(cloud: Cloud) -> None:
    """Its disk was lost after the attempt failed: its order is decided anew."""
    pi = cloud.pi("a", "north")
    cloud.deploy("north", V2)
    fail(cloud, pi)
    pi.instance, pi.sequence, pi.epoch, pi.order = "two", 0, None, None
    cloud.hello(pi)
    assert accepted(pi).action == "hold"


def test_R12_a_wall_clock_set_back_leaves_heartbeats_heard(cloud: Cloud) -> None:
    """For the hour that the wall clock repeats, hellos still count as heard."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=30_000)
    silence(cloud, 4)
    cloud.begin(pi, W.CONFIRMING)
    cloud.wait(1_000, stepping=-3_600_000)
    for _ in range(60):
        cloud.live(1_000)
    assert cloud.row(deployment, "a").state is S.WORKING


def test_R12_a_state_that_tells_no_bytes_is_no_headway(cloud: Cloud) -> None:
    """A device that only repeats its state while its download stands still is stuck."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=1_000_000, attempt_timeout_ms=20_000)
    order = cloud.begin(pi)
    said = progress(pi, order.epoch, deployment, W.DOWNLOADING, 5)
    cloud.feed(said)
    for _ in range(30):
        cloud.wait(1_000)
        cloud.state(pi)
    assert cloud.row(deployment, "a").reason is Reason.TIMED_OUT


def test_R12_a_link_that_broke_while_the_database_refused_counts_no_silence() -> None:
    """The turn that was to note it failed; the silence after it counts all the same for nobody."""
    store = Refusing()
    cloud = Cloud(store=store)
    cloud.update(V1)
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=5_000)
    silence(cloud, 4)
    cloud.begin(pi)
    store.refuses = True
    with pytest.raises(ServiceError):
        cloud.feed(Linked(False))
    store.refuses = False
    silence(cloud, 30)
    assert cloud.row(deployment, "a").state is S.WORKING


def test_R10_late_progress_does_not_take_a_trial_back_before_the_switch(cloud: Cloud) -> None:
    """It has no sequence number, and a time-out takes the last phase that was recorded."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=3_000)
    order = cloud.begin(pi, W.CONFIRMING)
    cloud.feed(progress(pi, order.epoch, deployment, W.DOWNLOADING, 5))
    assert cloud.row(deployment, "a").phase is W.CONFIRMING


def test_R13_a_verdict_that_comes_with_the_move_counts_where_it_was(cloud: Cloud) -> None:
    """One state carries a failure and a new tag, and the cloud had not heard that the attempt began."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(50, 3, (V1,)))
    pis[0].tags = {"group": "south"}
    cloud.end(pis[0], accepted(pis[0]), Result.FAILED, Reason.HEALTH_FAILED, W.CONFIRMING)
    row = cloud.row(deployment, pis[0].id)
    assert (row.state, row.counted, row.moved_on) == (S.FAILED, True, True)
    assert cloud.device(pis[0].id).group == "south"
    cloud.check_tallies()


def test_R13_a_verdict_that_comes_after_the_move_counts_where_it_was(cloud: Cloud) -> None:
    """The cloud presumed that the attempt had not begun when the operator moved the device."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(50, 3, (V1,)))
    order = accepted(pis[0])
    cloud.do(MoveDevice(pis[0].id, "south"))
    assert cloud.row(deployment, pis[0].id).state is S.DROPPED
    cloud.end(pis[0], order, Result.FAILED, Reason.HEALTH_FAILED, W.CONFIRMING)
    tally = cloud.deployment(deployment).tally
    assert (tally.counted, tally.moved_on, tally.dropped) == (1, 1, 0)
    cloud.check_tallies()


def test_R13_the_word_already_there_is_presumed_until_the_device_speaks(cloud: Cloud) -> None:
    """A device that no longer runs what it once reported tries it, and its failure is its own, not a fall-back."""
    pi = running(cloud, 1)[0]
    deployment = cloud.deploy("north", V1)
    assert cloud.row(deployment, pi.id).already_there
    pi.running = None
    cloud.end(pi, accepted(pi), Result.FAILED, Reason.NETWORK, W.DOWNLOADING)
    row = cloud.row(deployment, pi.id)
    assert (row.state, row.reason, row.counted) == (S.FAILED, Reason.NETWORK, False)


def test_R14_a_class_change_does_not_overwrite_a_verdict(cloud: Cloud) -> None:
    """A device that failed and then reports another class stays failed."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(60, 3, (V1,)))
    fail(cloud, pis[0])
    pis[0].properties = {"model": "pi9"}
    cloud.state(pis[0])
    row = cloud.row(deployment, pis[0].id)
    assert (row.state, row.counted, row.class_key) == (S.FAILED, True, "model=pi4")
    cloud.check_tallies()


def test_R15_who_moved_on_is_not_retried(cloud: Cloud) -> None:
    """A failure of the network waits for its retry; the device leaves; nothing is opened for it again."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    order = cloud.begin(pi)
    cloud.fail(pi, Reason.NETWORK, W.DOWNLOADING)
    cloud.do(MoveDevice("a", "south"))
    cloud.live(3_600_000)
    assert (cloud.row(deployment, "a").state, cloud.row(deployment, "a").attempt) == (S.FAILED, order.attempt)
    late = cloud.pi("b", "north")
    order = cloud.begin(late)
    cloud.do(MoveDevice("b", "south"))
    cloud.end(late, order, Result.FAILED, Reason.NETWORK, W.DOWNLOADING)
    assert cloud.row(deployment, "b").retry_at_ms is None
    cloud.check_tallies()


def test_R15_a_counted_failure_that_leaves_during_its_retry_is_moved_on(cloud: Cloud) -> None:
    """It counts in the numerator, and so in the base; and the operator's next retry leaves it alone."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, retries=1, retry_delay_ms=1_000)
    fail(cloud, pi)
    cloud.live(1_000)
    assert cloud.row(deployment, "a").state is S.PENDING
    cloud.do(MoveDevice("a", "south"))
    row = cloud.row(deployment, "a")
    assert (row.state, row.counted, row.moved_on) == (S.FAILED, True, True)
    assert cloud.do(RetryDeployment(deployment)) == 0


def test_R15_R16_a_guess_over_a_true_failure_does_not_clear_it(cloud: Cloud) -> None:
    """Attempt 1 failed by the update; attempt 2 timed out, and was the network: attempt 1 still counts."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, retries=1, retry_delay_ms=1_000, device_timeout_ms=3_000)
    fail(cloud, pi)
    cloud.live(1_000)
    order = cloud.begin(pi, W.CONFIRMING)
    silence(cloud)
    cloud.end(pi, order, Result.FAILED, Reason.NETWORK, W.DOWNLOADING)
    row = cloud.row(deployment, "a")
    assert (row.reason, row.counted) == (Reason.NETWORK, True)


@pytest.mark.parametrize(
    ("phase", "reason", "at", "counted"),
    [
        (
            W.DOWNLOADING,
            Reason.HEALTH_FAILED,
            W.CONFIRMING,
            1,
        ),  # the guess blamed the network; it was the update
        (W.CONFIRMING, Reason.NETWORK, W.DOWNLOADING, 0),  # the guess blamed the update; it was the network
    ],
)
def test_R16_the_truth_about_an_attempt_that_was_retried_meanwhile_is_taken(
    cloud: Cloud, phase: WorkflowState, reason: Reason, at: WorkflowState, counted: int
) -> None:
    """The time-out was retried before the device came back; its own verdict for that attempt still counts."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, retries=1, retry_delay_ms=1_000, device_timeout_ms=3_000)
    order = cloud.begin(pi, phase)
    silence(cloud)
    cloud.wait(60_000)
    assert (cloud.row(deployment, "a").state, cloud.row(deployment, "a").attempt) == (S.PENDING, 2)
    cloud.end(pi, order, Result.FAILED, reason, at)
    assert cloud.deployment(deployment).tally.counted == counted
    assert cloud.row(deployment, "a").state is S.PENDING
    cloud.check_tallies()


def test_R16_a_success_of_an_attempt_that_was_retried_meanwhile_clears_the_guess(cloud: Cloud) -> None:
    """And it is a success by a real switch, though the retry then finds it already there."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, retries=1, retry_delay_ms=1_000, device_timeout_ms=3_000)
    order = cloud.begin(pi, W.CONFIRMING)
    silence(cloud)
    cloud.wait(60_000)
    assert cloud.deployment(deployment).tally.counted == 1
    cloud.succeed(pi, order)
    assert cloud.deployment(deployment).tally.counted == 0
    cloud.succeed(pi)
    tally = cloud.deployment(deployment).tally
    assert (tally.succeeded, tally.already_there) == (1, 0)


def test_R17_the_way_back_is_judged_by_the_class_recorded_with_the_bad_update(cloud: Cloud) -> None:
    """The bad version reports another class once it is committed; it is taken back all the same."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    cloud.begin(pis[0])
    cloud.succeed(pis[0])
    pis[0].properties = {"model": "nonsense"}
    cloud.state(pis[0])
    assert cloud.row(deployment, pis[0].id).state is S.SUCCEEDED
    fail(cloud, *pis[1:3])
    target = accepted(pis[0]).target
    assert target is not None
    assert target.update == V1


@pytest.mark.parametrize("properties", [{"model": "pi4"}, {"model": "pi4", "vendor": "a=b"}, {"m": ""}])
def test_R17_a_class_key_says_its_properties(properties: Mapping[str, str]) -> None:
    """The key of a class and its properties are inverse; one that was cut says nothing."""
    assert properties_of(class_key_of(properties)) == properties
    assert properties_of(class_key_of({"model": "x" * 500})) is None


def test_R19_R20_who_comes_back_without_a_way_back_is_not_offered_it_again(cloud: Cloud) -> None:
    """It had succeeded, ran something else elsewhere, and its floor rose above the way back."""
    pi = running(cloud, 2)[0]
    deployment = cloud.deploy("north", V2, policy=POLICY)
    cloud.succeed(pi)
    cloud.deploy("south", V3)
    cloud.do(MoveDevice(pi.id, "south"))
    pi.floor = 9
    cloud.succeed(pi)
    cloud.do(MoveDevice(pi.id, None))
    assert cloud.row(deployment, pi.id).state is S.UNPROTECTED
    assert accepted(pi).action == "hold"


def test_R23_the_first_failure_of_all_that_tried_is_not_the_failure_of_all(cloud: Cloud) -> None:
    """With the base `attempted` the number of failures still has to be reached."""
    pis = running(cloud, 10)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(10, 3, (V1,), percent_of="attempted"))
    fail(cloud, *pis[:2])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    fail(cloud, pis[2])
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK


def test_R24_the_alert_waits_for_the_rollbacks_own_budget(cloud: Cloud) -> None:
    """A device that waits for its automatic retry has not failed for good."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    cloud.begin(pis[0])
    cloud.succeed(pis[0])
    fail(cloud, *pis[1:3])
    for pi in pis[1:]:
        cloud.succeed(pi)
    fail(cloud, pis[0])
    assert cloud.row(cloud.deployment(deployment).rollback or "", pis[0].id).retry_at_ms is not None
    with cloud.store.read() as reader:
        assert [entry for entry in reader.audit() if entry.what == "alert"] == []


def test_a_command_in_a_batch_that_failed_is_told_so(cloud: Cloud) -> None:
    """Its own part had gone well; nothing of it happened, and its answer says that."""
    store = Refusing()
    bench = Cloud(store=store)
    asked = Asked(AddDevices({"a": "hash"}), "tester")
    store.refuses_at_end = RuntimeError("broken")
    with pytest.raises(RuntimeError):
        bench.feed(asked)
    assert asked.reply.result is None
    assert isinstance(asked.reply.error, ServiceError)


def test_a_row_that_cannot_be_ordered_keeps_no_other_waiting(cloud: Cloud) -> None:
    """One device's order cannot be built; the others get theirs."""
    bad, good = cloud.pi("bad", "north"), cloud.pi("good", "north")
    cloud.deploy("north", V1)
    with cloud.store.transaction() as unit:
        row = unit.device("bad")
        assert row is not None
        unit.put_device(replace(row, order_update="no name at all", epoch=row.epoch + 1))
    before = bad.epoch
    cloud.deploy("south", V1)
    cloud.do(MoveDevice("good", "south"))
    assert accepted(good).deployment == "d2"
    assert bad.epoch == before


def outcome(pi: Pi, epoch: int, deployment: str, attempt: int, reason: Reason) -> messages.OutcomeReport:
    """Return a failure in the trial."""
    return messages.OutcomeReport(
        epoch=epoch,
        deployment=deployment,
        attempt=attempt,
        result=Result.FAILED,
        reason=reason,
        phase=W.CONFIRMING,
        running_sha256=pi.running.sha256 if pi.running else None,
    )


def progress(pi: Pi, epoch: int, deployment: str, phase: WorkflowState, done: int) -> Delivered:
    """Return a progress message."""
    said = Progress(
        device=pi.id,
        deployment=deployment,
        epoch=epoch,
        attempt=1,
        phase=phase,
        bytes_done=done,
        bytes_total=10,
    )
    return Delivered(Kind.PROGRESS, pi.id, messages.write(said))


class Refusing:
    """A store in memory whose transactions can be refused, at their begin or at their end."""

    def __init__(self) -> None:
        self._store = open_store("sqlite://")
        self.refuses = False
        self.refuses_at_end: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Open a transaction, or refuse it."""
        if self.refuses:
            raise ServiceError("The disk is full.")
        with self._store.transaction() as unit:
            yield unit
            if self.refuses_at_end is not None:
                raise self.refuses_at_end
