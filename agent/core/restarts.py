"""When a committed application that ended by itself is started again.

It starts nothing. A trial's starts are counted and belong to the agent's table (`trying.py`); these are not.
"""

from agent.core.model import Chance
from agent.core.settings import RESTART_CALM_MS, RESTART_WAIT_FIRST_MS, RESTART_WAIT_MOST_MS, backoff


class Restarts:
    """The restarts of one application, with a back-off that a calm time ends."""

    __slots__ = ("_chance", "_count", "_last_ms", "due")

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._count = 0
        self._last_ms: int | None = None
        self.due: int | None = None

    def plan(self, now_ms: int) -> None:
        """The application ended, or could not be started."""
        if self._last_ms is None or now_ms - self._last_ms >= RESTART_CALM_MS:
            self._count = 0
        self._count += 1
        delay_ms = backoff(self._count, RESTART_WAIT_FIRST_MS, RESTART_WAIT_MOST_MS, self._chance.uniform())
        self.due = now_ms + delay_ms

    def is_due(self, now_ms: int) -> bool:
        """Return whether it is to be started now."""
        return self.due is not None and self.due <= now_ms

    def postpone(self, now_ms: int) -> None:
        """Soon it is known which slot is to run: look again then."""
        self.due = now_ms + RESTART_WAIT_FIRST_MS

    def done(self, now_ms: int) -> None:
        """It was started, or something else starts it."""
        self.due, self._last_ms = None, now_ms
