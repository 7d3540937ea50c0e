"""The core's port `Chance`, from the system's random source."""

import random
import secrets


class SystemChance:
    """Numbers and tokens that nobody can guess."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def uniform(self) -> float:
        """Return a number from 0 up to, not including, 1."""
        return self._random.random()

    def token(self) -> str:
        """Return 22 characters that nobody can guess."""
        return secrets.token_urlsafe(16)
