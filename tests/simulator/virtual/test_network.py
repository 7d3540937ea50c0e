"""The network in memory: what it carries, what it loses, and the wills that it fires."""

from collections.abc import Iterator

from protocol.messages import Gone, read
from protocol.topics import EVERYONE, Kind
from simulator.virtual.clock import VirtualClock
from simulator.virtual.network import Conditions, Link, Network


class Place:
    """A network with one device on it."""

    def __init__(self, conditions: Conditions | None = None, seed: int = 1) -> None:
        self.clock = VirtualClock()
        self.network = Network(self.clock, seed, conditions or Conditions())
        self.up: list[tuple[str, Kind, bytes]] = []
        self.down: list[bytes] = []
        self.nonces: list[str] = []
        self.network.to_cloud = lambda *words: self.up.append(words)
        self.link: Link = self.network.link("dev-1")
        self.link.on_up = self.nonces.append
        self.link.on_message = lambda _, payload: self.down.append(payload)
        self.link.open()
        self.run(1_000)

    def run(self, milliseconds: int) -> None:
        """Let time pass."""
        self.clock.run_until(self.clock.now_ms() + milliseconds)

    def say(self, count: int) -> Iterator[None]:
        """Let the device say so many messages, one in 100 ms."""
        for number in range(count):
            self.link.publish(Kind.STATE, str(number).encode())
            self.run(100)
            yield


def test_messages_arrive_both_ways_and_everybodys_reach_all() -> None:
    """A quiet network loses nothing."""
    place = Place()
    list(place.say(3))
    place.network.down("dev-1", Kind.ACK, b"ack")
    place.network.down(EVERYONE, Kind.SYNC, b"sync")
    place.run(1_000)
    assert [payload for _, _, payload in place.up] == [b"0", b"1", b"2"]
    assert sorted(place.down) == [b"ack", b"sync"]


def test_R9_a_broken_connection_fires_its_will_and_the_next_has_another_nonce() -> None:
    """The will bears the nonce of the connection that broke."""
    place = Place()
    place.link.drop()
    place.run(10_000)
    wills = [read(Gone, payload).connection for _, kind, payload in place.up if kind is Kind.GONE]
    assert wills == place.nonces[:1]
    assert len(set(place.nonces)) == 2


def test_what_is_sent_to_a_connection_that_ended_reaches_nobody() -> None:
    """Nothing is retained, and no session is kept."""
    place = Place()
    place.network.down("dev-1", Kind.DESIRED, b"order")
    place.link.drop()
    place.run(10_000)
    assert place.down == []


def test_loss_duplicates_and_lateness_are_about_their_shares() -> None:
    """Each fault acts, and the counters tell how often."""
    place = Place(Conditions(loss=0.2, duplicate=0.2, late=0.2))
    list(place.say(500))
    place.run(10_000)
    numbers = [int(payload) for _, _, payload in place.up]
    assert 60 < place.network.lost < 140
    assert 50 < len(numbers) - len(set(numbers)) < 120
    assert numbers != sorted(numbers)


def test_the_trace_is_the_same_for_the_same_seed_only() -> None:
    """It covers time, way, device, kind and bytes."""
    traces = []
    for seed in (1, 1, 2):
        place = Place(Conditions(loss=0.2, late=0.2, drop_connection=0.1), seed)
        list(place.say(50))
        place.run(10_000)
        traces.append(place.network.trace)
    assert traces[0] == traces[1] != traces[2]
