"""Every pair of a deployment's state and an event, done to the real orchestrator: it moves as the table says, or stays.

An event that the table does not list really happens all the same: time passes, a newer deployment is made, an operator
cancels, a device that had begun fails.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

import pytest

from cloud_stub.core.commands import CancelDeployment, PolicyDraft
from protocol.errors import OperatorError
from protocol.lifecycle import DEPLOYMENT, DeploymentEvent, DeploymentState, WorkflowState
from protocol.messages import Assignment
from protocol.outcomes import Reason, Result
from tests.cloud_stub.orchestrator.cloud_bench import START_MS, Cloud, Pi
from tests.cloud_stub.orchestrator.rule_bench import V1, V2, V3, running

D, E = DeploymentState, DeploymentEvent
LATER_MS: Final = 60_000
POLICY: Final = PolicyDraft(1, 1, (V1,))  # the first failure trips


@dataclass
class Case:
    """A group of two, the deployment in question, and what its second device was ordered by it, if anything."""

    cloud: Cloud
    pis: list[Pi]
    deployment: str
    order: Assignment | None = None

    @property
    def state(self) -> DeploymentState:
        """Where the deployment stands."""
        return self.cloud.deployment(self.deployment).state


def scheduled(cloud: Cloud) -> Case:
    """Make a deployment for later."""
    pis = running(cloud, 2)
    return Case(cloud, pis, cloud.deploy("north", V2, policy=POLICY, start_at_ms=START_MS + LATER_MS))


def active(cloud: Cloud) -> Case:
    """Make a deployment whose second device is in its trial, past the point of no return."""
    pis = running(cloud, 2)
    deployment = cloud.deploy("north", V2, policy=POLICY)
    return Case(cloud, pis, deployment, cloud.begin(pis[1], WorkflowState.CONFIRMING))


def superseded(cloud: Cloud) -> Case:
    """Make a newer one beside it."""
    case = active(cloud)
    cloud.deploy("north", V3)
    return case


def canceled(cloud: Cloud) -> Case:
    """Cancel it."""
    case = active(cloud)
    cloud.do(CancelDeployment(case.deployment))
    return case


def rolled_back(cloud: Cloud) -> Case:
    """Let its first device fail, while the second is still at it."""
    case = active(cloud)
    cloud.begin(case.pis[0])
    cloud.fail(case.pis[0])
    return case


def time_passes(case: Case) -> None:
    """Let the time of a schedule come."""
    case.cloud.wait(2 * LATER_MS)


def newer_one(case: Case) -> None:
    """Make another deployment for the group."""
    case.cloud.deploy("north", V3)


def operator_cancels(case: Case) -> None:
    """Ask for its end; what has ended refuses, in words."""
    with contextlib.suppress(OperatorError) if not DEPLOYMENT[case.state] else contextlib.nullcontext():
        case.cloud.do(CancelDeployment(case.deployment))


def device_fails(case: Case) -> None:
    """Report a failure of this deployment by the update's fault, whether or not the device was ordered it."""
    order = case.order or Assignment(
        device=case.pis[1].id,
        epoch=case.cloud.device(case.pis[1].id).epoch,
        issued_ms=START_MS,
        lifetime_ms=1,
        action="hold",
        deployment=case.deployment,
        attempt=1,
    )
    case.cloud.end(case.pis[1], order, Result.FAILED, Reason.HEALTH_FAILED, WorkflowState.CONFIRMING)


STATES: Final[Mapping[DeploymentState, Callable[[Cloud], Case]]] = {
    D.SCHEDULED: scheduled,
    D.ACTIVE: active,
    D.SUPERSEDED: superseded,
    D.CANCELED: canceled,
    D.ROLLED_BACK: rolled_back,
}
EVENTS: Final[Mapping[DeploymentEvent, Callable[[Case], None]]] = {
    E.STARTED: time_passes,
    E.SUPERSEDED: newer_one,
    E.CANCELED: operator_cancels,
    E.TRIPPED: device_fails,
}


@pytest.mark.parametrize(("state", "event"), list(product(D, E)))
def test_a_deployment_moves_as_its_table_says(
    cloud: Cloud, state: DeploymentState, event: DeploymentEvent
) -> None:
    """All twenty pairs: the listed move is made; without one the deployment stays, and so does every number of it."""
    case = STATES[state](cloud)
    assert case.state is state
    before = cloud.deployment(case.deployment)
    EVENTS[event](case)
    after = cloud.deployment(case.deployment)
    assert after.state is DEPLOYMENT[state].get(event, state)
    if event not in DEPLOYMENT[state]:
        assert (after.trip, after.started_ms) == (before.trip, before.started_ms)
    cloud.check_tallies()


def test_every_state_and_event_has_its_way() -> None:
    """A state or an event that is added has to be played here, too."""
    assert set(STATES) == set(D)
    assert set(EVENTS) == set(E)
