"""One virtual device's connection to the broker: paho without threads, on a shared asyncio loop.

It does not know what messages mean. It keeps DESIGN.md section 4: MQTT 5, and 3.1.1 where the broker refuses it;
nothing retained and no session; a device hears `connected` only after the broker granted every subscription; the last
will bears the connection's nonce (R9); reconnects with full jitter. How paho is driven: one loop, no threads.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from protocol.errors import OperatorError
from protocol.messages import Gone, write
from protocol.strict_json import MESSAGE_BYTES_MAX
from protocol.topics import EVERYONE, RULES, Kind, Topics
from simulator.core.chance import SeededChance
from simulator.live.wheel import Wheel

KEEPALIVE_S: Final = 60
TCP_TIMEOUT_S: Final = 10.0
HANDSHAKE_S: Final = 15.0  # from TCP to the granted subscriptions; beyond it the connection is dropped
OPENING_MAX: Final = 256  # TCP connections being opened at once: below every broker's backlog
WAIT_FIRST_S: Final = 1.0  # DESIGN.md section 4: exponential with full jitter, 1 to 120 s
WAIT_MOST_S: Final = 120.0
SPREAD_S: Final = 2.0  # of the first try after a loss, until the cloud tells
QUEUED_MAX: Final = 64  # messages waiting in one paho client; what must not be lost is sent again by the core
UNSUPPORTED_VERSION: Final = 132  # the reason code of both versions, as paho gives it
SOURCES: Final = tuple(f"127.0.1.{last}" for last in range(1, 9))  # one source address has about 28,000 ports


@dataclass(slots=True)
class Hub:
    """What all connections of a process share; `settled` is set once the broker has answered in a known version."""

    loop: asyncio.AbstractEventLoop
    wheel: Wheel = field(default_factory=Wheel)
    version: int = paho.MQTTv5
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    opening: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(OPENING_MAX))
    scout: "Connection | None" = None  # the one that finds out the version, while the others wait
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    connects: int = 0  # since the start
    refusals: int = 0  # connections that never got as far as their subscriptions
    messages_in: int = 0
    messages_out: int = 0
    payload_bytes: int = 0  # of all these messages
    said: str = ""  # why the newest refused connection was refused

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine, and keep it from being collected."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@dataclass(frozen=True, slots=True)
class Login:
    """Where a broker is, and who the device is there: the device id is client id and user name at once."""

    host: str
    port: int
    device: str
    token: str
    topics: Topics
    source: str | None = None  # the address to connect from


class Ends(Exception):
    """The connection was closed while it was being opened."""


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of a broker's address.

    Raises:
        OperatorError: it is none, or asks for TLS, which a simulated fleet does not speak (a storm of 100,000
            handshakes costs 105 CPU-seconds).
    """
    try:
        parts = urlsplit(url)
        port = 1883 if parts.port is None else parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme == "mqtts":
        raise OperatorError(
            f"The broker {url} asks for TLS; a simulated fleet connects with tokens over mqtt:// only."
        )
    if parts.scheme != "mqtt" or not parts.hostname or not port:
        raise OperatorError(f"{url!r} is not a broker's address: it is written mqtt://HOST:PORT.")
    return parts.hostname, port


def source_for(host: str, index: int, total: int, ports_each: int = 20_000) -> str | None:
    """Return the loopback address that device number `index` connects from, when one has too few ports for all."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if total <= ports_each or not loopback:
        return None
    return SOURCES[index % len(SOURCES)]


class Connection:
    """Stays connected from `open` until `close`. All of it runs on the hub's loop.

    `on_up(nonce)`, `on_down()` and `on_message(kind, payload)` are called on the loop; `spread_ms()` is asked after a
    loss.
    """

    __slots__ = (
        "_chance",
        "_client",
        "_closed",
        "_failures",
        "_granted",
        "_hub",
        "_kinds",
        "_last_word",
        "_login",
        "_mid",
        "_nonce",
        "_sock",
        "_spread_ms",
        "_timer",
        "_up_topics",
        "_version",
        "_wanted_by",
        "on_down",
        "on_message",
        "on_up",
    )

    def __init__(
        self, hub: Hub, login: Login, chance: SeededChance, spread_ms: Callable[[], int | None]
    ) -> None:
        self.on_up: Callable[[str], None] = _ignore
        self.on_down: Callable[[], None] = _ignore
        self.on_message: Callable[[Kind, bytes], None] = _ignore
        self._hub = hub
        self._login = login
        self._chance = chance
        self._spread_ms = spread_ms
        topics = login.topics
        self._kinds = {
            topics.build(kind, EVERYONE if kind is Kind.SYNC else login.device): kind
            for kind in (Kind.DESIRED, Kind.ACK, Kind.SYNC)
        }
        self._up_topics: dict[Kind, tuple[str, int]] = {
            kind: (topics.build(kind, login.device), RULES[kind].qos)
            for kind in (Kind.HELLO, Kind.STATE, Kind.PROGRESS, Kind.GONE)
        }
        self._client: _Client | None = None
        self._sock: socket.socket | None = None
        self._nonce = ""
        self._version: int = paho.MQTTv5
        self._mid: int | None = None
        self._granted = False
        self._failures = 0
        self._wanted_by: float | None = None  # when the handshake must be over, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Event | None = None
        self._last_word: int | None = None  # the number of the message that says that we go

    @property
    def is_up(self) -> bool:
        """Whether the subscriptions are granted."""
        return self._granted

    def open(self) -> None:
        """Connect, and stay connected."""
        self._hub.wheel.add(self)
        self._hub.spawn(self._connect())

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Send a message if there is a connection; without one it is dropped."""
        self._send(kind, payload)

    def _send(self, kind: Kind, payload: bytes) -> int | None:
        if self._client is None or not self._granted:
            return None
        topic, qos = self._up_topics[kind]
        self._hub.messages_out += 1
        self._hub.payload_bytes += len(payload)
        return self._client.publish(topic, payload, qos).mid

    async def close(self) -> None:
        """Say that we go, send DISCONNECT when the broker has heard it, and wait for the end: no will is then sent.

        An acknowledgement that meets a closed socket would end the connection as a loss does, and fire the will.
        """
        self._closed = asyncio.Event()
        self._leave_scouting()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        client = self._client
        if client is None:
            self._closed.set()
        else:
            gone = Gone(device=self._login.device, connection=self._nonce)
            self._last_word = self._send(Kind.GONE, write(gone))
            if self._last_word is None:
                client.disconnect()
        await self._closed.wait()
        self._hub.wheel.remove(self)

    def drop(self) -> None:
        """Break the connection without a word, as a lost network would; the broker sends the will."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break the connection and stay away, until `open`."""
        self._leave_scouting()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        client, self._client = self._client, None
        self._granted = False
        self._hub.wheel.remove(self)
        if client is not None:
            _forget(client)

    def look_after(self) -> None:
        """Send a keepalive when it is time, and give up a handshake that hangs."""
        client = self._client
        if client is None:
            return
        if self._wanted_by is not None and self._hub.loop.time() > self._wanted_by:
            self._hub.said = f"the broker did not answer within {HANDSHAKE_S:g} s"
            self.drop()
            return
        client.loop_misc()

    def _leave_scouting(self) -> None:
        """Let the others find out the version, when this one goes before it has."""
        if self._hub.scout is self:
            self._hub.settled.set()

    # --- connecting --------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        hub = self._hub
        if not hub.settled.is_set():
            if hub.scout is None:
                hub.scout = self
            if hub.scout is not self:
                await hub.settled.wait()
        try:
            async with hub.opening:
                await self._open_socket()
        except Ends:
            return
        except OSError as error:
            hub.refusals += 1
            hub.said = f"the broker cannot be reached ({error.strerror or repr(error)})"
            self._again()

    async def _open_socket(self) -> None:
        if self._closed is not None:
            raise Ends
        login = self._login
        family = socket.AF_INET6 if ":" in login.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if login.source is not None:
                sock.bind((login.source, 0))
            async with asyncio.timeout(TCP_TIMEOUT_S):
                await self._hub.loop.sock_connect(sock, (login.host, login.port))
            if self._closed is not None:
                raise Ends
            self._begin(sock)
        except BaseException:
            sock.close()
            raise

    def _begin(self, sock: socket.socket) -> None:
        """Hand an open socket to a new paho client, which sends CONNECT."""
        self._nonce = self._chance.token()
        self._version = self._hub.version
        self._sock = sock
        client = _Client(sock, self._login.device, self._version)
        client.username_pw_set(self._login.device, self._login.token)
        topic, qos = self._up_topics[Kind.GONE]
        client.will_set(topic, write(Gone(device=self._login.device, connection=self._nonce)), qos)
        client.max_queued_messages_set(QUEUED_MAX)
        client.on_socket_open = self._socket_opened
        client.on_socket_close = self._socket_closed
        client.on_socket_register_write = self._wants_to_write
        client.on_socket_unregister_write = self._has_written
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        self._client = client
        self._wanted_by = self._hub.loop.time() + HANDSHAKE_S
        clean: dict[str, Any] = {"clean_start": True} if self._version == paho.MQTTv5 else {}
        client.connect_async(self._login.host, self._login.port, KEEPALIVE_S, **clean)
        client.reconnect()

    def _again(self) -> None:
        """Connect again later: after a loss within the time that the cloud told, then ever more seldom."""
        if self._closed is not None:
            self._closed.set()
            return
        if self._failures == 0:
            told = self._spread_ms()
            wait_s = self._chance.uniform() * (SPREAD_S if told is None else told / 1_000)
        else:
            most_s = min(WAIT_MOST_S, WAIT_FIRST_S * 2 ** min(self._failures, 10))
            wait_s = WAIT_FIRST_S + self._chance.uniform() * (most_s - WAIT_FIRST_S)
        self._failures += 1
        self._timer = self._hub.loop.call_later(wait_s, self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._hub.spawn(self._connect())

    # --- paho's callbacks --------------------------------------------------------------------------------------

    def _socket_opened(self, client: paho.Client, _: Any, sock: Any) -> None:
        self._hub.loop.add_reader(sock, client.loop_read)

    def _socket_closed(self, _client: paho.Client, _: Any, sock: Any) -> None:
        self._hub.loop.remove_reader(sock)
        self._sock = None

    def _wants_to_write(self, client: paho.Client, _: Any, sock: Any) -> None:
        self._hub.loop.call_soon(self._write, client, sock)

    def _write(self, client: paho.Client, sock: socket.socket) -> None:
        if sock.fileno() == -1:
            return
        client.loop_write()
        if client.want_write() and sock.fileno() != -1:
            self._hub.loop.add_writer(sock, self._write, client, sock)

    def _has_written(self, _client: paho.Client, _: Any, sock: Any) -> None:
        self._hub.loop.remove_writer(sock)

    def _on_connect(
        self, client: paho.Client, _: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        hub = self._hub
        if code.is_failure:
            hub.said = f"the broker refused {self._login.device} ({code})"
            if code.value == UNSUPPORTED_VERSION:
                self._other_version()
            elif not hub.settled.is_set():
                hub.settled.set()  # it answered: the version is right, and the login is not
            return  # the broker closes, and `_on_disconnect` goes on
        hub.settled.set()
        wanted: Any = list(self._kinds)
        if self._version == paho.MQTTv5:
            wanted = [(topic, SubscribeOptions(qos=1)) for topic in wanted]
        else:
            wanted = [(topic, 1) for topic in wanted]
        self._mid = client.subscribe(wanted)[1]

    def _on_subscribe(
        self, client: paho.Client, _: Any, mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        if mid != self._mid:
            return
        if any(code.is_failure for code in codes):
            self._hub.said = f"the broker refused the subscriptions of {self._login.device}"
            client.disconnect()
            return
        self._granted = True
        self._failures = 0
        self._wanted_by = None
        self._hub.connects += 1
        self.on_up(self._nonce)

    def _on_publish(self, client: paho.Client, _: Any, mid: int, *_more: Any) -> None:
        if mid == self._last_word:
            client.disconnect()

    def _on_message(self, _client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        kind = self._kinds.get(message.topic)
        if kind is not None and len(message.payload) <= MESSAGE_BYTES_MAX:
            self._hub.messages_in += 1
            self._hub.payload_bytes += len(message.payload)
            self.on_message(kind, bytes(message.payload))

    def _on_disconnect(self, client: paho.Client, *_: Any) -> None:
        if client is not self._client:
            return
        self._client = None
        self._wanted_by = None
        was_up, self._granted = self._granted, False
        if was_up:
            self.on_down()
        elif self._version != self._hub.version and self._failures == 0:
            self._failures = 1
            self._retry()  # the broker is there, and only speaks the other version
            return
        else:
            self._hub.refusals += 1
            if not self._hub.settled.is_set():
                self._other_version()  # it hung up without an answer: so do brokers that do not know MQTT 5
        self._again()

    def _other_version(self) -> None:
        self._hub.version = paho.MQTTv311 if self._version == paho.MQTTv5 else paho.MQTTv5


class _Client(paho.Client):
    """A paho client that takes a socket which is connected already: paho's own `connect` would stop all devices."""

    def __init__(self, sock: socket.socket, device: str, version: int) -> None:
        self._given = sock
        clean: dict[str, Any] = {} if version == paho.MQTTv5 else {"clean_session": True}
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=device,
            protocol=MQTTProtocolVersion(version),
            reconnect_on_failure=False,
            **clean,
        )

    def _create_socket_connection(self) -> socket.socket:
        return self._given


def _forget(client: paho.Client) -> None:
    """Close a client's socket without a word."""
    client.on_disconnect = None
    sock = client.socket()
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
    client.loop_read()


def _ignore(*_: object) -> None:
    return None


async def within(seconds: float, works: list[Awaitable[None]]) -> int:
    """Wait for all works for so long, and return how many were not done."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return 0
    _, pending = await asyncio.wait(tasks, timeout=seconds)
    for task in pending:
        task.cancel()
    return len(pending)
