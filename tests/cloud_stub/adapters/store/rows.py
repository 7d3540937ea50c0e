"""Rows for these tests, with what a test does not care about filled in."""

from typing import Any

from cloud_stub.core.rows import (
    AssignmentRow,
    AssignmentState,
    DeploymentRow,
    DeviceRow,
    UpdateRef,
    UpdateRow,
)
from protocol.lifecycle import DeploymentState

OFFER = (UpdateRef("acme/app:2.0", "ab" * 32),)


def device(name: str, **fields: Any) -> DeviceRow:
    """Return a device that has reported once."""
    return DeviceRow(
        name, 1_000, **{"group": "red", "class_key": "model=x", "properties": {"model": "x"}, **fields}
    )


def deployment(name: str, state: DeploymentState = DeploymentState.ACTIVE, **fields: Any) -> DeploymentRow:
    """Return a deployment to the group `red`."""
    return DeploymentRow(
        name,
        **{
            "group": "red",
            "state": state,
            "updates": OFFER,
            "created_ms": 1_000,
            "created_by": "ann",
            **fields,
        },
    )


def assignment(
    owner: str, name: str, state: AssignmentState = AssignmentState.WORKING, **fields: Any
) -> AssignmentRow:
    """Return what a device was told in a deployment."""
    return AssignmentRow(owner, name, state, "model=x", **fields)


def update_row(name: str, sha256: str, **fields: Any) -> UpdateRow:
    """Return an imported update."""
    return UpdateRow(
        name,
        sha256,
        **{
            "size_bytes": 2,
            "manifest": b"{}",
            "release_counter": 1,
            "compatibility": ({"model": "x"},),
            "bytes_total": 10,
            "imported_ms": 1_000,
            **fields,
        },
    )
