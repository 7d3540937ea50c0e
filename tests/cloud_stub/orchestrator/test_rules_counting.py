"""The cloud's side of RULES.md: counting (R10 to R19); each test bears the number of its rule."""

from dataclasses import replace

import pytest

from cloud_stub.core.commands import (
    CancelDeployment,
    MoveDevice,
    PolicyDraft,
    RetryDeployment,
)
from cloud_stub.core.rows import (
    AssignmentState,
    DeploymentRow,
    DeviceRow,
    Policy,
    Tally,
    UpdateRef,
)
from cloud_stub.orchestrator import Linked, reports
from cloud_stub.orchestrator.turn import Turn
from protocol.errors import OperatorError
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.messages import Running
from protocol.outcomes import Abandoned, Party, Reason, Result
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, EvenChance, accepted
from tests.cloud_stub.orchestrator.rule_bench import POLICY, V1, V2, fail, running, sha256_of

S = AssignmentState


@pytest.mark.parametrize(
    ("reason", "phase", "party"),
    [
        (Reason.NETWORK, WorkflowState.DOWNLOADING, Party.NETWORK),
        (Reason.SERVER, WorkflowState.DOWNLOADING, Party.SERVER),
        (Reason.VERIFY_FAILED, WorkflowState.DOWNLOADING, Party.SERVER),
        (Reason.NO_SPACE, WorkflowState.DOWNLOADING, Party.DEVICE),
        (Reason.HANDLER_FAILED, WorkflowState.INSTALLING, Party.UPDATE),
        (Reason.HEALTH_FAILED, WorkflowState.CONFIRMING, Party.UPDATE),
        (Reason.STARTS_EXHAUSTED, WorkflowState.RESTARTING, Party.UPDATE),
    ],
)
def test_R10_only_the_updates_failures_count(
    cloud: Cloud, reason: Reason, phase: WorkflowState, party: Party
) -> None:
    """Each failure is shown with whose fault it is; only the update's counts in the policy."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    cloud.begin(pi)
    cloud.fail(pi, reason, phase)
    row = cloud.row(deployment, "a")
    assert (row.party, row.counted) == (party, party is Party.UPDATE)
    cloud.check_tallies()


def test_R12_silence_counts_only_while_the_cloud_could_hear(cloud: Cloud) -> None:
    """A cloud that is not connected fails nobody; connected, it fails the silent one after the observed time-out."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=5_000)
    cloud.begin(pi, WorkflowState.CONFIRMING)
    cloud.feed(Linked(False))
    for _ in range(30):
        cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.WORKING
    cloud.feed(Linked(True))
    cloud.wait(1_900)
    assert cloud.row(deployment, "a").state is S.WORKING
    for _ in range(8):
        cloud.wait(1_000)
    row = cloud.row(deployment, "a")
    assert (row.state, row.reason, row.party, row.guessed) == (S.FAILED, Reason.TIMED_OUT, Party.UPDATE, True)


def test_R12_a_step_of_the_wall_clock_disarms_the_time_outs(cloud: Cloud) -> None:
    """An hour's step fails nobody."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=5_000)
    for _ in range(4):
        cloud.wait(1_000)
    cloud.begin(pi)
    cloud.wait(1_000, stepping=3_600_000)
    cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.WORKING


def test_R12_a_restart_of_the_cloud_keeps_the_observed_time(cloud: Cloud) -> None:
    """A device is not given a whole new time-out by each restart, nor failed by the time the cloud was down."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=10_000)
    for _ in range(4):
        cloud.wait(1_000)
    cloud.begin(pi)
    for _ in range(6):
        cloud.wait(1_000)
    cloud.now = replace(cloud.now, wall_ms=cloud.now.wall_ms + 3_600_000)
    cloud.restart()
    for _ in range(4):
        cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.WORKING
    for _ in range(6):
        cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.FAILED


def test_R12_a_device_that_is_heard_but_stuck_fails_by_the_attempt_time_out(cloud: Cloud) -> None:
    """No change of phase or bytes is the other limit."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V1, device_timeout_ms=1_000_000, attempt_timeout_ms=20_000)
    cloud.begin(pi)
    for _ in range(25):
        cloud.wait(1_000)
        cloud.hello(pi)
    row = cloud.row(deployment, "a")
    assert (row.state, row.party) == (S.FAILED, Party.NETWORK)
    assert "headway" in row.detail


def test_R13_those_moved_on_with_a_verdict_stay_in_the_base(cloud: Cloud) -> None:
    """Base `group`: members, and those moved on with a verdict; a pending one that left is in neither."""
    pis = running(cloud, 10)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(50, 5, (V1,)))
    fail(cloud, *pis[:4])
    cloud.do(MoveDevice(pis[0].id, "south"))
    for pi in pis[5:9]:
        cloud.do(MoveDevice(pi.id, "south"))
    row = cloud.deployment(deployment)
    assert (row.tally.counted, row.tally.moved_on, row.tally.dropped) == (4, 1, 4)
    assert row.state is DeploymentState.ACTIVE
    cloud.check_tallies()


def test_R13_the_base_attempted_leaves_out_who_ran_it_already(cloud: Cloud) -> None:
    """Already there and uncounted failures are in neither numerator nor base."""
    pis = running(cloud, 6)
    for pi in pis[:2]:
        pi.running = Running(update=V2, sha256=sha256_of(cloud, V2))
        cloud.state(pi)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(60, 1, (V1,), percent_of="attempted"))
    assert cloud.deployment(deployment).tally.already_there == 2
    cloud.begin(pis[2])
    cloud.succeed(pis[2])
    cloud.begin(pis[3])
    cloud.fail(pis[3], Reason.NETWORK, WorkflowState.DOWNLOADING)
    fail(cloud, pis[4])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    fail(cloud, pis[5])
    trip = cloud.deployment(deployment).trip
    assert trip is not None
    assert (trip.failed, trip.base) == (2, 3)


def test_R14_a_policy_trips_exactly_once_in_the_transaction_of_the_report(cloud: Cloud) -> None:
    """The failure that reaches the numbers ends the deployment, withdraws the update and starts the way back."""
    pis = running(cloud, 10)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    for pi in pis[:3]:
        cloud.begin(pi)
        cloud.succeed(pi)
    fail(cloud, pis[3])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    fail(cloud, pis[4])
    row = cloud.deployment(deployment)
    assert row.state is DeploymentState.ROLLED_BACK
    back = cloud.deployment(row.rollback or "")
    assert (back.state, back.cause, back.policy) == (DeploymentState.ACTIVE, deployment, None)
    targets = {accepted(pi).target.update for pi in pis}  # type: ignore[union-attr]
    assert targets == {V1}
    with cloud.store.read() as reader:
        update = reader.update(V2)
        assert update is not None
        assert update.withdrawn_ms is not None
        assert len([found for found in reader.list_deployments() if found.cause == deployment]) == 1
    cloud.check_tallies()


def test_R14_reports_after_a_trip_are_recorded_without_effect(cloud: Cloud) -> None:
    """A later failure of the rolled-back deployment trips nothing again."""
    pis = running(cloud, 10)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    late = [(pi, cloud.begin(pi, WorkflowState.CONFIRMING)) for pi in pis[:4]]
    fail(cloud, *pis[4:6])
    frozen = cloud.deployment(deployment).trip
    for pi, order in late:
        cloud.end(pi, order, Result.FAILED, Reason.HEALTH_FAILED, WorkflowState.CONFIRMING)
    assert cloud.deployment(deployment).tally.counted == 6
    assert cloud.deployment(deployment).trip == frozen
    with cloud.store.read() as reader:
        assert len(reader.list_deployments()) == 3
    cloud.check_tallies()


def test_R14_a_shrinking_base_can_trip(cloud: Cloud) -> None:
    """A member that leaves changes the base, and the policy is judged then."""
    pis = running(cloud, 10)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(30, 2, (V1,)))
    fail(cloud, *pis[:2])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    for pi in pis[6:]:
        cloud.do(MoveDevice(pi.id, "south"))
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK


def test_R14_a_class_change_that_shrinks_the_base_can_trip(cloud: Cloud) -> None:
    """Members with a verdict report a class that nothing fits: no row changes, and the policy is judged."""
    pis = running(cloud, 10)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(30, 2, (V1,)))
    fail(cloud, *pis[:2])
    for pi in pis[2:]:
        cloud.begin(pi)
        cloud.succeed(pi)
    for pi in pis[4:7]:
        pi.properties = {"model": "pi9"}
        cloud.state(pi)
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    pis[7].properties = {"model": "pi9"}
    cloud.state(pis[7])
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK
    cloud.check_tallies()


def test_R15_an_automatic_retry_does_not_clear_a_counted_failure(cloud: Cloud) -> None:
    """Only a success does."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, retries=1, retry_delay_ms=1_000)
    fail(cloud, pi)
    cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.PENDING
    assert cloud.deployment(deployment).tally.counted == 1
    cloud.begin(pi)
    cloud.succeed(pi)
    assert cloud.deployment(deployment).tally.counted == 0
    cloud.check_tallies()


def test_R15_an_operators_retry_suspends_it_until_the_retry_ends(cloud: Cloud) -> None:
    """It counts again if the retry ends without a verdict."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    fail(cloud, pi)
    cloud.do(RetryDeployment(deployment))
    assert cloud.deployment(deployment).tally.counted == 0
    order = cloud.begin(pi)
    cloud.do(CancelDeployment(deployment))
    cloud.end(pi, order, Result.ABANDONED, abandoned=Abandoned.CANCELED)
    assert cloud.deployment(deployment).tally.counted == 1
    assert cloud.row(deployment, "a").state is S.FAILED
    cloud.check_tallies()


def test_R15_failures_of_the_network_never_use_up_the_budget(cloud: Cloud) -> None:
    """They are tried again with a growing, capped wait while the deployment is active."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    for attempt in range(1, 8):
        assert accepted(pi).attempt == attempt
        cloud.begin(pi)
        cloud.fail(pi, Reason.NETWORK, WorkflowState.DOWNLOADING)
        cloud.live(3_600_000)
    assert cloud.row(deployment, "a").retries_used == 0


def test_R15_retry_acts_on_active_deployments_only(cloud: Cloud) -> None:
    """A final deployment cannot be retried."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2)
    fail(cloud, pi)
    cloud.deploy("north", V1)
    with pytest.raises(OperatorError, match="only an active"):
        cloud.do(RetryDeployment(deployment))


def test_R16_the_devices_own_verdict_replaces_the_clouds_guess(cloud: Cloud) -> None:
    """`timed_out` is a guess: a success that arrives late is believed, and counts follow."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, device_timeout_ms=3_000)
    order = cloud.begin(pi, WorkflowState.CONFIRMING)
    for _ in range(10):
        cloud.wait(1_000)
    assert cloud.deployment(deployment).tally.counted == 1
    cloud.succeed(pi, order)
    tally = cloud.deployment(deployment).tally
    assert (tally.counted, tally.succeeded) == (0, 1)
    cloud.check_tallies()


def test_R16_a_true_failure_elsewhere_withdraws_a_guess_that_counted(cloud: Cloud) -> None:
    """The guess blamed the update; the device says it was the network before the switch."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", V2, device_timeout_ms=3_000)
    order = cloud.begin(pi, WorkflowState.CONFIRMING)
    for _ in range(10):
        cloud.wait(1_000)
    cloud.end(pi, order, Result.FAILED, Reason.NETWORK, WorkflowState.DOWNLOADING)
    assert cloud.deployment(deployment).tally.counted == 0
    cloud.check_tallies()


def test_R17_tags_of_a_trial_take_effect_at_commit(cloud: Cloud) -> None:
    """What a trial boot reports of its group waits."""
    pi = cloud.pi("a", "north")
    cloud.deploy("north", V1)
    order = cloud.begin(pi, WorkflowState.CONFIRMING)
    pi.tags = {"group": "south"}
    cloud.state(pi)
    assert cloud.device("a").group == "north"
    cloud.succeed(pi, order)
    assert cloud.device("a").group == "south"


def test_R17_a_joiner_without_a_way_back_is_unprotected_and_not_offered(cloud: Cloud) -> None:
    """A class that `rollback_to` does not fit is listed, and told to hold."""
    cloud.update("acme/both:1.0", model=["pi4", "pi9"])
    running(cloud, 4)
    deployment = cloud.deploy("north", "acme/both:1.0", policy=POLICY)
    joiner = cloud.pi("joiner", "north", model="pi9")
    assert cloud.row(deployment, "joiner").state is S.UNPROTECTED
    assert accepted(joiner).action == "hold"
    cloud.check_tallies()


def test_R18_a_device_that_falls_back_later_withdraws_its_success(cloud: Cloud) -> None:
    """While the deployment is active and its epoch is the newest, running another version is failed(fell_back)."""
    pi = running(cloud, 1)[0]
    before = pi.running
    deployment = cloud.deploy("north", V2)
    cloud.begin(pi)
    cloud.succeed(pi)
    pi.running = before
    cloud.state(pi)
    row = cloud.row(deployment, pi.id)
    assert (row.state, row.reason, row.counted) == (S.FAILED, Reason.FELL_BACK, True)
    assert accepted(pi).attempt == 1
    cloud.check_tallies()


def test_R18_on_a_final_deployment_the_verdict_stays(cloud: Cloud) -> None:
    """Only what runs changes."""
    pi = running(cloud, 1)[0]
    before = pi.running
    deployment = cloud.deploy("north", V2)
    cloud.begin(pi)
    cloud.succeed(pi)
    cloud.do(CancelDeployment(deployment))
    pi.running = before
    cloud.state(pi)
    assert cloud.row(deployment, pi.id).state is S.SUCCEEDED
    assert cloud.device(pi.id).running_update == V1


def test_R19_rejoining(cloud: Cloud) -> None:
    """Running the target is already there; a failure stays until a retry; else there is a new attempt."""
    there, failed, fresh = cloud.fleet(3, "north")
    deployment = cloud.deploy("north", V2)
    cloud.begin(there)
    cloud.succeed(there)
    fail(cloud, failed)
    for pi in (there, failed, fresh):
        cloud.do(MoveDevice(pi.id, "south"))
        cloud.do(MoveDevice(pi.id, None))
    states = [cloud.row(deployment, pi.id).state for pi in (there, failed, fresh)]
    assert states == [S.SUCCEEDED, S.FAILED, S.PENDING]
    assert accepted(failed).action == "hold"
    assert accepted(fresh).action == "install"
    assert not cloud.row(deployment, there.id).moved_on
    cloud.check_tallies()


def test_R14_a_member_that_leaves_before_it_had_a_row_shrinks_the_base(cloud: Cloud) -> None:
    """In a large group orders are decided turn by turn: no row changes, and the policy is judged all the same."""
    tripped: list[tuple[int, int]] = []
    policy = Policy(20, 2, (UpdateRef(V1, sha256_of(cloud, V1)),))
    offered = (UpdateRef(V2, sha256_of(cloud, V2)),)
    with cloud.store.transaction() as unit:
        turn = Turn(
            unit, START_MS, 0, EvenChance(), cloud.settings, lambda *numbers: tripped.append(numbers[3:])
        )
        active = DeploymentRow("d9", "north", DeploymentState.ACTIVE, offered, START_MS, "tester", policy)
        unit.put_deployment(replace(active, tally=Tally(counted=3, failed=3)))
        members = [
            DeviceRow(
                f"m{number:02}", START_MS, group="north", class_key="model=pi4", properties={"model": "pi4"}
            )
            for number in range(16)
        ]
        for member in members:
            turn.put_device(None, member)
        turn.put_device(members[0], replace(members[0], group="south"))
        assert tripped == []
        reports.left_group(turn, members[0])
    assert tripped == [(3, 15)]
