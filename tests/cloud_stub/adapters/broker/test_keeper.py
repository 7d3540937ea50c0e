"""The keeper of a broker of ours: starts it again when it has ended by itself, and only then."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_stub.adapters.broker import start_broker
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.keeper import Keeper
from cloud_stub.adapters.broker.probe import can_reach
from cloud_stub.adapters.broker.process import LOG_BYTES_MAX, BrokerProcess
from tests.cloud_stub.adapters.broker.conftest import (
    MOSQUITTO_MISSING,
    TOKENS,
    accounts,
    answer,
    has_mosquitto,
)
from tests.waiting import until

LET_IN = (0, 0)


@pytest.fixture(params=["embedded", "mosquitto"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of each engine, of the test's own."""
    if request.param == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    broker = start_broker(request.param, tmp_path, accounts=accounts(), say=print)
    assert isinstance(broker, BrokerProcess)
    yield broker
    broker.stop()


@pytest.fixture
def said() -> list[str]:
    """What the keeper says."""
    return []


@pytest.fixture
def keep(broker: BrokerProcess, said: list[str]) -> Iterator[Callable[[], Keeper]]:
    """Starts a keeper, which ends with the test."""
    keepers: list[Keeper] = []

    def start() -> Keeper:
        keepers.append(Keeper(broker, said.append))
        keepers[-1].start()
        return keepers[-1]

    yield start
    for keeper in keepers:
        keeper.stop()


def kill(broker: BrokerProcess) -> None:
    """End a broker as a crash would."""
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    until(lambda: not broker.alive(), "the broker to end")


def is_back(broker: BrokerProcess) -> bool:
    """Whether the broker is there, and lets a device in."""
    return can_reach(broker.host, broker.port) and answer(broker, "dev-1", TOKENS["dev-1"]) == LET_IN


def test_a_broker_that_ended_comes_back_on_its_ports_with_its_newest_accounts(
    broker: BrokerProcess, said: list[str], keep: Callable[[], Keeper]
) -> None:
    """Accounts that came while it was away are among them; each change is said once."""
    ports = (broker.port, broker.service_port)
    kill(broker)
    with pytest.raises(BrokerError):
        broker.set_accounts({**accounts(), **accounts({"late": "token-of-late"})})
    keep()
    until(lambda: is_back(broker), "the broker to come back")
    assert (broker.port, broker.service_port) == ports
    assert answer(broker, "late", "token-of-late") == LET_IN
    until(lambda: len(said) == 2, "both sentences")
    assert "has ended by itself" in said[0]
    assert "serves again" in said[1]


def test_a_broker_that_cannot_start_is_tried_again(
    broker: BrokerProcess, said: list[str], keep: Callable[[], Keeper]
) -> None:
    """While its port is taken the reason is said; when it is free again the broker serves."""
    kill(broker)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((broker.host, broker.port))
        squatter.listen()
        keep()
        until(lambda: any("does not start" in sentence for sentence in said), "the failure to be said")
    until(lambda: is_back(broker), "the broker to come back")


def test_after_the_keeper_has_stopped_the_broker_stays_ended(
    broker: BrokerProcess, said: list[str], keep: Callable[[], Keeper]
) -> None:
    """A cloud that stops ends its broker: nobody starts it again."""
    keep().stop()
    broker.stop()
    assert not broker.alive()
    assert said == []


def test_a_log_that_has_grown_too_long_is_emptied_under_the_broker(
    broker: BrokerProcess, keep: Callable[[], Keeper], tmp_path: Path
) -> None:
    """What it writes next stands at the end of what is there, so that no hole is left as long as the old log."""
    log = tmp_path / "broker.log"
    os.truncate(log, LOG_BYTES_MAX + 1)
    keep()
    until(lambda: log.stat().st_size <= LOG_BYTES_MAX, "the log to be emptied")
    opened = dict(line.split() for line in Path(f"/proc/{broker.pid}/fdinfo/2").read_text().splitlines())
    assert int(opened["flags:"], 8) & os.O_APPEND
    assert is_back(broker)
