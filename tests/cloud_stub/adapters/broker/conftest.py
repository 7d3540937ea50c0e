"""Brokers for the tests of this folder: real processes, one for each engine and module."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_stub.adapters.broker import CLOUD, INSPECT, hash_password, start_broker
from cloud_stub.adapters.broker.external import ExternalBroker
from cloud_stub.adapters.broker.limits import Limits
from cloud_stub.adapters.broker.process import BrokerProcess
from tests.mqtt_wire import Closed, Wire

PREFIX = "lg/v1"
NAMES = (CLOUD, INSPECT, "dev-1", "dev-2", "dev-3")
TOKENS = {name: f"token-of-{name}" for name in NAMES}
MOSQUITTO_MISSING = "mosquitto is not installed: run `apt-get install mosquitto`"


def has_mosquitto() -> bool:
    """Whether the tests of mosquitto can run."""
    return shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin") is not None


def accounts(tokens: dict[str, str] = TOKENS) -> dict[str, str]:
    """A set of accounts, with a salt of their own for each."""
    return {name: hash_password(token, (name * 12).encode()[:12]) for name, token in tokens.items()}


def answer(broker: BrokerProcess | ExternalBroker, name: str, token: str) -> tuple[int, int]:
    """What a broker answers to a device's CONNECT: (0, 0) lets it in."""
    with Wire(broker.host, broker.port) as wire:
        return wire.connect(name, token)


class Bench:
    """A running broker, and connections to it that are closed at the end of the test."""

    def __init__(self, broker: BrokerProcess | ExternalBroker) -> None:
        self.broker = broker
        self.wires: list[Wire] = []

    def wire(self, name: str = "dev-1", *, receive_buffer: int | None = None) -> Wire:
        """A TCP connection to the port that is for this name."""
        port = self.broker.service_port if name.startswith("_") else self.broker.port
        wire = Wire(self.broker.host, port, receive_buffer=receive_buffer)
        self.wires.append(wire)
        return wire

    def join(
        self,
        name: str,
        *filters: str,
        client_id: str | None = None,
        will: tuple[str, bytes] | None = None,
        keepalive_s: int = 60,
        clean: bool = True,
        receive_buffer: int | None = None,
    ) -> Wire:
        """A connected and subscribed client."""
        wire = self.wire(name, receive_buffer=receive_buffer)
        answer = wire.connect(
            name, TOKENS[name], client_id=client_id, will=will, keepalive_s=keepalive_s, clean=clean
        )
        assert answer == (0, 0)
        if filters:
            assert wire.subscribe(*filters) == [1] * len(filters)
        return wire

    def close(self) -> None:
        """Say goodbye for everybody, so that no will reaches the next test."""
        for wire in self.wires:
            if wire.socket.fileno() >= 0:
                with contextlib.suppress(Closed, OSError):  # the test may have broken it
                    wire.send(b"\xe0\x00")
                    wire.is_closed()
                wire.socket.close()


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    """Each engine in turn."""
    choice: str = request.param
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    broker = start_broker(choice, tmp_path_factory.mktemp(choice), accounts=accounts(), say=print)
    assert isinstance(broker, BrokerProcess)
    yield broker
    broker.stop()


@pytest.fixture
def both(engine: BrokerProcess) -> Iterator[Bench]:
    """A broker of each engine, with its first accounts."""
    bench = Bench(engine)
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def one_embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """An embedded broker with its default limits, for all tests of a module."""
    broker = start_broker("embedded", tmp_path_factory.mktemp("one"), accounts=accounts(), say=print)
    assert isinstance(broker, BrokerProcess)
    yield broker
    broker.stop()


@pytest.fixture
def plain(one_embedded: BrokerProcess) -> Iterator[Bench]:
    """Connections to the module's embedded broker."""
    bench = Bench(one_embedded)
    yield bench
    bench.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Starts an embedded broker with limits of the test's own."""
    started: list[Bench] = []

    def start(**limits: float) -> Bench:
        chosen = Limits(**{"sweep_s": 0.05, **limits})  # type: ignore[arg-type]
        bench = Bench(start_broker("embedded", tmp_path, accounts=accounts(), say=print, limits=chosen))
        started.append(bench)
        return bench

    yield start
    for bench in started:
        bench.close()
        bench.broker.stop()
