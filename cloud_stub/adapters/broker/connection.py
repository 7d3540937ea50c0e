"""One client's connection to the embedded broker: its packets, its time-outs, its unread output.

It decides nothing about who may do what (`exchange.py` asks `access.py`), and keeps no state beyond the
TCP connection: every session is clean, whatever the client asked for, and CONNACK says so (session present
= 0). Nothing is queued for a client that has gone, and nothing has to be redelivered, since the protocol
trusts no session (DESIGN.md, section 4). The rule kept: all that a client can make grow has a limit
(`limits.py`), and the will goes out whenever the connection ends without a DISCONNECT: on EOF, a time-out,
a breach of the protocol, a takeover, a revoked token.
"""

import asyncio
import enum
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

from cloud_stub.adapters.broker import wire
from cloud_stub.adapters.broker.access import CLOUD, is_service
from cloud_stub.adapters.broker.wire import Codec, ConnectRequest, Malformed, Will

if TYPE_CHECKING:
    from cloud_stub.adapters.broker.exchange import Exchange

_WRITE_CHUNK_BYTES = 262_144  # handed to the transport at once; the rest stays where it is counted
_MESSAGE_OVERHEAD_BYTES = 128  # what a queued message costs beside its bytes


class State(enum.Enum):
    """Where a connection stands."""

    NEW = "nothing believed yet"
    OPEN = "authenticated"
    CLOSING = "told to go, its last output being read"


class Connection(asyncio.Protocol):
    """A client, from accept to the end of its TCP connection."""

    __slots__ = (
        "_acked",
        "_codec",
        "_exchange",
        "_inbox",
        "_inflight",
        "_limits",
        "_next_id",
        "_outbox",
        "_paused",
        "_queue",
        "_transport",
        "_waiting_bytes",
        "client_id",
        "filters",
        "held",
        "keepalive_s",
        "last_heard_s",
        "name",
        "overloaded",
        "progress",
        "since_s",
        "state",
        "will",
    )  # fmt: skip

    def __init__(self, exchange: "Exchange", codec: Codec) -> None:
        self._exchange = exchange
        self._limits = exchange.limits
        self._codec = codec
        self.state = State.NEW
        self.name = ""
        self.client_id = ""
        self.will: Will | None = None
        self.filters: dict[str, int] = {}
        self.keepalive_s = 0
        self.last_heard_s = self.since_s = (
            exchange.now()
        )  # `since`: of the present state, or of the last progress
        self.held = False  # not read from, because the cloud is behind
        self.overloaded = False
        self.progress: tuple[int, int] = (0, 0)
        self._transport: asyncio.Transport | None = None
        self._inbox = bytearray()
        self._outbox: deque[bytes] = deque()  # packets not yet given to the transport
        self._queue: deque[tuple[bytes, bytes, bytes]] = deque()  # QoS 1 messages beyond the in-flight window
        self._waiting_bytes = 0  # of both
        self._paused = False  # the transport has enough
        self._inflight: set[int] = set()
        self._next_id = 0
        self._acked = 0

    # --- what comes in

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client and act on every whole packet."""
        if self.state is State.CLOSING:
            return
        self.last_heard_s = self._exchange.now()
        self._inbox += data
        self._work()

    def _work(self) -> None:
        at = 0
        try:
            while self.state is not State.CLOSING and not self.held:
                new = self.state is State.NEW
                cap = self._limits.connect_bytes_max if new else self._limits.packet_bytes_max
                frame = wire.next_frame(self._inbox, at, cap)
                if new and self._inbox and self._inbox[at] != wire.CONNECT << 4:
                    raise Malformed("first packet is not CONNECT")
                if frame is None:
                    break
                first, start, end = frame
                at = end
                self._packet(first, bytes(memoryview(self._inbox)[start:end]))
        except Malformed as error:
            self.end(str(error))
        del self._inbox[:at]

    def _packet(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if self.state is State.NEW:
            self._connect(body)
        elif kind == wire.PUBLISH:
            self._publish(wire.read_publish(first, body))
        elif first == wire.PUBACK << 4:
            self._acknowledged(wire.packet_id_of(body))
        elif first == wire.PINGREQ << 4 and not body:
            self.send(wire.PINGRESP)
        elif first == wire.SUBSCRIBE << 4 | 2:
            packet_id, wanted = self._codec.subscribe(body)
            self.send(self._codec.suback(packet_id, [self._exchange.subscribe(self, *one) for one in wanted]))
        elif first == wire.UNSUBSCRIBE << 4 | 2:
            packet_id, topics = self._codec.unsubscribe(body)
            for topic in topics:
                self._exchange.unsubscribe(self, topic)
            self.send(self._codec.unsuback(packet_id))
        elif first == wire.DISCONNECT << 4 and not body:
            self.will = None
            self.end("")
        else:
            raise Malformed(f"packet type {kind} with flags {first & 15} is not the client's to send")

    def _connect(self, body: bytes) -> None:
        if body[:6] != b"\x00\x04MQTT" and body[:8] != b"\x00\x06MQIsdp":
            raise Malformed("not MQTT")
        if body[:7] != b"\x00\x04MQTT\x04":
            # MQTT 5 and 3.1: the answer by which a client knows at once to fall back to 3.1.1 [MQTT-3.1.2-2]
            self._refuse(wire.BAD_VERSION, "speaks another version of MQTT")
            return
        request = self._codec.connect(body)
        code, why = self._exchange.judge(request)
        if code != wire.ACCEPTED:
            self._refuse(code, why)
            return
        self._open(request)

    def _open(self, request: ConnectRequest) -> None:
        self.name = request.name or ""
        self.client_id = request.client_id or f"_{id(self):x}"
        self.keepalive_s = request.keepalive_s
        self.will = request.will
        self.state = State.OPEN
        self._exchange.attach(self)
        self.send(self._codec.connack(wire.ACCEPTED))

    def _publish(self, message: wire.Publish) -> None:
        self._exchange.publish_from(self, message.topic, message.payload, message.qos)
        if message.qos and self.state is State.OPEN:
            self.send(wire.puback(message.packet_id))

    # --- what goes out

    def deliver(self, head0: bytes, head1: bytes, named: bytes, payload: bytes, qos: int) -> None:
        """Send a message, or queue it while the in-flight window is full; cuts the client off when it does
        not read."""
        if self.state is not State.OPEN:
            return
        if qos == 0:
            self.send(head0 + named + payload)
        elif len(self._inflight) < self._limits.inflight_max and not self._queue:
            self.send(head1 + named + self._new_packet_id() + payload)
        else:
            self._queue.append((head1, named, payload))
            self._waiting_bytes += len(named) + len(payload) + _MESSAGE_OVERHEAD_BYTES
            self._exchange.watch_backlog(self)

    def send(self, packet: bytes) -> None:
        """Send a packet with all others of this turn of the loop, in one write."""
        if self.state is State.CLOSING:
            return
        if not self._outbox:
            self._exchange.flush_soon(self)
        self._outbox.append(packet)
        self._waiting_bytes += len(packet) + _MESSAGE_OVERHEAD_BYTES
        self._exchange.watch_backlog(self)  # answers that nobody reads count as well as messages

    def flush(self) -> None:
        """Give the transport what it will take."""
        while self._outbox and not self._paused and self._transport is not None:
            chunk: list[bytes] = []
            size = 0
            while self._outbox and size < _WRITE_CHUNK_BYTES:
                chunk.append(self._outbox.popleft())
                size += len(chunk[-1])
            self._waiting_bytes -= size + _MESSAGE_OVERHEAD_BYTES * len(chunk)
            self._transport.write(b"".join(chunk))
        if self.overloaded:
            self._exchange.watch_backlog(self)

    def _acknowledged(self, packet_id: int) -> None:
        self._inflight.discard(packet_id)  # an unknown one is harmless
        self._acked += 1
        while self._queue and len(self._inflight) < self._limits.inflight_max:
            head1, named, payload = self._queue.popleft()
            self._waiting_bytes -= len(named) + len(payload) + _MESSAGE_OVERHEAD_BYTES
            self.send(head1 + named + self._new_packet_id() + payload)
        if self.overloaded:
            self._exchange.watch_backlog(self)

    def _new_packet_id(self) -> bytes:
        while True:
            self._next_id = self._next_id % 65_535 + 1
            if self._next_id not in self._inflight:
                self._inflight.add(self._next_id)
                return self._next_id.to_bytes(2)

    @property
    def waiting_bytes(self) -> int:
        """Output not yet given to the kernel, but for the transport's own small buffer."""
        return self._waiting_bytes

    @property
    def waiting_bytes_max(self) -> int:
        """How much of it this client may let wait."""
        if self.name == CLOUD:
            return self._limits.cloud_bytes_max
        return self._limits.inspect_bytes_max if is_service(self.name) else self._limits.queue_bytes_max

    # --- the end, and time

    def end(self, reason: str) -> None:
        """Close the connection; its will goes out if it was open and has not said DISCONNECT. `reason` ""
        is not logged."""
        if self.state is State.CLOSING:
            return
        was_open, self.state, self.since_s = self.state is State.OPEN, State.CLOSING, self._exchange.now()
        if reason:
            self._exchange.note(f"{self.name or 'a stranger'} cut off: {reason}")
        self._finish()
        if was_open:
            self._exchange.detach(self)

    def _refuse(self, code: int, why: str) -> None:
        self._exchange.note(f"a client was refused: {why}")
        self.send(self._codec.connack(code))
        self.state, self.since_s = State.CLOSING, self._exchange.now()
        self._finish()

    def _finish(self) -> None:
        """Let the client read what was sent: closing a socket with unread input would send RST and drop
        the answer."""
        self.flush()
        self._outbox.clear()
        self._queue.clear()
        self._inflight.clear()
        if self._transport is None or self._transport.is_closing():
            return
        if self.held:
            self.held = False
            self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()

    def tick(self, now_s: float) -> None:
        """Enforce the time-outs: no CONNECT, no keepalive, no end."""
        if self.state is State.CLOSING:
            if now_s - self.since_s > self._limits.linger_s:
                self.abort()
        elif self.state is State.NEW:
            if now_s - self.since_s > self._limits.connect_timeout_s:
                self.end(f"no CONNECT within {self._limits.connect_timeout_s:g} s")
        elif self.overloaded and self._stalled(now_s):
            self.end(f"took nothing for {self._limits.cloud_stall_s:g} s")
        elif self.keepalive_s and not self.held:
            allowed_s = self.keepalive_s * self._limits.keepalive_factor
            if now_s - self.last_heard_s > allowed_s:
                self.end(f"silent for {allowed_s:g} s")

    def _stalled(self, now_s: float) -> bool:
        progress = (self._acked, self._waiting_bytes)
        if progress[0] != self.progress[0] or progress[1] < self.progress[1]:
            self.since_s = now_s
        self.progress = progress
        return now_s - self.since_s > self._limits.cloud_stall_s

    def abort(self) -> None:
        """Close at once, whatever the client has not read yet."""
        if self._transport is not None:
            self._transport.abort()

    def hold(self) -> None:
        """Stop reading from the client until `release`; its TCP window then makes it wait."""
        if self.state is State.OPEN and not self.held and self._transport is not None:
            self.held = True
            self._transport.pause_reading()

    def release(self) -> None:
        """Read again; its silence while it was held is not held against it."""
        if self.held and self.state is State.OPEN and self._transport is not None:
            self.held = False
            self.last_heard_s = self._exchange.now()
            self._transport.resume_reading()
            self._work()

    # --- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio once."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=65_536)
        sock = transport.get_extra_info("socket")
        if sock is not None:  # a client without MQTT keepalive whose host has vanished is found by TCP's
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._exchange.connections.add(self)

    def pause_writing(self) -> None:
        """Called by asyncio when the transport's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Called by asyncio when the transport's buffer has drained."""
        self._paused = False
        self.flush()

    def eof_received(self) -> bool:
        """Called by asyncio when the client has closed its side: False closes ours."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio at the very end, with or without an error."""
        self._transport = None
        self._inbox.clear()
        self._exchange.connections.discard(self)
        if self.state is not State.CLOSING:
            self.end("")
