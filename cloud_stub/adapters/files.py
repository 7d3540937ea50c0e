"""The port Files on a folder: each file lies under the sha256 of its bytes.

It knows no manifests and serves nothing. It keeps the rule that a name in the folder has the bytes it says: they are
checked while they stream in, and the name appears, by one rename, after they are on the disk.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256 as new_sha256
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO, Final

from protocol.errors import OperatorError, ServiceError
from protocol.identity import SHA256_HEX_PATTERN

PIECE_BYTES: Final = 1_048_576  # read, hashed and written at a time: what a put holds in memory
_INCOMING: Final = "incoming"  # files on their way, in the same file system so that a rename is possible
_SHA256: Final = re.compile(SHA256_HEX_PATTERN[1:-1])


def open_files(folder: Path) -> "FolderFiles":
    """Make the folder when it is missing, and clear away what puts that were cut short have left.

    Raises:
        ServiceError: the folder cannot be made or written.
    """
    with _translated(folder):
        incoming = folder / _INCOMING
        incoming.mkdir(parents=True, exist_ok=True)
        for left in incoming.iterdir():
            _remove_unless_in_use(left)
        _sync_folder(folder)
    return FolderFiles(folder)


class FolderFiles:
    """Files by their sha256 in a folder; `open_files` makes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, source: BinaryIO, sha256: str, size_bytes: int) -> None:
        """Store a file durably after checking its size and sha256; one that is there already is replaced by its equal.

        Raises:
            OperatorError: the bytes differ from what the manifest says.
            ServiceError: the disk refused.
        """
        place = self._place(sha256)
        if place is None:
            raise OperatorError(f"{sha256!r} is not a sha256: give 64 lower-case hexadecimal digits.")
        with _translated(self._folder), self._incoming() as (target, temporary):
            _copy_checked(source, target, sha256, size_bytes)
            target.flush()
            os.fsync(target.fileno())
            if not place.parent.exists():
                place.parent.mkdir(exist_ok=True)
                _sync_folder(self._folder)
            temporary.replace(place)
            _sync_folder(place.parent)

    def path(self, sha256: str) -> Path | None:
        """Return where a stored file lies, or None when there is none."""
        place = self._place(sha256)
        return place if place is not None and place.is_file() else None

    def _place(self, sha256: str) -> Path | None:
        # What is not a sha256 never becomes part of a path.
        return self._folder / sha256[:2] / sha256 if _SHA256.fullmatch(sha256) else None

    @contextmanager
    def _incoming(self) -> Iterator[tuple[BinaryIO, Path]]:
        number, name = mkstemp(dir=self._folder / _INCOMING)
        temporary = Path(name)
        try:
            with os.fdopen(number, "wb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)  # says to `open_files` of another process: in use
                os.fchmod(number, 0o644)  # a file server beside the cloud may read it; it is no secret
                yield target, temporary
        finally:
            temporary.unlink(missing_ok=True)  # gone already when it was renamed


def _copy_checked(source: BinaryIO, target: BinaryIO, sha256: str, size_bytes: int) -> None:
    digest = new_sha256()
    size = 0
    while piece := source.read(PIECE_BYTES):
        size += len(piece)
        if size > size_bytes:
            raise OperatorError(
                f"The file has more than the {size_bytes} bytes that the manifest says. "
                "Import it with the manifest that was made for it."
            )
        digest.update(piece)
        target.write(piece)
    if size < size_bytes:
        raise OperatorError(
            f"The file has {size} bytes, and the manifest says {size_bytes}: it was cut short. Send it whole, again."
        )
    if digest.hexdigest() != sha256:
        raise OperatorError(
            f"The file's sha256 is {digest.hexdigest()}, and the manifest says {sha256}: it is another file, or was "
            "changed. Import it with the manifest that was made for it."
        )


def _remove_unless_in_use(path: Path) -> None:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process is writing it at this moment
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ServiceError(
                f"The disk with the files ({folder}) is full; this file was not stored. Make room, and send it again."
            ) from error
        raise ServiceError(
            f"The folder of files {folder} refused: {error.strerror}. This file was not stored; see that the folder "
            "is there and may be written."
        ) from error
