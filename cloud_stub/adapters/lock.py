"""One running cloud for one data folder: a lock that ends with its process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import ServiceError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock while the block runs.

    Raises:
        ServiceError: another cloud holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServiceError(f"{path.parent} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ServiceError(
            f"Another cloud runs with the data in {path.parent}; stop it, or give --data."
        ) from error
    finally:
        os.close(descriptor)
