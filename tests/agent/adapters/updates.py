"""Small real updates for tests: archives, manifests, and the orders that name them."""

import base64
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from protocol.manifest import Manifest, read_manifest
from protocol.messages import Assignment, Repository, Target


@dataclass(frozen=True)
class Update:
    """An update: its manifest's bytes, and its files by name."""

    manifest: bytes
    files: Mapping[str, bytes]

    @property
    def read(self) -> Manifest:
        """The manifest, read."""
        return read_manifest(self.manifest)

    @property
    def sha256(self) -> str:
        """The update's identity."""
        return sha256(self.manifest).hexdigest()

    def order(self, url: str, **changes: Any) -> Assignment:
        """Return an order to install it from this repository."""
        update = self.read.update
        fields: dict[str, Any] = {
            "device": "pi-1",
            "epoch": 1,
            "issued_ms": 1,
            "lifetime_ms": 1_000_000,
            "action": "install",
            "deployment": "d-1",
            "attempt": 1,
            "target": Target(
                update=str(update),
                path=update.manifest_path,
                size_bytes=len(self.manifest),
                sha256=self.sha256,
            ),
            "repository": Repository(url=url, query="sig=abc"),
        }
        return Assignment(**(fields | changes))


def an_update(
    version: str = "1.0.0",
    files: Mapping[str, bytes] | None = None,
    steps: list[dict[str, Any]] | None = None,
    release_counter: int = 0,
) -> Update:
    """Build an update; by default one file that the handler `file` copies."""
    held = {"payload.txt": f"payload of {version}".encode()} if files is None else dict(files)
    fields = {
        "manifestVersion": "5.0",
        "updateId": {"provider": "contoso", "name": "app", "version": version},
        "compatibility": [{"model": "toaster"}],
        "instructions": {"steps": steps or [{"handler": "lastgood/file:1", "files": list(held)}]},
        "files": [
            {
                "filename": name,
                "sizeInBytes": len(data),
                "hashes": {"sha256": base64.b64encode(sha256(data).digest()).decode()},
            }
            for name, data in held.items()
        ],
        "releaseCounter": release_counter,
    }
    return Update(json.dumps(fields).encode(), held)


def a_tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    """Pack members as they are, however wicked, into a tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def a_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Return a member's header."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    return member
