"""A folder made into one tar archive that is the same bytes for the same content, wherever and whenever it is packed.

It writes no manifest (`core/packing.py` does). It keeps out what an agent would refuse: devices, sockets, pipes, and
links that leave the folder. Owners, times and modes beyond "may be executed" are not content.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, Final, NoReturn, cast

from protocol.errors import OperatorError

_EXECUTABLE: Final = 0o755
_PLAIN: Final = 0o644


class _Hashing:
    """A file that is written, hashed and counted at once."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._digest = sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._size += len(data)
        return self._target.write(data)

    @property
    def result(self) -> tuple[int, str]:
        return self._size, self._digest.hexdigest()


def pack(folder: Path, archive: Path) -> tuple[int, str]:
    """Write `folder` into `archive`; return its size in bytes and its sha256 in hexadecimal.

    Raises:
        OperatorError: the folder is none, is empty, cannot be read, holds what no slot may hold, or would hold the
            archive itself.
    """
    if not folder.is_dir():
        raise OperatorError(f"{folder} is not a folder; name the folder whose content the update installs.")
    if archive.resolve().is_relative_to(folder.resolve()):
        raise OperatorError(
            f"{archive} would lie in {folder} itself, and in the next update made of it; name a folder beside it."
        )
    members = list(_members(folder))
    if not members:
        raise OperatorError(f"{folder} is empty; an update has to install something.")
    unfinished = archive.with_name(archive.name + ".unfinished")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as target:
            hashing = _Hashing(target)
            with tarfile.open(
                fileobj=cast("IO[bytes]", hashing), mode="w|", format=tarfile.PAX_FORMAT
            ) as tar:
                for path, member in members:
                    _add(tar, path, member)
        unfinished.replace(archive)
    except OSError as error:
        raise OperatorError(
            f"{folder} cannot be packed into {archive}: {error.strerror} ({error.filename})."
        ) from error
    finally:
        with suppress(OSError):  # a disk that refused to write may refuse this too: the first reason is told
            unfinished.unlink(missing_ok=True)
    return hashing.result


def _members(folder: Path) -> Iterator[tuple[Path, tarfile.TarInfo]]:
    """Yield what the folder holds, in one order everywhere: by the bytes of the path."""
    for path in sorted(_paths(folder), key=lambda found: os.fsencode(found.relative_to(folder))):
        name = path.relative_to(folder).as_posix()
        status = path.lstat()
        member = tarfile.TarInfo(name)
        member.mode = _EXECUTABLE if stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_IXUSR else _PLAIN
        if stat.S_ISDIR(status.st_mode):
            member.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(status.st_mode):
            member.type, member.linkname, member.mode = tarfile.SYMTYPE, _inside(path, name), 0o777
        elif stat.S_ISREG(status.st_mode):
            member.size = status.st_size
        else:
            raise OperatorError(
                f"{path} is no file, folder or link; a slot cannot hold it. Take it out and pack again."
            )
        yield path, member


def _paths(folder: Path) -> Iterator[Path]:
    """Yield all below a folder; one that may not be read is an error, and not an empty folder."""

    def refuse(error: OSError) -> NoReturn:
        raise OperatorError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for where, folders, files in os.walk(folder, onerror=refuse):
        yield from (Path(where, name) for name in (*folders, *files))


def _inside(path: Path, name: str) -> str:
    """Return where a link points, which has to be within the folder, also on a device."""
    target = path.readlink().as_posix()
    parts: list[str] = list(PurePosixPath(name).parent.parts)
    outside = target.startswith("/")
    for part in PurePosixPath(target).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            outside = True
    if outside:
        raise OperatorError(
            f"The link {path} points to {target}, which is outside the folder; make it relative, within it."
        )
    return target


def _add(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> None:
    if not member.isreg():
        tar.addfile(member)
        return
    with path.open("rb") as source:
        tar.addfile(member, source)
