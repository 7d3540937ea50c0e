"""Routes of devices and groups. Secrets are shown once, in the answer that makes them."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cloud_stub.api import looks, show, views
from cloud_stub.api.access import Admin, Operator, Viewer
from cloud_stub.api.conflicts import Conflict
from cloud_stub.api.dependencies import API_PREFIX, ServiceDependency
from cloud_stub.api.requests import AddDevicesRequest, MoveRequest
from cloud_stub.api.service_port import Service
from cloud_stub.core.commands import AddDevices, MoveDevice
from cloud_stub.ports import PAGE_ROWS_MAX
from protocol.identity import check_device_id, check_group

router = APIRouter(prefix=API_PREFIX, tags=["devices"])
After = Annotated[str, Query(description="the last id of the page before")]
Limit = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX)]


@router.post("/devices", status_code=201)
def add_devices(
    caller: Admin, request: AddDevicesRequest, service: ServiceDependency
) -> list[views.JoinView]:
    """Make devices known; each token is shown in this answer and never again."""
    return add(service, request, caller.who)


@router.get("/devices")
def list_devices(
    caller: Viewer,
    service: ServiceDependency,
    group: str | None = None,
    runs: str | None = None,
    after: After = "",
    limit: Limit = PAGE_ROWS_MAX,
) -> list[views.DeviceView]:
    """List devices in the order of their ids: all, those of a group, those that run an update."""
    with service.read() as reader:
        rows = reader.list_devices(group=group, runs=runs, after=after, limit=limit)
    return [show.device_view(row) for row in rows]


@router.get("/devices/{device}")
def get_device(caller: Viewer, device: str, service: ServiceDependency) -> views.DeviceDetail:
    """Show a device: its slots, and every assignment it had."""
    with service.read() as reader:
        return looks.device(reader, device)


@router.get("/devices/{device}/why")
def get_why(caller: Viewer, device: str, service: ServiceDependency) -> views.ReasonsView:
    """Say which rule a device waits on."""
    with service.read() as reader:
        looks.device_row(reader, device)
    return views.ReasonsView(device=device, why=service.why(device))


@router.put("/devices/{device}/group")
def move_device(
    caller: Operator, device: str, request: MoveRequest, service: ServiceDependency
) -> views.DeviceView:
    """Put a device into a group by override, or with null give it back to its tag."""
    return show.device_view(move(service, device, request.group, caller.who))


@router.get("/groups")
def list_groups(caller: Viewer, service: ServiceDependency) -> list[views.GroupView]:
    """List all groups with what they run."""
    with service.read() as reader:
        return looks.groups(reader)


@router.get("/groups/{group}")
def get_group(caller: Viewer, group: str, service: ServiceDependency) -> views.GroupView:
    """Show one group."""
    with service.read() as reader:
        return looks.group(reader, group)


def add(service: Service, request: AddDevicesRequest, who: str) -> list[views.JoinView]:
    """Add devices and return their secrets.

    Raises:
        Conflict: one exists already, and `renew` was not asked for.
        OperatorError: an id cannot be one.
    """
    ids = list(dict.fromkeys(check_device_id(device) for device in request.ids))
    with service.read() as reader:
        known = reader.devices(ids)
    if known and not request.renew:
        raise Conflict(
            f"Device {min(known)} is known already and keeps its token; use --renew for a new one."
        )
    made: Mapping[str, tuple[str, str]] = {device: service.new_token() for device in ids}
    hashes = {device: hashed for device, (_, hashed) in made.items()}
    service.do(AddDevices(hashes, renew=request.renew), who)
    return [
        views.JoinView(device=device, token=token, join=service.join_line(device, token))
        for device, (token, _) in made.items()
    ]


def move(service: Service, device: str, group: str | None, who: str) -> Any:
    """Move a device and return its row.

    Raises:
        NotFound: the device is unknown.
        OperatorError: the name cannot be a group's.
    """
    if group is not None:
        check_group(group)
    with service.read() as reader:
        looks.device_row(reader, device)
    return service.do(MoveDevice(device, group), who)
