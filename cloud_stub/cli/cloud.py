"""`lastgood cloud`: wires broker, database, orchestrator and pages together, and keeps them running.

It holds no rules. Everything it writes lies in one data folder, so that a cloud that was killed goes on where it
stopped, on the same ports, which is where its devices look for it.
"""

import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import uvicorn

from cloud_stub.adapters.broker import new_token, start_broker
from cloud_stub.adapters.broker.keeper import Keeper
from cloud_stub.adapters.broker.process import BrokerProcess
from cloud_stub.adapters.durable import replace_file
from cloud_stub.adapters.files import open_files
from cloud_stub.adapters.keys import Secrets, load_or_make
from cloud_stub.adapters.lock import locked
from cloud_stub.adapters.mqtt import Link
from cloud_stub.adapters.store import open_store
from cloud_stub.api.access import Role
from cloud_stub.api.app import create_app
from cloud_stub.cli.client import host_of
from cloud_stub.cli.options import Seconds
from cloud_stub.core.links import signed_query
from cloud_stub.orchestrator import Orchestrator, Settings
from cloud_stub.orchestrator.outbox import Outbox
from cloud_stub.ports import Broker
from cloud_stub.service import RandomChance, Service, accounts_of_devices
from protocol.errors import OperatorError, ServiceError
from protocol.join import broker_url
from protocol.messages import Repository
from protocol.topics import DEFAULT_PREFIX, Topics

HOST: Final = "127.0.0.1"  # loopback by default; another address is an operator's explicit word
ANY_HOST: Final = ("", "0.0.0.0", "::")  # noqa: S104  # they are told apart here, not listened on
DATA_DEFAULT: Final = "lastgood-data"
SETUP_CODE_BYTES: Final = 16
HEARTBEAT_MOST_S: Final = 86_400  # a device that speaks less often is not followed
SHUTDOWN_S: Final = 3  # for pages that follow a deployment live: they end with the cloud
KEEP_ALIVE_S: Final = (
    75  # longer than clients keep a connection: one closed under a request would be an error
)


@click.group()
def cloud() -> None:
    """Start and keep the update service."""


@cloud.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA_DEFAULT, envvar="LASTGOOD_DATA",
              show_envvar=True, show_default=True, help="Folder of everything the cloud keeps.")  # fmt: skip
@click.option("--host", default=HOST, show_default=True, help="Address that the API and the pages listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    metavar="INTEGER",
    default=None,
    help="Port of API and pages; 0 takes a free one. [last one, or 8080]",
)
@click.option("--broker", default="auto", show_default=True,
              help="auto, mosquitto, embedded, or the mqtt:// address of your own.")  # fmt: skip
@click.option(
    "--broker-port",
    type=click.IntRange(0, 65_535),
    metavar="INTEGER",
    default=None,
    help="Port for devices; 0 takes a free one. [last one, or a free one]",
)
@click.option(
    "--url", default=None, help="Address under which devices reach the repository. [http://HOST:PORT]"
)
@click.option("--prefix", default=DEFAULT_PREFIX, show_default=True, help="Prefix of all topics.")
@click.option("--heartbeat", type=Seconds(1, HEARTBEAT_MOST_S), default=60.0, show_default=True,
              help="Seconds between the hellos of a device.")  # fmt: skip
@click.option("--verbose", is_flag=True, help="Log every change to standard error.")
def up(
    data: Path,
    host: str,
    port: int | None,
    broker: str,
    broker_port: int | None,
    url: str | None,
    prefix: str,
    heartbeat: float,
    verbose: bool,
) -> None:
    """Start the update service, and keep it until Ctrl-C."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    address = _address(url, host)
    with locked(data / "lock"):
        ports = Ports.load(data)
        listener = _listener(host, ports.http if port is None else port)
        http_port = listener.getsockname()[1]
        wanted_port = ports.broker if broker_port is None else broker_port or None
        options = Options(
            data, broker, wanted_port, address or f"http://{host}:{http_port}", prefix, int(heartbeat * 1000)
        )
        assembly = assemble(options, click.echo)
        own = isinstance(assembly.broker, BrokerProcess)
        ports.after(http_port, assembly.broker.port, own=own).save(data)
        try:
            _serve(assembly, options, listener, click.echo)
        finally:
            assembly.broker.stop()


@dataclass(frozen=True, slots=True)
class Options:
    """What `lastgood cloud up` was told, with its defaults filled in."""

    data: Path
    broker: str
    broker_port: int | None
    url: str
    prefix: str
    heartbeat_ms: int


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of a cloud, wired and not yet started."""

    service: Service
    broker: Broker
    kept: Secrets


def assemble(options: Options, say: Callable[[str], None]) -> Assembly:
    """Open the data folder, start the broker, and wire the service.

    Raises:
        ServiceError: the folder, the keys, the database or the broker cannot be used.
    """
    kept = load_or_make(options.data / "keys", secrets.token_bytes, lambda: new_token(secrets.token_bytes))
    store = open_store(options.data / "cloud.db")
    topics = Topics(options.prefix)
    outbox = Outbox(kept.director, _repository_for(options.url, kept.url_secret), topics)
    orchestrator = Orchestrator(store, outbox, RandomChance(), _settings(options.heartbeat_ms))
    broker = start_broker(
        options.broker,
        options.data / "broker",
        accounts=accounts_of_devices(store),  # from its first moment: who is refused stays away for a while
        prefix=options.prefix,
        port=options.broker_port,
        say=say,
    )
    link = Link(broker.host, broker.service_port, "_cloud", kept.cloud_token, topics)
    service = Service(store, orchestrator, link, broker, open_files(options.data / "files"), kept, topics)
    return Assembly(service, broker, kept)


def _settings(heartbeat_ms: int) -> Settings:
    """Who says hello often also comes back soon: no device stays away longer than a heartbeat or ten seconds."""
    soon_ms = min(10_000, heartbeat_ms)
    return Settings(heartbeat_ms=heartbeat_ms, sync_window_ms=soon_ms, reconnect_spread_ms=soon_ms)


def _repository_for(url: str, secret: bytes) -> Callable[[str, int], Repository]:
    def repository_for(device: str, until_ms: int) -> Repository:
        return Repository(url=f"{url}/repo", query=signed_query(secret, device, until_ms))

    return repository_for


def _serve(assembly: Assembly, options: Options, listener: socket.socket, say: Callable[[str], None]) -> None:
    """Run until a signal; the service is stopped before the broker is."""
    setup_code = secrets.token_urlsafe(SETUP_CODE_BYTES)
    app = create_app(
        assembly.service,
        tokens={digest: Role[role.upper()] for digest, role in assembly.kept.roles.items()},
        setup_code=setup_code,
        random_token=lambda: secrets.token_urlsafe(24),
    )
    _write_client_files(options, assembly)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = _Server(config, app.state.changes.stop)
    # uvicorn raises the signal that ended it once more; what follows its end is ours to do first. And a signal that
    # comes before uvicorn listens for it must not be lost.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    # A broker that somebody else runs is theirs to start again.
    keeper = Keeper(assembly.broker, say) if isinstance(assembly.broker, BrokerProcess) else None
    assembly.service.start()
    if keeper is not None:
        keeper.start()
    try:
        _greet(options, assembly, setup_code, say)
        server.run(sockets=[listener])
    finally:
        if keeper is not None:
            keeper.stop()
        assembly.service.stop()
        say(f"The cloud has stopped; `lastgood cloud up{_where(options)}` goes on where it was.")


class _Server(uvicorn.Server):
    """A server that ends its event streams before it waits for its connections."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then shut down."""
        self._end_streams()
        await super().shutdown(sockets)


def _greet(options: Options, assembly: Assembly, setup_code: str, say: Callable[[str], None]) -> None:
    broker = assembly.broker
    say(f"pages    {options.url}/login?code={setup_code}")
    say(f"API      {options.url}/api/v1  (token in {options.data / 'client.json'})")
    say(f"broker   {broker_url(broker.host, broker.port)}  {broker.engine}: {broker.limit}")
    say(f"data     {options.data.resolve()}")
    say(f"Add a device with:  lastgood device add ID{_where(options)}")
    sys.stdout.flush()


def _where(options: Options) -> str:
    return "" if str(options.data) == DATA_DEFAULT else f" --data {options.data}"


def _write_client_files(options: Options, assembly: Assembly) -> None:
    """Leave what the operator's commands and the inspector need, readable by the owner alone."""
    kept, broker = assembly.kept, assembly.broker
    client = {"url": options.url, "token": kept.admin_token, "pid": os.getpid()}
    replace_file(options.data / "client.json", json.dumps(client).encode())
    inspect = {
        "broker": broker_url(broker.host, broker.service_port),
        "user": "_inspect",
        "password": kept.inspect_token,
        "prefix": options.prefix,
        "key": kept.director.public_pem,
    }
    replace_file(options.data / "inspect.json", json.dumps(inspect).encode())


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the last run: devices know them."""

    http: int = 8080
    broker: int | None = None

    @classmethod
    def load(cls, data: Path) -> "Ports":
        """Return those of the last run, or the defaults.

        Raises:
            ServiceError: they cannot be read.
        """
        try:
            words = json.loads((data / "ports.json").read_bytes())
            return cls(int(words["http"]), None if words["broker"] is None else int(words["broker"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServiceError(
                f"{data / 'ports.json'} cannot be read: {error}. Remove it to choose new ports."
            ) from error

    def after(self, http: int, broker: int, *, own: bool) -> "Ports":
        """Return the ports to take the next time; that of a broker which somebody else runs is none of them."""
        return Ports(http, broker if own else self.broker)

    def save(self, data: Path) -> None:
        """Keep them."""
        replace_file(data / "ports.json", json.dumps({"http": self.http, "broker": self.broker}).encode())


def _address(url: str | None, host: str) -> str | None:
    """Return the address that devices are told, or None when it is that of the listener."""
    if url is None:
        if host in ANY_HOST:
            raise OperatorError(
                f"--host {host} listens everywhere and is no address that a device can reach; "
                "give that with --url, such as --url http://updates.example.com:8080."
            )
        return None
    if not host_of(url) or "?" in url or "#" in url:
        raise OperatorError(f"--url {url!r} is not an address; write it as http://host:port.")
    return url.rstrip("/")


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Choose another with --port or --host."
        ) from error
    return listener
