"""A folder as a whole: its digest, its emptying, and its protection against writing.

It knows nothing of slots. The digest covers names, modes, link targets and contents, and the set of members: what is
missing, added or changed shows (R25). It leaves out owners and times, which differ between devices.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.ports import CHUNK_BYTES, Stop, Stopped

WRITE_BITS: Final = 0o222
FOLDER_MODE: Final = 0o755  # an application may run as another user than the agent
_DOMAIN: Final = b"lastgood tree 1\n"  # another layout of the digest bears another number


def digest(folder: Path, *, stop: Stop = lambda: False) -> str:
    """Return the sha256, in hexadecimal, of everything below the folder.

    Raises:
        OSError: something cannot be read.
        Stopped: `stop` said so.
    """
    whole = hashlib.sha256(_DOMAIN)
    for path, found in members(folder):
        if stop():
            raise Stopped
        name = os.fsencode(os.path.relpath(path, folder))
        for part in (name, _kind(found.st_mode), _content(path, found.st_mode, stop)):
            whole.update(len(part).to_bytes(8, "big"))
            whole.update(part)
    return whole.hexdigest()


def members(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every path below the folder with its status, links not followed, in the order of their names.

    Raises:
        OSError: a folder cannot be read.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in ordered:
        found = entry.stat(follow_symlinks=False)
        yield entry.path, found
        if stat.S_ISDIR(found.st_mode):
            yield from members(Path(entry.path))


def size_bytes(folder: Path) -> int:
    """Return what the files below the folder take on the disk, in bytes; nothing when it is not there.

    Raises:
        OSError: a folder cannot be read.
    """
    return sum(found.st_blocks * 512 for _, found in members(folder)) if folder.is_dir() else 0


def protect(folder: Path) -> None:
    """Take the right to write from everything below the folder, and from the folder.

    Raises:
        OSError: the disk refused.
    """
    for path, found in members(folder):
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & WRITE_BITS:
            os.chmod(path, stat.S_IMODE(found.st_mode) & ~WRITE_BITS)
    os.chmod(folder, stat.S_IMODE(folder.stat().st_mode) & ~WRITE_BITS)


def empty(folder: Path) -> None:
    """Remove everything below the folder, protected or not; the folder stays, writable by its owner.

    Raises:
        OSError: something cannot be removed.
    """
    os.chmod(folder, FOLDER_MODE)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                empty(Path(entry.path))
                os.rmdir(entry.path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def _kind(mode: int) -> bytes:
    # A link's mode means nothing, and differs between systems.
    return b"link" if stat.S_ISLNK(mode) else f"{stat.S_IFMT(mode):o} {stat.S_IMODE(mode):o}".encode()


def _content(path: str, mode: int, stop: Stop) -> bytes:
    if stat.S_ISLNK(mode):
        return os.fsencode(os.readlink(path))
    if not stat.S_ISREG(mode):
        return b""
    return hash_file(Path(path), stop=stop).digest()


def hash_file(path: Path, *, bytes_max: int | None = None, stop: Stop = lambda: False) -> "hashlib._Hash":
    """Return the running sha256 of a file, or of its first `bytes_max` bytes.

    Raises:
        OSError: it cannot be read.
        Stopped: `stop` said so.
    """
    running = hashlib.sha256()
    left = bytes_max
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
            if stop():
                raise Stopped
            running.update(piece)
            left = None if left is None else left - len(piece)
    return running
