"""Looks at the rows: which are read together for one view. Each takes an open reader, and changes nothing.

They hold no rules. A look reads a bounded number of rows, however large the fleet is.
"""

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel

from cloud_stub.api import sentences, show, views
from cloud_stub.core.policy import protected_members
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow, UpdateRow
from cloud_stub.ports import PAGE_ROWS_MAX, Broker, Reader
from protocol.errors import OperatorError
from protocol.lifecycle import DeploymentState

FAILED_ROWS_MAX: Final = 5 * PAGE_ROWS_MAX  # read to say why devices failed; the counts come from the tally
RESTORED_NOTE: Final = "restored"  # set when the store turned out to be an old backup (R2)
_RECENT: Final = 50  # deployments that an overview looks at for alerts
_AUDIT_ROWS: Final = 500  # entries that an overview looks at for alerts
_ALERT_AGE_MS: Final = 86_400_000  # an alert is news for a day; the audit log keeps it


class NotFound(OperatorError):
    """What was asked for does not exist."""


class AlertView(BaseModel):
    """Something an operator has to know, and where to look."""

    kind: str
    sentence: str
    about: str | None = None  # a deployment or device
    at_ms: int | None = None


class ServiceView(BaseModel):
    """The service itself."""

    now_ms: int
    broker_engine: str
    broker_limit: str
    broker_host: str
    broker_port: int
    broker_alive: bool


class OverviewView(BaseModel):
    """The first page."""

    service: ServiceView
    devices: int
    online: int
    groups: list[views.GroupView]
    active: list[views.DeploymentDetail]
    alerts: list[AlertView]


def device(reader: Reader, device_id: str) -> views.DeviceDetail:
    """Look at one device, with the assignments it had.

    Raises:
        NotFound: it is unknown.
    """
    return show.device_detail(device_row(reader, device_id), reader.list_assignments(device=device_id))


def device_row(reader: Reader, device_id: str) -> DeviceRow:
    """Look up one device.

    Raises:
        NotFound: it is unknown.
    """
    row = reader.device(device_id)
    if row is None:
        raise NotFound(
            f"Device {device_id} is unknown; see `lastgood device list`, or add it with `lastgood device add`."
        )
    return row


def groups(reader: Reader) -> list[views.GroupView]:
    """Look at all groups, by name."""
    return [_group(reader, name, counts) for name, counts in sorted(reader.count_devices().items())]


def group(reader: Reader, name: str) -> views.GroupView:
    """Look at one group.

    Raises:
        NotFound: no device is in it, and nothing is deployed to it.
    """
    counts = reader.count_devices().get(name)
    if counts is None and not reader.list_deployments(group=name, limit=1):
        raise NotFound(
            f"No device is in group {name}, and nothing was deployed to it; see `lastgood group list`."
        )
    return _group(reader, name, counts or (0, 0))


def update_row(reader: Reader, name: str) -> UpdateRow:
    """Look at one update.

    Raises:
        NotFound: it is not imported.
    """
    row = reader.update(name)
    if row is None:
        raise NotFound(f"Update {name} is not imported; see `lastgood update list`, or import it first.")
    return row


def deployment_row(reader: Reader, deployment_id: str) -> DeploymentRow:
    """Look up one deployment.

    Raises:
        NotFound: there is none of this id.
    """
    row = reader.deployment(deployment_id)
    if row is None:
        raise NotFound(f"Deployment {deployment_id} does not exist; see `lastgood deploy list`.")
    return row


def deployment(reader: Reader, row: DeploymentRow) -> views.DeploymentDetail:
    """Look at one deployment in full."""
    in_group, _ = reader.count_devices().get(row.group, (0, 0))
    return show.deployment_detail(row, members_of(reader, row), _failed(reader, row), in_group)


def deployments(
    reader: Reader, group_name: str | None, states: Sequence[DeploymentState], limit: int = PAGE_ROWS_MAX
) -> list[views.DeploymentView]:
    """Look at deployments, the newest first."""
    rows = reader.list_deployments(group=group_name, states=states, limit=limit)
    return [show.deployment_view(row, members_of(reader, row)) for row in rows]


def members_of(reader: Reader, row: DeploymentRow) -> int:
    """Count the current members that the deployment's updates fit and its policy protects; 0 without a policy."""
    if row.policy is None or row.state not in (DeploymentState.ACTIVE, DeploymentState.SCHEDULED):
        return 0
    refs = (*row.updates, *row.policy.rollback_to)
    catalog = {ref.sha256: found for ref in refs if (found := reader.update_by_sha256(ref.sha256))}
    return protected_members(row.updates, catalog, reader.classes(row.group), row.tally)


def service(broker: Broker, now_ms: int) -> ServiceView:
    """Look at the service itself."""
    return ServiceView(
        now_ms=now_ms,
        broker_engine=broker.engine,
        broker_limit=broker.limit,
        broker_host=broker.host,
        broker_port=broker.port,
        broker_alive=broker.alive(),
    )


def overview(reader: Reader, broker: Broker, now_ms: int) -> OverviewView:
    """Look at everything at once."""
    counts = reader.count_devices()
    active = reader.list_deployments(states=[DeploymentState.ACTIVE])
    shown = service(broker, now_ms)
    details = [deployment(reader, row) for row in active]
    return OverviewView(
        service=shown,
        devices=sum(members for members, _ in counts.values()),
        online=sum(online for _, online in counts.values()),
        groups=groups(reader),
        active=details,
        alerts=_alerts(reader, shown, details),
    )


def _group(reader: Reader, name: str, counts: tuple[int, int]) -> views.GroupView:
    return show.group_view(name, counts, reader.runs(name), reader.classes(name), reader.active(name))


def _failed(reader: Reader, row: DeploymentRow) -> list[AssignmentRow]:
    found: list[AssignmentRow] = []
    while row.tally.failed and len(found) < FAILED_ROWS_MAX:
        after = found[-1].device if found else ""
        page = reader.list_assignments(deployment=row.id, states=[AssignmentState.FAILED], after=after)
        found += page
        if len(page) < PAGE_ROWS_MAX:
            break
    return found


def _alerts(reader: Reader, shown: ServiceView, active: Sequence[views.DeploymentDetail]) -> list[AlertView]:
    found = []
    if not shown.broker_alive:
        found.append(AlertView(kind="broker", sentence="The broker does not run: no device can be reached."))
    if reader.note(RESTORED_NOTE):
        found.append(
            AlertView(
                kind="restored",
                sentence="The database is an old backup: devices are ahead of it, and nothing is offered. "
                "`lastgood deploy resume` lists what would be ordered, and goes on.",
            )
        )
    ids = {row.id for row in active}
    for row in reader.list_deployments(states=[DeploymentState.ROLLED_BACK], limit=_RECENT):
        if row.trip and row.rollback in ids:
            sentence = f"{row.group}: {sentences.trip(row.trip)}"
            found.append(AlertView(kind="tripped", sentence=sentence, about=row.id, at_ms=row.trip.at_ms))
    return found + _alerts_of_audit(reader, shown.now_ms)


def _alerts_of_audit(reader: Reader, now_ms: int) -> list[AlertView]:
    """Return what the rules themselves raised within a day, each once."""
    found: dict[tuple[str, str], AlertView] = {}
    for row in reader.audit(limit=_AUDIT_ROWS):
        if row.what == "alert" and row.at_ms >= now_ms - _ALERT_AGE_MS:
            said = str(row.facts.get("sentence", ""))
            alert = AlertView(
                kind="alert", sentence=f"{row.about}: {said}.", about=row.about, at_ms=row.at_ms
            )
            found.setdefault((row.about, said), alert)
    return list(found.values())
