"""Routes of devices and groups. Secrets are shown once, in the answer that makes them."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cloud_stub.api import looks, show, views
from cloud_stub.api.access import Caller, Role, requires
from cloud_stub.api.conflicts import Conflict
from cloud_stub.api.dependencies import ServiceDependency
from cloud_stub.api.requests import AddDevicesRequest, MoveRequest
from cloud_stub.api.service_port import Service
from cloud_stub.core.commands import AddDevices, MoveDevice
from cloud_stub.ports import PAGE_ROWS_MAX
from protocol.identity import check_device_id, check_group

router = APIRouter(tags=["devices"])
After = Annotated[str, Query(description="the last id of the page before")]
Limit = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX)]


@router.post("/devices", status_code=201)
def add_devices(
    request: AddDevicesRequest, service: ServiceDependency, caller: Caller = requires(Role.ADMIN)
) -> list[views.JoinView]:
    """Make devices known; each token is shown in this answer and never again."""
    return add(service, request, caller.who)


@router.get("/devices")
def list_devices(
    service: ServiceDependency,
    group: str | None = None,
    after: After = "",
    limit: Limit = PAGE_ROWS_MAX,
    caller: Caller = requires(Role.VIEWER),
) -> list[views.DeviceView]:
    """List devices in the order of their ids."""
    with service.read() as reader:
        return [show.device_view(row) for row in reader.list_devices(group=group, after=after, limit=limit)]


@router.get("/devices/{device}")
def get_device(device: str, service: ServiceDependency, caller: Caller = requires(Role.VIEWER)) -> views.DeviceDetail:
    """Show a device: its slots, and every assignment it had."""
    with service.read() as reader:
        return looks.device(reader, device)


@router.get("/devices/{device}/why")
def get_why(device: str, service: ServiceDependency, caller: Caller = requires(Role.VIEWER)) -> views.ReasonsView:
    """Say which rule a device waits on."""
    with service.read() as reader:
        looks.device_row(reader, device)
    return views.ReasonsView(device=device, why=service.why(device))


@router.put("/devices/{device}/group")
def move_device(
    device: str, request: MoveRequest, service: ServiceDependency, caller: Caller = requires(Role.OPERATOR)
) -> views.DeviceView:
    """Put a device into a group by override, or with null give it back to its tag."""
    return show.device_view(move(service, device, request.group, caller.who))


@router.get("/groups")
def list_groups(service: ServiceDependency, caller: Caller = requires(Role.VIEWER)) -> list[views.GroupView]:
    """List all groups with what they run."""
    with service.read() as reader:
        return looks.groups(reader)


@router.get("/groups/{group}")
def get_group(group: str, service: ServiceDependency, caller: Caller = requires(Role.VIEWER)) -> views.GroupView:
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
            f"Device {min(known)} is known already, and keeps its token; add only new ones, or ask for new tokens with --renew."
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
