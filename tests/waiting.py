"""Waiting in tests: for a condition, with a deadline, never for a length of time.

It is the one place in tests/ that sleeps (tests/test_tidy.py holds that), between two looks at the condition.
"""

import time
from collections.abc import Callable
from typing import Final, TypeVar

DEADLINE_S: Final = 90.0  # generous: it is only ever reached by a failure, and machines are noisy
LOOK_EVERY_S: Final = 0.02

Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """Look at `condition` until what it returns is true, and return that.

    Raises:
        AssertionError: the deadline passed; the message says `what` was waited for, and what was seen last.
    """
    ends = time.monotonic() + deadline_s
    while not (seen := condition()):
        if time.monotonic() > ends:
            raise AssertionError(f"waited {deadline_s} s for {what}; last seen: {seen!r}")
        time.sleep(LOOK_EVERY_S)
    return seen
