"""Where messages come from, as the port that a broker's adapter fills.

It is not how it is done (`adapters/`). It keeps the rule that a source never blocks longer than it was asked.
"""

from dataclasses import dataclass
from typing import Protocol

from inspector.core.seen import Arrival


@dataclass(frozen=True, slots=True)
class Notice:
    """What a reader should know of the connection: it was lost, it is back, messages were left out."""

    sentence: str


class Source(Protocol):
    """A stream of messages."""

    def open(self) -> str:
        """Begin, and return one line that says to what and how.

        Raises:
            ServiceError: it cannot be reached, or refuses; the sentence says what to do.
        """
        ...

    def next(self, timeout_s: float) -> Arrival | Notice | None:
        """Return what came next, or None when nothing did within `timeout_s`."""
        ...

    def close(self) -> None:
        """End, quietly; may be called again."""
        ...
