"""The network of the virtual world: broker and links in memory, with latency, and with faults while they are on.

It carries bytes, and knows nothing of what they say. It keeps what MQTT promises and no more: a message to a device
without a connection is lost, and a lost connection fires the will of that connection. Every draw comes from one seed,
and every message goes into the trace.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from protocol.messages import Gone, write
from protocol.topics import EVERYONE, Kind
from simulator.core.chance import SeededChance
from simulator.ports import Clock

WILL_MS: Final = 1_500  # until a broker notices that a connection is dead
CONNECT_MS: Final = 40  # TCP, CONNECT, SUBSCRIBE
AGAIN_MS: Final = 3_000  # the most that a device waits before it connects again


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the network treats messages now: shares lie in [0, 1], times are milliseconds."""

    latency_ms: float = 20.0
    spread: float = 0.5
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0  # the share of messages that are held up, so that later ones overtake them
    late_ms: float = 3_000.0
    drop_connection: float = 0.0  # with each message of a device


QUIET: Final = Conditions()

UpHandler = Callable[[str, Kind, bytes], None]


class Network:
    """Connects devices with the cloud. `to_cloud(device, kind, payload)` is set by the world."""

    def __init__(self, clock: Clock, seed: int, conditions: Conditions = QUIET) -> None:
        self.conditions = conditions
        self.to_cloud: UpHandler = lambda *_: None
        self._clock = clock
        self._chance = SeededChance(seed, "network")
        self._links: dict[str, Link] = {}
        self._trace = blake2b(digest_size=16)
        self.messages = 0
        self.lost = 0
        self.duplicated = 0
        self.watch: Callable[[str, str, Kind, bytes], None] | None = None  # direction, device, kind, payload

    @property
    def trace(self) -> str:
        """A digest over every message so far: time, way, device, kind and bytes, delivered or not."""
        return self._trace.hexdigest()

    def link(self, device: str) -> "Link":
        """Return the one link of a device."""
        if device not in self._links:
            self._links[device] = Link(self, device)
        return self._links[device]

    def down(self, device: str, kind: Kind, payload: bytes) -> None:
        """Carry a message from the cloud to a device, or to all that are connected."""
        for link in list(self._links.values()) if device == EVERYONE else [self.link(device)]:
            connection = link.connection
            self.carry("down", link.device, kind, payload, _Arrival(link, connection, kind, payload))

    def carry(self, way: str, device: str, kind: Kind, payload: bytes, arrive: Callable[[], None]) -> None:
        """Let a message arrive later: once, twice, or never."""
        self.messages += 1
        self._trace.update(f"{self._clock.now_ms()}\x00{way}\x00{device}\x00{kind}\x00".encode() + payload)
        if self.watch is not None:
            self.watch(way, device, kind, payload)
        now = self.conditions
        if self._draw(now.loss):
            self.lost += 1
            return
        self._clock.call_later(self._delay(now), arrive)
        if self._draw(now.duplicate):
            self.duplicated += 1
            self._clock.call_later(self._delay(now), arrive)

    def later(self, most_ms: float, action: Callable[[], None]) -> None:
        """Act after a random part of a time."""
        self._clock.call_later(1 + round(self._chance.uniform() * most_ms), action)

    def token(self) -> str:
        """Return a connection's nonce."""
        return self._chance.token()

    def drops(self) -> bool:
        """Return whether a connection breaks now."""
        return self._draw(self.conditions.drop_connection)

    def _draw(self, share: float) -> bool:
        return share > 0 and self._chance.uniform() < share

    def _delay(self, now: Conditions) -> int:
        delay_ms = self._chance.spread_ms(now.latency_ms, now.spread)
        return 1 + delay_ms + (round(self._chance.uniform() * now.late_ms) if self._draw(now.late) else 0)


class Link:
    """One device's connection, and the port `Transport`: it connects again by itself while it is wanted."""

    def __init__(self, network: Network, device: str) -> None:
        self.device = device
        self.connection: str | None = None
        self.on_up: Callable[[str], None] = lambda _: None
        self.on_down: Callable[[], None] = lambda: None
        self.on_message: Callable[[Kind, bytes], None] = lambda *_: None
        self._network = network
        self._wanted = False

    def open(self) -> None:
        """Connect, and stay connected."""
        self._wanted = True
        self._network.later(CONNECT_MS, self._connect)

    def cut(self) -> None:
        """Break the connection, as a power loss does, and stay away until `open`."""
        self._wanted = False
        self._end()

    def drop(self) -> None:
        """Break the connection; it comes back by itself."""
        if self.connection is not None:
            self._end()
            self.on_down()
            self._network.later(AGAIN_MS, self._connect)

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Send a message if there is a connection."""
        if self.connection is None:
            return
        network = self._network
        network.carry("up", self.device, kind, payload, lambda: network.to_cloud(self.device, kind, payload))
        if network.drops():
            network.later(1, self.drop)

    def _connect(self) -> None:
        if self._wanted and self.connection is None:
            self.connection = self._network.token()
            self.on_up(self.connection)

    def _end(self) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        network = self._network
        will = write(Gone(device=self.device, connection=connection))
        say = lambda: network.carry(  # noqa: E731 - the broker's word, when it has noticed
            "up", self.device, Kind.GONE, will, lambda: network.to_cloud(self.device, Kind.GONE, will)
        )
        network.later(WILL_MS, say)


class _Arrival:
    """A message on its way down: it reaches the connection it was sent to, or nobody."""

    __slots__ = ("_connection", "_kind", "_link", "_payload")

    def __init__(self, link: Link, connection: str | None, kind: Kind, payload: bytes) -> None:
        self._link, self._connection, self._kind, self._payload = link, connection, kind, payload

    def __call__(self) -> None:
        if self._connection is not None and self._link.connection == self._connection:
            self._link.on_message(self._kind, self._payload)
