"""A raw MQTT 3.1.1 client on a blocking socket, for tests that must send what no library would.

It is not a client library: it decodes only what the tests look at. Every wait has a deadline and nothing
sleeps; that something does *not* arrive is proved by a ping after the sender's message was acknowledged.
"""

import socket
from types import TracebackType
from typing import NamedTuple, Self

DEADLINE_S = 60.0
CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP = 2, 3, 4, 9, 11, 13


class Message(NamedTuple):
    """A PUBLISH that arrived."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int


class Closed(Exception):
    """The broker closed the connection."""


class Wire:
    """One connection."""

    def __init__(self, host: str, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect((host, port))
        self.pending: list[Message] = []
        self._packet_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.socket.close()

    def connect(
        self,
        name: str | None,
        token: str | None,
        *,
        client_id: str | None = None,
        will: tuple[str, bytes] | None = None,
        will_retain: bool = False,
        keepalive_s: int = 60,
        clean: bool = True,
        level: int = 4,
    ) -> tuple[int, int]:
        """Send CONNECT; CONNACK's (session present, return code). Raises Closed when there is none."""
        self.send(
            connect_packet(
                name,
                token,
                client_id=client_id,
                will=will,
                will_retain=will_retain,
                keepalive_s=keepalive_s,
                clean=clean,
                level=level,
            )
        )
        first, body = self.read()
        assert first == CONNACK << 4, first
        return body[0], body[1]

    def subscribe(self, *filters: str, qos: int = 1) -> list[int]:
        """Send SUBSCRIBE; the return codes of SUBACK."""
        packet_id = self.next_id()
        body = packet_id.to_bytes(2) + b"".join(string(one) + bytes((qos,)) for one in filters)
        self.send(packet(0x82, body))
        answer = self.expect(SUBACK)
        assert answer[:2] == packet_id.to_bytes(2)
        return list(answer[2:])

    def unsubscribe(self, *filters: str) -> None:
        """Send UNSUBSCRIBE and wait for UNSUBACK."""
        self.send(packet(0xA2, self.next_id().to_bytes(2) + b"".join(string(one) for one in filters)))
        self.expect(UNSUBACK)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, wait: bool = True
    ) -> int:
        """Send PUBLISH, and with QoS 1 wait for its PUBACK unless told not to; the packet id."""
        packet_id = self.next_id() if qos else 0
        head = string(topic) + (packet_id.to_bytes(2) if qos else b"")
        self.send(packet(0x30 | qos << 1 | retain, head + payload))
        if qos and wait:
            assert self.expect(PUBACK) == packet_id.to_bytes(2)
        return packet_id

    def receive(self, *, ack: bool = True) -> Message:
        """The next message, acknowledged unless told not to."""
        while not self.pending:
            self._take(*self.read())
        message = self.pending.pop(0)
        if ack and message.qos:
            self.ack(message)
        return message

    def ack(self, message: Message) -> None:
        """Send PUBACK."""
        self.send(b"\x40\x02" + message.packet_id.to_bytes(2))

    def drained(self, *, ack: bool = True) -> list[Message]:
        """All messages that the broker has had for us until it answers a ping."""
        self.send(b"\xc0\x00")
        self.expect(PINGRESP)
        messages, self.pending = self.pending, []
        for message in messages:
            if ack and message.qos:
                self.ack(message)
        return messages

    def expect(self, kind: int) -> bytes:
        """Read until a packet of one kind, keeping messages that come before it; its body."""
        while True:
            first, body = self.read()
            if first >> 4 == kind:
                return body
            self._take(first, body)

    def is_closed(self) -> bool:
        """Read to the end of the connection; fails by time-out if the broker keeps it open."""
        try:
            while True:
                self._take(*self.read())
        except Closed:
            return True

    def disconnect(self) -> None:
        """Say goodbye and close."""
        self.send(b"\xe0\x00")
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def read(self) -> tuple[int, bytes]:
        """One packet: first byte and body. Raises Closed."""
        first = self._exactly(1)[0]
        length, shift = 0, 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return first, self._exactly(length)

    def next_id(self) -> int:
        """A fresh packet id."""
        self._packet_id += 1
        return self._packet_id

    def _take(self, first: int, body: bytes) -> None:
        if first >> 4 != PUBLISH:
            return
        end = 2 + int.from_bytes(body[:2])
        qos = (first >> 1) & 3
        start = end + 2 if qos else end
        packet_id = int.from_bytes(body[end:start])
        self.pending.append(Message(body[2:end].decode(), body[start:], qos, bool(first & 1), packet_id))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError as error:
                raise Closed from error
            if not more:
                raise Closed
            data += more
        return data


def packet(first: int, body: bytes) -> bytes:
    """A packet with its length."""
    size, length = len(body), bytearray()
    while True:
        length.append(size & 0x7F | (0x80 if size > 0x7F else 0))
        size >>= 7
        if not size:
            return bytes((first,)) + bytes(length) + body


def string(text: str) -> bytes:
    """A string with its length."""
    data = text.encode()
    return len(data).to_bytes(2) + data


def connect_packet(
    name: str | None,
    token: str | None,
    *,
    client_id: str | None = None,
    will: tuple[str, bytes] | None = None,
    will_retain: bool = False,
    keepalive_s: int = 60,
    clean: bool = True,
    level: int = 4,
) -> bytes:
    """A CONNECT; the client id is the name unless told otherwise. Level 5 adds empty properties, level 3
    the old name."""
    flags = (2 if clean else 0) | (0x80 if name is not None else 0) | (0x40 if token is not None else 0)
    if will is not None:
        flags |= 0x0C | (0x20 if will_retain else 0)  # QoS 1
    protocol = string("MQIsdp" if level == 3 else "MQTT")
    body = protocol + bytes((level, flags)) + keepalive_s.to_bytes(2) + (b"\x00" if level == 5 else b"")
    body += string(client_id if client_id is not None else name or "")
    if will is not None:
        body += (b"\x00" if level == 5 else b"") + string(will[0]) + len(will[1]).to_bytes(2) + will[1]
    for text in (name, token):
        body += string(text) if text is not None else b""
    return packet(0x10, body)
