"""The cloud's own connection to the broker: paho's thread in, `publish` out.

It decides nothing: what arrives is handed on with the means to acknowledge it to the broker, which is used only after
the database has it (paho: manual_ack). It connects with MQTT 5, and falls back to 3.1.1 where that is refused.
"""

import logging
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from protocol.errors import MessageRefused, ServiceError
from protocol.topics import Kind, Topics

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = 30
QUEUED_MAX: Final = (
    200_000  # messages to devices while the broker is away; the protocol repairs what is beyond
)
INFLIGHT_MAX: Final = 1_000  # unacknowledged QoS 1 messages each way, as mosquitto is configured
RECONNECT_S: Final = (1, 10)

Done = Callable[[], None]
OnMessage = Callable[[Kind, str, bytes, Done], None]
OnLink = Callable[[bool], None]


class Link:
    """One connection under one account; `start` returns at once, and it reconnects by itself."""

    def __init__(self, host: str, port: int, user: str, password: str, topics: Topics) -> None:
        self._address = (host, port)
        self._account = (user, password)
        self._topics = topics
        self._client: paho.Client | None = None
        self._version = MQTTProtocolVersion.MQTTv5
        self._on_message: OnMessage | None = None
        self._on_link: OnLink | None = None
        self._stopping = False
        self._away_told = False  # once for each time it is away: paho tries every few seconds

    def start(self, on_message: OnMessage, on_link: OnLink) -> None:
        """Connect, and hand on what arrives, from paho's thread.

        Raises:
            ServiceError: the address cannot be used at all.
        """
        self._on_message, self._on_link = on_message, on_link
        self._open()

    def publish(self, topic: str, payload: bytes, qos: int, *, content_type: str = "") -> None:
        """Hand a message to the broker, or to the queue while it is away."""
        if self._client is None:
            return
        properties = None
        if self._version is MQTTProtocolVersion.MQTTv5 and content_type:
            properties = _properties(content_type)
        self._client.publish(topic, payload, qos, properties=properties)

    def stop(self) -> None:
        """Say goodbye and end the thread."""
        self._stopping = True
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()

    def _open(self) -> None:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._account[0], protocol=self._version, manual_ack=True
        )
        client.username_pw_set(*self._account)
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.max_queued_messages_set(QUEUED_MAX)
        client.reconnect_delay_set(*RECONNECT_S)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_connect_fail = self._unreachable
        client.on_message = self._arrived
        client.on_socket_open = _at_once
        self._client = client
        try:
            client.connect_async(*self._address, keepalive=KEEPALIVE_S)
            client.loop_start()
        except (OSError, ValueError) as error:
            raise ServiceError(
                f"The broker at {self._address[0]}:{self._address[1]} cannot be used: {error}"
            ) from error

    def _connected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if not reason.is_failure:
            client.subscribe([(filter_, 1) for filter_ in self._topics.read_by_cloud()])
            return
        if "protocol version" in str(reason).lower() and self._version is MQTTProtocolVersion.MQTTv5:
            self._fall_back(client)
            return
        log.warning("the broker refused the cloud: %s", reason)

    def _subscribed(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _p: Any
    ) -> None:
        if self._away_told:
            log.warning("connected to the broker at %s:%d", *self._address)
        self._away_told = False
        if any(reason.is_failure for reason in reasons):
            log.error("the broker does not let the cloud read what devices say; check its access list")
            return
        if self._on_link:
            self._on_link(True)

    def _disconnected(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self._stopping:
            return
        log.warning("the connection to the broker ended: %s", reason)
        self._away_told = True
        if self._on_link:
            self._on_link(False)

    def _unreachable(self, _client: paho.Client, _data: Any) -> None:
        if not self._away_told and not self._stopping:
            log.warning("the broker at %s:%d cannot be reached; trying again", *self._address)
        self._away_told = True

    def _fall_back(self, client: paho.Client) -> None:
        """Speak 3.1.1 with a new client; the old one's thread ends with its connection."""
        self._version = MQTTProtocolVersion.MQTTv311
        client.on_disconnect = None
        client.disconnect()
        self._open()

    def _arrived(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        mid, qos = message.mid, message.qos

        def done() -> None:
            if qos:
                client.ack(mid, qos)

        try:
            topic = self._topics.parse(message.topic)
        except MessageRefused as error:
            log.warning("refused a message: %s", error)
            done()
            return
        if self._on_message:
            self._on_message(topic.kind, topic.device, bytes(message.payload), done)


def _at_once(_client: paho.Client, _data: Any, sock: Any) -> None:
    """Send small packets without waiting for the peer: an acknowledgement behind another waited 40 ms (Nagle)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@lru_cache(maxsize=64)
def _properties(content_type: str) -> Properties:
    """Return the properties of a message; paho takes longer to make them than for all the rest of sending it."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = content_type
    return properties
