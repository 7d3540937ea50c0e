"""Which record is on the disk, and when one that was refused is tried again.

It writes nothing (`adapters/` do). It keeps the rule that Save stands before the acts that depend on it, and remembers
those acts, so that a refused Save can be answered (`device.py`).
"""

from agent.core.model import Chance, Effect, Publish, Record, Save
from agent.core.settings import SAVE_WAIT_FIRST_MS, SAVE_WAIT_MOST_MS, backoff
from protocol.lifecycle import WorkflowState


class Saves:
    """The saves of one device, one after another."""

    __slots__ = ("_attempt", "_chance", "_durable", "_tries", "due", "withheld")

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._durable: Record | None = None  # what is surely on the disk
        self._attempt: Record | None = None  # what the newest Save tried to write
        self._tries = 0
        self.due: int | None = None  # when a refused record is tried again
        self.withheld: list[Effect] = []  # what stood behind the newest Save

    @property
    def durable_state(self) -> WorkflowState:
        """The state of the work that a power loss would leave on the disk."""
        return self._durable.workflow.state if self._durable is not None else WorkflowState.IDLE

    def begin(self, record: Record | None) -> None:
        """This is what the disk held at the start."""
        self._durable = record

    def succeeded(self) -> None:
        """Another event came: the newest Save, if there was one, was not refused."""
        if self._attempt is not None:
            self._durable, self._attempt, self._tries, self.due = self._attempt, None, 0, None

    def refused(self, now_ms: int) -> list[Effect]:
        """Plan the next try, and return what stood behind the refused Save."""
        self._attempt = None
        self._tries += 1
        delay_ms = backoff(self._tries, SAVE_WAIT_FIRST_MS, SAVE_WAIT_MOST_MS, self._chance.uniform())
        self.due = now_ms + delay_ms
        withheld, self.withheld = self.withheld, []
        return withheld

    def before(self, record: Record, acts: list[Effect], now_ms: int) -> list[Effect]:
        """Return the acts behind a Save, if there is something to save.

        While a disk refuses, reports alone are no reason to ask it again before its time: they go out from memory.
        """
        refuses = self.due is not None and self.due > now_ms
        if record is self._durable or (refuses and all(isinstance(act, Publish) for act in acts)):
            return acts
        self._attempt, self.due, self.withheld = record, None, acts
        return [Save(record), *acts]
