"""A broker that somebody else runs: nothing is started, and nothing in it can be changed from here.

The accounts and the access list it needs are written to files in mosquitto's format, for its administrator
to install.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from cloud_stub.adapters.broker.access import check_names, mosquitto_device_acl, mosquitto_service_acl
from cloud_stub.adapters.broker.accounts import write_accounts
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.probe import can_reach
from cloud_stub.adapters.durable import replace_file

DEFAULT_PORT = 1883


class ExternalBroker:
    """A broker given by its address; satisfies the port Broker."""

    def __init__(self, host: str, port: int, accounts_file: Path) -> None:
        self.engine = "external"
        self.limit = f"its administrator keeps accounts and access list: see {accounts_file.parent}"
        self.host = host
        self.port = self.service_port = port
        self.pid: int | None = None
        self._accounts_file = accounts_file

    def set_accounts(self, accounts: Mapping[str, str]) -> None:
        """Write the accounts for the broker's administrator. Raises BrokerError."""
        check_names(accounts)
        write_accounts(self._accounts_file, accounts)

    def alive(self) -> bool:
        """Whether anything listens there."""
        return can_reach(self.host, self.port)

    def stop(self) -> None:
        """Nothing was started, so nothing is stopped."""


def external_broker(url: str, folder: Path, accounts: Mapping[str, str], prefix: str) -> ExternalBroker:
    """Take a broker by its URL, `mqtt://host:port`. Raises BrokerError on any other form."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BrokerError(
            f"broker address {url!r} does not parse: {error}; write mqtt://host:port"
        ) from error
    if parts.scheme != "mqtt" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise BrokerError(
            f"broker address {url!r} is not of the form mqtt://host:port (TLS is not served yet)"
        )
    if parts.username or parts.password:
        raise BrokerError(
            "a broker address must not hold a password: the cloud has the account _cloud, devices their own"
        )
    replace_file(
        folder / "external.acl", (mosquitto_service_acl(prefix) + mosquitto_device_acl(prefix)).encode()
    )
    broker = ExternalBroker(parts.hostname, port or DEFAULT_PORT, folder / "external.passwd")
    broker.set_accounts(accounts)
    return broker
