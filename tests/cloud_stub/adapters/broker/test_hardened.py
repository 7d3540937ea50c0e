"""Each thing that amqtt does not do as it comes, and the embedded broker must: one test by raw socket for
each."""

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from cloud_stub.adapters.broker import CLOUD, INSPECT, BrokerError
from cloud_stub.adapters.broker.hardened import PINNED, check_pin
from tests.cloud_stub.adapters.broker.conftest import PREFIX, TOKENS, Bench
from tests.mqtt_wire import connect_packet, packet, string
from tests.waiting import DEADLINE_S

Start = Callable[..., Bench]
EVERYTHING = f"{PREFIX}/#"


def test_silent_client_is_cut_off_and_its_will_sent(embedded: Start) -> None:
    """Keepalive is enforced at one and a half times its length, and not on a client that pings."""
    bench = embedded()
    cloud = bench.join(CLOUD, EVERYTHING)
    began = time.monotonic()
    silent = bench.join("dev-1", will=(f"{PREFIX}/up/dev-1/gone", b"gone"), keepalive_s=1)
    assert cloud.receive().payload == b"gone"
    assert time.monotonic() - began > 1.4
    assert silent.is_closed()
    assert "dev-1 cut off: silent for 1.5 s" in _log_of(bench)
    assert cloud.drained() == []


def test_half_a_packet_does_not_keep_a_client_alive(embedded: Start) -> None:
    """A client that stops in the middle of a packet is silent too."""
    bench = embedded()
    device = bench.join("dev-1", keepalive_s=1)
    device.send(b"\x30\x20\x00")
    assert device.is_closed()


@pytest.mark.parametrize("said", [b"", b"\x10", b"\x10\x40\x00\x04MQTT"])
def test_no_connect_is_timed_out(embedded: Start, said: bytes) -> None:
    """Whoever does not finish a CONNECT in time is cut off."""
    stranger = embedded(connect_timeout_s=0.2).wire()
    stranger.send(said)
    assert stranger.is_closed()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x30\x05\x00\x01a12",
        b"\x00\x00",
        b"\xe0\x00",
        b"\x10\xff\xff\xff\xff\x01",
        packet(0x10, b"\x00\x04MQTX\x04\x02\x00\x00\x00\x00"),
        packet(0x10, b"x" * 20_000),
        connect_packet("dev-1", TOKENS["dev-1"])[:-1].replace(b"\x10", b"\x11", 1) + b"x",
        packet(0x10, b"\x00\x04MQTT\x04\xc2\x00\x00" + string("dev-1") + string("dev-1")),
        packet(0x10, b"\x00\x04MQTT\x04\xc3\x00\x00" + string("dev-1") * 2 + string(TOKENS["dev-1"])),
        packet(0x10, b"\x00\x04MQTT\x04\xc2\x00\x00" + string("dev-1") * 2 + string(TOKENS["dev-1"]) + b"!"),
        packet(0x10, b"\x00\x04MQTT\x04\xda\x00\x00" + string("dev-1") * 2 + string(TOKENS["dev-1"])),
        packet(0x10, b"\x00\x04MQTT\x04\xc2\x00\x00\x00\x02\xff\xfe" + string("dev-1") + string("t")),
    ],
)
def test_nonsense_instead_of_connect(embedded: Start, said: bytes) -> None:
    """Anything but a well-formed CONNECT ends the connection at once, and the broker goes on."""
    bench = embedded()
    stranger = bench.wire()
    stranger.send(said)
    assert stranger.is_closed()
    bench.join("dev-1")


@pytest.mark.parametrize("level", [3, 5])
def test_other_versions_are_told_at_once(embedded: Start, level: int) -> None:
    """MQTT 5 and 3.1 get return code 1, by which a client knows to come back with 3.1.1, and the end."""
    wire = embedded().wire()
    assert wire.connect("dev-1", TOKENS["dev-1"], level=level) == (0, 1)
    assert wire.is_closed()


def test_paho_can_fall_back_from_5(embedded: Start) -> None:
    """paho with MQTT 5 reports an unsupported version; with 3.1.1 the same device comes in."""
    broker = embedded().broker
    seen: list[str] = []
    for version in (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311):
        client = paho.Client(CallbackAPIVersion.VERSION2, "dev-1", protocol=version)
        client.username_pw_set("dev-1", TOKENS["dev-1"])
        client.on_connect = lambda _c, _u, _f, reason, _p: seen.append(str(reason))
        client.connect(broker.host, broker.port)
        expected, deadline_s = len(seen) + 1, time.monotonic() + DEADLINE_S
        while len(seen) < expected and time.monotonic() < deadline_s:
            client.loop(0.1)
        client.disconnect()
    assert seen == ["Unsupported protocol version", "Success"]


@pytest.mark.parametrize(
    "said",
    [
        connect_packet("dev-1", TOKENS["dev-1"]),
        b"\x00\x00",
        b"\xf0\x00",
        b"\x20\x02\x00\x00",
        b"\xc1\x00",
        b"\xc0\x01x",
        b"\xe0\x01x",
        b"\x40\x01x",
        b"\x50\x02\x00\x01",
        b"\x62\x02\x00\x01",
        packet(0x34, string(f"{PREFIX}/up/dev-1/state") + b"\x00\x01x"),
        packet(0x36, string(f"{PREFIX}/up/dev-1/state") + b"\x00\x01x"),
        packet(0x32, string(f"{PREFIX}/up/dev-1/state") + b"\x00\x00x"),
        packet(0x30, string("")),
        packet(0x30, string(f"{PREFIX}/up/+/state")),
        packet(0x30, string(f"{PREFIX}/up/dev-1/#")),
        packet(0x30, string("a\0b")),
        packet(0x30, b"\x00\x02\xff\xfe"),
        packet(0x30, b"\x00\xffabc"),
        b"\x30\x00",
        packet(0x80, b"\x00\x01" + string("a") + b"\x01"),
        packet(0x82, b"\x00\x01"),
        packet(0x82, b"\x00\x00" + string("a") + b"\x01"),
        packet(0x82, b"\x00\x01" + string("a")),
        packet(0x82, b"\x00\x01" + string("a") + b"\x03"),
        packet(0x82, b"\x00\x01\x00\x02\xff\xfe\x01"),
        packet(0xA2, b"\x00\x01"),
        packet(0xA2, b"\x00\x01\x00\x09a"),
        b"\x30\xff\xff\xff\xff\x7f",
        b"\x30\x81\x80\x10",
    ],
)
def test_breach_of_the_protocol_ends_the_connection(plain: Bench, said: bytes) -> None:
    """A packet that breaks MQTT ends its sender's connection with its will, and nobody else's."""
    cloud = plain.join(CLOUD, EVERYTHING)
    device = plain.join("dev-1", will=(f"{PREFIX}/up/dev-1/gone", b"gone"))
    device.send(said)
    assert device.is_closed()
    assert cloud.receive().payload == b"gone"


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        EVERYTHING,
        f"{PREFIX}/down/+/desired",
        f"{PREFIX}/down/dev-2/desired",
        f"{PREFIX}/down/dev-1",
        f"{PREFIX}/down",
        f"$share/g/{PREFIX}/down/dev-1/desired",
        f"$share/g/{PREFIX}/down/all/sync",
        f"{PREFIX}/down/dev-1/a#",
        f"{PREFIX}/down/dev-1/#/a",
        f"{PREFIX}/down/dev-1/a+",
        f"{PREFIX}/down/dev-1/" + "/".join("a" * 100),
        "$SYS/#",
        "",
    ],
)
def test_filter_beyond_the_access_list_is_refused(plain: Bench, topic_filter: str) -> None:
    """SUBACK says 0x80 to every filter that could match more than is allowed; `$share` is not granted and
    silent."""
    device = plain.join("dev-1")
    if topic_filter == f"{PREFIX}/down/dev-1":  # `x/#` matches `x` as well, so it is the device's own
        assert device.subscribe(topic_filter) == [1]
    else:
        assert device.subscribe(topic_filter) == [0x80]


def test_number_of_filters_is_bounded(embedded: Start) -> None:
    """One filter more than allowed is refused; unsubscribing makes room."""
    device = embedded(filters_max=3).join("dev-1")
    own = [f"{PREFIX}/down/dev-1/{n}" for n in range(4)]
    assert device.subscribe(*own) == [1, 1, 1, 0x80]
    device.unsubscribe(own[0])
    assert device.subscribe(own[3]) == [1]


def test_unsubscribed_is_not_delivered(plain: Bench) -> None:
    """After UNSUBACK nothing more comes on that filter; overlapping filters deliver once."""
    cloud = plain.join(CLOUD)
    device = plain.join("dev-1", f"{PREFIX}/down/dev-1/#", f"{PREFIX}/down/dev-1/desired")
    cloud.publish(f"{PREFIX}/down/dev-1/desired", b"1")
    assert [message.payload for message in device.drained()] == [b"1"]
    device.unsubscribe(f"{PREFIX}/down/dev-1/#", f"{PREFIX}/down/dev-1/desired")
    cloud.publish(f"{PREFIX}/down/dev-1/desired", b"2")
    assert device.drained() == []


def test_sessions_are_clean_whatever_was_asked(plain: Bench) -> None:
    """A client that asks for a session gets none: session present 0, its subscription gone, nothing queued
    for it."""
    device = plain.join("dev-1", f"{PREFIX}/down/dev-1/#", clean=False)
    device.disconnect()
    plain.join(CLOUD).publish(f"{PREFIX}/down/dev-1/desired", b"missed")
    back = plain.join("dev-1", clean=False)  # asserts session present = 0
    plain.join(CLOUD, client_id="second").publish(f"{PREFIX}/down/dev-1/desired", b"unheard")
    assert back.drained() == []


def test_unacknowledged_message_is_not_redelivered_to_a_stranger(plain: Bench) -> None:
    """A QoS 1 message without its PUBACK dies with the connection: the protocol repairs it, no session
    does."""
    cloud = plain.join(CLOUD)
    device = plain.join("dev-1", f"{PREFIX}/down/dev-1/#", clean=False)
    cloud.publish(f"{PREFIX}/down/dev-1/desired", b"order")
    assert device.receive(ack=False).payload == b"order"
    device.socket.close()
    assert plain.join("dev-1", f"{PREFIX}/down/dev-1/#", clean=False).drained() == []


def test_retain_flag_is_stripped(plain: Bench) -> None:
    """A retained message is delivered as a plain one."""
    cloud = plain.join(CLOUD, EVERYTHING)
    plain.join("dev-1").publish(f"{PREFIX}/up/dev-1/state", b"x", retain=True)
    message = cloud.receive()
    assert (message.payload, message.retain) == (b"x", False)


@pytest.mark.parametrize("client_id", ["dev-2", "", "DEV-1", "cloud"])
def test_client_id_must_be_the_name(plain: Bench, client_id: str) -> None:
    """A device with any other client id is refused."""
    assert plain.wire().connect("dev-1", TOKENS["dev-1"], client_id=client_id) == (0, 2)


def test_foreign_will_is_refused_at_once(plain: Bench) -> None:
    """CONNECT itself is refused, so that the device's owner sees the mistake."""
    will = (f"{PREFIX}/up/dev-2/gone", b"forged")
    assert plain.wire().connect("dev-1", TOKENS["dev-1"], will=will) == (0, 5)


def test_services_share_an_account(plain: Bench) -> None:
    """Two clouds and any number of inspectors stay connected beside each other; the same client id takes
    over."""
    first = plain.join(CLOUD, EVERYTHING, client_id="one")
    second = plain.join(CLOUD, client_id="two")
    nameless = plain.join(INSPECT, EVERYTHING, client_id="")
    second.publish(f"{PREFIX}/down/dev-1/desired", b"order")
    assert first.receive().payload == nameless.receive().payload == b"order"
    plain.join(CLOUD, client_id="one")
    assert first.is_closed()
    assert second.drained() == []


def test_device_that_does_not_read_is_cut_off(embedded: Start) -> None:
    """Its unread output is bounded; the others, and the sender, do not wait for it."""
    bench = embedded(queue_bytes_max=65_536)
    cloud = bench.join(CLOUD, f"{PREFIX}/up/#")
    will = (f"{PREFIX}/up/dev-1/gone", b"gone")
    deaf = bench.join("dev-1", f"{PREFIX}/down/dev-1/#", will=will, receive_buffer=4_096)
    heard = bench.join("dev-2", f"{PREFIX}/down/dev-2/#")
    deadline_s = time.monotonic() + DEADLINE_S
    while not cloud.pending and time.monotonic() < deadline_s:
        cloud.publish(f"{PREFIX}/down/dev-1/desired", b"x" * 32_768)
    assert cloud.receive().payload == b"gone"
    assert deaf.is_closed()
    cloud.publish(f"{PREFIX}/down/dev-2/desired", b"order")
    assert heard.receive().payload == b"order"


def test_device_that_reads_no_answers_is_cut_off(embedded: Start) -> None:
    """What it asks for itself, and never reads, is bounded as what others send it."""
    bench = embedded(queue_bytes_max=65_536)
    deaf = bench.join("dev-1", receive_buffer=4_096)
    with contextlib.suppress(OSError):
        for _ in range(1_000):
            deaf.send(b"\xc0\x00" * 10_000)
            if "bytes unread" in _log_of(bench):
                break
    assert "dev-1 cut off: " in _log_of(bench)


def test_cloud_that_is_behind_makes_devices_wait(embedded: Start) -> None:
    """Nothing is lost: the device is held (its keepalive too), and goes on when the cloud has caught up."""
    bench = embedded(cloud_bytes_high=200_000, cloud_bytes_low=50_000)
    cloud = bench.join(CLOUD, EVERYTHING, receive_buffer=4_096)
    device = bench.join("dev-1", keepalive_s=3)
    device.socket.settimeout(5)  # above one and a half keepalives: a held device would have been cut off
    count, filler, sent = 2_000, b"x" * 16_000, 0
    with contextlib.suppress(
        TimeoutError
    ):  # what is left of a packet that does not fit any more stays unsent
        while sent < count:
            device.publish(f"{PREFIX}/up/dev-1/state", b"%6d" % sent + filler, wait=False)
            sent += 1
    assert 0 < sent < count
    assert [int(cloud.receive().payload[:6]) for _ in range(sent)] == list(range(sent))
    assert "bytes behind: devices wait" in _log_of(bench)


def test_dead_cloud_does_not_hold_the_fleet_for_ever(embedded: Start) -> None:
    """A cloud that takes nothing at all is cut off, and the devices go on."""
    bench = embedded(cloud_bytes_high=200_000, cloud_bytes_low=50_000, cloud_stall_s=0.3)
    dead = bench.join(CLOUD, EVERYTHING, receive_buffer=4_096)
    device = bench.join("dev-1")
    for _ in range(600):
        device.publish(f"{PREFIX}/up/dev-1/state", b"x" * 16_000)
    assert dead.is_closed()


def test_window_of_unacknowledged_messages(embedded: Start) -> None:
    """No more than the window is sent without a PUBACK; the rest follows in order, one for each."""
    bench = embedded(inflight_max=3)
    cloud, device = bench.join(CLOUD, EVERYTHING), bench.join("dev-1")
    for number in range(10):
        device.publish(f"{PREFIX}/up/dev-1/state", b"%d" % number)
    first = cloud.drained(ack=False)
    assert [message.payload for message in first] == [b"0", b"1", b"2"]
    cloud.ack(first[1])
    assert [message.payload for message in cloud.drained(ack=False)] == [b"3"]
    cloud.ack(first[0])
    cloud.ack(first[2])
    assert [cloud.receive().payload for _ in range(6)] == [b"4", b"5", b"6", b"7", b"8", b"9"]


def test_log_is_bounded(embedded: Start) -> None:
    """A device in a loop of forbidden messages writes a few lines, not thousands, and the rest is counted."""
    bench = embedded(log_lines_max=5)
    device = bench.join("dev-1")
    for _ in range(500):
        device.publish("elsewhere", b"x", wait=False)
    device.drained()
    assert 1 <= _log_of(bench).count("may not publish") < 100


def test_listens_on_loopback_only(plain: Bench) -> None:
    """The broker cannot be reached by another address of the machine."""
    with socket.socket() as other:
        other.settimeout(2)
        with pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", plain.broker.port))


def test_refused_client_gets_its_answer(plain: Bench) -> None:
    """CONNACK reaches a refused client even if it had already sent more."""
    wire = plain.wire()
    wire.send(connect_packet("dev-1", "wrong") + packet(0x82, b"\x00\x01" + string("a") + b"\x01") * 100)
    assert wire.read() == (0x20, b"\x00\x05")
    assert wire.is_closed()


def test_pin() -> None:
    """Another amqtt, or one whose private names have gone, is refused with the remedy."""
    check_pin(PINNED)
    with pytest.raises(BrokerError, match=r"amqtt==0\.12\.1"):
        check_pin("0.12.2")
    with pytest.raises(BrokerError, match="lacks _create_server_instance"):
        check_pin(PINNED, broker=object)


def _log_of(bench: Bench) -> str:
    folder = Path(f"/proc/{bench.broker.pid}/fd/2").resolve()
    return folder.read_text()
