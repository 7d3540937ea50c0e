"""The cloud's side of RULES.md: which attempt a report is about, and when a new one is opened; by number of rule."""

import pytest

from cloud_stub.core.commands import MoveDevice, PolicyDraft, ResumeRestored, RetryDeployment
from cloud_stub.core.rows import AssignmentState
from cloud_stub.orchestrator import Delivered
from protocol import messages
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.messages import Assignment, OutcomeReport, Running, State, WorkReport
from protocol.outcomes import Abandoned, Party, Reason, Result
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, Pi, accepted
from tests.cloud_stub.orchestrator.rule_bench import V1, V2, V3, running, sha256_of

S = AssignmentState
W = WorkflowState


def replaced_disk(cloud: Cloud, pi: Pi, runs: Running | None) -> None:
    """Let a device come back as a new instance."""
    pi.instance, pi.sequence, pi.epoch, pi.order, pi.outcomes = "two", 0, None, None, []
    pi.running, pi.work = runs, WorkReport()
    cloud.hello(pi)
    cloud.state(pi)


@pytest.mark.parametrize(
    ("version", "reason", "phase", "counted"),
    [(None, Reason.HEALTH_FAILED, W.CONFIRMING, True), (V1, Reason.NETWORK, W.DOWNLOADING, False)],
)
def test_R8_R10_a_new_instance_tries_in_an_attempt_of_its_own(
    cloud: Cloud, version: str | None, reason: Reason, phase: WorkflowState, counted: bool
) -> None:
    """What the old disk had succeeded in is over: the new one is seen working, and fails by its own fault."""
    pi = running(cloud, 1)[0]
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(1, 1, (V1,)))
    cloud.begin(pi)
    cloud.succeed(pi)
    replaced_disk(cloud, pi, Running(update=version, sha256=sha256_of(cloud, version)) if version else None)
    assert accepted(pi).attempt == 2
    cloud.begin(pi)
    assert cloud.row(deployment, pi.id).state is S.WORKING
    cloud.fail(pi, reason, phase)
    row = cloud.row(deployment, pi.id)
    assert (row.state, row.reason, row.counted) == (S.FAILED, reason, counted)
    assert (cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK) == counted
    cloud.check_tallies()


def test_R18_a_failure_of_another_try_is_no_fall_back(cloud: Cloud) -> None:
    """A device that had succeeded tells how a later try of the same attempt failed: its order is decided anew."""
    pi = running(cloud, 1)[0]
    before = pi.running
    deployment = cloud.deploy("north", V2)
    cloud.begin(pi)
    cloud.succeed(pi)
    pi.running = before
    cloud.fail(pi, Reason.NETWORK, W.DOWNLOADING)
    row = cloud.row(deployment, pi.id)
    assert (row.state, row.attempt, row.counted) == (S.PENDING, 2, False)
    assert accepted(pi).attempt == 2


def test_R2_R18_what_an_old_backup_takes_for_a_success_is_tried_in_a_new_attempt(cloud: Cloud) -> None:
    """The device went on to a newer version after the backup; that it refuses to go back counts nowhere."""
    pi = running(cloud, 1)[0]
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(1, 1, (V1,)))
    cloud.begin(pi)
    cloud.succeed(pi)
    order = Assignment(device=pi.id, epoch=START_MS * 2, issued_ms=1, lifetime_ms=1, action="hold")
    pi.epoch, pi.running = order.epoch, Running(update=V3, sha256=sha256_of(cloud, V3))
    cloud.hello(pi, proof=cloud.key.sign(messages.write(order)).decode())
    cloud.state(pi)
    cloud.do(ResumeRestored())
    assert accepted(pi).attempt == 2
    cloud.fail(pi, Reason.DOWNGRADE_REFUSED, W.DOWNLOADING)
    row = cloud.row(deployment, pi.id)
    assert (row.reason, row.party, row.counted) == (Reason.DOWNGRADE_REFUSED, Party.DEVICE, False)


def ordered_again(cloud: Cloud, pi: Pi) -> tuple[Assignment, Assignment]:
    """Let a device begin, and be ordered the same attempt under a higher epoch; return both orders."""
    old = cloud.begin(pi)
    pi.properties = {"model": "pi4", "os": "12"}
    cloud.wait(10)
    cloud.state(pi)
    new = accepted(pi)
    assert (new.attempt, new.epoch > old.epoch) == (old.attempt, True)
    return old, new


def test_R12_R16_an_adopted_attempt_goes_on_and_can_time_out(cloud: Cloud) -> None:
    """The old order of the same attempt ends `abandoned(retried)`; the row follows the new one."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, device_timeout_ms=3_000)
    old, new = ordered_again(cloud, pi)
    assert new.attempt is not None
    retried = OutcomeReport(
        epoch=old.epoch,
        deployment=deployment,
        attempt=new.attempt,
        result=Result.ABANDONED,
        abandoned=Abandoned.RETRIED,
        phase=W.DOWNLOADING,
    )
    pi.outcomes = [retried]
    cloud.begin(pi, W.CONFIRMING)
    row = cloud.row(deployment, "a")
    assert (row.state, row.phase) == (S.WORKING, W.CONFIRMING)
    for _ in range(10):
        cloud.wait(1_000)
    assert cloud.row(deployment, "a").reason is Reason.TIMED_OUT


def test_R7_a_failure_that_crossed_a_new_order_of_its_attempt_stops_it(cloud: Cloud) -> None:
    """The attempt has failed under its old epoch, and is not tried again under the new one without a retry."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    old, new = ordered_again(cloud, pi)
    cloud.end(pi, old, Result.FAILED, Reason.HANDLER_FAILED, W.INSTALLING)
    assert cloud.row(deployment, "a").state is S.FAILED
    assert (accepted(pi).action, accepted(pi).epoch > new.epoch) == ("hold", True)
    cloud.state(pi)
    assert cloud.device("a").epoch == accepted(pi).epoch


def test_R5_R7_a_success_that_no_hold_could_stop_replaces_the_failure_that_crossed_its_order(
    cloud: Cloud,
) -> None:
    """The device is past the switch under the newer epoch: it succeeds, and nothing that is told again undoes that."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    old, new = ordered_again(cloud, pi)
    cloud.end(pi, old, Result.FAILED, Reason.HEALTH_FAILED, W.CONFIRMING)
    assert (cloud.row(deployment, "a").state, cloud.row(deployment, "a").counted) == (S.FAILED, True)
    cloud.succeed(pi, new)
    cloud.state(pi)  # both outcomes once more, as after a lost acknowledgement
    row = cloud.row(deployment, "a")
    assert (row.state, row.attempt, row.counted) == (S.SUCCEEDED, 1, False)
    cloud.check_tallies()


def test_R7_R18_a_success_that_is_told_again_does_not_undo_the_fall_back_after_it(cloud: Cloud) -> None:
    """Success and fall-back bear the same epoch, and both are told until they are acknowledged."""
    pi = running(cloud, 1)[0]
    before = pi.running
    deployment = cloud.deploy("north", V2)
    order = cloud.begin(pi)
    cloud.succeed(pi)
    pi.running = before
    cloud.end(pi, order, Result.FAILED, Reason.FELL_BACK)
    cloud.state(pi)
    row = cloud.row(deployment, pi.id)
    assert (row.state, row.reason, row.counted) == (S.FAILED, Reason.FELL_BACK, True)


def test_R19_a_device_that_comes_back_after_a_hold_gets_a_new_attempt(cloud: Cloud) -> None:
    """It was moved to a group without a deployment in mid-download, stopped, and came back."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    order = cloud.begin(pi)
    cloud.do(MoveDevice("a", "south"))
    assert accepted(pi).action == "hold"
    cloud.end(pi, order, Result.ABANDONED, abandoned=Abandoned.CANCELED)
    cloud.do(MoveDevice("a", None))
    assert cloud.row(deployment, "a").state is S.PENDING
    assert (accepted(pi).action, accepted(pi).attempt) == ("install", 2)
    cloud.check_tallies()


def test_R2_a_device_that_held_for_a_restore_gets_a_new_attempt(cloud: Cloud) -> None:
    """The hold canceled what it worked on; the operator's word to go on offers it again."""
    pi = cloud.pi("a", "north")
    cloud.deploy("north", V2)
    old = cloud.begin(pi)
    order = Assignment(device="a", epoch=START_MS * 2, issued_ms=1, lifetime_ms=1, action="hold")
    pi.epoch = order.epoch
    cloud.hello(pi, proof=cloud.key.sign(messages.write(order)).decode())
    cloud.end(pi, old, Result.ABANDONED, abandoned=Abandoned.CANCELED)
    cloud.do(ResumeRestored())
    assert (accepted(pi).action, accepted(pi).attempt) == ("install", 2)


@pytest.mark.parametrize(
    ("result", "reason", "state", "counted"),
    [
        (Result.SUCCEEDED, None, S.SUCCEEDED, False),
        (Result.FAILED, Reason.HEALTH_FAILED, S.FAILED, True),
    ],
)
def test_R16_a_failure_that_the_devices_disk_did_not_keep_is_replaced(
    cloud: Cloud, result: Result, reason: Reason | None, state: AssignmentState, counted: bool
) -> None:
    """Its disk refused the record of it, so that the attempt went on after a power loss, and has another end."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    order = cloud.begin(pi)
    cloud.fail(pi, Reason.DISK, W.DOWNLOADING)
    assert (cloud.row(deployment, "a").state, cloud.row(deployment, "a").counted) == (S.FAILED, False)
    if result is Result.SUCCEEDED:
        cloud.succeed(pi, order)
    else:
        cloud.fail(pi, reason or Reason.HEALTH_FAILED)
    row = cloud.row(deployment, "a")
    assert (row.state, row.reason, row.counted) == (state, reason, counted)
    cloud.check_tallies()


def test_R14_R15_a_device_that_is_named_twice_is_retried_once(cloud: Cloud) -> None:
    """A row's transition that is counted twice would let a failure vanish, and a trip with it."""
    fleet = running(cloud, 4)
    policy = PolicyDraft(failed_percent=50, failed_count=2, rollback_to=(V1,))
    deployment = cloud.deploy("north", V2, policy=policy)
    cloud.fail(fleet[0])
    assert cloud.do(RetryDeployment(deployment, (fleet[0].id, fleet[0].id))) == 1
    cloud.check_tallies()
    for pi in fleet[:2]:
        cloud.hello(pi)
        cloud.fail(pi)
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK


def test_R6_R17_R20_what_a_minimal_state_leaves_out_stays_as_it_was(cloud: Cloud) -> None:
    """Its floor, and that it is in a trial: neither is offered what its floor bars, nor taken for there already."""
    pi = cloud.pi("a", "north")
    pi.floor = 9
    cloud.state(pi)
    first = cloud.deploy("north", V1, policy=None)
    order = cloud.begin(pi) if cloud.device("a").order_action == "install" else None
    before = cloud.device("a")
    pi.sequence += 1
    minimal = State(device="a", instance=pi.instance, sequence=pi.sequence, digest="1" * 64, epoch=pi.epoch,
                    running=pi.running, minimal=True)  # fmt: skip
    cloud.feed(Delivered(Kind.STATE, "a", messages.write(minimal)))
    after = cloud.device("a")
    assert after.floor == 9
    assert (after.work_state, after.epoch_in_work, after.slots) == (
        before.work_state,
        before.epoch_in_work,
        before.slots,
    )
    assert after.sequence == pi.sequence
    assert order is None or cloud.row(first, "a").state is S.WORKING


def test_R17_a_minimal_state_in_a_trial_makes_no_success_of_it(cloud: Cloud) -> None:
    """Another deployment of the same update is not settled by what has not been committed."""
    pi = cloud.pi("a", "north")
    cloud.deploy("north", V1)
    cloud.hello(pi)
    order = cloud.begin(pi, W.CONFIRMING)
    pi.running = Running(update=V1, sha256=sha256_of(cloud, V1))
    pi.work = WorkReport(
        state=W.CONFIRMING, deployment=order.deployment, epoch=order.epoch, attempt=order.attempt
    )
    cloud.state(pi)
    pi.sequence += 1
    minimal = State(device="a", instance=pi.instance, sequence=pi.sequence, digest="1" * 64, epoch=pi.epoch,
                    running=pi.running, minimal=True)  # fmt: skip
    cloud.feed(Delivered(Kind.STATE, "a", messages.write(minimal)))
    second = cloud.deploy("north", V1)
    cloud.hello(pi)
    assert cloud.row(second, "a").state is S.PENDING
