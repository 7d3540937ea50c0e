"""mosquitto as the cloud's broker: where it is found, and the configuration that is generated for it.

It starts nothing (`process.py` does). The rules kept: two listeners on loopback, each with its own
accounts and access list. On the devices' one the name *is* the client id, so no device can take over
another's connection; services have the other, where a device's token is worth nothing. Nothing is retained
and nothing persists, as the protocol needs neither.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cloud_stub.adapters.broker.access import mosquitto_device_acl, mosquitto_service_acl
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.limits import PACKET_BYTES_MAX
from cloud_stub.adapters.durable import replace_file

INSTALL = "install it (`apt-get install mosquitto`), or take `--broker embedded`"
LIMIT = "for tens of thousands of devices on one machine; listens on loopback only"

QUEUED_MESSAGES_MAX = 1_000_000
"""For each client. mosquitto's default of 1,000 lost 80 % of what 5,000 devices said at once, all of it
acknowledged."""

QUEUED_BYTES_MAX = 268_435_456
"""For each client, so that a cloud that hangs cannot take all memory: 50,000 whole states fit."""

INFLIGHT_MESSAGES_MAX = 1_000
"""The cloud acknowledges after its commit, in batches; mosquitto's 20 would make it wait for each."""

SESSION_KEPT = "1h"
"""For a client that asks for a session (ours do not): its queue is dropped after that."""

_VERSION = re.compile(r"mosquitto version (\d+)\.(\d+)[\d.]*")
_OLDEST = (2, 0)  # older ones do not know the form of our hashes


@dataclass(frozen=True)
class MosquittoFiles:
    """The generated files of one broker folder."""

    config: Path
    device_accounts: Path
    service_accounts: Path


def find_mosquitto(asked: str | None) -> Path | None:
    """The mosquitto to run: the one asked for, or the one on PATH or in /usr/sbin (which PATH lacks for
    most users)."""
    if asked is not None:
        return Path(asked)
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def mosquitto_version(binary: Path, timeout_s: float) -> str:
    """The version of a mosquitto, like "2.0.11". Raises BrokerError if it is too old, is none at all, or does not
    answer in time."""
    try:
        said = subprocess.run([binary, "-h"], capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BrokerError(f"{binary} did not tell its version within {timeout_s:g} s; {INSTALL}") from error
    except OSError as error:
        raise BrokerError(f"{binary} does not run ({error}); {INSTALL}") from error
    match = _VERSION.search(said.stdout)
    if match is None:
        raise BrokerError(f"{binary} does not answer like mosquitto; {INSTALL}")
    if (int(match[1]), int(match[2])) < _OLDEST:
        raise BrokerError(f"{match[0]} is older than 2.0; {INSTALL}")
    return match[0].removeprefix("mosquitto version ")


def write_files(folder: Path, prefix: str, host: str, port: int, service_port: int) -> MosquittoFiles:
    """Generate configuration and access lists (the accounts are written apart, as they change). Raises
    BrokerError."""
    files = MosquittoFiles(folder / "mosquitto.conf", folder / "devices.passwd", folder / "services.passwd")
    device_acl, service_acl = folder / "devices.acl", folder / "services.acl"
    replace_file(device_acl, mosquitto_device_acl(prefix).encode())
    replace_file(service_acl, mosquitto_service_acl(prefix).encode())
    lines = [
        "# Generated at every start: changes are lost",
        "per_listener_settings true",
        *(["user root"] if os.geteuid() == 0 else []),  # else it becomes a user who cannot read this folder
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "connection_messages false",
        "sys_interval 0",
        "persistence false",
        "retain_available false",
        f"persistent_client_expiration {SESSION_KEPT}",
        f"max_inflight_messages {INFLIGHT_MESSAGES_MAX}",
        f"max_queued_messages {QUEUED_MESSAGES_MAX}",
        f"max_queued_bytes {QUEUED_BYTES_MAX}",
        f"message_size_limit {PACKET_BYTES_MAX}",
        f"max_packet_size {PACKET_BYTES_MAX}",
        "set_tcp_nodelay true",
        *_listener(host, port, files.device_accounts, device_acl),
        "use_username_as_clientid true",
        *_listener(host, service_port, files.service_accounts, service_acl),
    ]
    replace_file(files.config, ("\n".join(lines) + "\n").encode())
    return files


def _listener(host: str, port: int, accounts: Path, acl: Path) -> list[str]:
    return [
        f"listener {port} {host}",
        "allow_anonymous false",
        f"password_file {accounts}",
        f"acl_file {acl}",
    ]
