"""The updates that a scenario makes: a manifest, and one file of bytes that come from the seed.

The bytes are worth nothing to install, but as hard to compress as a real image's, and the same for the same seed.
"""

import json
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256, shake_128

from protocol.identity import UpdateId
from simulator.core.scenario import UpdatePart


@dataclass(frozen=True, slots=True)
class MadeUpdate:
    """An update as it is imported."""

    update: str
    manifest: bytes
    file_name: str
    content: bytes


def make(part: UpdatePart, seed: int) -> MadeUpdate:
    """Return the update of a scenario's part."""
    name = UpdateId.parse(part.id)
    content = shake_128(f"{seed}\x00{part.id}".encode()).digest(part.size_bytes)
    file_name = f"{name.name}-{name.version}.bin"
    manifest = {
        "manifestVersion": "5.0",
        "updateId": {"provider": name.provider, "name": name.name, "version": str(name.version)},
        "description": "made by a scenario",
        "compatibility": part.compatibility,
        "releaseCounter": part.release_counter,
        "instructions": {
            "steps": [
                {
                    "handler": "lastgood/file:1",
                    "files": [file_name],
                    "handlerProperties": {"path": "image.bin"},
                }
            ]
        },
        "files": [
            {
                "filename": file_name,
                "sizeInBytes": len(content),
                "hashes": {"sha256": b64encode(sha256(content).digest()).decode("ascii")},
            }
        ],
    }
    return MadeUpdate(part.id, json.dumps(manifest, sort_keys=True, indent=1).encode(), file_name, content)
