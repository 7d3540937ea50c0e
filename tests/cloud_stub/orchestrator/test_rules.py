"""The cloud's side of RULES.md, rule by rule; each test bears the number of its rule."""

from dataclasses import replace

import pytest

from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import (
    AddDevices,
    CancelDeployment,
    CreateDeployment,
    DeploymentDraft,
    MoveDevice,
    PolicyDraft,
    ResumeRestored,
    RetryDeployment,
    WithdrawUpdate,
)
from cloud_stub.core.rows import AssignmentState
from cloud_stub.orchestrator import Asked, Delivered, Linked
from protocol import messages
from protocol.errors import OperatorError
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.messages import Assignment, Gone, Hello, Running
from protocol.outcomes import Abandoned, Party, Reason, Result
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, Pi, accepted

S = AssignmentState
V1, V2, V3 = "acme/app:1.0", "acme/app:2.0", "acme/app:3.0"
POLICY = PolicyDraft(10, 2, (V1,))


@pytest.fixture
def cloud() -> Cloud:
    """Return a cloud with three versions imported."""
    made = Cloud()
    for name in (V1, V2, V3):
        made.update(name)
    return made


def running(cloud: Cloud, count: int, version: str = V1, group: str = "north") -> list[Pi]:
    """Return a group whose members all run a version."""
    pis = cloud.fleet(count, group)
    cloud.deploy(group, version)
    for pi in pis:
        cloud.begin(pi)
        cloud.succeed(pi)
    return pis


def fail(cloud: Cloud, *pis: Pi) -> None:
    """Let devices begin and fail by the update's fault."""
    for pi in pis:
        cloud.begin(pi)
        cloud.fail(pi)


# --- Orders ----------------------------------------------------------------------------------------------------


def test_R2_epochs_only_grow_and_follow_the_clock(cloud: Cloud) -> None:
    """An epoch is at least the wall clock in milliseconds, and more than every one before."""
    pi = cloud.pi("a", "north")
    seen = [accepted(pi).epoch]
    for version in (V1, V2, V3):
        cloud.deploy("north", version)
        seen.append(accepted(pi).epoch)
    assert seen == sorted(set(seen))
    assert seen[0] >= START_MS


def test_R2_a_device_ahead_is_believed_with_the_signed_envelope_only(cloud: Cloud) -> None:
    """A mere claim changes nothing; a proof marks the store restored: the device holds until an operator goes on."""
    pi = cloud.pi("a", "north")
    order = Assignment(device="a", epoch=START_MS * 2, issued_ms=1, lifetime_ms=1, action="hold")
    pi.epoch = order.epoch
    cloud.hello(pi)
    assert cloud.device("a").epoch < order.epoch
    assert pi.acks[-1].newest_epoch < order.epoch
    cloud.hello(pi, proof=cloud.key.sign(messages.write(order)).decode())
    assert cloud.device("a").epoch > order.epoch
    assert accepted(pi).action == "hold"
    cloud.deploy("north", V1)
    assert accepted(pi).action == "hold"
    assert cloud.do(ResumeRestored()) == 1
    assert accepted(pi).action == "install"


def test_R2_a_proof_of_another_device_is_no_proof(cloud: Cloud) -> None:
    """An envelope for somebody else does not move the epoch."""
    pi = cloud.pi("a", "north")
    order = Assignment(device="b", epoch=START_MS * 2, issued_ms=1, lifetime_ms=1, action="hold")
    pi.epoch = order.epoch
    cloud.hello(pi, proof=cloud.key.sign(messages.write(order)).decode())
    assert cloud.device("a").epoch < order.epoch


def test_R3_a_first_order_echoes_the_nonce_of_the_hello(cloud: Cloud) -> None:
    """A device without an epoch is ordered in answer to its hello, with its nonce under the signature."""
    pi = cloud.pi("a", "north", silent=True)
    cloud.hello(pi)
    assert accepted(pi).nonce == "n1"
    cloud.state(pi)
    cloud.deploy("north", V1)
    assert accepted(pi).nonce is None


def test_R6_a_hello_with_a_nonce_or_a_difference_is_answered(cloud: Cloud) -> None:
    """The ack says what the database has; a heartbeat that agrees costs no answer."""
    pi = cloud.pi("a", "north")
    cloud.hello(pi)
    ack = pi.acks[-1]
    assert (ack.nonce, ack.sequence, ack.newest_epoch) == ("n2", pi.sequence, accepted(pi).epoch)
    row = cloud.device("a")
    said = Hello(
        device="a",
        instance="one",
        connection="c1",
        sequence=row.sequence,
        digest=row.digest or "",
        epoch=row.epoch,
    )
    assert cloud.feed(Delivered(Kind.HELLO, "a", messages.write(said))) == []
    told = cloud.feed(Delivered(Kind.HELLO, "a", messages.write(said.model_copy(update={"sequence": 99}))))
    assert [message.kind for message in told] == [Kind.ACK]


def test_R6_a_state_that_cannot_be_read_is_answered_as_refused(cloud: Cloud) -> None:
    """The device then sends its minimal state, which is taken."""
    pi = cloud.pi("a", "north")
    cloud.feed(Delivered(Kind.STATE, "a", b'{"schema":1,"schema":1}'))
    assert pi.acks[-1].refused == "not_json"
    assert cloud.orchestrator.refused["not_json"] == 1
    cloud.state(pi, minimal=True)
    assert pi.acks[-1].sequence == pi.sequence
    assert cloud.device("a").group == "north"


def test_R6_a_message_that_names_another_device_is_refused(cloud: Cloud) -> None:
    """No device speaks for another: topic and payload must agree."""
    pi, _ = cloud.pi("a", "north"), cloud.pi("b", "north")
    before = cloud.device("b")
    pi.sequence += 1
    cloud.feed(Delivered(Kind.STATE, "b", messages.write(cloud.state_of(pi))))
    assert replace(cloud.device("b"), last_seen_ms=0) == replace(before, last_seen_ms=0)
    assert cloud.orchestrator.refused["other_device"] == 1


def test_R7_all_outcomes_of_a_list_are_taken(cloud: Cloud) -> None:
    """A failure that the next order overtook is counted when the list arrives."""
    pi = cloud.pi("a", "north")
    first = cloud.deploy("north", V1)
    old = cloud.begin(pi)
    second = cloud.deploy("north", V2)
    new = accepted(pi)
    report = messages.OutcomeReport(
        epoch=old.epoch,
        deployment=first,
        attempt=1,
        result=Result.FAILED,
        reason=Reason.HEALTH_FAILED,
        phase=WorkflowState.CONFIRMING,
    )
    pi.outcomes = [report]
    cloud.succeed(pi, new)
    assert cloud.row(first, "a").state is S.FAILED
    assert cloud.row(second, "a").state is S.SUCCEEDED
    cloud.check_tallies()


def test_R8_a_new_instance_supersedes_and_starts_at_one(cloud: Cloud) -> None:
    """Sequence numbers belong to an instance, which a hello introduces."""
    pi = cloud.pi("a", "north")
    pi.sequence = 50
    cloud.state(pi)
    pi.instance, pi.sequence, pi.epoch = "two", 0, None
    cloud.state(pi)
    assert cloud.device("a").sequence == 51
    pi.sequence = 0
    cloud.hello(pi)
    cloud.state(pi)
    assert (cloud.device("a").instance, cloud.device("a").sequence) == ("two", 1)


def test_R8_two_instances_that_alternate_within_an_hour_are_clones(cloud: Cloud) -> None:
    """The device holds, and `why` says so."""
    pi = cloud.pi("a", "north")
    cloud.deploy("north", V1)
    for instance in ("two", "one"):
        pi.instance = instance
        cloud.hello(pi)
    assert cloud.device("a").cloned
    assert accepted(pi).action == "hold"


def test_R8_an_instance_that_comes_back_after_an_hour_is_no_clone(cloud: Cloud) -> None:
    """A spare card put in and taken out again is one device."""
    pi = cloud.pi("a", "north")
    pi.instance = "two"
    cloud.hello(pi)
    cloud.wait(3_600_001)
    pi.instance = "one"
    cloud.hello(pi)
    assert not cloud.device("a").cloned


def test_R9_the_will_of_another_connection_is_ignored(cloud: Cloud) -> None:
    """Only the will of the connection in force, after the debounce, makes a device offline."""
    pi = cloud.pi("a", "north")
    cloud.feed(Delivered(Kind.GONE, "a", messages.write(Gone(device="a", connection="old"))))
    cloud.wait(10_000)
    assert cloud.device("a").online
    cloud.feed(Delivered(Kind.GONE, "a", messages.write(Gone(device="a", connection="c1"))))
    assert cloud.device("a").online
    cloud.wait(10_000)
    assert not cloud.device("a").online
    pi.connection = "c2"
    cloud.hello(pi)
    assert cloud.device("a").online


# --- Counting --------------------------------------------------------------------------------------------------


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
        pi.running = Running(update=V2, sha256=_sha(cloud, V2))
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


# --- Rolling back ----------------------------------------------------------------------------------------------


def test_R20_release_counters_must_allow_the_way_back(cloud: Cloud) -> None:
    """A lower counter, or a member's higher floor, refuses the policy with the numbers."""
    cloud.update("acme/app:4.0", counter=7)
    with pytest.raises(OperatorError, match=r"counter of acme/app:1\.0 is 0"):
        cloud.deploy("north", "acme/app:4.0", policy=POLICY)
    pi = cloud.pi("a", "north")
    pi.floor = 3
    cloud.state(pi)
    with pytest.raises(OperatorError, match="3 is needed"):
        cloud.deploy("north", V2, policy=POLICY)


def test_R21_all_checks_of_creation_run_again_at_the_start(cloud: Cloud) -> None:
    """A schedule whose update was withdrawn is canceled with that reason, and an alert."""
    later = cloud.deploy("north", V2, start_at_ms=START_MS + 10_000)
    cloud.do(WithdrawUpdate(V2, "it smokes"))
    cloud.wait(11_000)
    row = cloud.deployment(later)
    assert row.state is DeploymentState.CANCELED
    assert "withdrawn" in row.ended_why
    with cloud.store.read() as reader:
        assert [entry.about for entry in reader.audit() if entry.what == "alert"] == [later]


def test_R21_a_schedule_made_before_a_rollback_of_its_group_is_canceled(cloud: Cloud) -> None:
    """It was planned for a world that is gone."""
    pis = running(cloud, 4)
    later = cloud.deploy("north", V3, start_at_ms=START_MS + 60_000)
    cloud.wait(10)
    cloud.deploy("north", V2, policy=POLICY)
    fail(cloud, *pis[:2])
    cloud.wait(60_000)
    assert cloud.deployment(later).state is DeploymentState.CANCELED
    assert "before a rollback" in cloud.deployment(later).ended_why


def test_R21_due_ones_are_taken_in_order_and_only_the_last_orders(cloud: Cloud) -> None:
    """Two that are due in one sweep: the later one stands, and devices are told of it alone."""
    pi = cloud.pi("a", "north")
    first = cloud.deploy("north", V1, start_at_ms=START_MS + 1_000)
    second = cloud.deploy("north", V2, start_at_ms=START_MS + 2_000)
    told = cloud.wait(5_000)
    assert cloud.deployment(first).superseded_by == second
    assert len([message for message in told if message.kind is Kind.DESIRED]) == 1
    assert accepted(pi).deployment == second


def test_R22_withdrawing_holds_members_short_of_the_switch(cloud: Cloud) -> None:
    """Devices that run it are listed and left alone; the others hold."""
    done, begun = cloud.fleet(2, "north")
    cloud.deploy("north", V2)
    cloud.begin(done)
    cloud.succeed(done)
    cloud.begin(begun)
    cloud.do(WithdrawUpdate(V2, "it smokes"))
    assert accepted(begun).action == "hold"
    assert accepted(begun).attempt == 1
    assert cloud.device(done.id).running_update == V2


def test_R22_what_a_live_policy_names_cannot_be_withdrawn_by_hand(cloud: Cloud) -> None:
    """The way back stays open."""
    running(cloud, 3)
    cloud.deploy("north", V2, policy=POLICY)
    with pytest.raises(OperatorError, match="would go back to"):
        cloud.do(WithdrawUpdate(V1, "old"))


def test_R22_a_trip_that_withdraws_a_policys_target_disarms_that_policy(cloud: Cloud) -> None:
    """The other group's policy says so, with an alert."""
    pis = running(cloud, 4)
    running(cloud, 4, V2, group="south")
    other = cloud.deploy("south", V3, policy=PolicyDraft(10, 2, (V2,)))
    cloud.deploy("north", V2, policy=POLICY)
    fail(cloud, *pis[:2])
    policy = cloud.deployment(other).policy
    assert policy is not None
    assert "withdrawn" in policy.disarmed
    cloud.check_tallies()


def test_R23_an_empty_group_is_allowed_and_a_shrunken_one_trips_when_all_have_failed(cloud: Cloud) -> None:
    """Three members, five asked for: all three failed is enough."""
    pis = running(cloud, 3)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(10, 5, (V1,)))
    fail(cloud, *pis[:2])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    fail(cloud, pis[2])
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK
    assert cloud.deployment(cloud.deploy("nobody", V3, policy=POLICY)).state is DeploymentState.ACTIVE


def test_R24_a_rollback_that_fails_is_retried_and_then_raises_one_alert(cloud: Cloud) -> None:
    """Its own budget, then `rollback incomplete`, once; it never trips."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    cloud.begin(pis[0])
    cloud.succeed(pis[0])
    fail(cloud, *pis[1:3])
    back = cloud.deployment(deployment).rollback or ""
    for pi in pis[1:]:
        cloud.succeed(pi)
    for attempt in range(1, 5):
        assert accepted(pis[0]).attempt == attempt
        fail(cloud, pis[0])
        cloud.live(3_600_000)
    assert cloud.row(back, pis[0].id).state is S.FAILED
    assert cloud.deployment(back).state is DeploymentState.ACTIVE
    with cloud.store.read() as reader:
        alerts = [entry.facts["sentence"] for entry in reader.audit() if entry.what == "alert"]
    assert alerts == ["rollback incomplete: 1 devices"]


def test_the_outbox_is_the_row_when_the_cloud_dies_between_commit_and_publish() -> None:
    """An order that was committed and never sent is sent by the next cloud."""
    cloud = Cloud(store=open_store("sqlite://"))
    cloud.update(V1)
    pi = cloud.pi("a", "north")
    cloud.orchestrator.handle([Asked(CreateDeployment(DeploymentDraft("north", (V1,))), "tester")], cloud.now)
    assert accepted(pi).action == "hold"
    cloud.restart()
    cloud.wait(1_000)
    assert accepted(pi).action == "install"


def _sha(cloud: Cloud, name: str) -> str:
    with cloud.store.read() as reader:
        row = reader.update(name)
    assert row is not None
    sha256: str = row.sha256
    return sha256


def test_R8_a_new_token_ends_the_hold_of_a_clone(cloud: Cloud) -> None:
    """Of two clones only the one that is given the new token can connect; it goes on."""
    pi = cloud.pi("a", "north")
    cloud.deploy("north", V1)
    for instance in ("two", "one"):
        pi.instance = instance
        cloud.hello(pi)
    cloud.do(AddDevices({"a": "another"}, renew=True))
    assert not cloud.device("a").cloned
    assert accepted(pi).action == "install"


def test_R20_a_floor_that_bars_the_way_back_holds_the_device(cloud: Cloud) -> None:
    """At a trip a device whose floor rose meanwhile is listed and holds, rather than refuse the order for ever."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    pis[0].floor = 9
    cloud.state(pis[0])
    fail(cloud, *pis[1:3])
    back = cloud.deployment(deployment).rollback or ""
    assert cloud.row(back, pis[0].id).state is S.UNPROTECTED
    assert accepted(pis[0]).action == "hold"
    cloud.check_tallies()


def test_a_device_that_misses_its_heartbeats_counts_as_offline(cloud: Cloud) -> None:
    """Its will may be lost with the broker, or told while the cloud was away."""
    cloud.pi("a", "north")
    for _ in range(40):
        cloud.wait(1_000)
    assert not cloud.device("a").online


def test_R3_devices_without_an_epoch_do_not_keep_others_waiting(cloud: Cloud) -> None:
    """Orders that wait for a hello never fill the outbox of a turn."""
    pi = cloud.pi("z", "north")
    for number in range(520):
        cloud.do(AddDevices({f"a{number:03}": "hash"}))
    with cloud.store.transaction() as unit:
        for row in unit.list_devices():
            if row.id != "z":
                unit.put_device(replace(row, online=True, epoch=5, order_action="hold", group="north"))
    cloud.deploy("north", V1)
    cloud.wait(1_000)
    assert accepted(pi).action == "install"
