"""The observed clock: it runs only while this cloud could have heard its devices (R12).

It is not the wall clock, which decides starts. A device's silence is measured on it, so that a cloud that was down,
disconnected, stopped, unable to store what it hears, or whose wall clock stepped never fails a device for a silence
that nobody could have heard.
"""

from typing import Final

from cloud_stub.orchestrator.values import CLOCK_STEP_MS_MAX, Now, Settings
from cloud_stub.ports import Unit

_NOTE = "observed_ms"
UNWATCHED_MS_MAX: Final = 10_000  # ten ticks: a longer time between two turns was watched by nobody


class Observed:
    """Observed milliseconds, kept across restarts in the store."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._total_ms: int | None = None
        self._kept_ms: int | None = None
        self._before_ms: int | None = None  # the total before the turn in hand
        self._last: Now | None = None
        self._armed_at_ms: int | None = None  # monotonic; None while disconnected

    def at(self, unit: Unit, now: Now) -> int:
        """Return the observed time at this moment, in milliseconds since the store was made."""
        if self._total_ms is None:
            self._total_ms = self._kept_ms = int(unit.note(_NOTE) or 0)
        self._before_ms = self._total_ms
        if self._last is not None:
            passed_ms = now.mono_ms - self._last.mono_ms
            stepped_ms = abs((now.wall_ms - self._last.wall_ms) - passed_ms)
            unwatched = stepped_ms > CLOCK_STEP_MS_MAX or passed_ms > UNWATCHED_MS_MAX
            if unwatched and self._armed_at_ms is not None:
                self._disarm_until_heard(now)
            if self.armed(now):
                self._total_ms += passed_ms
        self._last = now
        return self._total_ms

    def linked(self, up: bool, now: Now) -> None:
        """Take note that the connection to the broker came up or went down."""
        if up:
            self._disarm_until_heard(now)
        else:
            self._armed_at_ms = None

    def missed(self, now: Now) -> None:
        """Take note that a turn failed: what devices said in it was not stored, so its time was not observed."""
        if self._last is now:  # it got so far as to ask for the time
            self._total_ms, self._kept_ms = self._before_ms, None
        self._last = now
        if self._armed_at_ms is not None:
            self._disarm_until_heard(now)

    def armed(self, now: Now) -> bool:
        """Return whether every living device must have been heard: a sync window and a heartbeat have passed."""
        return self._armed_at_ms is not None and now.mono_ms >= self._armed_at_ms

    def keep(self, unit: Unit) -> None:
        """Write the observed time into the store, if it has changed."""
        if self._total_ms is not None and self._total_ms != self._kept_ms:
            unit.put_note(_NOTE, str(self._total_ms))
            self._kept_ms = self._total_ms

    def _disarm_until_heard(self, now: Now) -> None:
        self._armed_at_ms = now.mono_ms + self._settings.sync_window_ms + self._settings.heartbeat_ms
