"""A device has one voice and hears one's own: end to end, against a running cloud on each broker.

What a broker alone has to hold is attacked in tests/cloud_stub/adapters/broker; here the whole of cloud, broker, agent
and repository stands behind it.
"""

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_stub.adapters.keys import Secrets, load_or_make
from cloud_stub.cli.client import get_here
from cloud_stub.core.links import signed_query
from protocol.join import Join, decode_join
from protocol.messages import Assignment, Hello, read, write
from protocol.topics import Kind, Topics
from tests.integration.conftest import MakeAgent
from tests.mqtt_wire import Closed, Message, Wire
from tests.processes import Agent, Cloud, beacon
from tests.waiting import until

TOPICS = Topics()
REFUSED = 0x80


class Voice(Wire):
    """A raw connection of a device, with the device's own token or another."""

    def __init__(self, join: Join, token: str = "") -> None:
        host, _, port = join.broker.removeprefix("mqtt://").rpartition(":")
        super().__init__(host, int(port))
        self.join = join
        self.code = self.connect(join.device, token or join.token)[1]

    def hello(self, nonce: str, device: str = "") -> bytes:
        """Return a hello of a device without an epoch."""
        hello = Hello(
            device=device or self.join.device,
            instance=f"instance-{self.join.device}",
            connection="connection",
            sequence=0,
            digest="0" * 64,
            nonce=nonce,
        )
        return write(hello)

    def say_what_it_is(self) -> None:
        """Report a state: without its properties a device is offered nothing."""
        state = {**json.loads(self.hello("nonce")), "properties": {"model": "pi4"}, "sequence": 1}
        self.publish(TOPICS.build(Kind.STATE, self.join.device), json.dumps(state).encode())


class Ear(Wire):
    """The inspectors' account: hears everything."""

    def __init__(self, cloud: Cloud) -> None:
        told = json.loads((cloud.data / "inspect.json").read_text())
        host, _, port = told["broker"].removeprefix("mqtt://").rpartition(":")
        super().__init__(host, int(port))
        assert self.connect(told["user"], told["password"], client_id="ear")[1] == 0
        assert self.subscribe("lg/v1/#") == [1]

    def hello_of(self, device: str) -> Hello:
        """Return the next hello of a device."""
        while True:
            message = self.receive()
            if message.topic == TOPICS.build(Kind.HELLO, device):
                return read(Hello, message.payload)


@pytest.fixture
def ear(cloud: Cloud) -> Iterator[Ear]:
    """An ear for one test."""
    with Ear(cloud) as ear:
        yield ear


@pytest.fixture
def pair(cloud: Cloud) -> tuple[Join, Join]:
    """Two devices that nobody has used before: the intruder and the victim."""
    names = [f"{role}-{secrets.token_hex(4)}" for role in ("intruder", "victim")]
    joins = cloud.add(*names)
    return decode_join(joins[names[0]]), decode_join(joins[names[1]])


def secrets_of(cloud: Cloud) -> Secrets:
    """Return what the cloud keeps to itself, for tests that forge with it."""
    return load_or_make(cloud.data / "keys", secrets.token_bytes, lambda: secrets.token_urlsafe(32))


def order_for(voice: Voice) -> tuple[bytes, Assignment]:
    """Say hello as a new device, and return the order that answers it, signed and read."""
    topic = TOPICS.build(Kind.DESIRED, voice.join.device)
    assert voice.subscribe(topic) == [1]
    voice.publish(TOPICS.build(Kind.HELLO, voice.join.device), voice.hello("nonce-of-a-new-device"))
    while (message := voice.receive()).topic != topic:
        pass
    payload = base64.b64decode(json.loads(message.payload)["payload"])
    return message.payload, read(Assignment, payload)


def test_a_token_that_is_not_the_devices_lets_nobody_in(cloud: Cloud, pair: tuple[Join, Join]) -> None:
    """Another device's token, a made-up one and the operator's all fail, and the owner stays connected."""
    intruder, victim = pair
    admin = json.loads((cloud.data / "client.json").read_text())["token"]
    with Voice(victim) as owner:
        assert owner.code == 0
        for token in (intruder.token, "made-up-token", admin):
            try:
                with Voice(victim, token) as forged:
                    assert forged.code != 0
            except Closed:
                pass  # cut off without a word is refused as well
        assert owner.drained() == []


def test_what_is_said_in_anothers_name_reaches_nobody(
    cloud: Cloud, pair: tuple[Join, Join], ear: Ear
) -> None:
    """On the victim's topics nothing arrives; on the intruder's own the cloud refuses what names the victim."""
    intruder, victim = pair
    before = cloud.get(f"/devices/{victim.device}")
    with Voice(intruder) as voice:
        for kind in (Kind.HELLO, Kind.STATE, Kind.PROGRESS, Kind.GONE, Kind.DESIRED, Kind.ACK):
            voice.publish(TOPICS.build(kind, victim.device), voice.hello("forged", victim.device))
        voice.publish(TOPICS.build(Kind.HELLO, intruder.device), voice.hello("forged", victim.device))
        voice.publish(TOPICS.build(Kind.HELLO, intruder.device), voice.hello("honest"))
        heard: list[Message] = []
        while not heard or b"honest" not in heard[-1].payload:
            message = ear.receive()
            if intruder.device in message.topic or victim.device in message.topic:
                heard.append(message)
        assert {message.topic for message in heard} == {TOPICS.build(Kind.HELLO, intruder.device)}
        until(lambda: cloud.get(f"/devices/{intruder.device}")["online"], "the honest hello")
    assert cloud.get(f"/devices/{victim.device}") == before
    assert f"names the device {victim.device!r}" in cloud.log


def test_nobody_hears_what_is_for_another(cloud: Cloud, pair: tuple[Join, Join]) -> None:
    """The victim's order and acknowledgement reach the victim alone, whatever the intruder subscribes to."""
    intruder, victim = pair
    cloud.deploy("$default", cloud.take(beacon(f"1.0.{secrets.randbelow(10**6)}")))
    filters = ("#", "lg/v1/down/#", f"lg/v1/down/{victim.device}/#", "lg/v1/down/+/desired", "lg/v1/up/#")
    with Voice(intruder) as voice, Voice(victim) as owner:
        for each in filters:
            voice.subscribe(each)
        owner.say_what_it_is()
        _, order = order_for(owner)
        assert order.device == victim.device
        assert [each for each in voice.drained() if each.topic != TOPICS.build(Kind.SYNC, "all")] == []


def test_an_order_for_another_device_is_refused_and_counted(
    cloud: Cloud, pair: tuple[Join, Join], ear: Ear, agent: MakeAgent
) -> None:
    """R1: genuine and signed, but not for this device: it changes nothing, and the next hello says so."""
    join = cloud.add(name := f"real-{secrets.token_hex(4)}")[name]
    real = agent(name, join, "bystanders")
    assert ear.hello_of(name).refused_count == 0
    until(lambda: is_at_rest(cloud, name), "the device to have its newest order")
    _, victim = pair
    cloud.deploy("$default", cloud.take(beacon(f"1.1.{secrets.randbelow(10**6)}")))
    with Voice(victim) as owner:
        owner.say_what_it_is()
        envelope, order = order_for(owner)
    assert order.action == "install"
    before = (real.slots(), record_of(real)["epoch"])
    as_the_cloud(cloud, TOPICS.build(Kind.DESIRED, name), envelope)
    until(lambda: ear.hello_of(name).refused_count == 1, "the refusal to be counted")
    assert (real.slots(), record_of(real)["epoch"]) == before


def test_an_address_that_was_altered_or_has_expired_opens_nothing(
    cloud: Cloud, pair: tuple[Join, Join]
) -> None:
    """The order's address serves manifest and file; with another device, time or signature it answers 403."""
    _, victim = pair
    update = cloud.take(beacon(f"1.2.{secrets.randbelow(10**6)}"))
    cloud.deploy("$default", update)
    with Voice(victim) as owner:
        owner.say_what_it_is()
        _, order = order_for(owner)
    assert order.repository is not None
    assert order.target is not None
    parts = dict(part.split("=") for part in order.repository.query.split("&"))
    secret = secrets_of(cloud).url_secret
    for path in (f"manifests/{order.target.path}", f"files/{update.sha256_of_file}"):
        address = f"{order.repository.url}/{path}"
        assert fetch(address, order.repository.query).status_code == 200
        altered: list[dict[str, Any]] = [
            {**parts, "d": "intruder"},
            {**parts, "e": str(int(parts["e"]) + 1)},
            {**parts, "s": parts["s"][:-1] + ("0" if parts["s"][-1] != "0" else "1")},
            {},
        ]
        for each in altered:
            answer = fetch(address, "&".join(f"{key}={value}" for key, value in each.items()))
            assert answer.status_code == 403, each
            assert "not signed by this cloud or has expired" in answer.json()["error"]
        assert fetch(address, signed_query(secret, victim.device, 1_000)).status_code == 403
        assert fetch(address, signed_query(b"another secret", victim.device, 2**45)).status_code == 403


def fetch(address: str, query: str) -> httpx.Response:
    """Return what the repository answers."""
    return get_here(f"{address}?{query}", 60)


def is_at_rest(cloud: Cloud, device: str) -> bool:
    """Whether a device is in its group, and has accepted the newest order there is for it."""
    shown = cloud.get(f"/devices/{device}")
    return bool(shown["group"] == "bystanders" and 0 < shown["epoch"] == shown["reported_epoch"])


def record_of(agent: Agent) -> dict[str, Any]:
    """Return the agent's record as it lies on the disk."""
    record: dict[str, Any] = json.loads((agent.state / "record.json").read_bytes())
    return record


def as_the_cloud(cloud: Cloud, topic: str, payload: bytes) -> None:
    """Publish with the cloud's own account, beside the cloud."""
    port = json.loads((cloud.data / "broker" / "broker.json").read_text())["service_port"]
    with Wire("127.0.0.1", port) as wire:
        assert wire.connect("_cloud", secrets_of(cloud).cloud_token, client_id="forger")[1] == 0
        wire.publish(topic, payload)


def test_the_keys_of_this_test_are_the_clouds(cloud: Cloud) -> None:
    """What the tests above forge with is what the cloud signs with; else their refusals would prove nothing."""
    joins = cloud.add(name := f"key-{secrets.token_hex(4)}")
    assert decode_join(joins[name]).keys_pem == (secrets_of(cloud).director.public_pem,)
    assert Path(cloud.data / "keys" / "secrets.json").exists()
