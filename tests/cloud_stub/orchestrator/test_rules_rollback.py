"""The cloud's side of RULES.md: rolling back (R20 to R24); each test bears the number of its rule."""

from dataclasses import replace

import pytest

from cloud_stub.core.commands import (
    DeploymentDraft,
    PolicyDraft,
    WithdrawUpdate,
)
from cloud_stub.core.rows import AssignmentState
from cloud_stub.orchestrator.deployments import ENDED_SWEPT_MAX, planned
from cloud_stub.ports import PAGE_ROWS_MAX
from protocol.errors import OperatorError
from protocol.lifecycle import DeploymentState
from protocol.messages import Running
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, accepted
from tests.cloud_stub.orchestrator.rule_bench import POLICY, V1, V2, V3, fail, running, sha256_of

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
    with cloud.store.read() as reader:
        assert [row.id for row in reader.list_devices(runs=V2)] == [done.id]
        assert [row.id for row in reader.list_devices(runs=V2, group="south")] == []


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


@pytest.mark.parametrize("stepping", [0, -3_600_000, 3_600_000])
def test_R22_a_trip_takes_the_explicit_word_back_whatever_the_clock_says(cloud: Cloud, stepping: int) -> None:
    """An update that was deployed again though withdrawn fails in one group: the other stops offering it too."""
    pis, others = running(cloud, 4), running(cloud, 2, group="south")
    cloud.do(WithdrawUpdate(V2, "it smokes"))
    cloud.wait(1_000, stepping=stepping)
    south = cloud.deploy("south", V2, allow_withdrawn=True)
    later = cloud.deploy("east", V2, allow_withdrawn=True, start_at_ms=cloud.now.wall_ms + 60_000)
    north = cloud.deploy("north", V2, policy=POLICY, allow_withdrawn=True)
    assert accepted(others[0]).action == "install"
    cloud.wait(1_000, stepping=stepping)
    fail(cloud, *pis[:2])
    assert cloud.deployment(north).state is DeploymentState.ROLLED_BACK
    assert [accepted(pi).action for pi in others] == ["hold", "hold"]
    assert cloud.deployment(south).state is DeploymentState.ACTIVE
    cloud.wait(60_000, stepping=2 * abs(stepping))
    for _ in range(4):
        cloud.wait(1_000)
    assert cloud.deployment(later).state is DeploymentState.CANCELED


@pytest.mark.parametrize("stepping", [-3_600_000, 3_600_000])
def test_R22_no_step_of_the_clock_keeps_a_withdrawn_update_offered(cloud: Cloud, stepping: int) -> None:
    """The word is what an operator said, and not that one instant is greater than another."""
    pis, others = running(cloud, 4), running(cloud, 2, group="south")
    cloud.deploy("south", V2, allow_withdrawn=True)  # said before there was anything to allow
    cloud.deploy("north", V2, policy=POLICY)
    cloud.wait(1_000, stepping=stepping)
    fail(cloud, *pis[:2])
    assert [accepted(pi).action for pi in others] == ["hold", "hold"]


def test_R21_a_schedule_is_older_than_a_rollback_by_its_number(cloud: Cloud) -> None:
    """The clock was set back between the two: the schedule still was made before the rollback."""
    pis = running(cloud, 4)
    cloud.deploy("north", V2, policy=POLICY)
    later = cloud.deploy("north", V3, start_at_ms=START_MS + 60_000)
    cloud.wait(10, stepping=-3_600_000)
    fail(cloud, *pis[:2])
    cloud.wait(60_000, stepping=3_600_000)
    for _ in range(4):
        cloud.wait(1_000)
    assert "before a rollback" in cloud.deployment(later).ended_why


def test_R22_withdrawing_sees_every_live_deployment(cloud: Cloud) -> None:
    """More groups than one page of rows: the oldest one's members hold as well, and its policy bars the way."""
    running(cloud, 2)
    first = cloud.deploy("north", V2, policy=POLICY)
    pi = cloud.pi("a", "west")
    old = cloud.deploy("west", V3)
    with cloud.store.transaction() as unit:
        row = unit.active("west")
        assert row is not None
        assert row.id == old
        for number in range(PAGE_ROWS_MAX):
            unit.put_deployment(
                replace(row, id=unit.next_deployment_id(), group=f"g{number}", created_ms=START_MS + 1)
            )
    cloud.do(WithdrawUpdate(V3, "it smokes"))
    assert accepted(pi).action == "hold"
    with pytest.raises(OperatorError, match=f"{first} would go back to"):
        cloud.do(WithdrawUpdate(V1, "old"))


def test_R13_the_unprotected_are_in_no_base_of_a_group(cloud: Cloud) -> None:
    """Joiners whose floor bars the way back are offered nothing: all that were offered have failed, and it trips."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(60, 2, (V1,)))
    for number in range(4):
        joiner = cloud.pi(f"joiner-{number}", "north", silent=True)
        joiner.floor = 9
        cloud.hello(joiner)
        cloud.state(joiner)
    assert cloud.deployment(deployment).tally.unprotected == 4
    fail(cloud, *pis[:2])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE  # 50 % of those that were offered it
    fail(cloud, pis[2])
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK
    cloud.check_tallies()


def test_R14_who_becomes_unprotected_leaves_the_base_and_the_policy_is_judged(cloud: Cloud) -> None:
    """The last one that had not failed can no longer be offered it: then every one left has failed (R23)."""
    pis = running(cloud, 3)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(100, 2, (V1,)))
    fail(cloud, *pis[:2])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE
    pis[2].floor, pis[2].properties = 9, {"model": "pi4", "os": "12"}  # another class: decided anew
    cloud.state(pis[2])
    assert cloud.deployment(deployment).state is DeploymentState.ROLLED_BACK


def test_R13_one_odd_device_spoils_no_class(cloud: Cloud) -> None:
    """A value that looks like two properties is a class of its own, and not an example for the others."""
    odd = cloud.pi("aaa", "north", silent=True)
    odd.properties = {"model": "pi4, rev=2"}
    cloud.hello(odd)
    cloud.state(odd)
    for number in range(5):
        pi = cloud.pi(f"p{number}", "north", silent=True)
        pi.properties = {"model": "pi4", "rev": "2"}
        cloud.hello(pi)
        cloud.state(pi)
    deployment = cloud.deploy("north", V2, policy=PolicyDraft(90, 1, (V1,)))
    fail(cloud, cloud.pis["p0"])
    assert cloud.deployment(deployment).state is DeploymentState.ACTIVE


def test_R20_the_plan_tells_whom_a_floor_bars_also_without_a_policy(cloud: Cloud) -> None:
    """What is created is the plan that was shown: the same function answers for both."""
    free, barred, there = cloud.fleet(3, "north")
    barred.floor = there.floor = 5
    cloud.state(barred)
    there.running = Running(update=V2, sha256=sha256_of(cloud, V2))
    cloud.state(there)
    with cloud.store.read() as reader:
        plan = planned(reader, DeploymentDraft("north", (V2,)))
    assert (plan.to_update, plan.already_there) == (1, 0)
    assert [(row.members, row.why_not) for row in plan.classes] == [
        (1, ""),
        (2, f"the release counter of {V2} is 0, below its floor of 5"),
    ]
    deployment = cloud.deploy("north", V2)
    assert cloud.row(deployment, free.id).state is S.PENDING
    assert cloud.row(deployment, barred.id).state is S.UNPROTECTED
    assert cloud.row(deployment, barred.id).detail == plan.classes[1].why_not


def test_R24_a_member_that_a_rollback_cannot_order_is_told_loudly(cloud: Cloud) -> None:
    """Its floor rose with the bad version, and it goes on running that: the one alert counts it."""
    pis = running(cloud, 4)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    cloud.begin(pis[0])
    pis[0].floor = 9
    cloud.succeed(pis[0])
    fail(cloud, *pis[1:3])
    back = cloud.deployment(deployment).rollback or ""
    assert cloud.row(back, pis[0].id).state is S.UNPROTECTED
    for pi in pis[1:]:
        cloud.succeed(pi)
    with cloud.store.read() as reader:
        alerts = [entry.facts["sentence"] for entry in reader.audit() if entry.what == "alert"]
    assert alerts == ["rollback incomplete: 1 devices"]


def test_R24_a_rollback_that_can_order_nobody_is_told_without_a_report(cloud: Cloud) -> None:
    """No outcome will ever come: the next sweep says so, once."""
    pis = running(cloud, 2)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    for pi in pis:
        cloud.begin(pi)
        pi.floor = 9
        cloud.fail(pi)
        pi.running = Running(update=V2, sha256=sha256_of(cloud, V2))
    assert cloud.deployment(deployment).rollback
    for pi in pis:
        cloud.state(pi)
    for _ in range(30):
        cloud.wait(1_000)
    with cloud.store.read() as reader:
        alerts = [entry.facts["sentence"] for entry in reader.audit() if entry.what == "alert"]
    assert alerts == ["rollback incomplete: 2 devices"]


def test_pending_rows_of_ended_deployments_are_closed_in_every_group(cloud: Cloud) -> None:
    """More ended deployments than one turn looks at: the others follow in the next ones."""
    pis = [cloud.pi(f"p{number}", f"g{number}") for number in range(ENDED_SWEPT_MAX + 3)]
    first = [cloud.deploy(f"g{number}", V1) for number in range(len(pis))]
    for number, pi in enumerate(pis):
        cloud.deploy(f"g{number}", V2)
        cloud.begin(pi)
    for _ in range(40):
        cloud.wait(1_000)
    assert {cloud.row(made, pi.id).state for made, pi in zip(first, pis, strict=True)} == {S.DROPPED}
    cloud.check_tallies()
