"""The device's connection to the broker, on paho-mqtt with a thread of its own.

It does not know what messages mean. It keeps DESIGN.md section 4: MQTT 5, and 3.1.1 where the broker refuses it;
nothing retained and no session; the core hears `Connected` only after the broker granted every subscription; after a
loss the first try waits a random part of the time that the cloud told, and further ones back off with full jitter.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.core.model import Chance, Connected, Delivered, Disconnected, Event
from protocol.errors import MessageRefused, OperatorError
from protocol.messages import Gone, write
from protocol.strict_json import MESSAGE_BYTES_MAX
from protocol.topics import RULES, Kind, Topics

KEEPALIVE_S: Final = 45  # a broker notices a lost device after one and a half of these
CONNECT_TIMEOUT_S: Final = 10.0  # for TCP and TLS
HANDSHAKE_S: Final = 20.0  # from there to the granted subscriptions
WAIT_FIRST_S: Final = 1.0  # DESIGN.md section 4: exponential with full jitter, 1 to 120 s
WAIT_MOST_S: Final = 120.0
SPREAD_S: Final = 2.0  # of the first try after a loss, until the cloud tells
SPREAD_MOST_S: Final = 600.0  # what the cloud may tell
CLOSE_S: Final = 3.0  # for the last messages, the DISCONNECT and the broker's closing
QUEUED_MAX: Final = 256  # messages waiting in paho; what must not be lost is sent again by the core
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, and who we are there: the device id is client id and user name at once."""

    url: str  # mqtt://HOST[:PORT] or mqtts://HOST[:PORT]
    device: str
    token: str
    ca_file: str | None = None

    def address(self) -> tuple[str, int, bool]:
        """Return host, port, and whether TLS is spoken.

        Raises:
            OperatorError: the address is none.
        """
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in PORTS or not parts.hostname or parts.path not in {"", "/"} or parts.username:
            raise OperatorError(
                f"'broker' is {self.url!r}: write it as mqtt://HOST:PORT or mqtts://HOST:PORT."
            )
        return parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts"


class MqttLink:
    """The port `Link`. Every connection is a new paho client with a nonce of its own (R9)."""

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        chance: Chance,
        inbox: Callable[[Event], None],
        say: Callable[[str], None],
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._chance = chance
        self._inbox = inbox
        self._say = say
        self._said = ""
        self._closing = threading.Event()
        self._spread_s = SPREAD_S
        self._version = paho.MQTTv5
        self._version_is_known = False
        self._session: _Session | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connect, and stay connected, from a thread of its own.

        Raises:
            OperatorError: the broker's address or CA file is no good.
        """
        self._broker.address()
        _tls(self._broker)
        self._thread = threading.Thread(target=self._stay_connected, name="mqtt", daemon=True)
        self._thread.start()

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Send a message if there is a connection; without one it is dropped."""
        session = self._session
        if session is not None and session.is_granted:
            session.publish(self._topics.build(kind, self._broker.device), payload, RULES[kind].qos)

    def spread(self, milliseconds: int) -> None:
        """Take the time that the cloud tells: the first try after a loss waits a random part of it."""
        self._spread_s = min(milliseconds / 1_000, SPREAD_MOST_S)

    def close(self) -> None:
        """Say that we go, disconnect, and wait for the end of the connection."""
        self._closing.set()
        if (session := self._session) is not None and session.is_granted:
            gone = Gone(device=self._broker.device, connection=session.nonce)
            session.leave(self._topics.build(Kind.GONE, self._broker.device), write(gone))
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _stay_connected(self) -> None:
        failures = 0
        while not self._closing.is_set():
            session = _Session(self._broker, self._topics, self._chance.token(), self._version, self._inbox)
            self._session = session
            why = session.run(self._closing)
            self._session = None
            if session.is_granted:
                self._version_is_known, failures = True, 0
                self._tell("The connection to the broker was lost.")
                self._inbox(Disconnected())
                wait_s = self._chance.uniform() * self._spread_s
            else:
                failures += 1
                # A broker of another make may stand at the same address now; one that only hangs up tells nothing.
                if session.refuses_version or (session.wants_other_version and not self._version_is_known):
                    self._version = paho.MQTTv311 if self._version == paho.MQTTv5 else paho.MQTTv5
                    if failures == 1:
                        continue  # the broker is there, and only speaks the older version: no news for people
                self._tell(f"The broker {self._broker.url} {why}; trying again.")
                most_s = min(WAIT_MOST_S, WAIT_FIRST_S * 2 ** min(failures, 10))
                wait_s = WAIT_FIRST_S + self._chance.uniform() * (most_s - WAIT_FIRST_S)
            self._closing.wait(wait_s)

    def _tell(self, sentence: str) -> None:
        if sentence != self._said and not self._closing.is_set():
            self._say(sentence)  # the same failure again is no news
        self._said = sentence


class _Session:
    """One connection, from TCP to its end."""

    def __init__(
        self, broker: Broker, topics: Topics, nonce: str, version: int, inbox: Callable[[Event], None]
    ) -> None:
        self.nonce = nonce
        self.is_granted = False
        self.wants_other_version = False
        self.refuses_version = False  # it said so
        self._broker = broker
        self._topics = topics
        self._inbox = inbox
        self._is_five = version == paho.MQTTv5
        self._why = "closed the connection before it was ready"
        self._answered = False
        self._awaited_mid: int | None = None
        self._client = self._make_client(version)

    def run(self, closing: threading.Event) -> str:
        """Stay connected until the connection ends, and return why when it never was ready."""
        host, port, _ = self._broker.address()
        try:
            if (context := _tls(self._broker)) is not None:
                self._client.tls_set_context(context)
            self._client.connect(host, port, KEEPALIVE_S, clean_start=True if self._is_five else 3)
        except OperatorError as error:  # the CA file is being replaced
            return f"cannot be trusted now: {str(error).rstrip('.')}"
        except (OSError, ValueError) as error:
            return f"cannot be reached ({getattr(error, 'strerror', None) or error})"
        watchdog = threading.Timer(HANDSHAKE_S, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            while self._client.loop(timeout=1.0) == MQTTErrorCode.MQTT_ERR_SUCCESS:
                if closing.is_set() and not self.is_granted:
                    self._client.disconnect()
        except Exception as error:  # noqa: BLE001 - what a broker sends must not end the agent, whatever paho makes of it
            self._why = f"sent what is no MQTT ({type(error).__name__})"
        finally:
            watchdog.cancel()
            # paho leaves one that it could not wait for to the garbage collector
            self._with_socket(socket.socket.close)
        self.wants_other_version = self.wants_other_version or not self._answered
        return self._why

    def publish(self, topic: str, payload: bytes, qos: int) -> paho.MQTTMessageInfo:
        """Hand a message to paho, which sends it from the connection's thread."""
        return self._client.publish(topic, payload, qos, properties=self._mirror())

    def leave(self, topic: str, payload: bytes) -> None:
        """Send the last word, then DISCONNECT: the broker then does not send the will."""
        with contextlib.suppress(ValueError, RuntimeError):
            self.publish(topic, payload, 1).wait_for_publish(CLOSE_S / 2)
        self._client.disconnect()

    def _make_client(self, version: int) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._broker.device,
            protocol=version,  # type: ignore[arg-type]
            reconnect_on_failure=False,
            clean_session=None if self._is_five else True,
        )
        client.username_pw_set(self._broker.device, self._broker.token)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(QUEUED_MAX)
        gone = Gone(device=self._broker.device, connection=self.nonce)
        client.will_set(self._topics.build(Kind.GONE, self._broker.device), write(gone), RULES[Kind.GONE].qos)
        # Without this callback paho writes from the thread that publishes, beside the connection's own thread.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _mirror(self) -> Properties | None:
        if not self._is_five:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        return properties

    def _give_up(self) -> None:
        if not self.is_granted:
            self._why = "did not answer in time"
            self._client.disconnect()
            # wakes the thread that waits on it, which then closes it
            self._with_socket(lambda sock: sock.shutdown(socket.SHUT_RDWR))

    def _with_socket(self, end: Callable[[socket.socket], None]) -> None:
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                end(sock)

    def _on_connect(
        self, client: paho.Client, _: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        self._answered = True
        if code.is_failure:
            # unsupported protocol version, in both versions of MQTT here
            self.wants_other_version = self.refuses_version = code.value == 132
            hint = (
                ""
                if self.wants_other_version
                else ": is the token this device's? `lastgood device add ID --renew` gives it a new one"
            )
            self._why = f"refused the connection ({code}){hint}"
            client.disconnect()
            return
        filters = self._topics.read_by_device(self._broker.device)
        if self._is_five:
            wanted: Any = [(each, SubscribeOptions(qos=1)) for each in filters]
        else:
            wanted = [(each, 1) for each in filters]
        self._awaited_mid = client.subscribe(wanted)[1]

    def _on_subscribe(
        self, client: paho.Client, _: Any, mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        if mid != self._awaited_mid:
            return
        if any(code.is_failure for code in codes):
            self._why = "refused the subscriptions: may this device read its topics?"
            client.disconnect()
            return
        self.is_granted = True
        self._inbox(Connected(self.nonce))

    def _on_message(self, _client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        if len(message.payload) > MESSAGE_BYTES_MAX:
            return  # the broker's own cap is the same; what exceeds it is not kept in memory
        with contextlib.suppress(MessageRefused, UnicodeDecodeError):
            self._inbox(Delivered(self._topics.parse(message.topic).kind, bytes(message.payload)))


def _tls(broker: Broker) -> ssl.SSLContext | None:
    if not broker.address()[2]:
        return None
    try:
        return ssl.create_default_context(cafile=broker.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise OperatorError(f"'ca_file' {broker.ca_file} cannot be used: {error}.") from error
