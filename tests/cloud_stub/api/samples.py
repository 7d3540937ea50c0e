"""Updates, devices and deployments for tests of the API: small, and with a story that pages can show."""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from cloud_stub.core.commands import (
    AddDevices,
    CreateDeployment,
    DeploymentDraft,
    ImportUpdate,
    MoveDevice,
    PolicyDraft,
)
from cloud_stub.core.counting import changed
from cloud_stub.core.places import class_key_of
from cloud_stub.core.rows import AssignmentState, DeploymentRow, Tally, UpdateRow
from protocol.lifecycle import WorkflowState
from protocol.outcomes import Party, Reason
from protocol.strict_json import dump
from tests.cloud_stub.api.fakes import DirectService

CLASS = {"manufacturer": "acme", "model": "pump"}
ONE, TWO = "acme/pump:1.0", "acme/pump:2.0"


def payload(version: str) -> bytes:
    """Return the only file of a sample update."""
    return f"payload of {version}\n".encode() * 500


def manifest(version: str, model: str = "pump", **changes: object) -> bytes:
    """Return the manifest of a sample update; `changes` replace its fields."""
    data = payload(version)
    document: dict[str, object] = {
        "manifestVersion": "5.0",
        "updateId": {"provider": "acme", "name": model, "version": version},
        "description": f"{model.capitalize()} {version}",
        "compatibility": [{"manufacturer": "acme", "model": model}],
        "instructions": {"steps": [{"handler": "lastgood/archive:1", "files": ["app.tar"]}]},
        "files": [
            {
                "filename": "app.tar",
                "sizeInBytes": len(data),
                "hashes": {"sha256": b64encode(sha256(data).digest()).decode()},
            }
        ],
    }
    return dump({**document, **changes})


def imported(service: DirectService, version: str, model: str = "pump") -> UpdateRow:
    """Import a sample update."""
    data = payload(version)
    service.files.put(io.BytesIO(data), sha256(data).hexdigest(), len(data))
    row: UpdateRow = service.do(ImportUpdate(manifest(version, model)), "tester")
    return row


def fleet(
    service: DirectService, group: str, count: int, running: UpdateRow | None, model: str = "pump"
) -> list[str]:
    """Make devices of one class in a group, which run an update already."""
    prefix = group if model == "pump" else f"{group}-{model}"
    ids = [f"{prefix}-{number:03}" for number in range(1, count + 1)]
    service.do(AddDevices(dict.fromkeys(ids, "hash")), "tester")
    properties = {**CLASS, "model": model}
    for device in ids:
        service.do(MoveDevice(device, group), "tester")
    now = service.now_ms()
    with service.rows() as unit:
        for number, device in enumerate(ids):
            row = unit.device(device)
            assert row is not None
            runs: dict[str, object] = {}
            if running:
                slot = {"holds": "good", "update": running.update, "sha256": running.sha256}
                runs = {
                    "running_update": running.update,
                    "running_sha256": running.sha256,
                    "slots": {"A": slot, "B": {"holds": "empty"}},
                    "booted": "A",
                    "last_known_good": "A",
                }
            unit.put_device(
                replace(
                    row,
                    properties=properties,
                    class_key=class_key_of(properties),
                    online=number % 9 != 8,
                    last_seen_ms=now - 1000 * number,
                    reported_epoch=row.epoch,
                    agent_version="0.1.0",
                    tags={"site": "north"},
                    **runs,  # type: ignore[arg-type]
                )
            )
    return ids


def deployed(service: DirectService, group: str, update: str = TWO, back: str | None = ONE) -> DeploymentRow:
    """Deploy an update to a group, with the policy `at least 5 failed and 10 %` when there is a way back."""
    policy = PolicyDraft(10, 5, (back,)) if back else None
    draft = DeploymentDraft(group, (update,), policy)
    row: DeploymentRow = service.do(CreateDeployment(draft), "tester")
    return row


def settle(
    service: DirectService,
    deployment: str,
    devices: Sequence[str],
    state: AssignmentState,
    *,
    reason: Reason | None = None,
    party: Party | None = None,
    phase: WorkflowState = WorkflowState.CONFIRMING,
) -> None:
    """Put assignments into a state with the counts that follow; the policy is not judged."""
    with service.rows() as unit:
        row = unit.deployment(deployment)
        assert row is not None
        tally: Tally = row.tally
        for device in devices:
            old = unit.assignment(deployment, device)
            assert old is not None
            counted = state is AssignmentState.FAILED and party is Party.UPDATE
            new = replace(
                old, state=state, reason=reason, party=party, phase=phase, counted=counted,
                bytes_done=700_000, bytes_total=1_000_000, updated_ms=service.now_ms(),
            )  # fmt: skip
            tally = changed(tally, old, new)
            unit.put_assignment(new)
        unit.put_deployment(replace(row, tally=tally))


def tripped(service: DirectService, deployment: str, devices: Sequence[str]) -> None:
    """Have devices fail by the update's fault, and the policy judged, which takes the group back."""
    settle(
        service, deployment, devices, AssignmentState.FAILED, reason=Reason.HEALTH_FAILED, party=Party.UPDATE
    )
    service.judge(deployment)
