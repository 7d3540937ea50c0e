"""The lock on a state folder: one agent works on it at a time.

It protects against a second start by mistake, not against other programs. The kernel frees it when the agent ends,
however it ends.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.adapters import durable
from protocol.errors import OperatorError

NAME: Final = "lock"
TRIES: Final = 5  # `status` holds a shared lock for an instant; that must not keep an agent from starting
_WAIT_S: Final = 0.05


@contextlib.contextmanager
def hold(state: Path) -> Iterator[None]:
    """Hold the state folder's lock; the folder is made when it is missing.

    Raises:
        OperatorError: another agent works on it, or the folder cannot be written.
    """
    try:
        durable.make_folder(state)
        descriptor = os.open(state / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OperatorError(
            f"The state folder {state} cannot be used ({error.strerror}); name another with --state."
        ) from error
    try:
        for attempt in range(TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 == TRIES:
                    pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                    raise OperatorError(
                        f"Another agent (process {pid or 'unknown'}) works on {state}; "
                        "stop it first, or name another folder with --state."
                    ) from None
                time.sleep(_WAIT_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(state: Path) -> bool:
    """Return whether an agent works on the state folder now."""
    try:
        descriptor = os.open(state / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
