"""Virtual time: a heap of (time, order, action). Nothing sleeps, and nothing happens at once.

It keeps the rule that makes a run repeatable: what falls on the same millisecond happens in the order it was asked for.
"""

import heapq
from collections.abc import Callable
from typing import Final

STEPS_MAX: Final = 50_000_000  # actions of one run: more is a loop that never rests


class VirtualTimer:
    """The port `Timer`."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Let it not happen."""
        self.action = None


class VirtualClock:
    """The port `Clock` on a heap."""

    def __init__(self) -> None:
        self._now_ms = 0
        self._order = 0
        self._heap: list[tuple[int, int, VirtualTimer]] = []
        self.steps = 0

    def now_ms(self) -> int:
        """Return the time since the start of the run, in milliseconds."""
        return self._now_ms

    def call_later(self, delay_ms: int, action: Callable[[], None]) -> VirtualTimer:
        """Call `action` after so many milliseconds."""
        timer = VirtualTimer(action)
        self._order += 1
        heapq.heappush(self._heap, (self._now_ms + max(0, delay_ms), self._order, timer))
        return timer

    def run_until(self, end_ms: int) -> None:
        """Do everything that is due until `end_ms`, and stand there."""
        while self._heap and self._heap[0][0] <= end_ms:
            self._step()
        self._now_ms = max(self._now_ms, end_ms)

    def run_while(self, going: Callable[[], bool], end_ms: int) -> bool:
        """Go on while `going()` says so, asked after every action; return False when `end_ms` came first."""
        while going():
            if not self._heap or self._heap[0][0] > end_ms:
                return False
            self._step()
        return True

    def _step(self) -> None:
        at_ms, _, timer = heapq.heappop(self._heap)
        action, timer.action = timer.action, None
        self._now_ms = max(self._now_ms, at_ms)
        if action is None:
            return
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise RuntimeError(f"the run did more than {STEPS_MAX} steps without coming to its end")
        action()
