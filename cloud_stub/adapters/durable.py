"""The one helper by which the cloud replaces files: temp file, fsync, rename, fsync of the folder.

It is not for the bytes of updates (`files.py` streams those), nor for rows. What it has written survives a power loss.
"""

import os
from pathlib import Path

from protocol.errors import ServiceError


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file as one atomic, durable step.

    Raises:
        ServiceError: the disk refused; the old file stands.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ServiceError(
            f"{path} cannot be written: {error.strerror}. Free some space or mend its folder."
        ) from error
