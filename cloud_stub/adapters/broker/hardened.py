"""amqtt's broker, made fit for an update service: a subclass of `amqtt.broker.Broker`.

amqtt gives the life cycle, the listeners' configuration and the codec of all packets but the hottest. Ours is
the path of a connection (`connection.py`, `exchange.py`), because what amqtt lacks is spread over all of its
own: authenticate before anything is attached, check wills, enforce keepalive, cap packets, time out a missing
CONNECT, close the old connection on a takeover, refuse `$share`, bound every queue, find subscribers without
walking all filters. amqtt's own path is closed here, so that no listener and no plugin can lead into it.
Sessions are clean and nothing is retained.

It rests on private names of one version. The rule it keeps: `check_pin` refuses to start on any other, and
the attacks in tests/ run on every bump. Whatever amqtt leaves as `Any` stays in this file.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

import amqtt
from amqtt.adapters import BufferReader
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerType
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.packet import CONNECT, SUBSCRIBE, UNSUBSCRIBE, MQTTFixedHeader, MQTTPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from cloud_stub.adapters.broker.connection import Connection
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.exchange import Exchange
from cloud_stub.adapters.broker.limits import LISTEN_BACKLOG
from cloud_stub.adapters.broker.wire import ConnectRequest, Malformed, Will

PINNED = "0.12.1"
PRIVATE_NAMES = ("_create_server_instance", "_client_connected", "_authenticate", "_broadcast_message")


def check_pin(version: str, broker: type = Broker) -> None:
    """Refuse to run on an amqtt other than the one this subclass was written and attacked against. Raises
    BrokerError."""
    missing = [name for name in PRIVATE_NAMES if not hasattr(broker, name)]
    if version != PINNED or missing:
        lacking = f" (it lacks {', '.join(missing)})" if missing else ""
        raise BrokerError(
            f"the embedded broker is built on amqtt {PINNED}, and found {version}{lacking}: "
            f"run `pip install amqtt=={PINNED}`, or install mosquitto (`apt-get install mosquitto`)"
        )


class HardenedBroker(Broker):
    """A broker on one loopback listener, for the clients that an `Exchange` lets in."""

    def __init__(self, exchange: Exchange, host: str, port: int) -> None:
        check_pin(amqtt.__version__)
        # No plugins: amqtt's default set would let anonymous clients in
        config = BrokerConfig.from_dict(
            {"listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}}, "plugins": {}}
        )
        super().__init__(config)
        self._exchange = exchange
        self._codec = AmqttCodec()

    async def _create_server_instance(
        self, listener_name: str, listener_type: Any, address: str | None, port: int, ssl_context: Any
    ) -> asyncio.Server:
        """amqtt's seam for listening: our connections instead of its streams, and a backlog for a whole
        fleet."""
        if listener_type != ListenerType.TCP or ssl_context is not None or address is None:
            raise BrokerError("the embedded broker serves plain MQTT over TCP on one address")
        return await asyncio.get_running_loop().create_server(
            lambda: Connection(self._exchange, self._codec),
            address,
            port,
            backlog=LISTEN_BACKLOG,
            reuse_address=True,
        )

    async def _client_connected(self, *_: Any) -> NoReturn:
        """amqtt's own path, for TCP, websockets and external servers alike: closed."""
        raise BrokerError("amqtt's own connection path is closed in the embedded broker")

    async def _authenticate(self, *_: Any) -> bool:
        """A second lock on the same door."""
        return False

    async def _broadcast_message(self, *_: Any) -> NoReturn:
        """amqtt's distribution, which walks every filter and retains: closed; the exchange routes."""
        raise BrokerError("amqtt's own distribution is closed in the embedded broker")


class AmqttCodec:
    """amqtt's packets as plain functions from and to bytes.

    What amqtt decodes leniently (bad UTF-8, missing and trailing bytes) is found by encoding it again: a
    body that does not come back as it went in is Malformed.
    """

    def connect(self, body: bytes) -> ConnectRequest:
        """Decode CONNECT. Raises Malformed."""
        packet = _decode(ConnectPacket, CONNECT, 0, body)
        head, payload = packet.variable_header, packet.payload
        will = None
        if (
            head.reserved_flag
            or head.will_qos > 2
            or (not head.will_flag and (head.will_qos or head.will_retain_flag))
        ):
            raise Malformed("CONNECT with flags that MQTT forbids")
        if head.will_flag:
            # QoS 2 is sent as 1, retain is dropped: the protocol retains nothing
            will = Will(payload.will_topic, bytes(payload.will_message), min(head.will_qos, 1))
        client_id = "" if payload.client_id_is_random else payload.client_id
        return ConnectRequest(payload.username, payload.password, client_id, head.keep_alive, will)

    def subscribe(self, body: bytes) -> tuple[int, Sequence[tuple[str, int]]]:
        """Decode SUBSCRIBE. Raises Malformed."""
        packet = _decode(SubscribePacket, SUBSCRIBE, 2, body)
        topics: list[tuple[str, int]] = packet.payload.topics
        packet_id: int = packet.variable_header.packet_id
        if not topics or packet_id == 0 or any(qos > 2 for _, qos in topics):
            raise Malformed("SUBSCRIBE without filters, without a packet id or with a QoS above 2")
        return packet_id, topics

    def unsubscribe(self, body: bytes) -> tuple[int, Sequence[str]]:
        """Decode UNSUBSCRIBE. Raises Malformed."""
        packet = _decode(UnsubscribePacket, UNSUBSCRIBE, 2, body)
        topics: list[str] = packet.payload.topics
        packet_id: int = packet.variable_header.packet_id
        if not topics or packet_id == 0:
            raise Malformed("UNSUBSCRIBE without filters or without a packet id")
        return packet_id, topics

    def connack(self, return_code: int) -> bytes:
        """Encode CONNACK; session present is always 0."""
        return bytes(ConnackPacket.build(0, return_code).to_bytes())

    def suback(self, packet_id: int, return_codes: Sequence[int]) -> bytes:
        """Encode SUBACK."""
        return bytes(SubackPacket.build(packet_id, list(return_codes)).to_bytes())

    def unsuback(self, packet_id: int) -> bytes:
        """Encode UNSUBACK."""
        return bytes(UnsubackPacket.build(packet_id).to_bytes())


def _decode(kind: type[MQTTPacket[Any, Any, Any]], packet_type: int, flags: int, body: bytes) -> Any:
    try:
        packet = _run(
            kind.from_stream(BufferReader(body), fixed_header=MQTTFixedHeader(packet_type, flags, len(body)))
        )
        again = _encode_body(packet)
    except (
        AMQTTError,
        MQTTError,
        NoDataError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise Malformed(f"{kind.__name__} does not parse") from error
    if again != body:
        raise Malformed(f"{kind.__name__} is not encoded as MQTT says")
    return packet


def _encode_body(packet: Any) -> bytes:
    given = getattr(packet.payload, "client_id", None)
    if getattr(packet.payload, "client_id_is_random", False):
        packet.payload.client_id = ""  # amqtt has put one of its own in place of the empty one
    body = packet.variable_header.to_bytes() + packet.payload.to_bytes(
        packet.fixed_header, packet.variable_header
    )
    if given is not None:
        packet.payload.client_id = given
    return bytes(body)


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a codec's coroutine to its end; on a buffer in memory it never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise Malformed("a codec waited for more than the packet holds")
