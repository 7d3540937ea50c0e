"""Files the inspector reads: what the cloud left about its broker, a public key, and recorded messages.

It is not a decoder. It keeps the rule that what a file lacks is said together with what to do about it.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from inspector.core.address import INSPECT_BYTES_MAX, INSPECT_FILE, Address
from inspector.core.seen import LINE_BYTES_MAX
from protocol.envelope import TrustedKeys
from protocol.errors import OperatorError


def address_from_data_folder(folder: Path) -> Address:
    """Return the broker of the cloud whose data folder this is.

    Raises:
        OperatorError: the cloud left no address there.
    """
    path = folder / INSPECT_FILE
    try:
        data = _read(path, INSPECT_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise OperatorError(
            f"No broker is known, for there is no {path}: start the cloud with `lastgood cloud up`, say where its "
            "data folder is with --data, or name any broker with --broker mqtt://host:port."
        ) from error
    except OSError as error:
        raise OperatorError(
            f"{path} cannot be read ({error.strerror}); run this as the user who runs the cloud."
        ) from error
    return Address.of_inspect_file(data, str(path))


def keys_from_file(path: Path) -> TrustedKeys:
    """Return the public key in a PEM file.

    Raises:
        OperatorError: it cannot be read, or holds no Ed25519 public key.
    """
    try:
        text = _read(path, INSPECT_BYTES_MAX).decode("ascii", "replace")
    except OSError as error:
        raise OperatorError(f"The key {path} cannot be read: {error.strerror}.") from error
    try:
        return TrustedKeys([text])
    except (OperatorError, ValueError) as error:
        raise OperatorError(
            f"{path} holds no Ed25519 public key in PEM; name the file with the cloud's."
        ) from error


def lines_of(name: str) -> Iterator[bytes]:
    """Yield the lines of a recording, without their ends; `-` is standard input.

    A line over the cap is yielded cut off, and so will not parse.

    Raises:
        OperatorError: the file cannot be opened.
    """
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            yield from _lines(file)
    except OSError as error:
        raise OperatorError(f"{name} cannot be read: {error.strerror}.") from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LINE_BYTES_MAX + 2):
        if line.strip():
            yield line.rstrip(b"\r\n")


def _read(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        return file.read(bytes_max)
