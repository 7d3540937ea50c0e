"""The named limits of the agent's core, each with its unit and its reason, and which of them can be set.

It reads no file (`configs/` and the CLI do). Durations are milliseconds of this process's monotonic clock.
"""

from dataclasses import dataclass
from typing import Final

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS

DOWNLOAD_WAIT_FIRST_MS: Final = 2 * SECOND_MS  # cap of the first back-off; it doubles, with full jitter
DOWNLOAD_WAIT_MOST_MS: Final = 5 * MINUTE_MS  # longer only keeps a recovered server waiting
REFRESH_WAIT_MS: Final = 2 * MINUTE_MS  # for new addresses, before the old ones are tried once more
COMMIT_TRIES_MAX: Final = 5  # a disk that refuses five times will not take the sixth
COMMIT_WAIT_FIRST_MS: Final = SECOND_MS
COMMIT_WAIT_MOST_MS: Final = 30 * SECOND_MS
REVERT_WAIT_FIRST_MS: Final = SECOND_MS
REVERT_WAIT_MOST_MS: Final = MINUTE_MS  # a device in a bad trial must not wait long to try again
RESEND_LEAST_MS: Final = SECOND_MS  # DESIGN.md section 4: exponential with full jitter, 1 to 120 s
RESEND_MOST_MS: Final = 120 * SECOND_MS
REFUSED_WAIT_MS: Final = HOUR_MS  # R6: after a refusal, hourly
HEARTBEAT_LEAST_MS: Final = SECOND_MS  # what a cloud may ask for at most: one hello a second
HEARTBEAT_MOST_MS: Final = 24 * HOUR_MS
SYNC_WINDOW_MOST_MS: Final = HOUR_MS  # a longer window would outlast every heartbeat
SAVE_WAIT_FIRST_MS: Final = SECOND_MS
SAVE_WAIT_MOST_MS: Final = MINUTE_MS  # a full disk is looked at every minute
RESTART_WAIT_FIRST_MS: Final = SECOND_MS
RESTART_WAIT_MOST_MS: Final = (
    MINUTE_MS  # a committed application that keeps ending is started again every minute
)
RESTART_CALM_MS: Final = 10 * MINUTE_MS  # it ran so long: the next restart is prompt again
STATES_KEPT: Final = 16  # sequences and digests of states sent, whose acknowledgement may still be under way
NONCES_MAX: Final = 8  # of own hellos, whose answers may still be under way


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person, a test or a scenario may choose."""

    agent_version: str = ""
    heartbeat_ms: int = MINUTE_MS  # until the cloud's ack says otherwise
    download_tries_max: int = 8  # failed transfers of one order: about ten minutes of back-off
    needs_cloud: bool = True  # a trial commits only after the cloud answered in it (R11)
    cloud_limit_ms: int = 30 * MINUTE_MS  # for that answer (R11)
    progress_interval_ms: int = 2 * SECOND_MS  # between two progress messages; what lies between is dropped
    trial_starts: int = 3  # when the order does not say
    handlers: frozenset[str] | None = None  # handler names this device has; None: not checked by the core


def backoff(tries: int, first_ms: int, most_ms: int, chance: float, *, least_ms: int = 1) -> int:
    """Return how long to wait before the next try, in milliseconds: exponential with full jitter.

    `tries` counts the failures so far (from 1); `chance` lies in [0, 1).
    """
    cap = min(most_ms, first_ms << min(tries - 1, 32))
    return max(least_ms, least_ms + round(chance * (cap - least_ms)))
