"""A timer wheel: visits every connection once in a turn, a few at a time, for keepalives and stuck handshakes.

One timer for each connection would cost more than the connections; it keeps no promise sharper than its turn.
"""

import asyncio
from typing import Final, Protocol

TURN_S: Final = 4.0  # every connection is visited once in this time: well within any keepalive
BUCKETS: Final = 32


class Visited(Protocol):
    """What the wheel visits."""

    def look_after(self) -> None:
        """Do what time asks for."""


class Wheel:
    """Visits what was added, until it is removed; runs on the loop of the thread that started it."""

    def __init__(self, turn_s: float = TURN_S) -> None:
        self._visit_s = turn_s / BUCKETS
        self._buckets: list[set[Visited]] = [set() for _ in range(BUCKETS)]
        self._place: dict[Visited, int] = {}
        self._next_place = 0
        self._next_visit = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to turn."""
        self._timer = loop.call_later(self._visit_s, self._visit, loop)

    def stop(self) -> None:
        """Stop turning."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, what: Visited) -> None:
        """Visit it from now on."""
        if what not in self._place:
            self._place[what] = self._next_place
            self._buckets[self._next_place].add(what)
            self._next_place = (self._next_place + 1) % BUCKETS

    def remove(self, what: Visited) -> None:
        """Visit it no more."""
        place = self._place.pop(what, None)
        if place is not None:
            self._buckets[place].discard(what)

    def _visit(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._visit_s, self._visit, loop)
        for what in tuple(self._buckets[self._next_visit]):
            what.look_after()
        self._next_visit = (self._next_visit + 1) % BUCKETS
