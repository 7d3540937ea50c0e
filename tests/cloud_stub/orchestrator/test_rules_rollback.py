"""The cloud's side of RULES.md: rolling back (R20 to R24); each test bears the number of its rule."""

import pytest

from cloud_stub.core.commands import (
    PolicyDraft,
    WithdrawUpdate,
)
from cloud_stub.core.rows import AssignmentState
from protocol.errors import OperatorError
from protocol.lifecycle import DeploymentState
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, accepted
from tests.cloud_stub.orchestrator.rule_bench import POLICY, V1, V2, V3, fail, running

S = AssignmentState


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
