"""One file on its way from the network: its bytes so far, and how far they would survive a power loss.

It knows no network. It keeps the rule that a file bears its name (its sha256) only after its bytes agreed with it:
until then it is `SHA256.part`, and `SHA256.json` beside it says how far the part is durable, the digest up to there,
and the ETag it came with. A part whose own digest does not agree is begun anew.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.adapters import durable, tree
from agent.ports import SERVED_UNCHANGED, Stop, WorkFailed
from protocol.manifest import ManifestFile
from protocol.outcomes import Reason

PIECE_BYTES: Final = (
    8_388_608  # between two durable points: what a power loss may cost, against one fsync each
)
NOTE_BYTES_MAX: Final = 4_096


class Part:
    """One file on its way: `SHA256.part`, and `SHA256.json` that says how far it is durable."""

    def __init__(self, folder: Path, file: ManifestFile, stop: Stop) -> None:
        self.file = file
        self.etag: str | None = None
        self.offset = 0
        self._durable = 0
        self._target = folder / file.sha256
        self._path = folder / f"{file.sha256}.part"
        self._note = folder / f"{file.sha256}.json"
        self._hash = hashlib.sha256()
        self._descriptor = -1
        self._stop = stop

    @property
    def is_full(self) -> bool:
        return self.offset >= self.file.sizeInBytes

    def is_whole(self) -> bool:
        """Whether the finished file is there with the right bytes; one with wrong bytes is removed."""
        if not self._target.is_file():
            return False
        right = self._target.stat().st_size == self.file.sizeInBytes
        if right and tree.hash_file(self._target, stop=self._stop).hexdigest() == self.file.sha256:
            return True
        durable.remove_file(self._target)
        return False

    def open(self) -> None:
        """Open the part and go to its durable end, or to zero when anything about it does not agree."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, durable.FILE_MODE)
        note = _read_note(self._note)
        size = os.fstat(self._descriptor).st_size
        if note and note.sha256 == self.file.sha256 and note.offset <= min(size, self.file.sizeInBytes):
            prefix = tree.hash_file(self._path, bytes_max=note.offset, stop=self._stop)
            if prefix.hexdigest() == note.prefix_sha256:
                self._hash, self.offset, self._durable, self.etag = (
                    prefix,
                    note.offset,
                    note.offset,
                    note.etag,
                )
        os.ftruncate(self._descriptor, self.offset)
        os.lseek(self._descriptor, self.offset, os.SEEK_SET)

    def restart(self, etag: str | None) -> None:
        """Begin anew: the server sends the whole file."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._hash, self.offset, self._durable, self.etag = hashlib.sha256(), 0, 0, etag

    def add(self, piece: bytes) -> None:
        """Write and hash what arrived; more than the manifest's size is never taken."""
        piece = piece[: self.file.sizeInBytes - self.offset]
        durable.write_all(self._descriptor, piece)
        self._hash.update(piece)
        self.offset += len(piece)
        if self.offset - self._durable >= PIECE_BYTES:
            self._keep()

    def finish(self) -> None:
        """Give the file its name, when its bytes agree with it."""
        if self._hash.hexdigest() != self.file.sha256:
            self.drop()
            raise WorkFailed(
                Reason.VERIFY_FAILED,
                f"The bytes of {self.file.filename!r} are not those that the manifest names; they were dropped. "
                + SERVED_UNCHANGED,
            )
        os.fsync(self._descriptor)
        os.rename(self._path, self._target)
        durable.sync_folder(self._target.parent)
        durable.remove_file(self._note)
        self._durable = self.offset

    def drop(self) -> None:
        """Forget what was fetched."""
        self._durable = self.offset = 0
        for path in (self._note, self._path):
            durable.remove_file(path)

    def close(self) -> None:
        """Keep what has arrived for the next try; a disk that refuses costs only that."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if self._durable < self.offset:
                self._keep()
        os.close(self._descriptor)
        self._descriptor = -1

    def _keep(self) -> None:
        os.fdatasync(self._descriptor)
        note = {
            "sha256": self.file.sha256,
            "offset": self.offset,
            "prefix_sha256": self._hash.copy().hexdigest(),
            "etag": self.etag,
        }
        durable.replace_file(self._note, json.dumps(note).encode())
        self._durable = self.offset


@dataclass(frozen=True, slots=True)
class _Note:
    sha256: str
    offset: int
    prefix_sha256: str
    etag: str | None


def _read_note(path: Path) -> _Note | None:
    try:
        fields = json.loads(path.read_bytes()[:NOTE_BYTES_MAX])
        note = _Note(
            str(fields["sha256"]), int(fields["offset"]), str(fields["prefix_sha256"]), fields["etag"]
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return note if note.offset >= 0 and (note.etag is None or isinstance(note.etag, str)) else None
