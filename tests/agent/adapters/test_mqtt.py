"""The connection to the broker: a real mosquitto, and a raw server that plays the older or rude kind."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters.chance import SystemChance
from agent.adapters.mqtt import Broker, MqttLink
from agent.core.model import Connected, Delivered, Disconnected, Event
from protocol.errors import OperatorError
from protocol.topics import Kind, Topics
from tests.certificates import self_signed
from tests.waiting import DEADLINE_S, until

TOKEN = "t" * 27


class Peer:
    """A link and what it told."""

    def __init__(self, url: str, token: str = TOKEN, device: str = "pi-1") -> None:
        self.events: list[Event] = []
        self.said: list[str] = []
        broker = Broker(url, device, token)
        self.link = MqttLink(broker, Topics(), SystemChance(), self.events.append, self.said.append)

    def __enter__(self) -> "Peer":
        self.link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def wait(self, kind: type, count: int = 1) -> list[Event]:
        """Wait for so many events of a kind."""

        def found() -> list[Event]:
            seen = [event for event in self.events if isinstance(event, kind)]
            return seen if len(seen) >= count else []

        return until(found, f"{count} {kind.__name__}; said {self.said}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[str]:
    """A broker with one device's password, on loopback."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    hasher = shutil.which("mosquitto_passwd")
    if program is None or hasher is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    port = _free_port()
    (tmp_path / "passwords").touch(0o600)
    for device in ("pi-1", "watcher"):
        subprocess.run(
            [hasher, "-b", str(tmp_path / "passwords"), device, TOKEN], check=True, capture_output=True
        )
    text = f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {tmp_path / 'passwords'}\n"
    user = "root" if Path("/proc/self").stat().st_uid == 0 else ""
    (tmp_path / "conf").write_text(text + (f"user {user}\n" if user else ""))
    with subprocess.Popen([program, "-c", str(tmp_path / "conf")], stderr=subprocess.DEVNULL) as broker:
        try:
            until(lambda: _listens(port), "mosquitto")
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            broker.terminate()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@pytest.mark.mosquitto
def test_it_connects_subscribes_and_delivers(mosquitto: str) -> None:
    """`Connected` comes after the granted subscriptions: what is sent from then on arrives."""
    with Peer(mosquitto) as peer, Watcher(mosquitto) as watcher:
        (connected,) = peer.wait(Connected)
        assert isinstance(connected, Connected)
        assert len(connected.connection) == 22
        watcher.send("lg/v1/down/pi-1/ack", b"one")
        watcher.send("lg/v1/down/all/sync", b"two")
        watcher.send("lg/v1/down/pi-2/ack", b"not ours")
        watcher.send("lg/v1/down/pi-1/desired", b"three")
        peer.wait(Delivered, 3)
    delivered = [event for event in peer.events if isinstance(event, Delivered)]
    assert [(each.kind, each.payload) for each in delivered] == [
        (Kind.ACK, b"one"),
        (Kind.SYNC, b"two"),
        (Kind.DESIRED, b"three"),
    ]


@pytest.mark.mosquitto
def test_a_publish_reaches_the_broker_and_a_clean_end_is_said(mosquitto: str) -> None:
    """What the runtime publishes arrives; the end is told by `gone` with this connection's nonce, once."""
    with Watcher(mosquitto) as watcher:
        with Peer(mosquitto) as peer:
            peer.wait(Connected)
            peer.link.publish(Kind.HELLO, b"hello")
            until(lambda: ("lg/v1/up/pi-1/hello", b"hello") in watcher.seen, "the hello")
        (connected,) = peer.wait(Connected)
        assert isinstance(connected, Connected)
        until(lambda: any(topic.endswith("/gone") for topic, _ in watcher.seen), "gone")
        gone = [payload for topic, payload in watcher.seen if topic.endswith("/gone")]
        assert [connected.connection.encode() in each for each in gone] == [True]


@pytest.mark.mosquitto
def test_a_lost_connection_comes_back_with_another_nonce(mosquitto: str) -> None:
    """A takeover of the client id ends the connection: Disconnected, then Connected with a nonce of its own (R9)."""
    with Peer(mosquitto) as peer:
        peer.wait(Connected)
        peer.link.spread(0)
        _take_over(mosquitto)
        peer.wait(Disconnected)
        first, second = peer.wait(Connected, 2)
        assert first != second
        assert peer.said == ["The connection to the broker was lost."]


@pytest.mark.mosquitto
def test_a_wrong_token_is_told_once(mosquitto: str) -> None:
    """The sentence names what to look at, and the device goes on trying."""
    with Peer(mosquitto, token="wrong-token") as peer:
        until(lambda: peer.said, "a sentence")
        assert "is the token this device's?" in peer.said[0]
        assert peer.events == []


def test_nobody_listens() -> None:
    """A broker that is not there is told, and closing does not wait for it."""
    with Peer(f"mqtt://127.0.0.1:{_free_port()}") as peer:
        until(lambda: peer.said, "a sentence")
        assert "cannot be reached (Connection refused)" in peer.said[0]
        peer.link.publish(Kind.HELLO, b"dropped")


@pytest.mark.parametrize("rude", [False, True], ids=["refuses", "closes"])
def test_it_falls_back_to_the_older_version(rude: bool) -> None:
    """A broker that refuses MQTT 5, or just closes, is spoken to in 3.1.1 at once; and `Connected` waits for SUBACK."""
    levels: list[int] = []
    may_grant = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while len(levels) < 2:
                peer, _ = server.accept()
                with peer:
                    first = peer.recv(4_096)
                    levels.append(first[first.index(b"MQTT") + 4])
                    if levels[-1] == 5:
                        if not rude:
                            peer.sendall(
                                b"\x20\x02\x00\x01"
                            )  # unacceptable protocol version, in the old form
                        continue
                    peer.sendall(b"\x20\x02\x00\x00")
                    subscribe = peer.recv(4_096)
                    may_grant.wait(DEADLINE_S)
                    peer.sendall(b"\x90\x05" + subscribe[2:4] + b"\x01\x01\x01")
                    while peer.recv(4_096):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Peer(f"mqtt://127.0.0.1:{server.getsockname()[1]}") as peer:
            until(lambda: len(levels) == 2, "the second try")
            assert peer.events == []
            may_grant.set()
            peer.wait(Connected)
        thread.join(DEADLINE_S)
    assert levels == [5, 4]


def test_it_falls_back_also_when_another_broker_stands_there_now() -> None:
    """A cloud may come up again with a broker that speaks 3.1.1 alone; and a topic that is no text ends no agent."""
    levels: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while levels[-1:] != [4]:
                peer, _ = server.accept()
                with peer:
                    first = peer.recv(4_096)
                    levels.append(first[first.index(b"MQTT") + 4])
                    if len(levels) == 1:
                        peer.sendall(b"\x20\x03\x00\x00\x00")
                        subscribe = peer.recv(4_096)
                        peer.sendall(b"\x90\x06" + subscribe[2:4] + b"\x00\x01\x01\x01")
                        peer.sendall(b"\x30\x06\x00\x02\xff\xfe\x00x")
                    elif levels[-1] == 5:
                        peer.sendall(b"\x20\x02\x00\x01")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with Peer(f"mqtt://127.0.0.1:{server.getsockname()[1]}") as peer:
            peer.link.spread(10)
            until(lambda: levels[-1:] == [4], "3.1.1")
            peer.wait(Disconnected)
        thread.join(DEADLINE_S)
    assert levels[:2] == [5, 5]


@pytest.mark.parametrize(
    "url", ["http://h", "mqtt://", "mqtt://h:x", "h:1883", "mqtt://u@h", "mqtt://h/path"]
)
def test_a_wrong_address_is_refused(url: str) -> None:
    """Before any thread is started."""
    with pytest.raises(OperatorError, match="mqtt://HOST:PORT"):
        Peer(url).link.start()


def test_a_missing_ca_file_is_refused() -> None:
    """So is a CA file that is not there."""
    broker = Broker("mqtts://h", "pi-1", TOKEN, "/nonexistent/ca.pem")
    link = MqttLink(broker, Topics(), SystemChance(), lambda event: None, lambda sentence: None)
    with pytest.raises(OperatorError, match="'ca_file'"):
        link.start()


def test_a_ca_file_that_is_being_replaced_makes_no_device_deaf(tmp_path: Path) -> None:
    """It is told, and tried again with the new one."""
    certificate = self_signed(tmp_path)
    said: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)

        def hang_up() -> None:
            """Let it in as far as TLS goes."""
            context.wrap_socket(server.accept()[0], server_side=True).close()

        broker = Broker(f"mqtts://127.0.0.1:{server.getsockname()[1]}", "pi-1", TOKEN, str(certificate))
        link = MqttLink(broker, Topics(), SystemChance(), lambda event: None, said.append)
        link.start()
        try:
            hang_up()
            certificate.rename(tmp_path / "away")
            until(lambda: any("'ca_file'" in sentence for sentence in said), "a word about the CA file")
            (tmp_path / "away").rename(certificate)
            hang_up()
        finally:
            link.close()


def _take_over(url: str) -> None:
    """Connect under the device's client id, and leave."""
    thief = paho.Client(CallbackAPIVersion.VERSION2, client_id="pi-1")
    thief.username_pw_set("pi-1", TOKEN)
    thief.connect("127.0.0.1", int(url.rpartition(":")[2]))
    until(lambda: thief.loop(0.05) == 0 and thief.is_connected(), "the takeover")
    thief.disconnect()


class Watcher:
    """Sees everything on the broker, and can send."""

    def __init__(self, url: str) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._granted = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="watcher")
        self._client.username_pw_set("watcher", TOKEN)
        self._client.on_message = lambda client, _, message: self.seen.append(
            (message.topic, bytes(message.payload))
        )
        self._client.on_subscribe = lambda *_: self._granted.set()
        self._port = int(url.rpartition(":")[2])

    def __enter__(self) -> "Watcher":
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        self._client.subscribe("#", qos=1)
        assert self._granted.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, topic: str, payload: bytes) -> None:
        """Send a message, and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1).wait_for_publish(10)
