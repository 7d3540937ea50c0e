"""The accounts on disk: `name:hash` lines, in mosquitto's format, which the embedded broker reads too.

It is not the place where accounts are made: the cloud hands over the whole set each time. The rule it
keeps: a file is replaced whole and durably, readable by its owner alone, so a power cut leaves the old
accounts or the new ones.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.passwords import is_hash


def write_accounts(path: Path, accounts: Mapping[str, str]) -> None:
    """Replace the accounts in a file. Raises BrokerError for a hash of a wrong form, which mosquitto would
    skip in silence."""
    for name, stored in accounts.items():
        if not is_hash(stored):
            raise BrokerError(f"account {name!r} has a hash of an unknown form: make it with hash_password()")
    replace_file(path, "".join(f"{name}:{stored}\n" for name, stored in sorted(accounts.items())))


def read_accounts(path: Path) -> dict[str, str]:
    """Read the accounts of a file. Raises BrokerError on a line that is not `name:hash`, OSError if it
    cannot be read."""
    accounts = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name, colon, stored = line.partition(":")
        if not colon or not name or not is_hash(stored):
            raise BrokerError(f"{path}, line {number}: not a name and a hash")
        accounts[name] = stored
    return accounts


def replace_file(path: Path, text: str) -> None:
    """Replace a small file, for its owner's eyes: temp file, fsync, rename, fsync of the folder. Raises
    BrokerError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise BrokerError(
            f"cannot write {path}: {error.strerror}; check the disk and the folder's owner"
        ) from error
