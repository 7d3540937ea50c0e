"""The live transport against a real broker: connections, wills, losses, and leaving without a will."""

import queue
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from agent.core.settings import Settings
from cloud_stub.adapters.broker import CLOUD, hash_password, start_broker
from cloud_stub.adapters.broker.external import ExternalBroker
from cloud_stub.adapters.broker.process import BrokerProcess
from protocol.envelope import DirectorKey
from protocol.errors import OperatorError
from protocol.join import Join, encode_join
from protocol.messages import Gone, Hello, Sync, read, write
from protocol.topics import Kind, Topics
from simulator.core.fleet import Member
from simulator.core.invariants import InvariantBroken
from simulator.device import Model
from simulator.live.fleet import FleetOptions, LiveFleet
from tests.waiting import until

DEVICES = 40
DEADLINE_S = 90.0
TOPICS = Topics()
Broker = BrokerProcess | ExternalBroker


def has_mosquitto() -> bool:
    """Whether the tests of mosquitto can run."""
    return shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin") is not None


class Ear:
    """The cloud's account on the broker: hears everything that devices say, and can speak to them."""

    def __init__(self, broker: Broker) -> None:
        self.heard: queue.SimpleQueue[tuple[Kind, str, bytes]] = queue.SimpleQueue()
        self.all: list[tuple[Kind, str, bytes]] = []
        self._ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=CLOUD, protocol=paho.MQTTv311)
        self.client.username_pw_set(CLOUD, "token-of-the-cloud")
        self.client.on_connect = lambda client, *_: client.subscribe(
            [(each, 1) for each in TOPICS.read_by_cloud()]
        )
        self.client.on_subscribe = lambda *_: self._ready.put(None)
        self.client.on_message = self._hear
        self.client.connect(broker.host, broker.service_port)
        self.client.loop_start()
        self._ready.get(timeout=DEADLINE_S)

    def _hear(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        topic = TOPICS.parse(message.topic)
        self.heard.put((topic.kind, topic.device, bytes(message.payload)))

    def until(self, holds: Callable[[list[tuple[Kind, str, bytes]]], bool]) -> None:
        """Listen until what was heard satisfies a condition."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(self.all):
            self.all.append(self.heard.get(timeout=max(0.01, deadline - time.monotonic())))

    def close(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()


class Place:
    """A broker with the accounts of a fleet, and an ear on it."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.members = [
            Member(f"v-{number:03}", "all", "kitchen", {"model": "one"}, {"group": "kitchen"}, 0, False)
            for number in range(DEVICES)
        ]
        names = {CLOUD: "token-of-the-cloud"} | {
            member.id: f"token-of-{member.id}" for member in self.members
        }
        accounts = {name: hash_password(token, b"salt-of-test") for name, token in names.items()}
        self._start = partial(start_broker, engine, folder, accounts=accounts, say=lambda _: None)
        self.broker = self._start()
        self.ear = Ear(self.broker)
        self.pem = DirectorKey(Ed25519PrivateKey.generate()).public_pem

    def join(self, member: Member, token: str | None = None) -> tuple[Member, str]:
        """Return a member with its join text."""
        url = f"mqtt://{self.broker.host}:{self.broker.port}"
        text = Join(
            broker=url, device=member.id, token=token or f"token-of-{member.id}", keys_pem=(self.pem,)
        )
        return member, encode_join(text)

    def fleet(self) -> LiveFleet:
        """Return a fleet that is not started."""
        return LiveFleet(FleetOptions(1, Model(100, 0.3, 100, 0.3, 100, {}), Settings()))

    def restart_broker(self) -> None:
        """End the broker, and start another one where it was."""
        port = self.broker.port
        self.ear.close()
        self.broker.stop()
        self.broker = self._start(port=port)
        self.ear = Ear(self.broker)

    def close(self) -> None:
        """End all of it."""
        self.ear.close()
        self.broker.stop()


@pytest.fixture(params=["mosquitto", "embedded"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A broker of each engine."""
    if request.param == "mosquitto" and not has_mosquitto():
        pytest.skip("mosquitto is not installed: run `apt-get install mosquitto`")
    place = Place(request.param, tmp_path / "broker")
    yield place
    place.close()


def said(heard: list[tuple[Kind, str, bytes]], kind: Kind) -> dict[str, list[bytes]]:
    """Return what each device said of one kind."""
    found: dict[str, list[bytes]] = {}
    for each, device, payload in heard:
        if each is kind:
            found.setdefault(device, []).append(payload)
    return found


def test_a_fleet_says_hello_answers_a_sync_and_leaves_without_wills(place: Place) -> None:
    """Every device connects and says hello, hears everybody's topic, and says goodbye once: no will is fired."""
    with place.fleet() as fleet:
        fleet.add(place.join(member) for member in place.members)
        place.ear.until(lambda heard: len(said(heard, Kind.HELLO)) == DEVICES)
        first = {device: len(hellos) for device, hellos in said(place.ear.all, Kind.HELLO).items()}
        sync = write(Sync(device="all", window_ms=200))
        place.ear.client.publish(TOPICS.build(Kind.SYNC, "all"), sync, 0)
        place.ear.until(
            lambda heard: all(
                len(hellos) > first[device] for device, hellos in said(heard, Kind.HELLO).items()
            )
        )
        assert all(sight.online for sight in fleet.sights().values())
        assert fleet.figures().connects == DEVICES
        assert fleet.figures().refusals == 0  # finding out which MQTT the broker speaks is none
        assert fleet.stop() == 0
    place.ear.until(lambda heard: len(said(heard, Kind.GONE)) == DEVICES)
    place.ear.client.publish(TOPICS.build(Kind.HELLO, "the-end"), b"", 1)
    place.ear.until(lambda heard: heard[-1][1] == "the-end")
    assert {len(words) for words in said(place.ear.all, Kind.GONE).values()} == {1}


def test_R9_a_lost_connection_fires_its_own_will_and_comes_back_with_another_nonce(place: Place) -> None:
    """The will names the connection that was lost; the hello after it names a new one."""
    with place.fleet() as fleet:
        fleet.add([place.join(place.members[0])])
        place.ear.until(lambda heard: bool(said(heard, Kind.HELLO)))
        before = read(Hello, said(place.ear.all, Kind.HELLO)["v-000"][0]).connection
        place.ear.all.clear()
        fleet.drop_connection("v-000")
        place.ear.until(lambda heard: bool(said(heard, Kind.GONE)) and bool(said(heard, Kind.HELLO)))
        assert read(Gone, said(place.ear.all, Kind.GONE)["v-000"][0]).connection == before
        assert read(Hello, said(place.ear.all, Kind.HELLO)["v-000"][0]).connection != before


def test_a_device_without_power_is_away_until_it_has_it_again(place: Place) -> None:
    """A power loss fires the will; the next start says hello as the same instance."""
    with place.fleet() as fleet:
        fleet.add([place.join(place.members[0])])
        place.ear.until(lambda heard: bool(said(heard, Kind.HELLO)))
        before = read(Hello, said(place.ear.all, Kind.HELLO)["v-000"][0])
        fleet.lose_power("v-000")
        place.ear.until(lambda heard: bool(said(heard, Kind.GONE)))
        assert not fleet.sights()["v-000"].online
        place.ear.all.clear()
        fleet.give_power("v-000")
        place.ear.until(lambda heard: bool(said(heard, Kind.HELLO)))
        assert read(Hello, said(place.ear.all, Kind.HELLO)["v-000"][0]).instance == before.instance


def test_a_fleet_comes_back_after_its_broker_was_restarted(place: Place) -> None:
    """Every connection was lost at once; each device comes back by itself and says hello to the new broker."""
    with place.fleet() as fleet:
        fleet.add(place.join(member) for member in place.members)
        place.ear.until(lambda heard: len(said(heard, Kind.HELLO)) == DEVICES)
        place.restart_broker()
        place.ear.until(lambda heard: len(said(heard, Kind.HELLO)) == DEVICES)
        assert all(sight.online for sight in fleet.sights().values())
        assert fleet.figures().connects == 2 * DEVICES


def test_a_wrong_token_is_told_and_stops_nobody_else(place: Place) -> None:
    """A device whose token the broker refuses stays away; the figures say why, and the others are not held up."""
    with place.fleet() as fleet:
        fleet.add([place.join(place.members[0], "another-token"), place.join(place.members[1])])
        place.ear.until(lambda heard: "v-001" in said(heard, Kind.HELLO))
        until(lambda: fleet.figures().refusals, "the refusal of v-000")
        assert "v-000" in fleet.figures().said
        assert not fleet.sights()["v-000"].online


def test_a_join_text_for_another_device_is_refused(place: Place) -> None:
    """The device that a text names and the member it is given to must be one."""
    _, text = place.join(place.members[1])
    with place.fleet() as fleet, pytest.raises(OperatorError, match="v-001"):
        fleet.add([(place.members[0], text)])


def test_a_device_that_fails_by_a_defect_ends_the_run() -> None:
    """What its own code raises is not left to a log, while everybody waits: the next question is answered with it."""
    pem = DirectorKey(Ed25519PrivateKey.generate()).public_pem
    member = Member("v-000", "all", "kitchen", None, {}, 0, False)  # type: ignore[arg-type]  # the defect
    text = encode_join(
        Join(broker="mqtt://127.0.0.1:9", device=member.id, token="token-of-v-000", keys_pem=(pem,))
    )
    with LiveFleet(FleetOptions(1, Model(100, 0.3, 100, 0.3, 100, {}), Settings())) as fleet:
        fleet.add([(member, text)])
        with pytest.raises(InvariantBroken, match="a virtual device failed: TypeError"):
            until(lambda: fleet.sights() and None, "the defect to be told")
