"""The pages: what the API shows, as HTML that needs no network, no build step, and no JavaScript for reading.

They hold no rules and no queries of their own: each page shows a view of `looks.py` or `views.py`, and each form hands
the same command over as the API does. A change needs the session's CSRF token and the same origin (`access.py`).
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from cloud_stub.api import looks, show
from cloud_stub.api.access import Admin, Operator, Viewer
from cloud_stub.api.dependencies import ServiceDependency
from cloud_stub.api.rendering import page
from cloud_stub.api.routes import deployments, devices, updates
from cloud_stub.core.rows import AssignmentState, DeviceRow
from cloud_stub.ports import Reader
from protocol.errors import OperatorError
from protocol.identity import UpdateId

PAGE_ROWS: Final = 100  # devices on one page
LIST_ROWS: Final = 200  # deployments and audit entries on one page

router = APIRouter(include_in_schema=False)


@router.get("/")
def get_overview(caller: Viewer, request: Request, service: ServiceDependency) -> Response:
    """Groups, active deployments, alerts, broker."""
    with service.read() as reader:
        view = looks.overview(reader, service.broker, service.now_ms())
    return page(request, "overview.html", caller, {"view": view})


@router.get("/devices")
def get_devices(
    caller: Viewer,
    request: Request,
    service: ServiceDependency,
    group: str = "",
    search: str = "",
    after: str = "",
) -> Response:
    """Devices, by group and by the beginning of their ids."""
    with service.read() as reader:
        rows = _search(reader, group or None, search, after)
        groups = looks.groups(reader)
        chosen = next((found for found in groups if found.group == group), None)
    more = ""
    if len(rows) > PAGE_ROWS:
        more = "?" + urlencode({"group": group, "search": search, "after": rows[PAGE_ROWS - 1].id})
    values = {
        "devices": [show.device_view(row) for row in rows[:PAGE_ROWS]],
        "groups": groups,
        "chosen": chosen,
        "group": group,
        "search": search,
        "after": after,
        "more": more,
    }
    return page(request, "devices.html", caller, values)


@router.get("/devices/{device}")
def get_device(caller: Viewer, request: Request, device: str, service: ServiceDependency) -> Response:
    """One device: its slots, what it waits on, its history."""
    with service.read() as reader:
        view = looks.device(reader, device)
        groups = sorted(reader.count_devices())
    values = {"device": view, "why": service.why(device), "groups": groups}
    return page(request, "device.html", caller, values)


@router.post("/devices/{device}/group")
def post_move(caller: Operator, device: str, service: ServiceDependency, group: str = Form("")) -> Response:
    """Move a device; an empty name gives it back to its tag."""
    devices.move(service, device, group.strip() or None, caller.who)
    return RedirectResponse(f"/devices/{device}", 303)


@router.get("/updates")
def get_updates(caller: Viewer, request: Request, service: ServiceDependency) -> Response:
    """All updates."""
    with service.read() as reader:
        found = [show.update_view(row) for row in reader.list_updates()]
    return page(request, "updates.html", caller, {"updates": found})


@router.get("/updates/{provider}/{name}/{version}")
def get_update(
    caller: Viewer, request: Request, provider: str, name: str, version: str, service: ServiceDependency
) -> Response:
    """One update with its files, and where it runs."""
    with service.read() as reader:
        view = show.update_detail(looks.update_row(reader, str(UpdateId.of(provider, name, version))))
        runs = [
            (group.group, run.count)
            for group in looks.groups(reader)
            for run in group.runs
            if run.sha256 == view.sha256
        ]
    return page(request, "update.html", caller, {"update": view, "runs": runs})


@router.post("/updates/{provider}/{name}/{version}/withdraw")
def post_withdraw(
    caller: Admin, provider: str, name: str, version: str, service: ServiceDependency, why: str = Form("")
) -> Response:
    """Stop offering an update."""
    if not why.strip():
        raise OperatorError("Say in a few words why the update is withdrawn; operators will read it.")
    updates.withdraw(service, str(UpdateId.of(provider, name, version)), why.strip(), caller.who)
    return RedirectResponse(f"/updates/{provider}/{name}/{version}", 303)


@router.get("/deployments")
def get_deployments(caller: Viewer, request: Request, service: ServiceDependency) -> Response:
    """Deployments, the newest first."""
    with service.read() as reader:
        found = looks.deployments(reader, None, (), LIST_ROWS)
    return page(request, "deployments.html", caller, {"deployments": found})


@router.get("/deployments/{deployment}")
def get_deployment(caller: Viewer, request: Request, deployment: str, service: ServiceDependency) -> Response:
    """One deployment, followed live."""
    with service.read() as reader:
        view = looks.deployment(reader, looks.deployment_row(reader, deployment))
    return page(request, "deployment.html", caller, {"deployment": view})


@router.get("/deployments/{deployment}/devices")
def get_assignments(
    caller: Viewer,
    request: Request,
    deployment: str,
    service: ServiceDependency,
    state: AssignmentState | None = None,
    after: str = "",
) -> Response:
    """How each device does in a deployment."""
    with service.read() as reader:
        view = looks.deployment(reader, looks.deployment_row(reader, deployment))
        rows = reader.list_assignments(
            deployment=deployment, states=[state] if state else [], after=after, limit=PAGE_ROWS + 1
        )
    found = [show.assignment_view(row) for row in rows[:PAGE_ROWS]]
    more = ""
    if len(rows) > PAGE_ROWS:
        more = "?" + urlencode({"state": state or "", "after": rows[PAGE_ROWS - 1].device})
    values = {
        "deployment": view,
        "rows": found,
        "state": state,
        "states": list(AssignmentState),
        "more": more,
    }
    return page(request, "assignments.html", caller, values)


@router.post("/deployments/{deployment}/cancel")
def post_cancel(caller: Operator, deployment: str, service: ServiceDependency) -> Response:
    """End a deployment for good."""
    deployments.cancel(service, deployment, caller.who)
    return RedirectResponse(f"/deployments/{deployment}", 303)


@router.post("/deployments/{deployment}/retry")
def post_retry(caller: Operator, deployment: str, service: ServiceDependency) -> Response:
    """Give every failed device a new attempt."""
    deployments.retry(service, deployment, (), caller.who)
    return RedirectResponse(f"/deployments/{deployment}", 303)


@router.get("/audit")
def get_audit(caller: Viewer, request: Request, service: ServiceDependency) -> Response:
    """The audit log, the newest entry first."""
    with service.read() as reader:
        rows = [show.audit_view(row) for row in reader.audit(limit=LIST_ROWS)]
    return page(request, "audit.html", caller, {"rows": rows})


def _search(reader: Reader, group: str | None, search: str, after: str) -> Sequence[DeviceRow]:
    """Return a page of devices and one more; `search` is the beginning of an id, which is one range of the index."""
    search = search.strip()
    if not search:
        return reader.list_devices(group=group, after=after, limit=PAGE_ROWS + 1)
    exact = reader.device(search) if not after else None
    first = [exact] if exact and group in (None, exact.group) else []
    rows = reader.list_devices(group=group, after=max(after, search), limit=PAGE_ROWS + 1)
    return [*first, *(row for row in rows if row.id.startswith(search))]
