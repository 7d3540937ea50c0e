"""What the cloud wants from the world, as small protocols.

It implements nothing (`adapters/` does). A foreign exception is translated once, in the adapter, into `ServiceError`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from cloud_stub.core.rows import (
    AssignmentRow,
    AssignmentState,
    AuditRow,
    DeploymentRow,
    DeviceRow,
    GroupCount,
    Tally,
    UpdateRow,
)
from protocol.lifecycle import DeploymentState

PAGE_ROWS_MAX: Final = 1_000  # rows in one answer: what a page or a table can show


class Reader(Protocol):
    """One consistent look at the rows."""

    def device(self, device: str) -> DeviceRow | None:
        """Return one device."""

    def devices(self, ids: Iterable[str]) -> Mapping[str, DeviceRow]:
        """Return those of the devices that exist, by id, in one round trip."""

    def list_devices(
        self,
        *,
        group: str | None = None,
        runs: str | None = None,
        after: str = "",
        limit: int = PAGE_ROWS_MAX,
    ) -> Sequence[DeviceRow]:
        """Return devices in the order of their ids, beginning behind `after`; `runs` is an update's name (R22)."""

    def count_devices(self) -> Mapping[str, tuple[int, int]]:
        """Return for each group how many members it has, and how many of them are online."""

    def classes(self, group: str) -> Sequence[GroupCount]:
        """Return the device classes within a group, with their counts (members without a class are left out)."""

    def runs(self, group: str) -> Mapping[tuple[str, str], int]:
        """Return how many members run each (update, sha256); ("", "") is nothing."""

    def runs_by_class(self, group: str) -> Mapping[str, Mapping[tuple[str, int], int]]:
        """Return how many members of each class run which target above which floor.

        As class_key → (sha256, release-counter floor) → members; "" is nothing.
        """

    def deployment(self, deployment: str) -> DeploymentRow | None:
        """Return one deployment."""

    def active(self, group: str) -> DeploymentRow | None:
        """Return the active deployment of a group."""

    def list_deployments(
        self,
        *,
        group: str | None = None,
        states: Sequence[DeploymentState] = (),
        limit: int | None = PAGE_ROWS_MAX,
    ) -> Sequence[DeploymentRow]:
        """Return deployments, the newest first; all of them without a limit."""

    def count_assignments(self, deployment: str) -> Tally:
        """Count the rows anew: what the tally must equal at every moment (R14)."""

    def assignment(self, deployment: str, device: str) -> AssignmentRow | None:
        """Return one assignment."""

    def assignments(self, keys: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], AssignmentRow]:
        """Return those of the assignments (deployment, device) that exist, in one round trip."""

    def list_assignments(
        self,
        *,
        deployment: str | None = None,
        device: str | None = None,
        states: Sequence[AssignmentState] = (),
        after: str = "",
        limit: int = PAGE_ROWS_MAX,
    ) -> Sequence[AssignmentRow]:
        """Return assignments in the order of (device, deployment), beginning behind the device `after`."""

    def update(self, update: str) -> UpdateRow | None:
        """Return one update by `provider/name:version`."""

    def update_by_sha256(self, sha256: str) -> UpdateRow | None:
        """Return one update by its identity."""

    def list_updates(self) -> Sequence[UpdateRow]:
        """Return all updates, the newest import first."""

    def note(self, key: str) -> str | None:
        """Return a note of the store about itself (`restored`, …)."""

    def audit(
        self, *, about: str | None = None, limit: int = PAGE_ROWS_MAX, before: int | None = None
    ) -> Sequence[AuditRow]:
        """Return entries of the audit log, the newest first, beginning below the number `before`."""


class Unit(Reader, Protocol):
    """One transaction. Reads see what was put before; nothing is durable until the transaction has ended."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Open a part of the transaction that, when its block raises, loses only what was put within it."""

    def put_device(self, row: DeviceRow) -> None:
        """Insert or replace a device."""

    def put_deployment(self, row: DeploymentRow) -> None:
        """Insert or replace a deployment."""

    def put_assignment(self, row: AssignmentRow) -> None:
        """Insert or replace an assignment."""

    def put_update(self, row: UpdateRow) -> None:
        """Insert or replace an update."""

    def put_note(self, key: str, value: str | None) -> None:
        """Set or remove a note."""

    def add_audit(self, at_ms: int, who: str, what: str, about: str, facts: Mapping[str, object]) -> None:
        """Append to the audit log."""

    def next_deployment_id(self) -> str:
        """Return an id that no deployment has had."""

    def class_members(self, group: str) -> Sequence[GroupCount]:
        """Return the device classes within a group as `classes` does, but for the highest floors.

        One may be that of a member who has left: to count them anew after each that leaves is not for a hot path.
        """

    def raise_epochs(self, group: str, now_ms: int) -> int:
        """Give every device of a group a higher epoch whose content is still to be decided; return how many (R2).

        One statement: epoch := max(epoch + 1, now_ms, reported_epoch + 1), order_stale := true.
        """

    def stale(self, limit: int) -> Sequence[DeviceRow]:
        """Return devices whose order is to be decided, those online first."""

    def unpublished(self, limit: int) -> Sequence[DeviceRow]:
        """Return online devices with `epoch > published_epoch` whose order is decided.

        One that has no epoch yet takes an order in answer to its hello only (R3), and is left out.
        """

    def unheard(self, before_ms: int, limit: int) -> Sequence[DeviceRow]:
        """Return devices that count as online and were last seen before an instant."""

    def due_schedules(self, now_ms: int) -> Sequence[DeploymentRow]:
        """Return scheduled deployments whose start has come, in (start, creation) order (R21)."""

    def due_retries(self, now_ms: int, limit: int) -> Sequence[AssignmentRow]:
        """Return failed assignments of active deployments whose automatic retry is due."""

    def waits_for_retry(self, deployment: str) -> bool:
        """Return whether a failed assignment of a deployment has its automatic retry ahead of it."""

    def overdue(self, observed_ms: int, limit: int) -> Sequence[AssignmentRow]:
        """Return `working` assignments of active deployments that are past a time-out on the observed clock (R12).

        Those of clones are left out: nobody knows which of two is silent (R8).

        Silent: device.heard_ms + deployment.device_timeout_ms < observed_ms. Stuck: assignment.moved_ms +
        deployment.attempt_timeout_ms < observed_ms.
        """

    def rollbacks_at_rest(self) -> Sequence[DeploymentRow]:
        """Return active deployments that a trip made, where all is said and somebody was not taken back (R24).

        That is: nobody is pending, working or undecided, and some have failed or are unprotected.
        """

    def ended_with_pending(self, after: str, limit: int) -> Sequence[DeploymentRow]:
        """Return ended deployments that have pending rows, in the order of their ids, beginning behind `after`."""


class Store(Protocol):
    """The database. One writer at a time; readers never wait for it."""

    changes: int  # how many transactions have changed a row that people see; the store's notes are none

    def transaction(self) -> AbstractContextManager[Unit]:
        """Open a transaction that is durable when the block ends, and undone when it raises.

        Raises:
            ServiceError: the database refused (disk full, locked, damaged); nothing was written.
        """

    def read(self) -> AbstractContextManager[Reader]:
        """Open a consistent look that waits for nobody."""

    def close(self) -> None:
        """Let go of the database."""


class Files(Protocol):
    """Where the bytes of updates lie, by their sha256."""

    def put(self, source: BinaryIO, sha256: str, size_bytes: int) -> None:
        """Store a file durably after checking its size and sha256.

        Raises:
            OperatorError: the bytes differ from what the manifest says.
            ServiceError: the disk refused.
        """

    def path(self, sha256: str) -> Path | None:
        """Return where a stored file lies."""


class Broker(Protocol):
    """The broker beside the cloud."""

    engine: str
    limit: str
    host: str
    port: int  # where devices connect
    service_port: int  # where the cloud and inspectors connect
    pid: int | None

    def set_accounts(self, accounts: Mapping[str, str]) -> None:
        """Replace the set of accounts (name → password hash), durably, for new connections."""

    def alive(self) -> bool:
        """Return whether it runs."""

    def stop(self) -> None:
        """End it."""


Say = Callable[[str], None]
