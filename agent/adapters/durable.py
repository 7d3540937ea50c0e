"""The one helper that replaces files: temporary file, fsync, rename, fsync of the folder.

It knows nothing of what it writes. It keeps the rule that what was acknowledged survives a power loss, and that a
reader sees the old bytes or the new ones, never a mixture. Leftovers of a loss are named `.NAME.new` and overwritten.
"""

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from agent.ports import WorkFailed
from protocol.errors import DeviceError
from protocol.outcomes import Reason

FILE_MODE: Final = 0o600  # state is nobody else's business unless the caller says so
FOLDER_MODE: Final = 0o711  # and no name in it; but an application of another user may pass to its slot
RESERVE_BYTES: Final = 8_388_608  # that no update may take from the disk: records and logs have to be written
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def replace_file(path: Path, data: bytes, *, mode: int = FILE_MODE) -> None:
    """Put `data` into the file in one atomic step that has reached the disk when this returns.

    Raises:
        OSError: the disk refused; the old file stands as it was.
    """
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        _write(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)  # a full disk is not made fuller by what was not finished
        raise
    finally:
        os.close(descriptor)
    os.rename(new, path)
    sync_folder(path.parent)


def write_all(descriptor: int, piece: bytes) -> None:
    """Write the whole of a piece of an update where the file stands, and leave the disk its reserve.

    Raises:
        OSError: the disk refused, or would be left with less than RESERVE_BYTES (then ENOSPC).
    """
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < len(piece) + RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _write(descriptor, piece)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_symlink(path: Path, target: str) -> None:
    """Point the symlink elsewhere by one durable rename.

    Raises:
        OSError: the disk refused; the old link stands.
    """
    new = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(target, new)
    os.rename(new, path)
    sync_folder(path.parent)


def make_folder(path: Path, *, mode: int = FOLDER_MODE) -> None:
    """Make a folder and its missing parents, durably; one that is there is left as it is.

    Raises:
        OSError: it cannot be made, or something else bears its name.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent, mode=mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, durably; one that is not there is fine.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Make everything on the file system of this folder durable; far cheaper than one fsync for each file.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:  # a C library without it: `sync` reaches all disks, and reports no error
            os.sync()
        elif syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Return whether the disk (or its quota) is full, rather than broken."""
    return error.errno in _FULL


def disk_failure(error: OSError, doing: str) -> WorkFailed:
    """Translate a disk's refusal into the work's failure: `no_space` when it is full, else `disk`."""
    if is_full(error):
        return WorkFailed(
            Reason.NO_SPACE,
            f"The disk is full: {doing} ended unfinished. Free some space, then retry the deployment.",
        )
    return WorkFailed(Reason.DISK, f"The disk refused: {doing} ended unfinished ({error.strerror or error}).")


def device_failure(error: OSError, doing: str) -> DeviceError:
    """Translate a disk's refusal outside of an attempt's work."""
    told = " Free some space: it is tried again." if is_full(error) else ""
    return DeviceError(f"The disk refused: {doing} was not done ({error.strerror or error}).{told}")
