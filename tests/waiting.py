"""Waiting in tests: for a condition, with a deadline, never for a length of time.

It is the one place in tests/ that sleeps (tests/test_tidy.py holds that), between two looks at the condition.
"""

import time
from collections.abc import Callable
from typing import Final, TypeVar

DEADLINE_S: Final = 180.0  # generous: it is only ever reached by a failure, and machines are noisy
LOOK_FIRST_S: Final = 0.02  # to the second look
LOOKS_A_WAIT: Final = 20  # each later pause is such a part of the wait: a look costs what is waited for
LOOK_LAST_S: Final = 2.0
STOOD_STILL_S: Final = 0.5  # what lies further beyond a pause counts nothing: the machine stood still

Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """Look at `condition` until what it returns is true, and return that.

    Raises:
        AssertionError: the deadline passed; the message says `what` was waited for, and what was seen last.
    """
    waited_s, looked_at = 0.0, time.monotonic()
    while not (seen := condition()):
        if waited_s > deadline_s:
            raise AssertionError(f"waited {deadline_s} s for {what}; last seen: {seen!r}")
        pause_s = min(LOOK_LAST_S, max(LOOK_FIRST_S, waited_s / LOOKS_A_WAIT))
        time.sleep(pause_s)
        now = time.monotonic()
        waited_s += min(now - looked_at, pause_s + STOOD_STILL_S)
        looked_at = now
    return seen
