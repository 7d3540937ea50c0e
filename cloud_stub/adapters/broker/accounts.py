"""The accounts on disk: `name:hash` lines, in mosquitto's format, which the embedded broker reads too.

It is not the place where accounts are made: the cloud hands over the whole set each time. The rule it
keeps: a file is replaced whole and durably, readable by its owner alone, so a power cut leaves the old
accounts or the new ones.
"""

from collections.abc import Mapping
from pathlib import Path

from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.passwords import is_hash
from cloud_stub.adapters.durable import replace_file


def write_accounts(path: Path, accounts: Mapping[str, str]) -> None:
    """Replace the accounts in a file. Raises BrokerError for a hash of a wrong form, which mosquitto would
    skip in silence."""
    for name, stored in accounts.items():
        if not is_hash(stored):
            raise BrokerError(f"account {name!r} has a hash of an unknown form: make it with hash_password()")
    replace_file(path, "".join(f"{name}:{stored}\n" for name, stored in sorted(accounts.items())).encode())


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
