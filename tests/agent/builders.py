"""Builders of what the agent's core is fed with: manifests, orders, envelopes, slot tables.

They hold no rules; every field has a default, and a test names only what it is about.
"""

import base64
import json
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.core.model import Holds, Slot, SlotTable
from protocol.envelope import DirectorKey, TrustedKeys
from protocol.messages import Assignment, Repository, Target, write

DEVICE = "press-17"
DIRECTOR = DirectorKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
STRANGER = DirectorKey(Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
KEYS = TrustedKeys([DIRECTOR.public_pem])
PROPERTIES = {"manufacturer": "contoso", "model": "press"}


def a_manifest(
    version: str = "2.0",
    *,
    release_counter: int = 0,
    name: str = "app",
    compatibility: dict[str, str] | None = None,
    handler: str = "lastgood/archive:1",
) -> bytes:
    """Return the bytes of a small manifest."""
    payload = b"payload of " + version.encode()
    return json.dumps(
        {
            "updateId": {"provider": "contoso", "name": name, "version": version},
            "compatibility": [compatibility or PROPERTIES],
            "instructions": {"steps": [{"handler": handler, "files": ["app.tar"]}]},
            "files": [
                {
                    "filename": "app.tar",
                    "sizeInBytes": len(payload),
                    "hashes": {"sha256": base64.b64encode(sha256(payload).digest()).decode()},
                }
            ],
            "releaseCounter": release_counter,
        }
    ).encode()


def sha_of(manifest: bytes) -> str:
    """Return the identity of a manifest."""
    return sha256(manifest).hexdigest()


def an_order(epoch: int = 10, manifest: bytes | None = None, **changes: Any) -> Assignment:
    """Return an order to install a manifest."""
    data = a_manifest() if manifest is None else manifest
    update = json.loads(data)["updateId"]
    fields: dict[str, Any] = {
        "device": DEVICE,
        "epoch": epoch,
        "issued_ms": 1_000_000 + epoch,
        "lifetime_ms": 3_600_000,
        "action": "install",
        "deployment": f"d{epoch}",
        "attempt": 1,
        "target": Target(
            update=f"{update['provider']}/{update['name']}:{update['version']}",
            path="contoso/app/x.json",
            size_bytes=len(data),
            sha256=sha_of(data),
        ),
        "repository": Repository(url="https://updates.example/files"),
    }
    return Assignment(**{**fields, **changes})


def a_hold(
    epoch: int = 10, deployment: str | None = None, attempt: int | None = None, **changes: Any
) -> Assignment:
    """Return a hold; it is a cancel when it names a deployment and an attempt."""
    fields: dict[str, Any] = {
        "device": DEVICE,
        "epoch": epoch,
        "issued_ms": 1_000_000 + epoch,
        "lifetime_ms": 3_600_000,
        "action": "hold",
        "deployment": deployment,
        "attempt": attempt,
    }
    return Assignment(**{**fields, **changes})


def signed(order: Assignment, by: DirectorKey = DIRECTOR) -> bytes:
    """Return the envelope of an order."""
    return by.sign(write(order))


def a_slot(manifest: bytes, holds: Holds = Holds.GOOD, **changes: Any) -> Slot:
    """Return a slot that holds a manifest's update."""
    fields = json.loads(manifest)
    update = fields["updateId"]
    given: dict[str, Any] = {
        "holds": holds,
        "update": f"{update['provider']}/{update['name']}:{update['version']}",
        "sha256": sha_of(manifest),
        "release_counter": fields["releaseCounter"],
    }
    return Slot(**{**given, **changes})


def slots_running(manifest: bytes, spare: Slot | None = None) -> SlotTable:
    """Return a table in which slot A runs an update, committed."""
    return SlotTable({"A": a_slot(manifest), "B": spare or Slot()}, "A", "A")


def slots_in_trial(running: bytes, trial: bytes, starts_left: int = 3) -> SlotTable:
    """Return a table in which slot B is booted in trial, and slot A is last known good."""
    return SlotTable(
        {"A": a_slot(running), "B": a_slot(trial, Holds.TRIAL, starts_left=starts_left)}, "B", "A"
    )
