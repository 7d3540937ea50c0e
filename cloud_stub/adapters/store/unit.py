"""The port Unit: one transaction, in which rows are read once, changed in memory, and written together.

It holds no rules, and it does not begin or end the transaction (`store.py` does). It keeps the rule that a read sees
what was put before: a read by key is answered from memory where it can be, and before any other query the staged rows
that it could see are written.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Update,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
    update,
)

from cloud_stub.adapters.store.audit import next_entry
from cloud_stub.adapters.store.codec import ASSIGNMENT, DEPLOYMENT, DEVICE, NoteRow
from cloud_stub.adapters.store.prepared import Query
from cloud_stub.adapters.store.reader import MOST, SqlReader
from cloud_stub.adapters.store.staging import Staging, Writers
from cloud_stub.adapters.store.tables import (
    HAS_CAUSE,
    HAS_RETRY,
    HAS_START,
    IS_ACTIVE,
    IS_STALE,
    IS_UNPUBLISHED,
    IS_UNSETTLED,
    assignments,
    deployments,
    devices,
)
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
from cloud_stub.ports import PAGE_ROWS_MAX
from protocol.lifecycle import DeploymentState

DEPLOYMENTS_MADE: Final = "deployments_made"  # the note that counts them, so that no id is given twice


def _retries_of_active() -> tuple[Any, ...]:
    failed = assignments.c.state == AssignmentState.FAILED.value
    return text(HAS_RETRY), failed, assignments.c.deployment.in_(_active_ids())


def _active_ids() -> Select[Any]:
    return select(deployments.c.id).where(text(IS_ACTIVE))


def _raise_epochs() -> Update:
    now_ms = bindparam("now_ms", type_=Integer)
    after_row = devices.c.epoch + 1
    after_reported = func.coalesce(devices.c.reported_epoch, 0) + 1
    higher = case((after_reported > after_row, after_reported), else_=after_row)
    raised = case((higher > now_ms, higher), else_=now_ms)
    of_group = devices.c.group == bindparam("of_group")
    return update(devices).where(of_group).values(epoch=raised, order_stale=1)


def _overdue() -> Select[Any]:
    silent = devices.c.heard_ms + deployments.c.device_timeout_ms < bindparam("observed_ms")
    stuck = assignments.c.moved_ms + deployments.c.attempt_timeout_ms < bindparam("observed_ms")
    return (
        select(assignments)
        .join(deployments, deployments.c.id == assignments.c.deployment)
        .join(devices, devices.c.id == assignments.c.device)
        .where(
            assignments.c.deployment.in_(_active_ids()),
            assignments.c.state == AssignmentState.WORKING.value,
            devices.c.cloned == 0,
            or_(silent, stuck),
        )
        .order_by(assignments.c.deployment, assignments.c.device)
        .limit(MOST)
    )


def _rollbacks_at_rest() -> Select[Any]:
    row = deployments.c
    undecided = select(devices.c.id).where(text(IS_STALE), devices.c.group == row.group).exists()
    return (
        select(deployments)
        .where(
            text(IS_ACTIVE),
            text(HAS_CAUSE),
            row.tally_pending == 0,
            row.tally_working == 0,
            row.tally_failed + row.tally_unprotected > 0,
            ~undecided,
        )
        .order_by(row.id)
    )


# The work lists, which are asked for at every tick.
_RAISE_EPOCHS: Final = Query(_raise_epochs())
_STALE: Final = Query(
    select(devices).where(text(IS_STALE)).order_by(devices.c.online.desc(), devices.c.id.desc()).limit(MOST)
)
_UNPUBLISHED: Final = Query(select(devices).where(text(IS_UNPUBLISHED)).order_by(devices.c.id).limit(MOST))
_UNHEARD: Final = Query(
    select(devices)
    .where(devices.c.online == 1, devices.c.last_seen_ms < bindparam("before_ms"))
    .order_by(devices.c.id)
    .limit(MOST)
)
_DUE_SCHEDULES: Final = Query(
    select(deployments)
    .where(text(HAS_START), deployments.c.start_at_ms <= bindparam("now_ms"))
    .order_by(
        deployments.c.start_at_ms,
        deployments.c.created_ms,
        func.length(deployments.c.id),
        deployments.c.id,
    )
)
_DUE_RETRIES: Final = Query(
    select(assignments)
    .where(*_retries_of_active(), assignments.c.retry_at_ms <= bindparam("now_ms"))
    .order_by(assignments.c.retry_at_ms, assignments.c.device)
    .limit(MOST)
)
_OVERDUE: Final = Query(_overdue())
_WAITS_FOR_RETRY: Final = Query(
    select(assignments.c.device)
    .where(
        text(HAS_RETRY),
        assignments.c.deployment == bindparam("of_deployment"),
        assignments.c.state == AssignmentState.FAILED.value,
    )
    .limit(1)
)
_ROLLBACKS_AT_REST: Final = Query(_rollbacks_at_rest())
_ENDED_WITH_PENDING: Final = Query(
    select(deployments)
    .where(text(IS_UNSETTLED), deployments.c.id > bindparam("after"))
    .order_by(deployments.c.id)
    .limit(MOST)
)


class SqlUnit(SqlReader):
    """One transaction's view of the rows, with what it has put."""

    def __init__(self, connection: Connection, writers: Writers) -> None:
        super().__init__(connection)
        self._staging = Staging(connection, writers)
        self._update_of: dict[str, str] = {}  # sha256 → name; neither ever changes

    def finish(self) -> None:
        """Write what is staged; the transaction can be committed then.

        Raises:
            ServiceError: the database refused, now or earlier in this transaction.
        """
        self._staging.check()
        self._staging.write_all()

    @property
    def changed(self) -> bool:
        """Whether a row was written that people see: any but the store's notes about itself."""
        return self._staging.changed

    def savepoint(self) -> AbstractContextManager[None]:
        """Open a part of the transaction that, when its block raises, loses only what was put within it."""
        return self._staging.savepoint()

    def put_device(self, row: DeviceRow) -> None:
        """Insert or replace a device."""
        self._staging.put_device(row)

    def put_deployment(self, row: DeploymentRow) -> None:
        """Insert or replace a deployment."""
        self._staging.put_deployment(row)

    def put_assignment(self, row: AssignmentRow) -> None:
        """Insert or replace an assignment."""
        self._staging.assignments.put((row.deployment, row.device), row, self._staging.journal)

    def put_update(self, row: UpdateRow) -> None:
        """Insert or replace an update."""
        self._staging.updates.put(row.update, row, self._staging.journal)

    def put_note(self, key: str, value: str | None) -> None:
        """Set or remove a note."""
        self._staging.notes.put(key, NoteRow(key, value), self._staging.journal)

    def add_audit(self, at_ms: int, who: str, what: str, about: str, facts: Mapping[str, object]) -> None:
        """Append to the audit log."""
        staged = self._staging.audit
        last = staged[-1] if staged else next(iter(self.audit(limit=1)), None)
        self._staging.add_audit(next_entry(last, at_ms, who, what, about, facts))

    def next_deployment_id(self) -> str:
        """Return an id that no deployment has had: a running number, so that the same world has the same ids."""
        number = int(self.note(DEPLOYMENTS_MADE) or 0) + 1
        self.put_note(DEPLOYMENTS_MADE, str(number))
        return f"d{number}"

    def raise_epochs(self, group: str, now_ms: int) -> int:
        """Give every device of a group a higher epoch whose content is still to be decided; return how many (R2)."""
        self._staging.write_devices()
        self._staging.begin_writing()
        with self._guarded():
            count = _RAISE_EPOCHS.change(self._connection, {"of_group": group, "now_ms": now_ms})
        self._staging.changed = True
        known = self._staging.devices
        known.forget([key for key, row in known.stored.items() if row is not None and row.group == group])
        return count

    # what the work lists hold

    def stale(self, limit: int) -> Sequence[DeviceRow]:
        """Return devices whose order is to be decided, those online first."""
        self._staging.write_devices()
        return self._learn_devices(DEVICE.decode_all(self._rows(_STALE, {"most": limit})))

    def unpublished(self, limit: int) -> Sequence[DeviceRow]:
        """Return online devices with `epoch > published_epoch` whose order is decided."""
        self._staging.write_devices()
        return self._learn_devices(DEVICE.decode_all(self._rows(_UNPUBLISHED, {"most": limit})))

    def unheard(self, before_ms: int, limit: int) -> Sequence[DeviceRow]:
        """Return devices that count as online and were last seen before an instant."""
        self._staging.write_devices()
        rows = self._rows(_UNHEARD, {"before_ms": before_ms, "most": limit})
        return self._learn_devices(DEVICE.decode_all(rows))

    def due_schedules(self, now_ms: int) -> Sequence[DeploymentRow]:
        """Return scheduled deployments whose start has come, in (start, creation) order (R21)."""
        self._staging.write_deployments()
        return self._learn_deployments(DEPLOYMENT.decode_all(self._rows(_DUE_SCHEDULES, {"now_ms": now_ms})))

    def due_retries(self, now_ms: int, limit: int) -> Sequence[AssignmentRow]:
        """Return failed assignments of active deployments whose automatic retry is due."""
        self._staging.write_assignments()
        rows = self._rows(_DUE_RETRIES, {"now_ms": now_ms, "most": limit})
        return self._learn_assignments(ASSIGNMENT.decode_all(rows))

    def waits_for_retry(self, deployment: str) -> bool:
        """Return whether a failed assignment of a deployment has its automatic retry ahead of it."""
        self._staging.write_assignments()
        return bool(self._rows(_WAITS_FOR_RETRY, {"of_deployment": deployment}))

    def overdue(self, observed_ms: int, limit: int) -> Sequence[AssignmentRow]:
        """Return `working` assignments of active deployments that are past a time-out on the observed clock (R12)."""
        self._staging.write_assignments()
        rows = self._rows(_OVERDUE, {"observed_ms": observed_ms, "most": limit})
        return self._learn_assignments(ASSIGNMENT.decode_all(rows))

    def rollbacks_at_rest(self) -> Sequence[DeploymentRow]:
        """Return active deployments that a trip made, where all is said and somebody was not taken back (R24)."""
        self._staging.write_deployments()
        self._staging.write_devices()
        return self._learn_deployments(DEPLOYMENT.decode_all(self._rows(_ROLLBACKS_AT_REST)))

    def ended_with_pending(self, after: str, limit: int) -> Sequence[DeploymentRow]:
        """Return ended deployments that have pending rows, in the order of their ids, beginning behind `after`."""
        self._staging.write_deployments()
        rows = self._rows(_ENDED_WITH_PENDING, {"after": after, "most": limit})
        return self._learn_deployments(DEPLOYMENT.decode_all(rows))

    # reads by key: from memory where the answer is there

    def devices(self, ids: Iterable[str]) -> Mapping[str, DeviceRow]:
        """Return those of the devices that exist, by id; the unknown ones are read in one statement."""
        known = self._staging.devices
        ids = list(ids)
        missing = [key for key in ids if not known.knows(key)]
        if missing:
            read = super().devices(missing)
            for key in missing:
                known.learn(key, read.get(key))
        return {key: row for key in ids if (row := known.get(key)) is not None}

    def assignments(self, keys: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], AssignmentRow]:
        """Return those of the assignments that exist, by key; one statement a deployment reads the unknown."""
        known = self._staging.assignments
        keys = list(keys)
        missing = [key for key in keys if not known.knows(key)]
        if missing:
            read = super().assignments(missing)
            for key in missing:
                known.learn(key, read.get(key))
        return {key: row for key in keys if (row := known.get(key)) is not None}

    def deployment(self, deployment: str) -> DeploymentRow | None:
        """Return one deployment."""
        known = self._staging.deployments
        if not known.knows(deployment):
            known.learn(deployment, super().deployment(deployment))
        return known.get(deployment)

    def active(self, group: str) -> DeploymentRow | None:
        """Return the active deployment of a group."""
        staging = self._staging
        if group not in staging.active:
            staging.write_deployments()
            row = super().active(group)
            if row is not None:
                staging.deployments.learn(row.id, row)
            staging.active[group] = None if row is None else row.id
        active = staging.active[group]
        return None if active is None else self.deployment(active)

    def update(self, update: str) -> UpdateRow | None:
        """Return one update by `provider/name:version`."""
        known = self._staging.updates
        if not known.knows(update):
            known.learn(update, super().update(update))
        return known.get(update)

    def update_by_sha256(self, sha256: str) -> UpdateRow | None:
        """Return one update by its identity."""
        if sha256 not in self._update_of:
            self._staging.write_updates()
            row = super().update_by_sha256(sha256)
            if row is None:
                return None
            self._staging.updates.learn(row.update, row)
            self._update_of[sha256] = row.update
        return self.update(self._update_of[sha256])

    def note(self, key: str) -> str | None:
        """Return a note of the store about itself."""
        known = self._staging.notes
        if not known.knows(key):
            value = super().note(key)
            known.learn(key, None if value is None else NoteRow(key, value))
        row = known.get(key)
        return None if row is None else row.value

    # lists and counts: what is staged is written first

    def list_devices(
        self,
        *,
        group: str | None = None,
        runs: str | None = None,
        after: str = "",
        limit: int = PAGE_ROWS_MAX,
    ) -> Sequence[DeviceRow]:
        """Return devices in the order of their ids, beginning behind `after`; `runs` is an update's name (R22)."""
        self._staging.write_devices()
        return self._learn_devices(super().list_devices(group=group, runs=runs, after=after, limit=limit))

    def count_devices(self) -> Mapping[str, tuple[int, int]]:
        """Return for each group how many members it has, and how many of them are online."""
        self._staging.write_devices()
        return super().count_devices()

    def classes(self, group: str) -> Sequence[GroupCount]:
        """Return the device classes within a group, counted once and kept up with what is put."""
        counted = self._staging.classes.of(group)
        return self._counted(group) if counted is None else counted

    def class_members(self, group: str) -> Sequence[GroupCount]:
        """Return the device classes within a group; a highest floor may be that of a member who has left."""
        counted = self._staging.classes.of(group, floors=False)
        return self._counted(group) if counted is None else counted

    def _counted(self, group: str) -> Sequence[GroupCount]:
        self._staging.write_devices()
        return self._staging.classes.learn(group, super().classes(group))

    def runs(self, group: str) -> Mapping[tuple[str, str], int]:
        """Return how many members run each (update, sha256); ("", "") is nothing."""
        self._staging.write_devices()
        return super().runs(group)

    def list_deployments(
        self,
        *,
        group: str | None = None,
        states: Sequence[DeploymentState] = (),
        limit: int | None = PAGE_ROWS_MAX,
    ) -> Sequence[DeploymentRow]:
        """Return deployments, the newest first; all of them without a limit."""
        self._staging.write_deployments()
        return self._learn_deployments(super().list_deployments(group=group, states=states, limit=limit))

    def count_assignments(self, deployment: str) -> Tally:
        """Count the rows anew: what the tally must equal at every moment (R14)."""
        self._staging.write_assignments()
        return super().count_assignments(deployment)

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
        self._staging.write_assignments()
        rows = super().list_assignments(
            deployment=deployment, device=device, states=states, after=after, limit=limit
        )
        return self._learn_assignments(rows)

    def list_updates(self) -> Sequence[UpdateRow]:
        """Return all updates, the newest import first."""
        self._staging.write_updates()
        return super().list_updates()

    def audit(
        self, *, about: str | None = None, limit: int = PAGE_ROWS_MAX, before: int | None = None
    ) -> Sequence[AuditRow]:
        """Return entries of the audit log, the newest first, beginning below the number `before`."""
        self._staging.write_audit()
        return super().audit(about=about, limit=limit, before=before)

    def _learn_devices(self, rows: Iterable[DeviceRow]) -> list[DeviceRow]:
        known = self._staging.devices
        return [known.learn(row.id, row) or row for row in rows]

    def _learn_deployments(self, rows: Iterable[DeploymentRow]) -> list[DeploymentRow]:
        known = self._staging.deployments
        return [known.learn(row.id, row) or row for row in rows]

    def _learn_assignments(self, rows: Iterable[AssignmentRow]) -> list[AssignmentRow]:
        known = self._staging.assignments
        return [known.learn((row.deployment, row.device), row) or row for row in rows]

    def _guarded(self) -> AbstractContextManager[None]:
        return self._staging.guarded()
