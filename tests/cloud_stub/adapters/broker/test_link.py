"""The cloud's own connection: on both brokers, and on a raw server that ends it when a test says so."""

import queue
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cloud_stub.adapters.broker import CLOUD
from cloud_stub.adapters.mqtt import Link
from protocol.topics import Kind, Topics
from tests.cloud_stub.adapters.broker.conftest import PREFIX, TOKENS, Bench
from tests.mqtt_wire import PUBACK, Wire, connect_packet, packet, string
from tests.waiting import DEADLINE_S

Heard = tuple[Kind, str, bytes, Callable[[], None]]


class Listening:
    """A link, and what it told."""

    def __init__(self, host: str, port: int) -> None:
        self.heard: queue.Queue[Heard] = queue.Queue()
        self.ups: queue.Queue[bool] = queue.Queue()
        self.link = Link(host, port, CLOUD, TOKENS[CLOUD], Topics(PREFIX))

    def __enter__(self) -> "Listening":
        self.link.start(lambda *message: self.heard.put(message), self.ups.put)
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop()

    def until_up(self, wanted: bool = True) -> None:
        """Wait for the next word about the connection, and hold it to what is wanted."""
        assert self.ups.get(timeout=DEADLINE_S) is wanted


def test_what_devices_say_is_heard_and_what_the_cloud_says_reaches_them(both: Bench) -> None:
    """Up after the granted subscriptions; each message with its device and kind."""
    device = both.join("dev-1", f"{PREFIX}/down/dev-1/#")
    with Listening(both.broker.host, both.broker.service_port) as cloud:
        cloud.until_up()
        device.publish(f"{PREFIX}/up/dev-1/hello", b"hello")
        kind, name, payload, done = cloud.heard.get(timeout=DEADLINE_S)
        assert (kind, name, payload) == (Kind.HELLO, "dev-1", b"hello")
        done()
        cloud.link.publish(f"{PREFIX}/down/dev-1/ack", b"heard", 1)
        assert device.receive().payload == b"heard"
    assert cloud.ups.empty(), "a connection that we end ourselves is no loss"


@pytest.mark.parametrize("text", ["\ufeff", "a\ufeffb", "\U0001f4a5"], ids=["mark", "mark within", "plain"])
def test_no_property_that_a_device_writes_cuts_the_cloud_off(both: Bench, text: str) -> None:
    """A parser that is stricter than the broker would end the connection at each such message: schedules, retries and
    time-outs of everybody would never run (R12)."""
    device = both.wire("dev-2")
    device.send(connect_packet("dev-2", TOKENS["dev-2"], level=5))
    first, body = device.read()
    if body[1] != 0:
        assert both.broker.engine.startswith("amqtt"), "it has no properties at all"
        return
    assert first == 0x20
    with Listening(both.broker.host, both.broker.service_port) as cloud:
        cloud.until_up()
        properties = b"\x26" + string("key") + string(text)  # a user property
        head = string(f"{PREFIX}/up/dev-2/progress") + bytes((len(properties),)) + properties
        device.send(packet(0x30, head + b"one"))
        both.join("dev-3").publish(f"{PREFIX}/up/dev-3/hello", b"two")
        told = sorted(cloud.heard.get(timeout=DEADLINE_S)[1:3] for _ in range(2))
        assert told == [("dev-2", b"one"), ("dev-3", b"two")]
        assert cloud.ups.empty()


class Server:
    """One who speaks just enough of MQTT to let the cloud in, and who ends its connections."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.wire: Wire | None = None

    def let_in(self) -> None:
        """Accept the next connection, and grant its subscriptions."""
        self._listener.settimeout(DEADLINE_S)
        peer, _ = self._listener.accept()
        peer.settimeout(DEADLINE_S)
        self.wire = Wire.__new__(Wire)
        self.wire.socket, self.wire.pending = peer, []
        assert self.wire.read()[0] == 0x10
        self.wire.send(packet(0x20, b"\x00\x00"))
        first, body = self.wire.read()
        assert first == 0x82
        self.wire.send(packet(0x90, body[:2] + b"\x01" * body.count(PREFIX.encode())))

    def close(self) -> None:
        """End the listener and the connection."""
        self._listener.close()
        if self.wire is not None:
            self.wire.socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A raw server."""
    found = Server()
    yield found
    found.close()


def test_R4_an_answer_that_waited_out_a_loss_is_never_told(server: Server) -> None:
    """What was not delivered when a connection ended is dropped: an old "your newest epoch is this" opens no gate."""
    with Listening("127.0.0.1", server.port) as cloud:
        server.let_in()
        cloud.until_up()
        cloud.link.publish(f"{PREFIX}/down/dev-1/ack", b"sent, not acknowledged", 1)
        assert server.wire is not None
        assert server.wire.receive(ack=False).payload == b"sent, not acknowledged"
        server.wire.socket.close()
        cloud.until_up(False)
        cloud.link.publish(f"{PREFIX}/down/dev-1/ack", b"said while away", 1)
        server.let_in()
        cloud.until_up()
        cloud.link.publish(f"{PREFIX}/down/dev-1/ack", b"new", 1)
        assert server.wire.receive().payload == b"new"
        assert server.wire.pending == []


def test_a_message_is_acknowledged_to_the_broker_only_when_it_is_done_and_on_its_own_connection(
    server: Server,
) -> None:
    """Done after a loss acknowledges nothing: the packet's number may belong to another message by then."""
    with Listening("127.0.0.1", server.port) as cloud:
        server.let_in()
        cloud.until_up()
        assert server.wire is not None
        message = string(f"{PREFIX}/up/dev-1/hello") + (7).to_bytes(2) + b"first"
        server.wire.send(packet(0x32, message))
        *_, late = cloud.heard.get(timeout=DEADLINE_S)
        server.wire.socket.close()
        cloud.until_up(False)
        server.let_in()
        cloud.until_up()
        late()
        server.wire.send(packet(0x32, string(f"{PREFIX}/up/dev-2/hello") + (8).to_bytes(2) + b"second"))
        *_, done = cloud.heard.get(timeout=DEADLINE_S)
        done()
        assert server.wire.expect(PUBACK) == (8).to_bytes(2)


def test_stop_ends_the_thread_also_while_the_broker_is_away() -> None:
    """Between two tries, as much as within a connection."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Listening("127.0.0.1", port) as cloud:
        assert cloud.ups.empty()
    assert not [thread for thread in threading.enumerate() if thread.name == "link"]
