"""The small parts of the live world: addresses, the timer wheel, and how a fleet is shown."""

import asyncio
import io
import signal
from typing import ClassVar

import pytest
from rich.console import Console

from protocol.errors import OperatorError
from simulator.core.facts import DeviceSight
from simulator.live.connection import SOURCES, address_of, source_for
from simulator.live.show import Display, lines_of, summary
from simulator.live.wheel import Wheel
from simulator.signals import ENDING_SIGNALS, uninterrupted

SIGHTS = {
    "k-1": DeviceSight("kitchen", "acme/app:1.0", True, True),
    "k-2": DeviceSight("kitchen", None, False, True, "downloading"),
    "g-1": DeviceSight("garage", "acme/app:1.0", True, True),
}


def test_a_brokers_address_is_read_and_anything_else_refused() -> None:
    """TLS is refused with its reason, since a fleet's handshakes would be all that is measured."""
    assert address_of("mqtt://127.0.0.1:2883") == ("127.0.0.1", 2883)
    assert address_of("mqtt://broker.example") == ("broker.example", 1883)
    for url, said in (
        ("mqtts://h:1", "TLS"),
        ("http://h:1", "mqtt://"),
        ("mqtt://h:notaport", "mqtt://"),
        ("mqtt://h:0", "mqtt://"),
    ):
        with pytest.raises(OperatorError, match=said):
            address_of(url)


def test_a_large_fleet_on_loopback_connects_from_several_addresses() -> None:
    """One source address has too few ports; a broker elsewhere is left to its own routes."""
    assert source_for("127.0.0.1", 5, 20_000) is None
    assert {source_for("127.0.0.1", index, 20_001) for index in range(100)} == set(SOURCES)
    assert source_for("192.0.2.1", 5, 50_000) is None


def test_the_wheel_visits_everybody_once_in_a_turn() -> None:
    """What was removed is visited no more."""

    class Seen:
        visited: ClassVar[list["Seen"]] = []
        done = asyncio.Event()

        def __init__(self) -> None:
            self.visits = 0

        def look_after(self) -> None:
            self.visits += 1
            if min(each.visits for each in self.visited) == 3:
                self.done.set()

    async def turn() -> list[int]:
        wheel, removed = Wheel(turn_s=0.1), Seen()
        Seen.visited = [Seen() for _ in range(100)]
        for each in (removed, *Seen.visited):
            wheel.add(each)
        wheel.remove(removed)
        wheel.start(asyncio.get_running_loop())
        async with asyncio.timeout(90):
            await Seen.done.wait()
        wheel.stop()
        return [removed.visits, *(each.visits for each in Seen.visited)]

    visits = asyncio.run(turn())
    assert visits[0] == 0
    assert max(visits) - min(visits[1:]) <= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_must_not_be_torn_ends_before_the_signal_is_heard(number: signal.Signals) -> None:
    """A process that is started is noted, too; the handlers are then as they were."""
    handlers = {each: signal.getsignal(each) for each in ENDING_SIGNALS}
    done: list[str] = []

    def start() -> None:
        with uninterrupted():
            done.append("started")
            signal.raise_signal(number)
            done.append("noted")

    signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert done == ["started", "noted"]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, handlers[number])
    assert {each: signal.getsignal(each) for each in ENDING_SIGNALS} == handlers


def test_a_fleet_is_shown_by_group() -> None:
    """Online, what they run, and who is at work."""
    assert lines_of(SIGHTS) == [
        ("garage", 1, 1, "1 acme/app:1.0", "idle"),
        ("kitchen", 2, 1, "1 acme/app:1.0; 1 nothing", "1 downloading"),
    ]
    assert summary(SIGHTS).endswith("kitchen 1/2 online, 1 acme/app:1.0; 1 nothing (1 downloading)")


def test_progress_stays_in_place_on_a_terminal_and_is_a_line_elsewhere() -> None:
    """A table that is drawn over itself, with what is waited for; elsewhere one line when something changed."""
    for terminal in (True, False):
        out = io.StringIO()
        with Display(Console(file=out, width=100, force_terminal=terminal)) as display:
            display.say("3 devices arrive")
            for _ in range(2):
                display.update(SIGHTS, "wait for 2 of kitchen", "connection refused")
        said = out.getvalue()
        assert said.count("3 devices arrive") == 1
        assert "connection refused" in said
        assert ("\x1b[" in said, "waits for: 2 of kitchen" in said) == (terminal, terminal)
        assert terminal or said.count("kitchen 1/2 online") == 1
