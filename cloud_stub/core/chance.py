"""Where the cloud's rules get their randomness from; they have none of their own."""

from typing import Protocol


class Chance(Protocol):
    """A source of randomness."""

    def uniform(self) -> float:
        """Return a number from 0 up to, not including, 1."""

    def token(self) -> str:
        """Return 22 characters that nobody can guess."""
