"""Why a device is where it is: which rule it waits on, in sentences, the deciding one first.

It changes nothing; it reads the same rows that decide. Source: DESIGN.md section 3 (`why DEVICE`).
"""

from cloud_stub.core.counting import OPEN
from cloud_stub.core.places import is_at
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow
from protocol.lifecycle import PAST_NO_RETURN

_S = AssignmentState


def why(device: DeviceRow, active: DeploymentRow | None, row: AssignmentRow | None, now_ms: int) -> list[str]:
    """Return the sentences for one device."""
    return [*_deciding(device, active, row, now_ms), *_besides(device, now_ms)]


def _deciding(
    device: DeviceRow, active: DeploymentRow | None, row: AssignmentRow | None, now_ms: int
) -> list[str]:
    if device.cloned:
        return [
            "Two devices use its identity in turn (cloned, R8): it holds until one of them gets a new token."
        ]
    if device.last_seen_ms is None:
        return ["It has never said hello: run the line that `lastgood device add` printed on it."]
    if device.class_key is None:
        return [
            "It has not said what it is, so no update fits it: give its agent a --config with [properties]."
        ]
    if active is None and device.work_state in PAST_NO_RETURN:
        state = device.work_state
        return [
            f"Its group {device.group} has no active deployment; its trial ({state}) runs to its verdict (R5)."
        ]
    if active is None:
        return [f"Its group {device.group} has no active deployment: it stays as it is."]
    held = device.order_action == "hold" and not device.order_stale
    if held and (row is None or row.state in OPEN):
        working = [_working(active, row)] if row is not None and row.state is _S.WORKING else []
        return [f"It is told to hold, and not offered deployment {active.id}: {device.order_why}.", *working]
    if row is None:
        return [f"Deployment {active.id} has not reached it yet: its order is being decided."]
    return [_of_row(device, active, row, now_ms)]


def _of_row(device: DeviceRow, active: DeploymentRow, row: AssignmentRow, now_ms: int) -> str:
    there = "it is offline, and gets it when it says hello" if not device.online else "it is online"
    sentences = {
        _S.INCOMPATIBLE: f"Deployment {active.id} does not fit it: {row.detail}.",
        _S.UNPROTECTED: f"Deployment {active.id} is not offered to it: {row.detail}, so no way back (R17, R20).",
        _S.CANCELED: f"Its attempt in deployment {active.id} was canceled: it stays as it is.",
        _S.DROPPED: f"It was dropped from deployment {active.id}: {row.detail}.",
        _S.PENDING: f"Deployment {active.id} offers it {row.update} (attempt {row.attempt}); {there}.",
        _S.WORKING: _working(active, row),
    }
    if row.state is _S.SUCCEEDED:
        how = f"ran {row.update} already" if row.already_there else f"committed {row.update}"
        if row.sha256 is not None and not is_at(device, row.sha256):
            return (
                f"It {how} for deployment {active.id}, and now reports {device.running_update or 'nothing'}."
            )
        return f"It {how}, which deployment {active.id} offers: there is nothing to do."
    if row.state is _S.FAILED:
        return _failed(active, row, now_ms)
    return sentences[row.state]


def _working(active: DeploymentRow, row: AssignmentRow) -> str:
    if row.phase in PAST_NO_RETURN:
        return (
            f"It tries {row.update} now ({row.phase}, attempt {row.attempt}), and runs to its verdict (R5)."
        )
    bytes_told = f", {row.bytes_done} of {row.bytes_total} bytes" if row.bytes_total else ""
    return f"It works on {row.update} for deployment {active.id}: {row.phase}{bytes_told}, attempt {row.attempt}."


def _failed(active: DeploymentRow, row: AssignmentRow, now_ms: int) -> str:
    fault = f"{row.reason}, the fault of the {row.party}" if row.reason else "unknown"
    detail = (row.detail or "no detail").rstrip(".")  # details are sentences, and are quoted in one
    told = f"Its attempt {row.attempt} in deployment {active.id} failed ({fault}): {detail}."
    if row.retry_at_ms is not None:
        return f"{told} Waiting to retry in {max(0, row.retry_at_ms - now_ms) // 1000} s (R15)."
    retry = f"lastgood deploy retry {active.id} --device {row.device}"
    return f"{told} It stays on its last known good until `{retry}` (R15)."


def _besides(device: DeviceRow, now_ms: int) -> list[str]:
    told = []
    if device.epoch > (device.reported_epoch or 0) and device.order_action is not None:
        told.append(
            f"Its newest order (epoch {device.epoch}: {device.order_why}) has not been accepted by it yet."
        )
    if device.last_seen_ms is not None:
        seconds = max(0, now_ms - device.last_seen_ms) // 1000
        told.append(f"It is {'online' if device.online else 'offline'}; last heard {seconds} s ago.")
    return told
