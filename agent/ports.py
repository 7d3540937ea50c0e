"""What the agent wants from the world, as small protocols; size caps and time-outs stand beside them.

It implements nothing (`adapters/` does). A foreign exception is translated once, in the adapter, into the errors
named here; what an adapter acknowledges is durable.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from agent.core.model import Record, SlotName, SlotTable
from protocol.errors import DeviceError, PeerError
from protocol.manifest import Manifest
from protocol.messages import Assignment
from protocol.outcomes import Reason
from protocol.topics import Kind

CONNECT_TIMEOUT_S: Final = 10.0  # to open a connection for a download
READ_TIMEOUT_S: Final = 30.0  # without a byte: the transfer has stalled
CHUNK_BYTES: Final = 1_048_576  # read, hashed and written at a time: what a download holds in memory

Stop = Callable[[], bool]  # asked between pieces of long work: True means stop now
Tell = Callable[[int, int], None]  # bytes done, bytes in all


class Stopped(Exception):
    """The work was asked to stop, by its `Stop`; no error."""


SERVED_UNCHANGED: Final = (
    "See that the cloud's repository, and what stands before it, serve it unchanged; "
    "then retry the deployment."
)  # what to do about bytes that are not those which were signed


class WorkFailed(DeviceError):
    """A piece of work ended without its result; `reason` says whose fault it is (R10)."""

    def __init__(
        self, reason: Reason, sentence: str, *, transient: bool = False, refresh: bool = False
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.transient = transient  # a later try may succeed
        self.refresh = refresh  # the server refused the address (403, 404)


class FetchFailed(PeerError):
    """A transfer failed."""

    def __init__(self, sentence: str, *, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Trust(Protocol):
    """Leads from an assignment to a verified manifest; the signed sha256 is the authority until TUF fills this port."""

    def manifest_of(self, order: Assignment) -> bytes:
        """Return the verified bytes of the assignment's manifest.

        Raises:
            WorkFailed: `network`, `server` or `verify_failed`.
        """


class Fetcher(Protocol):
    """Brings files named by their sha256 to the disk, verified while streaming, resumed across restarts."""

    def fetch(self, order: Assignment, manifest: Manifest, folder: Path, *, stop: Stop, tell: Tell) -> None:
        """Put every file of the manifest into the folder, under its sha256.

        Raises:
            WorkFailed: `network`, `server`, `verify_failed`, `no_space` or `disk`.
            Stopped: `stop` said so.
        """

    def small(self, order: Assignment, path: str, bytes_max: int) -> bytes:
        """Return a small file of the repository.

        Raises:
            FetchFailed: it could not be had.
        """


class Slots(Protocol):
    """A slot backend: the only one who writes slots, and who says what boots. Every call can be repeated.

    `begin` refuses the booted and the last known good slot. `activate`, `commit` and `revert` are each one atomic,
    durable step, read back (DESIGN.md section 5).
    """

    def recover(self) -> SlotTable:
        """Bring what a power loss left half-way to a legal state, and return it. Runs at every start."""

    def probe(self) -> SlotTable:
        """Return what is, without changing it."""

    def begin(self, slot: SlotName, manifest: bytes) -> Path:
        """Durably invalidate the slot, empty it, and return the folder that steps write into."""

    def seal(self, slot: SlotName) -> None:
        """Make what was written durable and read-only, remember its digest, and mark the slot sealed."""

    def rehash(self, slot: SlotName, *, stop: Stop) -> bool:
        """Return whether a sealed or good slot still holds exactly what was sealed (R25)."""

    def activate(self, slot: SlotName, starts: int) -> None:
        """Put the slot in trial with so many starts, and make it the one that boots."""

    def count_start(self, slot: SlotName) -> bool:
        """Take one of the trial's starts, durably; False when none is left. Starts of a good slot are not counted."""

    def commit(self, slot: SlotName) -> None:
        """Mark the trial good and make it the last known good, in one write."""

    def revert(self, reason: str) -> None:
        """Mark the trial bad, and make the last known good the one that boots."""

    def invalidate(self, slot: SlotName, reason: str | None) -> None:
        """Mark a spare slot invalid, or bad with a reason."""

    def path(self, slot: SlotName) -> Path:
        """Return the folder of a slot."""


class Handler(Protocol):
    """Carries out one kind of step; others come in by entry point `lastgood.handlers`."""

    def install(
        self, files: Mapping[str, Path], properties: Mapping[str, object], into: Path, *, stop: Stop
    ) -> None:
        """Write into the folder, and nowhere else.

        Raises:
            WorkFailed: `handler_failed`, `no_space` or `disk`.
        """


class Application(Protocol):
    """What runs from the booted slot: a supervised process, or a systemd unit."""

    ends_with_agent: bool
    """Whether a clean end of the agent ends it, too; systemd's units outlive the agent."""

    def start(self, folder: Path) -> None:
        """End what runs, if anything does, and start anew from this folder.

        Raises:
            WorkFailed: it could not be started.
        """

    def stop(self) -> None:
        """End it, and wait until it is gone."""

    def ended(self) -> str | None:
        """Return how it ended by itself, or None while it runs."""


class Check(Protocol):
    """One health check."""

    name: str

    def run(self) -> str | None:
        """Return None when it holds, or a sentence that says why it does not."""


class Records(Protocol):
    """Where the record is kept: one atomic, durable write."""

    def load(self) -> Record | None:
        """Return the record, or None when there has never been one.

        Raises:
            DeviceError: it is there and cannot be read.
        """

    def save(self, record: Record) -> None:
        """Replace the record.

        Raises:
            DeviceError: the disk refused; the old record stands.
        """


class Link(Protocol):
    """The connection to the broker. It feeds Connected, Disconnected and Delivered to the runtime's inbox."""

    def start(self) -> None:
        """Connect, and stay connected, from a thread of its own.

        Raises:
            OperatorError: its settings are no good.
        """

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Send a message if there is a connection; without one it is dropped."""

    def spread(self, milliseconds: int) -> None:
        """Take the time over which the cloud wants reconnects spread (DESIGN.md section 4)."""

    def close(self) -> None:
        """Say that we go, and disconnect cleanly."""
