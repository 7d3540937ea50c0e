"""The life of deployments: groups, dynamic membership, supersede, cancel, schedule (DESIGN.md section 3)."""

import pytest

from cloud_stub.core.commands import (
    CancelDeployment,
    CreateDeployment,
    DeploymentDraft,
    MoveDevice,
    PolicyDraft,
    RetryDeployment,
    WithdrawUpdate,
)
from cloud_stub.core.rows import AssignmentState
from protocol.errors import OperatorError
from protocol.lifecycle import DeploymentState, WorkflowState
from protocol.messages import Answer
from protocol.outcomes import Abandoned, Reason, Result
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, accepted

S = AssignmentState


def test_a_deployment_reaches_the_members_of_its_group_alone(cloud: Cloud) -> None:
    """Only the devices of the group are ordered to install, each under a growing epoch."""
    inside, outside = cloud.pi("a", "north"), cloud.pi("b", "south")
    before = inside.epoch
    cloud.deploy("north", "acme/app:1.0")
    assert accepted(inside).target is not None
    assert accepted(inside).epoch > (before or 0)
    assert accepted(outside).action == "hold"


def test_a_device_without_a_tag_is_in_the_default_group(cloud: Cloud) -> None:
    """`$default` takes who names no group, and a tag that cannot name one."""
    plain, odd = cloud.pi("a"), cloud.pi("b", "not a group!")
    deployment = cloud.deploy("$default", "acme/app:1.0")
    assert cloud.row(deployment, plain.id).state is S.PENDING
    assert cloud.row(deployment, odd.id).state is S.PENDING


def test_a_device_that_joins_later_gets_it_too(cloud: Cloud) -> None:
    """Deployments are dynamic: a joiner is ordered the active one (rule 2)."""
    deployment = cloud.deploy("north", "acme/app:1.0")
    late = cloud.pi("late", "north")
    assert accepted(late).deployment == deployment
    assert cloud.deployment(deployment).tally.pending == 1


def test_a_move_by_the_operator_outdoes_the_tag(cloud: Cloud) -> None:
    """The override names the group until it is taken back; then the tag does again."""
    pi = cloud.pi("a", "north")
    south = cloud.deploy("south", "acme/app:2.0")
    cloud.do(MoveDevice("a", "south"))
    assert accepted(pi).deployment == south
    cloud.state(pi)
    assert cloud.device("a").group == "south"
    cloud.do(MoveDevice("a", None))
    assert cloud.device("a").group == "north"
    assert accepted(pi).action == "hold"


def test_leaving_before_the_attempt_started_drops_the_device(cloud: Cloud) -> None:
    """A pending device that leaves is dropped, and told the hold of a group that has nothing (rule 3)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    epoch = pi.epoch
    cloud.do(MoveDevice("a", "empty"))
    assert cloud.row(deployment, "a").state is S.DROPPED
    assert accepted(pi).action == "hold"
    assert accepted(pi).epoch > (epoch or 0)
    cloud.check_tallies()


def test_leaving_later_keeps_the_verdict_marked_moved_on(cloud: Cloud) -> None:
    """A device that left after its verdict still counts in the old deployment (rule 3)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    cloud.begin(pi)
    cloud.fail(pi)
    cloud.do(MoveDevice("a", "south"))
    row = cloud.row(deployment, "a")
    assert (row.state, row.moved_on, row.counted) == (S.FAILED, True, True)
    assert cloud.deployment(deployment).tally.moved_on == 1
    cloud.check_tallies()


def test_a_newer_deployment_supersedes_with_links_both_ways(cloud: Cloud) -> None:
    """One is active in a group at a time (rule 1)."""
    pi = cloud.pi("a", "north")
    first = cloud.deploy("north", "acme/app:1.0")
    second = cloud.deploy("north", "acme/app:2.0")
    assert cloud.deployment(first).state is DeploymentState.SUPERSEDED
    assert cloud.deployment(first).superseded_by == second
    assert cloud.deployment(second).supersedes == first
    assert accepted(pi).deployment == second


def test_a_schedule_supersedes_at_its_start_and_not_before(cloud: Cloud) -> None:
    """A scheduled deployment leaves the active one alone until its time has come (rule 6)."""
    pi = cloud.pi("a", "north")
    first = cloud.deploy("north", "acme/app:1.0")
    later = cloud.deploy("north", "acme/app:2.0", start_at_ms=START_MS + 60_000)
    cloud.live(59_000)
    assert cloud.deployment(first).state is DeploymentState.ACTIVE
    assert accepted(pi).deployment == first
    cloud.wait(2_000)
    assert cloud.deployment(later).state is DeploymentState.ACTIVE
    assert accepted(pi).deployment == later


def test_a_scheduled_deployment_can_be_canceled(cloud: Cloud) -> None:
    """It then never starts."""
    later = cloud.deploy("north", "acme/app:2.0", start_at_ms=START_MS + 1_000)
    cloud.do(CancelDeployment(later))
    cloud.wait(5_000)
    assert cloud.deployment(later).state is DeploymentState.CANCELED


def test_cancel_is_final_and_devices_answer_canceled(cloud: Cloud) -> None:
    """A device short of the switch stops; until it answers the cloud shows that the cancel was sent (R5)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    order = cloud.begin(pi)
    cloud.do(CancelDeployment(deployment))
    assert cloud.row(deployment, "a").cancel == "sent"
    assert (accepted(pi).action, accepted(pi).deployment, accepted(pi).attempt) == (
        "hold",
        deployment,
        order.attempt,
    )
    cloud.end(pi, order, Result.ABANDONED, abandoned=Abandoned.CANCELED)
    row = cloud.row(deployment, "a")
    assert (row.state, row.cancel) == (S.CANCELED, "canceled")
    with pytest.raises(OperatorError, match="already"):
        cloud.do(CancelDeployment(deployment))
    cloud.check_tallies()


def test_a_cancel_that_came_too_late_keeps_the_verdict(cloud: Cloud) -> None:
    """Past the point of no return the device says too_late, and its trial runs to its verdict (R5)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    order = cloud.begin(pi, WorkflowState.CONFIRMING)
    cloud.do(CancelDeployment(deployment))
    cloud.state(pi, answer=Answer(epoch=accepted(pi).epoch, answer="too_late"))
    assert cloud.row(deployment, "a").cancel == "too_late"
    cloud.succeed(pi, order)
    assert cloud.row(deployment, "a").state is S.SUCCEEDED
    assert cloud.device("a").running_update == "acme/app:1.0"


def test_what_is_installed_stays_installed_after_a_cancel(cloud: Cloud) -> None:
    """Cancel never takes a success back (rule 4)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    cloud.succeed(pi)
    cloud.do(CancelDeployment(deployment))
    assert cloud.row(deployment, "a").state is S.SUCCEEDED
    assert accepted(pi).action == "hold"
    assert accepted(pi).deployment is None


def test_compatibility_lists_members_outside_every_denominator(cloud: Cloud) -> None:
    """A device the update does not fit is listed as such, and told to hold (rule 8)."""
    cloud.pi("a", "north")
    other = cloud.pi("b", "north", model="pi9")
    deployment = cloud.deploy("north", "acme/app:1.0")
    row = cloud.row(deployment, "b")
    assert row.state is S.INCOMPATIBLE
    assert "fits its class" in row.detail
    assert accepted(other).action == "hold"
    assert cloud.deployment(deployment).tally.incompatible == 1


def test_an_offer_maps_each_device_class_to_its_update(cloud: Cloud) -> None:
    """A deployment of two updates gives each class the one that fits it (RULES.md, definitions)."""
    cloud.update("acme/app-pi9:1.0", model="pi9")
    four, nine = cloud.pi("a", "north"), cloud.pi("b", "north", model="pi9")
    cloud.deploy("north", "acme/app:1.0", "acme/app-pi9:1.0")
    names = [accepted(pi).target.update for pi in (four, nine)]  # type: ignore[union-attr]
    assert names == ["acme/app:1.0", "acme/app-pi9:1.0"]


def test_success_is_judged_by_what_runs(cloud: Cloud) -> None:
    """The word `succeeded` beside another version is no success (rule 10)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    order = cloud.begin(pi)
    cloud.end(pi, order, Result.SUCCEEDED)
    assert cloud.row(deployment, "a").state is S.WORKING


def test_duplicates_and_reordered_states_change_nothing(cloud: Cloud) -> None:
    """The same state twice, and an older one late, leave rows and counts alone (rule 9)."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    cloud.begin(pi)
    cloud.fail(pi)
    row, tally = cloud.row(deployment, "a"), cloud.deployment(deployment).tally
    pi.sequence -= 1
    cloud.state(pi)
    pi.sequence -= 2
    cloud.state(pi)
    assert cloud.row(deployment, "a") == row
    assert cloud.deployment(deployment).tally == tally
    cloud.check_tallies()


def test_retry_gives_the_named_failed_devices_a_new_attempt(cloud: Cloud) -> None:
    """Only failed devices of an active deployment can be retried (rule 5)."""
    good, bad, worse = cloud.pi("a", "north"), cloud.pi("b", "north"), cloud.pi("c", "north")
    deployment = cloud.deploy("north", "acme/app:1.0")
    cloud.succeed(good)
    for pi in (bad, worse):
        cloud.begin(pi)
        cloud.fail(pi)
    with pytest.raises(OperatorError, match="has not failed"):
        cloud.do(RetryDeployment(deployment, ("a",)))
    assert cloud.do(RetryDeployment(deployment, ("b",))) == 1
    assert accepted(bad).attempt == 2
    assert cloud.do(RetryDeployment(deployment)) == 1
    assert accepted(worse).attempt == 2
    cloud.succeed(bad)
    assert cloud.deployment(deployment).tally.succeeded == 2
    cloud.check_tallies()


def test_creation_refuses_another_plan_than_was_shown(cloud: Cloud) -> None:
    """What is created is the plan that was shown."""
    cloud.pi("a", "north")
    draft = DeploymentDraft("north", ("acme/app:1.0",))
    with pytest.raises(OperatorError, match="changed since"):
        cloud.do(CreateDeployment(draft, plan_digest="another"))


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (PolicyDraft(0, 5, ("acme/app:1.0",)), "failed_percent is 0"),
        (PolicyDraft(101, 5, ("acme/app:1.0",)), "failed_percent is 101"),
        (PolicyDraft(10, 0, ("acme/app:1.0",)), "failed_count is 0"),
        (PolicyDraft(10, 5, ()), "names no update"),
        (PolicyDraft(10, 5, ("acme/app:9.9",)), "not imported"),
        (PolicyDraft(10, 5, ("acme/app:2.0",)), "the update itself"),
    ],
)
def test_a_policy_that_cannot_act_is_refused(cloud: Cloud, policy: PolicyDraft, sentence: str) -> None:
    """Policies fail closed, at creation."""
    cloud.pi("a", "north")
    with pytest.raises(OperatorError, match=sentence):
        cloud.deploy("north", "acme/app:2.0", policy=policy)


def test_an_update_that_is_not_imported_is_refused(cloud: Cloud) -> None:
    """The sentence names it."""
    with pytest.raises(OperatorError, match=r"acme/none:1\.0 is not imported"):
        cloud.deploy("north", "acme/none:1.0")


def test_a_withdrawn_update_asks_for_an_explicit_word(cloud: Cloud) -> None:
    """Deploying it again is refused, and allowed with the word."""
    pi = cloud.pi("a", "north")
    cloud.do(WithdrawUpdate("acme/app:2.0", "it smokes"))
    with pytest.raises(OperatorError, match="--allow-withdrawn"):
        cloud.deploy("north", "acme/app:2.0")
    cloud.wait(10)
    deployment = cloud.deploy("north", "acme/app:2.0", allow_withdrawn=True)
    assert accepted(pi).deployment == deployment


def test_an_offline_device_is_pending_and_never_failed(cloud: Cloud) -> None:
    """Who never began is not timed out (rule 7)."""
    cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0", device_timeout_ms=2_000, attempt_timeout_ms=2_000)
    for _ in range(20):
        cloud.wait(1_000)
    assert cloud.row(deployment, "a").state is S.PENDING


def test_an_automatic_retry_waits_its_back_off(cloud: Cloud) -> None:
    """Retries of a deployment come after a delay with full jitter, and are counted."""
    pi = cloud.pi("a", "north")
    deployment = cloud.deploy("north", "acme/app:1.0", retries=1, retry_delay_ms=10_000)
    cloud.begin(pi)
    cloud.fail(pi, Reason.HANDLER_FAILED, WorkflowState.INSTALLING)
    cloud.wait(4_000)
    assert accepted(pi).attempt == 1
    cloud.wait(2_000)
    assert (accepted(pi).attempt, accepted(pi).action) == (2, "install")
    cloud.begin(pi)
    cloud.fail(pi, Reason.HANDLER_FAILED, WorkflowState.INSTALLING)
    cloud.wait(60_000)
    assert cloud.row(deployment, "a").state is S.FAILED
    assert cloud.row(deployment, "a").attempt == 2
