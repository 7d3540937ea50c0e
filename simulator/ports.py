"""What a virtual device wants from the world it lives in: a clock, a way to its broker, and bytes to download.

It implements nothing: `live/` does with asyncio, MQTT and HTTP, `virtual/` with a heap and one seed. Answers come
later, through the clock, and never from within the call that asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol.manifest import Manifest
from protocol.messages import Assignment
from protocol.outcomes import Reason
from protocol.topics import Kind


class Timer(Protocol):
    """Something that was asked to happen later."""

    def cancel(self) -> None:
        """Let it not happen; without effect when it has."""


class Clock(Protocol):
    """The monotonic time of a world, and what is to happen in it."""

    def now_ms(self) -> int:
        """Return the time in milliseconds."""

    def call_later(self, delay_ms: int, action: Callable[[], None]) -> Timer:
        """Call `action` after so many milliseconds, and never at once."""


class Transport(Protocol):
    """A device's connection to its broker."""

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Send a message if there is a connection; what is lost is repaired by the protocol."""


@dataclass(frozen=True, slots=True)
class Got:
    """What came of a download: a manifest's bytes, or nothing for files; or why it failed."""

    manifest: bytes | None = None
    reason: Reason | None = None
    detail: str = ""
    transient: bool = False
    refresh: bool = False


Answer = Callable[[Got], None]


class Content(Protocol):
    """Brings manifests and files, verified against their sha256."""

    def manifest(self, order: Assignment, answer: Answer) -> None:
        """Fetch the manifest of an order, and answer with its bytes."""

    def files(self, order: Assignment, manifest: Manifest, fetches: bool, answer: Answer) -> None:
        """Fetch all files of a manifest; a device that does not fetch for itself takes the cache's word for them."""
