"""Devices within a transaction: added, moved by the operator, marked as sent to, and resumed after a restore.

It makes no tokens (those come in as hashes) and talks to no broker. Source: DESIGN.md sections 3 and 7; RULES.md R2.
"""

from dataclasses import replace

from cloud_stub.core.commands import AddDevices
from cloud_stub.core.places import group_of
from cloud_stub.core.rows import DeviceRow
from cloud_stub.orchestrator import reports
from cloud_stub.orchestrator.turn import Turn
from cloud_stub.orchestrator.values import Sent
from protocol.errors import OperatorError
from protocol.identity import check_device_id, check_group


def add(turn: Turn, command: AddDevices, who: str) -> int:
    """Make devices known; return how many.

    Raises:
        OperatorError: an id is not valid, or known already and `renew` was not said.
    """
    for device, password_hash in command.hashes.items():
        check_device_id(device)
        known = turn.unit.device(device)
        if known is not None and not command.renew:
            raise OperatorError(
                f"Device {device} is known already; `lastgood device add {device} --renew` makes a new token."
            )
        row = _renewed(turn, known, password_hash) if known else DeviceRow(device, turn.now_ms, password_hash)
        turn.put_device(known, row)
        turn.audit(who, "device.token_renewed" if known else "device.added", device)
    turn.accounts_changed = True
    return len(command.hashes)


def move(turn: Turn, device_id: str, group: str | None, who: str) -> DeviceRow:
    """Put a device into a group by the operator's override, or give it back to its tag.

    Raises:
        OperatorError: the device is not known, or the group's name is not valid.
    """
    device = turn.unit.device(device_id)
    if device is None:
        raise OperatorError(f"There is no device {device_id}; see `lastgood device list`.")
    override = check_group(group) if group is not None else None
    target = group_of(override, device.group_tag)
    moved = replace(device, group_override=override, group=target)
    if target != device.group:
        moved = reports.replaced_order(turn, moved)
    turn.put_device(device, moved)
    if target != device.group:
        reports.left_group(turn, device)
        turn.audit(who, "device.moved", device_id, before=device.group, after=target)
    return turn.unit.device(device_id) or moved


def _renewed(turn: Turn, device: DeviceRow, password_hash: str) -> DeviceRow:
    """Return a device with a new token; of two clones only the one that is given it goes on (R8)."""
    renewed = replace(device, password_hash=password_hash)
    if not device.cloned:
        return renewed
    return turn.raised(replace(renewed, cloned=False, instance_before=None))


def sent(turn: Turn, item: Sent) -> None:
    """Remember which epoch was handed to the broker; an older one that was slow changes nothing."""
    device = turn.unit.device(item.device)
    if device is not None and item.epoch > device.published_epoch:
        turn.put_device(device, replace(device, published_epoch=item.epoch))


def resume(turn: Turn, who: str) -> int:
    """Go on after a restore: every group is offered anew; return how many devices that concerns (R2).

    Raises:
        OperatorError: nothing was restored.
    """
    if turn.unit.note("restored") is None:
        raise OperatorError(
            "The cloud's data was not restored from an older backup; there is nothing to resume."
        )
    turn.unit.put_note("restored", None)
    turn.audit(who, "cloud.resumed", "restored")
    return sum(turn.unit.raise_epochs(group, turn.now_ms) for group in turn.unit.count_devices())
