"""The cloud's side of RULES.md: orders, hellos and connections (R2 to R9); each test bears the number of its rule."""

from dataclasses import replace

import pytest

from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import (
    AddDevices,
    CreateDeployment,
    DeploymentDraft,
    ResumeRestored,
)
from cloud_stub.core.rows import AssignmentState
from cloud_stub.orchestrator import Asked, Delivered, Settings
from protocol import messages
from protocol.lifecycle import WorkflowState
from protocol.messages import Assignment, Gone, Hello
from protocol.outcomes import Reason, Result
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, accepted
from tests.cloud_stub.orchestrator.rule_bench import V1, V2, V3

S = AssignmentState


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


def test_a_device_that_misses_its_heartbeats_counts_as_offline(cloud: Cloud) -> None:
    """Its will may be lost with the broker, or told while the cloud was away."""
    cloud.pi("a", "north")
    for _ in range(40):
        cloud.wait(1_000)
    assert not cloud.device("a").online


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


def test_devices_are_told_to_come_back_within_what_the_broker_bears() -> None:
    """The time of the first reconnect grows with the fleet, and is never less than a second."""
    cloud = Cloud(Settings(heartbeat_ms=1_000, sync_window_ms=1_000, connects_per_s=2))
    pi = cloud.pi("a", "north")
    cloud.wait(10_000)
    cloud.hello(pi)
    assert pi.acks[-1].reconnect_spread_ms == 1_000
    for number in range(9):
        cloud.pi(f"b{number}", "north", silent=True)
    cloud.wait(10_000)
    cloud.hello(pi)
    assert pi.acks[-1].reconnect_spread_ms == 5_000


def test_rubbish_from_one_device_fills_no_log(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    """A few lines name it, the rest is counted and told at the next sweep."""
    cloud.pi("a", "north")
    cloud.wait(10_000)
    caplog.clear()
    for _ in range(50):
        cloud.feed(Delivered(Kind.PROGRESS, "a", b"rubbish"))
    assert len(caplog.records) == 5
    cloud.wait(10_000)
    assert caplog.records[-1].getMessage() == "refused 45 more messages of a"
    assert cloud.orchestrator.refused["not_json"] == 50
