"""What a device is to be told now: the order, and the assignment behind it.

It raises no epoch and sends nothing: the orchestrator asks it for every device whose order is stale. The answer
depends on the rows alone, so asking twice changes nothing. Source: DESIGN.md section 3, RULES.md R17, R19, R20, R22.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cloud_stub.core.counting import OPEN, VERDICTS
from cloud_stub.core.places import Catalog, first_that_fits, is_at, properties_of, why_not_safe
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow, UpdateRow

_S = AssignmentState


@dataclass(frozen=True, slots=True)
class Order:
    """A device's desired state, before it has an epoch."""

    action: Literal["install", "hold"]
    why: str
    deployment: str | None = None
    attempt: int | None = None
    update: str | None = None
    sha256: str | None = None
    downgrade: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """An order, and the assignment as it stands when the order is given."""

    order: Order
    assignment: AssignmentRow | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What an offer to one device is made from."""

    active: DeploymentRow | None  # of the device's group
    mine: AssignmentRow | None  # the device's row in it
    last: AssignmentRow | None  # the row behind the device's last order, if it is another one
    catalog: Catalog
    restored: bool  # the store is an old backup, and nobody has said to go on (R2)
    now_ms: int
    caused: AssignmentRow | None = None  # the device's row in the deployment whose trip made the active one


def offer(device: DeviceRow, situation: Situation) -> Offer:
    """Return what the device is to be told."""
    held = _why_held(device, situation)
    if held or situation.active is None:
        return Offer(_hold(held or "its group has no active deployment", situation.mine or situation.last))
    active = situation.active
    update = first_that_fits(active.updates, situation.catalog, _judged_by(device, situation))
    row = situation.mine or AssignmentRow(active.id, device.id, _S.DROPPED, device.class_key or "", attempt=0)
    row = replace(row, moved_on=False, updated_ms=situation.now_ms)
    if row.state in VERDICTS and update is None:
        # a verdict stays, and with it the class that it was about (R17)
        return Offer(_hold("no update of the deployment fits its class any more", None), row)
    if row.state not in VERDICTS:
        row = replace(row, class_key=device.class_key or row.class_key)
    if update is None:
        return _outside(row, _S.INCOMPATIBLE, "no update of the deployment fits its class", situation)
    why = _why_not_safe(device, update, active, situation.catalog)
    if why and (row.state not in VERDICTS or _is_to_install(device, row, update)):
        return _outside(row, _S.UNPROTECTED, why, situation)
    if update.withdrawn_ms is not None and update.sha256 not in active.allowed_withdrawn:
        return Offer(_hold(f"{update.update} was withdrawn", row), situation.mine)
    return _offered(device, row, update, active, situation.now_ms)


def _offered(
    device: DeviceRow, row: AssignmentRow, update: UpdateRow, active: DeploymentRow, now_ms: int
) -> Offer:
    same_target = row.sha256 == update.sha256
    if row.state is _S.FAILED and same_target:
        return Offer(_hold("its attempt failed; a retry would offer it again", None), row)
    if _is_to_install(device, row, update):
        row = replace(
            AssignmentRow(active.id, device.id, _S.PENDING, device.class_key or row.class_key),
            update=update.update,
            sha256=update.sha256,
            attempt=row.attempt + 1,
            counted=row.counted and same_target,
            suspended=row.suspended and same_target,
            retries_used=row.retries_used,
            updated_ms=now_ms,
        )
        if is_at(device, update.sha256):
            row = replace(row, state=_S.SUCCEEDED, already_there=True, counted=False, suspended=False)
    order = Order(
        "install",
        f"deployment {active.id} offers {update.update}",
        active.id,
        row.attempt,
        update.update,
        update.sha256,
        active.allow_downgrade,
    )
    return Offer(order, row)


def _is_to_install(device: DeviceRow, row: AssignmentRow, update: UpdateRow) -> bool:
    """Return whether the offer opens a new attempt: a new member, another target, or one that came back (R19).

    So does a device that had succeeded and runs something else now, since its attempt is over: it came back, has a
    new disk, or the store is an old backup; who fell back has failed already (R18). An attempt that was canceled is
    over too: an operator's cancel ends the deployment, and every other hold has passed when this is asked.
    """
    if row.sha256 != update.sha256:
        return True
    if row.state is _S.SUCCEEDED:
        return not is_at(device, update.sha256)
    return row.state not in (*OPEN, _S.FAILED)


def _judged_by(device: DeviceRow, situation: Situation) -> Mapping[str, str]:
    """Return the properties by which an update fits; after a trip those recorded with the bad update (R17)."""
    caused = situation.caused
    recorded = properties_of(caused.class_key) if caused and caused.sha256 else None
    return device.properties if recorded is None else recorded


def _outside(row: AssignmentRow, state: AssignmentState, why: str, situation: Situation) -> Offer:
    outside = replace(row, state=state, detail=why, attempt=max(row.attempt, 1), suspended=False)
    return Offer(_hold(why, row if row.state in OPEN else situation.last), outside)


def _hold(why: str, row: AssignmentRow | None) -> Order:
    """Return a hold; it names the attempt that it cancels, if one is open."""
    if row is not None and row.state in OPEN and row.attempt > 0:
        return Order("hold", why, row.deployment, row.attempt)
    return Order("hold", why)


def _why_not_safe(device: DeviceRow, update: UpdateRow, active: DeploymentRow, catalog: Catalog) -> str:
    """Return why a device cannot take the update, or not be taken back from it (R17, R20); at a trip too."""
    back = active.policy.rollback_to if active.policy else None
    return why_not_safe(update, back, catalog, device.properties, device.floor)


def _why_held(device: DeviceRow, situation: Situation) -> str:
    if device.cloned:
        return "two devices use its identity in turn (cloned)"
    if situation.restored:
        return "the cloud's data was restored from an old backup; `lastgood deploy resume` goes on"
    if device.class_key is None:
        return "it has not reported its properties yet"
    return ""
