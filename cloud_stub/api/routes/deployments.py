"""Routes of deployments: plan, create, look, cancel, retry, follow. What is created is the plan that was shown."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from cloud_stub.api import looks, show, views
from cloud_stub.api.access import Admin, Operator, Viewer
from cloud_stub.api.conflicts import conflicting
from cloud_stub.api.dependencies import API_PREFIX, ChangesDependency, ServiceDependency
from cloud_stub.api.requests import CreateRequest, DraftRequest, RetryRequest
from cloud_stub.api.routes.devices import After, Limit
from cloud_stub.api.service_port import Service
from cloud_stub.core.commands import CancelDeployment, CreateDeployment, ResumeRestored, RetryDeployment
from cloud_stub.core.rows import AssignmentState, DeploymentRow
from cloud_stub.ports import PAGE_ROWS_MAX
from protocol.lifecycle import DeploymentState

router = APIRouter(prefix=API_PREFIX, tags=["deployments"])


class RetriedView(views.View):
    """How many devices got a new attempt."""

    retried: int


class ResumedView(views.View):
    """How many devices are ordered anew after a restore."""

    resumed: int


@router.post("/deployments/plan")
def plan_deployment(caller: Viewer, request: DraftRequest, service: ServiceDependency) -> views.PlanView:
    """Say what a deployment would do, and change nothing."""
    return show.plan_view(service.plan(request.draft()))


@router.post("/deployments", status_code=201)
def create_deployment(
    caller: Operator, request: CreateRequest, service: ServiceDependency
) -> views.DeploymentDetail:
    """Create the deployment; with the digest of a plan only if the plan is still the same."""
    return _shown(service, create(service, request.draft, request.plan_digest, caller.who))


@router.get("/deployments")
def list_deployments(
    caller: Viewer,
    service: ServiceDependency,
    group: str | None = None,
    state: Annotated[list[DeploymentState] | None, Query()] = None,
    limit: Limit = PAGE_ROWS_MAX,
) -> list[views.DeploymentView]:
    """List deployments, the newest first."""
    with service.read() as reader:
        return looks.deployments(reader, group, state or [], limit)


@router.get("/deployments/{deployment}")
def get_deployment(caller: Viewer, deployment: str, service: ServiceDependency) -> views.DeploymentDetail:
    """Show one deployment with its policy's numbers as a sentence."""
    with service.read() as reader:
        return looks.deployment(reader, looks.deployment_row(reader, deployment))


@router.get("/deployments/{deployment}/devices")
def list_assignments(
    caller: Viewer,
    deployment: str,
    service: ServiceDependency,
    state: Annotated[list[AssignmentState] | None, Query()] = None,
    after: After = "",
    limit: Limit = PAGE_ROWS_MAX,
) -> list[views.AssignmentView]:
    """List how each device does, in the order of their ids."""
    with service.read() as reader:
        looks.deployment_row(reader, deployment)
        rows = reader.list_assignments(deployment=deployment, states=state or [], after=after, limit=limit)
        return [show.assignment_view(row) for row in rows]


@router.get("/deployments/{deployment}/events", response_class=StreamingResponse)
def follow_deployment(
    caller: Viewer, deployment: str, service: ServiceDependency, changes: ChangesDependency
) -> StreamingResponse:
    """Follow a deployment: a `deployment` event with its view whenever that has changed."""
    last: list[dict[str, Any]] = []

    def show(counter: int) -> tuple[str, dict[str, Any]] | None:
        with service.read() as reader:
            view = looks.deployment(reader, looks.deployment_row(reader, deployment)).model_dump(mode="json")
        if last == [view]:
            return None
        last[:] = [view]
        return "deployment", view

    with service.read() as reader:
        looks.deployment_row(reader, deployment)
    return changes.stream(show)


@router.post("/deployments/{deployment}/cancel")
def cancel_deployment(
    caller: Operator, deployment: str, service: ServiceDependency
) -> views.DeploymentDetail:
    """End a deployment for good; what is installed stays installed."""
    return _shown(service, cancel(service, deployment, caller.who))


@router.post("/deployments/{deployment}/retry")
def retry_deployment(
    caller: Operator, deployment: str, service: ServiceDependency, request: RetryRequest | None = None
) -> RetriedView:
    """Give every failed device, or the named ones, a new attempt."""
    devices = tuple(request.devices) if request else ()
    return RetriedView(retried=retry(service, deployment, devices, caller.who))


@router.post("/restored/resume")
def resume_restored(caller: Admin, service: ServiceDependency) -> ResumedView:
    """Go on after a restore from an old backup: what is active is ordered again with higher epochs."""
    with conflicting():
        return ResumedView(resumed=service.do(ResumeRestored(), caller.who))


def create(service: Service, request: DraftRequest, plan_digest: str | None, who: str) -> DeploymentRow:
    """Create a deployment and return its row.

    Raises:
        OperatorError: the draft itself cannot be carried out.
        Conflict: it can, and its plan is no longer the one that was shown.
    """
    draft = request.draft()
    service.plan(draft)  # refused here: the draft's fault; refused below: the plan's, which has changed since
    with conflicting():
        row: DeploymentRow = service.do(CreateDeployment(draft, plan_digest), who)
    return row


def cancel(service: Service, deployment: str, who: str) -> DeploymentRow:
    """Cancel a deployment and return its row.

    Raises:
        NotFound: there is none of this id.
        Conflict: it has ended already.
    """
    with service.read() as reader:
        looks.deployment_row(reader, deployment)
    with conflicting():
        row: DeploymentRow = service.do(CancelDeployment(deployment), who)
    return row


def retry(service: Service, deployment: str, devices: tuple[str, ...], who: str) -> int:
    """Retry a deployment's failed devices and return how many they are.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is not active, or a named device has not failed.
    """
    with service.read() as reader:
        looks.deployment_row(reader, deployment)
    with conflicting():
        return int(service.do(RetryDeployment(deployment, devices), who))


def _shown(service: Service, row: DeploymentRow) -> views.DeploymentDetail:
    with service.read() as reader:
        return looks.deployment(reader, row)
