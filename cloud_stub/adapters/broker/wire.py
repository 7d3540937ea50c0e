"""The few MQTT 3.1.1 packets that are cut and built for each message, and what a client's CONNECT says.

Rare packets go through amqtt's codec (`hardened.py`); these are on the hot path, where its awaits for each
field cost more than everything else together. The rule kept: a packet that breaks MQTT raises Malformed,
and its sender is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 10, 12, 14
PINGRESP = b"\xd0\x00"

ACCEPTED, BAD_VERSION, BAD_CLIENT_ID, NOT_AUTHORIZED = 0, 1, 2, 5
"""Return codes of CONNACK."""

NOT_GRANTED = 0x80
"""In SUBACK: this filter was refused."""


class Malformed(Exception):
    """A packet that breaks the protocol: it never leaves the connection it came in by."""


@dataclass(frozen=True)
class Will:
    """What is published in a client's name when it goes without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int


@dataclass(frozen=True)
class ConnectRequest:
    """A client's CONNECT, well-formed and not yet believed."""

    name: str | None
    token: str | None
    client_id: str  # "" when the client leaves it to the broker
    keepalive_s: int
    will: Will | None


class Codec(Protocol):
    """The packets that are rare enough for a full codec. The decoders take a body without its fixed
    header, and raise Malformed."""

    def connect(self, body: bytes) -> ConnectRequest: ...
    def subscribe(self, body: bytes) -> tuple[int, Sequence[tuple[str, int]]]: ...
    def unsubscribe(self, body: bytes) -> tuple[int, Sequence[str]]: ...
    def connack(self, return_code: int) -> bytes: ...
    def suback(self, packet_id: int, return_codes: Sequence[int]) -> bytes: ...
    def unsuback(self, packet_id: int) -> bytes: ...


def next_frame(inbox: bytearray, at: int, bytes_max: int) -> tuple[int, int, int] | None:
    """Find the packet that begins at an offset: its first byte, and where its body begins and ends; None if
    it is not whole.

    Raises Malformed on a length that is too large or not encoded as MQTT says, before the body is waited
    for.
    """
    have = len(inbox)
    length, shift, cursor = 0, 0, at + 1
    while True:
        if cursor >= have:
            return None
        byte = inbox[cursor]
        length |= (byte & 0x7F) << shift
        cursor += 1
        if not byte & 0x80:
            break
        shift += 7
        if shift > 21:
            raise Malformed("length of more than four bytes")
    if length > bytes_max:
        raise Malformed(f"packet of {length} bytes, {bytes_max} allowed")
    return (inbox[at], cursor, cursor + length) if cursor + length <= have else None


@dataclass(frozen=True)
class Publish:
    """A client's PUBLISH; the retain flag is dropped here, since nothing is ever retained."""

    topic: str
    payload: bytes
    qos: int
    packet_id: int


def read_publish(first: int, body: bytes) -> Publish:
    """Decode a PUBLISH. Raises Malformed, also for QoS 2, which nothing in the protocol speaks."""
    qos = (first >> 1) & 3
    if qos > 1:
        raise Malformed(f"PUBLISH with QoS {qos}")
    if len(body) < 2:
        raise Malformed("PUBLISH without a topic")
    end = 2 + int.from_bytes(body[:2])
    start = end + 2 if qos else end
    if len(body) < start:
        raise Malformed("PUBLISH cut short")
    try:
        topic = body[2:end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("topic is not UTF-8") from error
    packet_id = int.from_bytes(body[end:start])
    if qos and packet_id == 0:
        raise Malformed("packet id 0")
    return Publish(topic, body[start:], qos, packet_id)


def publish_parts(topic: str, payload: bytes) -> tuple[bytes, bytes, bytes]:
    """The parts of an outgoing PUBLISH that its receivers share: head for QoS 0, head for QoS 1, length
    and topic."""
    name = topic.encode("utf-8")
    named = len(name).to_bytes(2) + name
    size = len(named) + len(payload)
    return b"\x30" + _length(size), b"\x32" + _length(size + 2), named


def puback(packet_id: int) -> bytes:
    """A PUBACK."""
    return b"\x40\x02" + packet_id.to_bytes(2)


def packet_id_of(body: bytes) -> int:
    """The packet id of a PUBACK. Raises Malformed."""
    if len(body) != 2:
        raise Malformed("PUBACK of a wrong length")
    return int.from_bytes(body)


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
