"""The least that speaks MQTT 3.1.1 on asyncio: what every floor is made of.

It is not a client library: it trusts the broker, keeps nothing, and sends nothing again. A message goes to a callback
as topic and payload, and is acknowledged at once.
"""

import asyncio
from collections.abc import Callable

from tests.mqtt_wire import connect_packet, packet, string

OnMessage = Callable[["RawClient", bytes, bytes], None]


class RawClient(asyncio.Protocol):
    """One connection."""

    def __init__(self, name: str, on_message: OnMessage) -> None:
        self.name = name
        self._on_message = on_message
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._packet_id = 0

    async def open(self, host: str, port: int, token: str, *filters: str) -> None:
        """Connect, and subscribe with QoS 1."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, host, port)
        answer = await self._ask(2, connect_packet(self.name, token, keepalive_s=0))
        assert answer[1] == 0, f"the broker refused {self.name}: {answer[1]}"
        body = b"\x00\x01" + b"".join(string(each) + b"\x01" for each in filters)
        answer = await self._ask(9, packet(0x82, body))
        assert 0x80 not in answer[2:], f"the broker refused the subscriptions of {self.name}"

    def publish(self, head: bytes, payload: bytes, qos: int) -> None:
        """Send a message; `head` is the topic as `string(topic)`."""
        assert self._transport is not None
        if qos:
            self._packet_id = self._packet_id % 65_535 + 1
            self._transport.write(packet(0x32, head + self._packet_id.to_bytes(2) + payload))
        else:
            self._transport.write(packet(0x30, head + payload))

    def close(self) -> None:
        """Say goodbye."""
        if self._transport is not None:
            self._transport.write(b"\xe0\x00")
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take packets apart."""
        self._buffer += data
        start = 0
        while (found := _packet_at(self._buffer, start)) is not None:
            body_at, end = found
            self._take(self._buffer[start], bytes(self._buffer[body_at:end]))
            start = end
        del self._buffer[:start]

    def _take(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == 3:
            topic_end = 2 + int.from_bytes(body[:2])
            start = topic_end
            if first & 6:
                start += 2
                assert self._transport is not None
                self._transport.write(b"\x40\x02" + body[topic_end:start])
            self._on_message(self, body[2:topic_end], body[start:])
        elif kind in self._answers:
            self._answers.pop(kind).set_result(body)

    async def _ask(self, kind: int, data: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[kind] = future
        assert self._transport is not None
        self._transport.write(data)
        return await future


def _packet_at(buffer: bytearray, start: int) -> tuple[int, int] | None:
    """Return where the body of the packet at `start` begins and ends, or None while it is not whole."""
    size, shift, at = 0, 0, start + 1
    while at < len(buffer):
        byte = buffer[at]
        at += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return (at, at + size) if at + size <= len(buffer) else None
    return None
