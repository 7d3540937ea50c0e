"""Randomness that comes from one seed and from names, so that the same scenario runs the same way twice.

It draws nothing from the machine. Two forms: `fraction` answers a question about named things (the order of asking
does not matter), and `SeededChance` is a stream for one device, the port `Chance` of both cores.
"""

from base64 import urlsafe_b64encode
from hashlib import blake2b
from math import cos, exp, log, pi, sqrt
from typing import Final

_STEPS: Final = 2**53  # doubles below 1 are exact at this resolution
_LEAST: Final = 1 / _STEPS


def fraction(seed: int, *words: str | int) -> float:
    """Return a number from 0 up to, not including, 1 that belongs to these words under this seed."""
    text = "\x00".join((str(seed), *map(str, words)))
    return (int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 11) / _STEPS


def spread_ms(median_ms: float, spread: float, first: float, second: float) -> int:
    """Return a duration in milliseconds around a median, log-normal as real installations are.

    `spread` is the deviation of its logarithm (0: always the median); `first` and `second` lie in [0, 1). What lies
    beyond three deviations is cut off, so that one unlucky device does not decide how long a scenario takes.
    """
    if spread <= 0 or median_ms <= 0:
        return max(0, round(median_ms))
    normal = sqrt(-2 * log(max(first, _LEAST))) * cos(2 * pi * second)
    return round(median_ms * exp(spread * max(-3.0, min(3.0, normal))))


class SeededChance:
    """A stream of randomness for one device or one cloud, the same for the same seed and name."""

    __slots__ = ("_count", "_key")

    def __init__(self, seed: int, name: str) -> None:
        self._key = blake2b(f"{seed}\x00{name}".encode(), digest_size=16).digest()
        self._count = 0

    def uniform(self) -> float:
        """Return the next number from 0 up to, not including, 1."""
        return (int.from_bytes(self._next(8), "big") >> 11) / _STEPS

    def token(self) -> str:
        """Return the next 22 characters."""
        return urlsafe_b64encode(self._next(16)).decode("ascii").rstrip("=")

    def spread_ms(self, median_ms: float, spread: float) -> int:
        """Return the next duration around a median, in milliseconds (see the function of this name)."""
        if spread <= 0:
            return max(0, round(median_ms))
        return spread_ms(median_ms, spread, self.uniform(), self.uniform())

    def _next(self, size: int) -> bytes:
        self._count += 1
        return blake2b(self._count.to_bytes(8, "big"), digest_size=size, key=self._key).digest()
