"""What both engines must hold, by raw socket: the access list under attack, tokens, wills, bursts."""

import contextlib

import pytest

from cloud_stub.adapters.broker import CLOUD, INSPECT
from tests.cloud_stub.adapters.broker.conftest import PREFIX, TOKENS, Bench, accounts
from tests.mqtt_wire import PUBACK, Closed, Wire

EVERYTHING = f"{PREFIX}/#"


def test_device_and_cloud_talk(both: Bench) -> None:
    """What a device says reaches the cloud, and what the cloud says reaches that device and, under `all`,
    everybody."""
    cloud = both.join(CLOUD, EVERYTHING)
    device = both.join("dev-1", f"{PREFIX}/down/dev-1/#", f"{PREFIX}/down/all/sync")
    for kind in ("hello", "state", "progress", "gone"):
        device.publish(f"{PREFIX}/up/dev-1/{kind}", kind.encode())
        assert cloud.receive()[:2] == (f"{PREFIX}/up/dev-1/{kind}", kind.encode())
    cloud.publish(f"{PREFIX}/down/dev-1/desired", b"order")
    cloud.publish(f"{PREFIX}/down/all/sync", b"sync", qos=0)
    assert device.receive()[:3] == (f"{PREFIX}/down/dev-1/desired", b"order", 1)
    assert device.receive()[:3] == (f"{PREFIX}/down/all/sync", b"sync", 0)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("dev-1", "wrong"),
        ("dev-1", TOKENS["dev-2"]),
        ("dev-1", None),
        ("dev-1", ""),
        ("nobody", "wrong"),
        (None, None),
        ("", ""),
        ("_probe", ""),
    ],
)
def test_wrong_token_is_refused(both: Bench, name: str | None, token: str | None) -> None:
    """Without its own token nobody comes in, and nobody anonymously."""
    with pytest.raises(
        (AssertionError, Closed)
    ):  # refused in CONNACK, or (a password without a name) just closed
        assert both.wire().connect(name, token, client_id="dev-1")[1] == 0


def test_wrong_token_does_not_disturb_the_real_one(both: Bench) -> None:
    """Authentication comes before a takeover: a stranger with a device's name does not cut the device off."""
    device = both.join("dev-1", f"{PREFIX}/down/dev-1/#")
    assert both.wire().connect("dev-1", "wrong")[1] != 0
    both.join(CLOUD).publish(f"{PREFIX}/down/dev-1/desired", b"order")
    assert device.receive().payload == b"order"


@pytest.mark.parametrize(
    "topic",
    [
        f"{PREFIX}/up/dev-2/state",
        f"{PREFIX}/up/dev-1/other",
        f"{PREFIX}/up/dev-1",
        f"{PREFIX}/up/dev-1/state/more",
        f"{PREFIX}/up//state",
        f"{PREFIX}/down/dev-1/desired",
        f"{PREFIX}/down/dev-2/desired",
        f"{PREFIX}/down/all/sync",
        f"/{PREFIX}/up/dev-1/state",
        f"{PREFIX.upper()}/up/dev-1/state",
        "other",
        "$SYS/broker/uptime",
    ],
)
def test_device_cannot_publish_elsewhere(both: Bench, topic: str) -> None:
    """A message on any topic but a device's own four reaches nobody."""
    cloud = both.join(CLOUD, EVERYTHING)
    other = both.join("dev-2", f"{PREFIX}/down/dev-2/#", f"{PREFIX}/down/all/#")
    device = both.join("dev-1", f"{PREFIX}/down/dev-1/#", f"{PREFIX}/down/all/#")
    device.publish(topic, b"forged", wait=False)
    after = device.publish(f"{PREFIX}/up/dev-1/hello", b"after", wait=False)
    try:
        while device.expect(PUBACK) != after.to_bytes(2):
            pass  # that of the forged one
    except Closed:  # the broker drops the message, or who sent it; either will do
        other.publish(f"{PREFIX}/up/dev-2/hello", b"after")
        device = both.join("dev-1", f"{PREFIX}/down/dev-1/#", f"{PREFIX}/down/all/#")
    assert cloud.receive().payload == b"after"
    assert cloud.drained() == other.drained() == device.drained() == []


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+/#",
        EVERYTHING,
        f"{PREFIX}/down/#",
        f"{PREFIX}/down/+/desired",
        f"{PREFIX}/+/dev-2/#",
        f"{PREFIX}/down/dev-2/desired",
        f"{PREFIX}/up/#",
        "+/+/+/+/+",
        f"$share/g/{PREFIX}/down/+/desired",
        "$SYS/#",
    ],
)
def test_device_hears_nothing_of_others(both: Bench, topic_filter: str) -> None:
    """Whatever filter a device tries, it hears nothing that is not its own."""
    eavesdropper = both.join("dev-1")
    eavesdropper.subscribe(topic_filter)
    cloud, other = both.join(CLOUD), both.join("dev-2")
    cloud.publish(f"{PREFIX}/down/dev-2/desired", b"secret")
    other.publish(f"{PREFIX}/up/dev-2/state", b"secret")
    assert eavesdropper.drained() == []


def test_wide_filter_does_not_hide_a_narrow_one(both: Bench) -> None:
    """A refused filter leaves a granted one of the same SUBSCRIBE in force."""
    device = both.join("dev-1")
    codes = device.subscribe("#", f"{PREFIX}/down/dev-1/desired")
    assert codes[1] == 1
    both.join(CLOUD).publish(f"{PREFIX}/down/dev-1/desired", b"order")
    assert device.receive().payload == b"order"


def test_device_cannot_kick_another(both: Bench) -> None:
    """A device that uses another's client id is refused or renamed, and the other stays connected."""
    victim = both.join("dev-2", f"{PREFIX}/down/dev-2/#")
    both.wire("dev-1").connect("dev-1", TOKENS["dev-1"], client_id="dev-2")
    both.join(CLOUD).publish(f"{PREFIX}/down/dev-2/desired", b"order")
    assert victim.receive().payload == b"order"


def test_device_cannot_kick_by_the_service_port(both: Bench) -> None:
    """On the services' port a device's token is worth no more: nobody is cut off by it, and nothing is
    heard."""
    cloud = both.join(CLOUD, EVERYTHING, client_id="cloud")
    victim = both.join("dev-2", f"{PREFIX}/down/dev-2/#")
    for client_id in ("cloud", "dev-2"):
        intruder = Wire(both.broker.host, both.broker.service_port)
        both.wires.append(intruder)
        assert intruder.connect("dev-1", TOKENS["dev-1"], client_id=client_id)[1] != 0
    cloud.publish(f"{PREFIX}/down/dev-2/desired", b"order")
    assert victim.receive().payload == b"order"
    assert cloud.receive().payload == b"order"


def test_foreign_will_is_never_sent(both: Bench) -> None:
    """A will on a topic that is not the device's own reaches nobody when the device dies."""
    cloud = both.join(CLOUD, EVERYTHING)
    for topic in (f"{PREFIX}/up/dev-2/gone", f"{PREFIX}/down/dev-2/desired", f"{PREFIX}/down/all/sync"):
        device = both.wire("dev-1")
        if device.connect("dev-1", TOKENS["dev-1"], will=(topic, b"forged"))[1] == 0:
            device.send(b"\x00\x00")  # a breach of MQTT: the broker cuts it off
            assert device.is_closed()
    both.join("dev-3").publish(f"{PREFIX}/up/dev-3/hello", b"after")
    assert [message.payload for message in cloud.drained()] == [b"after"]


def test_own_will_is_sent_on_death_and_not_on_goodbye(both: Bench) -> None:
    """`gone` reaches the cloud when a device dies, and does not when it says DISCONNECT."""
    cloud = both.join(CLOUD, EVERYTHING)
    polite = both.join("dev-1", will=(f"{PREFIX}/up/dev-1/gone", b"polite"))
    polite.disconnect()
    killed = both.join("dev-2", will=(f"{PREFIX}/up/dev-2/gone", b"killed"))
    killed.socket.close()
    assert cloud.receive().payload == b"killed"
    assert cloud.drained() == []


def test_takeover_sends_the_will_before_the_new_hello(both: Bench) -> None:
    """A device that reconnects before its old connection is noticed dead: old one closed, `gone` first,
    then `hello`."""
    cloud = both.join(CLOUD, EVERYTHING)
    old = both.join("dev-1", f"{PREFIX}/down/dev-1/#", will=(f"{PREFIX}/up/dev-1/gone", b"gone"))
    new = both.join("dev-1", f"{PREFIX}/down/dev-1/#")
    assert old.is_closed()
    new.publish(f"{PREFIX}/up/dev-1/hello", b"hello")
    assert [cloud.receive().payload, cloud.receive().payload] == [b"gone", b"hello"]
    cloud.publish(f"{PREFIX}/down/dev-1/desired", b"order")
    assert new.receive().payload == b"order"


def test_nothing_is_retained(both: Bench) -> None:
    """A retained message, or will, of a device is not there for whoever subscribes later."""
    device = both.join("dev-1")
    with contextlib.suppress(Closed):  # mosquitto cuts the sender off
        device.publish(f"{PREFIX}/up/dev-1/state", b"kept?", retain=True)
    topic = f"{PREFIX}/up/dev-2/gone"
    dying = both.wire("dev-2")
    with contextlib.suppress(Closed):
        if dying.connect("dev-2", TOKENS["dev-2"], will=(topic, b"kept?"), will_retain=True)[1] == 0:
            dying.send(b"\x00\x00")
            assert dying.is_closed()
    assert both.join(CLOUD, EVERYTHING).drained() == []


def test_inspector_hears_all_and_says_nothing(both: Bench) -> None:
    """Two inspectors with one account hear everything under the prefix, and what they publish reaches
    nobody."""
    first = both.join(INSPECT, EVERYTHING, client_id="_one")
    second = both.join(INSPECT, EVERYTHING, client_id="_two")
    cloud = both.join(CLOUD, EVERYTHING)
    for topic in (f"{PREFIX}/down/dev-1/desired", f"{PREFIX}/up/dev-1/state", f"{PREFIX}/up/_inspect/state"):
        first.publish(topic, b"forged", wait=False)
    both.join("dev-1").publish(f"{PREFIX}/up/dev-1/hello", b"real")
    for listener in (first, second, cloud):
        assert [message.payload for message in listener.drained()] == [b"real"]


def test_new_tokens_without_a_disconnect(both: Bench) -> None:
    """A new account works as soon as set_accounts has returned, and nobody who was connected notices."""
    device = both.join("dev-1", f"{PREFIX}/down/dev-1/#")
    cloud = both.join(CLOUD, EVERYTHING)
    try:
        for number in range(3):
            name = f"late-{number}"
            both.broker.set_accounts(accounts({**TOKENS, name: "fresh"}))
            assert both.wire().connect(name, "fresh") == (0, 0)
        cloud.publish(f"{PREFIX}/down/dev-1/desired", b"order")
        assert device.receive().payload == b"order"
    finally:
        both.broker.set_accounts(accounts())


def test_revoked_token_is_cut_off(both: Bench) -> None:
    """An account that is gone or has a new token: its live connection ends and the old token is refused."""
    removed, changed, kept = both.join("dev-1"), both.join("dev-2"), both.join("dev-3")
    try:
        both.broker.set_accounts(
            accounts({**{n: t for n, t in TOKENS.items() if n != "dev-1"}, "dev-2": "new"})
        )
        assert removed.is_closed()
        assert changed.is_closed()
        assert kept.drained() == []
        assert both.wire().connect("dev-1", TOKENS["dev-1"])[1] != 0
        assert both.wire().connect("dev-2", TOKENS["dev-2"])[1] != 0
        assert both.wire().connect("dev-2", "new") == (0, 0)
    finally:
        both.broker.set_accounts(accounts())


def test_burst_to_a_late_reader_is_not_lost(both: Bench) -> None:
    """3,000 states that are acknowledged before the cloud reads one all reach it: no engine's default
    queue is left."""
    cloud = both.join(CLOUD, EVERYTHING)
    device = both.join("dev-1")
    count = 3_000
    sent = [device.publish(f"{PREFIX}/up/dev-1/state", b"%d" % n, wait=False) for n in range(count)]
    for packet_id in sent:
        assert int.from_bytes(device.expect(4)) == packet_id
    assert [int(cloud.receive().payload) for _ in range(count)] == list(range(count))


def test_oversized_message_reaches_nobody(both: Bench) -> None:
    """A packet above 262,144 bytes is not delivered, and its sender is cut off."""
    cloud = both.join(CLOUD, EVERYTHING)
    device = both.join("dev-1")
    with contextlib.suppress(Closed):
        device.publish(f"{PREFIX}/up/dev-1/state", b"x" * 262_144)
    assert device.is_closed()
    both.join("dev-2").publish(f"{PREFIX}/up/dev-2/hello", b"after")
    assert [message.payload for message in cloud.drained()] == [b"after"]


def test_nothing_waits_for_a_departed_device(both: Bench) -> None:
    """What was sent while a device with a clean session was away is not there when it comes back."""
    both.join("dev-1", f"{PREFIX}/down/dev-1/#").disconnect()
    both.join(CLOUD).publish(f"{PREFIX}/down/dev-1/desired", b"missed")
    back = both.join("dev-1", f"{PREFIX}/down/dev-1/#")
    assert back.drained() == []
