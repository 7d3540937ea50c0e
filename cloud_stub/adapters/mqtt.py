"""The cloud's own connection to the broker: a thread of its own in, `publish` out.

It decides nothing: what arrives is handed on with the means to acknowledge it to the broker, which is used only after
the database has it (paho: manual_ack). Two rules are kept. It speaks MQTT 3.1.1 (ADR 0013): no property that a device
writes reaches a parser of the cloud's. And every connection is a new client: what was not delivered when one ended is
dropped, for an answer that waited out a loss would be an old one; the protocol repairs what is lost (R4, R6).
"""

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from protocol.errors import MessageRefused, ServiceError
from protocol.topics import Kind, Topics

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = 30
CONNECT_S: Final = 10.0  # for TCP
QUEUED_MAX: Final = 200_000  # messages that wait for the broker's acknowledgements of others
INFLIGHT_MAX: Final = 1_000  # unacknowledged QoS 1 messages each way, as mosquitto is configured
AGAIN_FIRST_S: Final = 1.0  # to the second try; each later pause is twice as long
AGAIN_MOST_S: Final = 10.0
STOP_S: Final = 5.0  # for the last messages and the broker's closing

Done = Callable[[], None]
OnMessage = Callable[[Kind, str, bytes, Done], None]
OnLink = Callable[[bool], None]


class Link:
    """One connection at a time under one account; `start` returns at once, and it connects anew by itself."""

    def __init__(self, host: str, port: int, user: str, password: str, topics: Topics) -> None:
        self._address = (host, port)
        self._account = (user, password)
        self._topics = topics
        self._client: paho.Client | None = None
        self._thread: threading.Thread | None = None
        self._on_message: OnMessage | None = None
        self._on_link: OnLink | None = None
        self._stopping = threading.Event()
        self._is_up = False
        self._away_told = False  # once for each time it is away

    def start(self, on_message: OnMessage, on_link: OnLink) -> None:
        """Connect, and hand on what arrives, from a thread of its own.

        Raises:
            ServiceError: the address cannot be used at all.
        """
        host, port = self._address
        if not host or not 0 < port < 65_536:
            raise ServiceError(f"The broker at {host}:{port} cannot be used: that is no address.")
        self._on_message, self._on_link = on_message, on_link
        self._thread = threading.Thread(target=self._stay_connected, name="link", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Hand a message to the broker; while it is away the message is dropped."""
        client = self._client
        if client is not None and self._is_up:
            client.publish(topic, payload, qos)

    def stop(self) -> None:
        """Say goodbye and end the thread."""
        self._stopping.set()
        if (client := self._client) is not None:
            client.disconnect()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _stay_connected(self) -> None:
        pause_s = AGAIN_FIRST_S
        while not self._stopping.is_set():
            client = self._client = self._make_client()
            was_up = self._live(client)
            if self._stopping.is_set():
                return
            pause_s = AGAIN_FIRST_S if was_up else min(AGAIN_MOST_S, 2 * pause_s)
            self._stopping.wait(pause_s)

    def _live(self, client: paho.Client) -> bool:
        """Live one connection to its end, and return whether it was ever up."""
        try:
            client.connect(*self._address, keepalive=KEEPALIVE_S)
        except (OSError, ValueError) as error:
            if not self._away_told:
                log.warning("the broker at %s:%d cannot be reached (%s); trying again", *self._address, error)
            self._away_told = True
            return False
        try:
            # not `loop_forever`, which nobody can wake: what is published would wait for up to a second
            while client.loop(timeout=1.0) == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass
        except Exception:  # the thread's outermost loop: whatever a broker sends, the cloud connects anew
            log.exception("the connection to the broker broke")
        was_up, self._is_up = self._is_up, False
        if not self._stopping.is_set():
            self._away_told = True
            if was_up and self._on_link:
                self._on_link(False)
        sock = client.socket()
        if isinstance(sock, socket.socket):
            sock.close()
        return was_up

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._account[0],
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=True,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.username_pw_set(*self._account)
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.max_queued_messages_set(QUEUED_MAX)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._arrived
        client.on_socket_open = _at_once
        # Without this callback paho writes from the thread that publishes, beside the connection's own thread.
        client.on_socket_register_write = lambda *_: None
        return client

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.warning("the broker refused the cloud: %s", reason)
            return
        client.subscribe([(filter_, 1) for filter_ in self._topics.read_by_cloud()])

    def _subscribed(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _p: Any
    ) -> None:
        if self._away_told:
            log.warning("connected to the broker at %s:%d", *self._address)
        self._away_told = False
        if any(reason.is_failure for reason in reasons):
            log.error("the broker does not let the cloud read what devices say; check its access list")
            return
        self._is_up = True
        if self._on_link:
            self._on_link(True)

    def _disconnected(
        self,
        _client: paho.Client,
        _data: Any,
        _flags: Any,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if not self._stopping.is_set() and not self._away_told:
            log.warning("the connection to the broker ended: %s", reason)

    def _arrived(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        mid, qos = message.mid, message.qos

        def done() -> None:
            if qos:
                client.ack(mid, qos)

        try:
            topic = self._topics.parse(message.topic)
        except (MessageRefused, UnicodeDecodeError) as error:
            log.warning("refused a message: %s", error)
            done()
            return
        if self._on_message:
            self._on_message(topic.kind, topic.device, bytes(message.payload), done)


def _at_once(_client: paho.Client, _data: Any, sock: Any) -> None:
    """Send small packets without waiting for the peer: an acknowledgement behind another waited 40 ms (Nagle)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
