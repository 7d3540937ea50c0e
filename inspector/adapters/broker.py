"""A source of live messages: a paho client that only listens.

It is not a participant: it publishes nothing, keeps no session, and takes a random client id, so that any
number of inspectors can look at once. It keeps the rule that what it could not keep up with is counted and
said, never hidden.
"""

import queue
import secrets
import ssl
import threading
import time
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from inspector.core.address import Address
from inspector.core.seen import Arrival
from inspector.core.source import Notice
from protocol.errors import OperatorError, ServiceError

CONNECT_TIMEOUT_S: Final = 10.0  # from TCP to SUBACK, for each of the two protocol versions
KEEPALIVE_S: Final = 30
QUEUE_MAX: Final = 100_000  # messages that wait for the terminal; about 100 MB of states at worst in practice
RECONNECT_S_MAX: Final = 15

# 3.1.1 first: a broker then drops the properties that devices write, and none of them ends the connection (ADR 0013).
_VERSIONS: Final = ((MQTTProtocolVersion.MQTTv311, "MQTT 3.1.1"), (MQTTProtocolVersion.MQTTv5, "MQTT 5"))


class BrokerSource:
    """Subscribes to filters on one broker."""

    def __init__(self, address: Address, filters: tuple[str, ...]) -> None:
        self._address = address
        self._filters = filters
        self._events: queue.Queue[Arrival | Notice] = queue.Queue(QUEUE_MAX)
        self._session: _Session | None = None

    def open(self) -> str:
        """Connect with MQTT 3.1.1, or with 5 where the broker speaks that alone, and subscribe.

        Raises:
            ServiceError: no broker answers there, or it refuses the login or the subscription.
        """
        for version, name in _VERSIONS:
            session = _Session(self._address, self._filters, version, self._events)
            answer = session.open()
            if answer is None:
                self._session = session
                return f"{self._address} · {name} · {self._address.prefix} · as {session.client_id}"
            session.close()
            if version is MQTTProtocolVersion.MQTTv5 or not answer.other_version_may_help:
                raise ServiceError(answer.sentence)
        raise AssertionError("the last version either answers or is refused")

    def next(self, timeout_s: float) -> Arrival | Notice | None:
        """Return what came next, or None when nothing did within `timeout_s`."""
        missed = self._session.take_missed() if self._session else 0
        if missed:
            return Notice(f"{missed} messages were left out: this terminal reads more slowly than they come.")
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Disconnect; may be called again."""
        if self._session is not None:
            self._session.close()
            self._session = None


class _Refusal:
    def __init__(self, sentence: str, *, other_version_may_help: bool = False) -> None:
        self.sentence = sentence
        self.other_version_may_help = other_version_may_help


class _Session:
    """One client with one protocol version. Its callbacks run in paho's thread, and only fill queues."""

    def __init__(
        self,
        address: Address,
        filters: tuple[str, ...],
        version: MQTTProtocolVersion,
        events: "queue.Queue[Arrival | Notice]",
    ) -> None:
        self.client_id = f"inspect-{secrets.token_hex(4)}"
        self._address = address
        self._filters = filters
        self._version = version
        self._events = events
        self._answers: queue.SimpleQueue[_Refusal | None] = queue.SimpleQueue()
        self._listening = False
        self._missed = 0
        self._lock = threading.Lock()
        self._client = self._make_client()

    def open(self) -> _Refusal | None:
        """Return None when it is subscribed, else why it is not."""
        try:
            self._client.connect(self._address.host, self._address.port, KEEPALIVE_S)
        except ssl.SSLCertVerificationError as error:
            return _Refusal(
                f"{self._address} shows a certificate that is not trusted here ({error.verify_message}): "
                "name the PEM file of the authority that signed it with --ca."
            )
        except (OSError, ValueError) as error:
            return _Refusal(
                f"No broker answers at {self._address} ({_why(error)}). Is it running? Start the cloud with "
                "`lastgood cloud up`, or name another broker with --broker."
            )
        self._client.loop_start()
        try:
            return self._answers.get(timeout=CONNECT_TIMEOUT_S)
        except queue.Empty:
            return _Refusal(
                f"{self._address} took the connection and did not answer within {CONNECT_TIMEOUT_S:.0f} s: "
                "it may be no MQTT broker, or want TLS (mqtts://)."
            )

    def close(self) -> None:
        self._client.on_disconnect = None
        self._client.disconnect()
        self._client.loop_stop()

    def take_missed(self) -> int:
        with self._lock:
            missed, self._missed = self._missed, 0
        return missed

    def _make_client(self) -> mqtt.Client:
        clean = None if self._version is MQTTProtocolVersion.MQTTv5 else True
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self.client_id, clean_session=clean, protocol=self._version
        )
        if self._address.user is not None:
            client.username_pw_set(self._address.user, self._address.password)
        if self._address.tls:
            client.tls_set_context(_tls_context(self._address.ca_file))
        client.reconnect_delay_set(1, RECONNECT_S_MAX)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(
        self,
        client: mqtt.Client,
        _data: Any,
        _flags: mqtt.ConnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self._answers.put(self._refused_by(code))
            return
        if self._version is MQTTProtocolVersion.MQTTv5:
            client.subscribe([(each, SubscribeOptions(qos=1)) for each in self._filters])
        else:
            client.subscribe([(each, 1) for each in self._filters])

    def _refused_by(self, code: ReasonCode) -> _Refusal:
        name = str(code)
        if name == "Unsupported protocol version":
            return _Refusal(f"{self._address} speaks neither MQTT 5 nor 3.1.1.", other_version_may_help=True)
        if name in {"Not authorized", "Bad user name or password", "Banned"}:
            who = f"user {self._address.user!r}" if self._address.user else "a client without a name"
            return _Refusal(
                f"{self._address} refuses {who} ({name.lower()}): give user and password as "
                "--broker mqtt://user:password@host:port, or use --data with the folder of the cloud that runs it."
            )
        return _Refusal(f"{self._address} refuses the connection: {name.lower()}.")

    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _data: Any,
        _mid: int,
        codes: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        refused = [each for each, code in zip(self._filters, codes, strict=False) if code.is_failure]
        if refused and not self._listening:
            self._answers.put(
                _Refusal(
                    f"{self._address} does not let user {self._address.user!r} read {', '.join(refused)}: "
                    "use a user with the right to read, such as the one in the cloud's data folder (--data)."
                )
            )
            return
        if self._listening:
            self._put(Notice("Connected again; what crossed meanwhile was not seen."))
        self._listening = True
        self._answers.put(None)

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _data: Any,
        _flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._listening:
            self._put(Notice(f"The connection is lost ({str(code).lower()}); trying again."))
        else:  # brokers that know one version alone often close without a word
            sentence = (
                f"{self._address} closed the connection during the handshake: it may be no MQTT broker."
            )
            self._answers.put(_Refusal(sentence, other_version_may_help=True))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        at_ms = time.time_ns() // 1_000_000
        try:
            topic = message.topic
        except UnicodeDecodeError:  # a broker lets through what MQTT forbids
            topic = "\ufffd"
        self._put(Arrival(at_ms, topic, bytes(message.payload), message.qos, message.retain))

    def _put(self, event: Arrival | Notice) -> None:
        try:
            self._events.put_nowait(event)
        except queue.Full:
            with self._lock:
                self._missed += 1


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise OperatorError(f"--ca names {ca_file}, which holds no certificate in PEM form.") from error


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
