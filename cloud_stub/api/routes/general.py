"""Routes of the service itself: health, what it is, the overview, the audit log, and the stream of changes."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, StreamingResponse

from cloud_stub.api import looks, show, views
from cloud_stub.api.access import Viewer
from cloud_stub.api.dependencies import API_PREFIX, ChangesDependency, ServiceDependency
from cloud_stub.api.routes.devices import Limit
from cloud_stub.ports import PAGE_ROWS_MAX

router = APIRouter(prefix=API_PREFIX, tags=["service"])


class HealthView(views.View):
    """Whether the service can do its work."""

    ok: bool
    broker_alive: bool


@router.get("/health", responses={503: {"model": HealthView}})
def get_health(service: ServiceDependency) -> JSONResponse:
    """Say whether the service works; 503 when it does not. Needs no token, and tells nothing else."""
    alive = service.broker.alive()
    return JSONResponse(HealthView(ok=alive, broker_alive=alive).model_dump(), 200 if alive else 503)


@router.get("/openapi.json", include_in_schema=False)
def get_openapi(request: Request) -> JSONResponse:
    """Describe this API."""
    return JSONResponse(request.app.openapi())


@router.get("/service")
def get_service(caller: Viewer, service: ServiceDependency) -> looks.ServiceView:
    """Say which broker serves, where, and what the cloud's time is."""
    return looks.service(service.broker, service.now_ms())


@router.get("/overview")
def get_overview(caller: Viewer, service: ServiceDependency) -> looks.OverviewView:
    """Show everything at once: groups, active deployments, alerts."""
    with service.read() as reader:
        return looks.overview(reader, service.broker, service.now_ms())


@router.get("/audit")
def list_audit(
    caller: Viewer, service: ServiceDependency, about: str | None = None, limit: Limit = PAGE_ROWS_MAX
) -> list[views.AuditView]:
    """List entries of the audit log, the newest first."""
    with service.read() as reader:
        return [show.audit_view(row) for row in reader.audit(about=about, limit=limit)]


@router.get("/events", response_class=StreamingResponse)
def follow_changes(caller: Viewer, changes: ChangesDependency) -> StreamingResponse:
    """Follow the service: a `change` event with the counter whenever something has changed."""

    def show(counter: int) -> tuple[str, dict[str, Any]]:
        return "change", {"counter": counter}

    return changes.stream(show)
