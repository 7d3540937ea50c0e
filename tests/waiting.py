"""Waiting in tests: for a condition, with a deadline, never for a length of time.

It is the one place in tests/ that sleeps (tests/test_tidy.py holds that), between two looks at the condition.
"""

import time
from collections.abc import Callable
from typing import Final, TypeVar

DEADLINE_S: Final = 180.0  # generous: it is only ever reached by a failure, and machines are noisy
LOOK_FIRST_S: Final = 0.02  # to the second look; every pause is longer than the one before it
LOOK_LAST_S: Final = 0.3  # what is waited for needs the processor, and a look may cost as much as the work
LOOKS_LEAST: Final = 50  # a machine that stood still meanwhile has given nobody a chance

Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """Look at `condition` until what it returns is true, and return that.

    Raises:
        AssertionError: the deadline passed; the message says `what` was waited for, and what was seen last.
    """
    ends, looks, pause_s = time.monotonic() + deadline_s, 0, LOOK_FIRST_S
    while not (seen := condition()):
        looks += 1
        if time.monotonic() > ends and looks > LOOKS_LEAST:
            raise AssertionError(f"waited {deadline_s} s for {what}; last seen: {seen!r}")
        time.sleep(pause_s)
        pause_s = min(LOOK_LAST_S, pause_s * 1.2)
    return seen
