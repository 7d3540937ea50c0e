"""What one transaction has put and not yet written, and its savepoints.

It answers no queries (`unit.py` does), and it does not begin or end the transaction (`store.py` does). It keeps two
rules: a savepoint that fails loses what was put within it and nothing else, whether or not that had been written; and
after a failure of the database itself nothing more is written in this transaction, since SQLite may have ended it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, NestedTransaction, bindparam, insert
from sqlalchemy.exc import SQLAlchemyError

from cloud_stub.adapters.store.class_counts import ClassCounts
from cloud_stub.adapters.store.codec import ASSIGNMENT, AUDIT, DEPLOYMENT, DEVICE, NOTE, UPDATE, NoteRow
from cloud_stub.adapters.store.errors import is_contradiction, service_error
from cloud_stub.adapters.store.overlay import Overlay, Undo
from cloud_stub.adapters.store.tables import assignments, audit, deployments, devices, notes, updates
from cloud_stub.adapters.store.writer import Prepared, TableWriter
from cloud_stub.core.rows import AssignmentRow, AuditRow, DeploymentRow, DeviceRow, UpdateRow
from protocol.errors import ServiceError
from protocol.lifecycle import DeploymentState

K = TypeVar("K")
R = TypeVar("R")


class Writers:
    """The prepared statements of all stores in one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.devices = TableWriter(devices, DEVICE, dialect)
        self.deployments = TableWriter(deployments, DEPLOYMENT, dialect)
        self.assignments = TableWriter(assignments, ASSIGNMENT, dialect)
        self.updates = TableWriter(updates, UPDATE, dialect)
        self.notes = TableWriter(notes, NOTE, dialect)
        added = insert(audit).values({name: bindparam(name) for name in AUDIT.columns})
        self.audit = Prepared(added, AUDIT.columns, dialect)


_KNOWN: Final[dict[tuple[str, str], Writers]] = {}


def writers_for(dialect: Dialect) -> Writers:
    """Return the statements in a dialect: to prepare them takes longer than to open a store, so it is done once."""
    way = (dialect.name, dialect.paramstyle)
    return _KNOWN.get(way) or _KNOWN.setdefault(way, Writers(dialect))


@dataclass(slots=True)
class _Part:
    """An open savepoint: how to take back what was put in it, and the database's own once something was written."""

    undo: list[Undo] = field(default_factory=list)
    nested: NestedTransaction | None = None
    must_hold: bool = False  # it changed what the database's unique rules speak about


class Staging:
    """The rows of one transaction, as overlays over the tables."""

    def __init__(self, connection: Connection, writers: Writers) -> None:
        self._connection = connection
        self._writers = writers
        self._parts: list[_Part] = []
        self._failure: ServiceError | None = None
        self.devices: Overlay[str, DeviceRow] = Overlay()
        self.deployments: Overlay[str, DeploymentRow] = Overlay()
        self.assignments: Overlay[tuple[str, str], AssignmentRow] = Overlay()
        self.updates: Overlay[str, UpdateRow] = Overlay()
        self.notes: Overlay[str, NoteRow] = Overlay()
        self.audit: list[AuditRow] = []
        self.classes = ClassCounts()
        self.changed = False  # a row was written that people see: any but the store's notes about itself
        self.active: dict[str, str | None] = {}  # which deployment is active in a group, where that is known

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Open a part of the transaction that, when its block raises, loses only what was put within it."""
        part = _Part()
        self._parts.append(part)
        try:
            yield
            if part.must_hold:
                self.write_deployments()  # so that whoever breaks a unique rule hears of it, not a later part
            if part.nested is not None:
                with self.guarded():
                    part.nested.commit()
        except BaseException:
            self._take_back(part)
            raise
        finally:
            self._parts.pop()
        if self._parts:
            self._parts[-1].undo += part.undo
            self._parts[-1].must_hold |= part.must_hold

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Translate what the database raises in the block, and remember when the transaction cannot go on."""
        self.check()
        try:
            yield
        except SQLAlchemyError as error:
            failure = service_error(error)
            if not self._parts or not is_contradiction(error):
                self._failure = failure
            raise failure from error

    def check(self) -> None:
        """Raise when the transaction cannot go on.

        Raises:
            ServiceError: the database failed earlier in this transaction.
        """
        if self._failure is not None:
            raise ServiceError(str(self._failure)) from self._failure

    @property
    def journal(self) -> list[Undo] | None:
        """Where to write down how to take back a change, while a savepoint is open."""
        return self._parts[-1].undo if self._parts else None

    def put_device(self, row: DeviceRow) -> None:
        """Stage a device, and keep the counts of its group."""
        known = self.devices
        if not known.knows(row.id):
            self.classes.clear()
        else:
            self.classes.change(known.get(row.id), row)
        known.put(row.id, row, self.journal)

    def put_deployment(self, row: DeploymentRow) -> None:
        """Stage a deployment, and keep the book of which is active in its group."""
        known = self.deployments.knows(row.id)
        old = self.deployments.get(row.id) if known else None
        if self._parts and (
            old is None or (old.state, old.group, old.cause) != (row.state, row.group, row.cause)
        ):
            self._parts[-1].must_hold = True
        self.deployments.put(row.id, row, self.journal)
        if row.state is DeploymentState.ACTIVE:
            self.active[row.group] = row.id
        elif self.active.get(row.group, row.id) == row.id:
            self.active.pop(row.group, None)

    def add_audit(self, entry: AuditRow) -> None:
        """Stage an entry of the audit log."""
        self.audit.append(entry)
        if self._parts:
            self._parts[-1].undo.append(lambda: self._unsay(entry))

    def write_all(self) -> None:
        """Write everything that is staged, those first that others refer to."""
        self._write(self.updates, self._writers.updates)
        self.write_assignments()
        self._write(self.notes, self._writers.notes)
        self.write_audit()

    def write_devices(self) -> None:
        """Write the staged devices."""
        self._write(self.devices, self._writers.devices)

    def write_deployments(self) -> None:
        """Write the staged deployments: the active ones last, since what they follow must have stepped down."""
        self._write(self.deployments, self._writers.deployments, last=_is_active)

    def write_assignments(self) -> None:
        """Write the staged assignments, and before them what they refer to."""
        self.write_deployments()
        self.write_devices()
        self._write(self.assignments, self._writers.assignments)

    def write_updates(self) -> None:
        """Write the staged updates."""
        self._write(self.updates, self._writers.updates)

    def write_audit(self) -> None:
        """Write the staged entries of the audit log."""
        if self.audit:
            staged = self.audit
            self.begin_writing()
            self.changed = True
            with self.guarded():
                self._writers.audit.run(self._connection, [AUDIT.encode(entry) for entry in staged])
            self.audit = []
            if self._parts:
                self._parts[-1].undo.append(lambda: setattr(self, "audit", staged))

    def begin_writing(self) -> None:
        """Make the savepoints that are open savepoints of the database too, before it is written to."""
        for part in self._parts:
            if part.nested is None:
                with self.guarded():
                    part.nested = self._connection.begin_nested()

    def _write(
        self, overlay: Overlay[K, R], writer: TableWriter[R], *, last: Callable[[R], bool] | None = None
    ) -> None:
        if not overlay.staged:
            return
        self.begin_writing()
        self.changed |= writer is not self._writers.notes
        changes = list(overlay.changes())
        with self.guarded():
            if last is None:
                writer.write(self._connection, changes)
            else:
                writer.write(self._connection, [change for change in changes if not last(change[1])])
                writer.write(self._connection, [change for change in changes if last(change[1])])
        overlay.written(self.journal)

    def _take_back(self, part: _Part) -> None:
        if part.nested is not None:
            try:
                part.nested.rollback()
            except SQLAlchemyError as error:
                self._failure = self._failure or service_error(error)
        for undo in reversed(part.undo):
            undo()
        self.active.clear()
        self.classes.clear()
        if part.nested is not None:
            overlays: list[Overlay[Any, Any]] = [
                self.devices,
                self.deployments,
                self.assignments,
                self.updates,
                self.notes,
            ]
            for overlay in overlays:
                overlay.stored.clear()  # the database went back behind what we know of it

    def _unsay(self, entry: AuditRow) -> None:
        self.audit = [kept for kept in self.audit if kept.number < entry.number]


def _is_active(row: DeploymentRow) -> bool:
    return row.state is DeploymentState.ACTIVE
