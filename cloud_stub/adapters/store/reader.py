"""The port Reader on a database connection: one consistent look at the rows.

It writes nothing and keeps nothing (`unit.py` does both). It keeps the rule that every query of the hot path has an
index; a test asks the database for its plans.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import cache
from itertools import chain, islice, repeat
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    case,
    func,
    select,
    text,
)

from cloud_stub.adapters.store.codec import ASSIGNMENT, AUDIT, DEPLOYMENT, DEVICE, UPDATE, mapping_of
from cloud_stub.adapters.store.errors import translated
from cloud_stub.adapters.store.prepared import Query
from cloud_stub.adapters.store.tables import (
    IS_ACTIVE,
    assignments,
    audit,
    deployments,
    devices,
    notes,
    updates,
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

K = TypeVar("K")

ALL_ROWS: Final = 2**62  # a limit that is none, in every dialect
KEYS_IN_ONE_STATEMENT: Final = 8_192  # a power of two (see `_by_key`); SQLite takes 32,766 variables

NEWEST_DEPLOYMENT_FIRST: Final = (
    deployments.c.created_ms.desc(),
    func.length(deployments.c.id).desc(),  # d10 came after d9
    deployments.c.id.desc(),
)


MOST: Final = bindparam("most", type_=Integer)
_OF_ONE: Final = assignments.c.deployment == bindparam("deployment")


def _tally_of_one_deployment() -> Select[Any]:
    row, state = assignments.c, AssignmentState
    verdict = (row.state == state.SUCCEEDED.value) | (row.state == state.FAILED.value)
    conditions = {
        "pending": row.state == state.PENDING.value,
        "working": row.state == state.WORKING.value,
        "succeeded": row.state == state.SUCCEEDED.value,
        "already_there": (row.state == state.SUCCEEDED.value) & (row.already_there == 1),
        "failed": row.state == state.FAILED.value,
        "counted": (row.counted == 1) & (row.suspended == 0),
        "canceled": row.state == state.CANCELED.value,
        "incompatible": row.state == state.INCOMPATIBLE.value,
        "unprotected": (row.state == state.UNPROTECTED.value) & (row.moved_on == 0),
        "dropped": row.state == state.DROPPED.value,
        "moved_on": verdict & (row.moved_on == 1),
    }
    return select(
        *(
            func.coalesce(func.sum(case((condition, 1), else_=0)), 0).label(name)
            for name, condition in conditions.items()
        )
    ).where(_OF_ONE)


# What is asked for by key, again and again, is put together once.
_COUNTED: Final = tuple(_tally_of_one_deployment().selected_columns.keys())
_TALLY: Final = Query(_tally_of_one_deployment())
_DEPLOYMENT: Final = Query(select(deployments).where(deployments.c.id == bindparam("id")))
_ACTIVE: Final = Query(select(deployments).where(deployments.c.group == bindparam("group"), text(IS_ACTIVE)))
_UPDATE: Final = Query(select(updates).where(updates.c.update == bindparam("name")))
_UPDATE_BY_SHA256: Final = Query(select(updates).where(updates.c.sha256 == bindparam("sha256")))
_NOTE: Final = Query(select(notes.c.value).where(notes.c.key == bindparam("name")))
_NEWEST_AUDIT: Final = Query(select(audit).order_by(audit.c.number.desc()).limit(MOST))


_UPDATES: Final = Query(select(updates).order_by(updates.c.imported_ms.desc(), updates.c.update.desc()))
_MEMBERS: Final = Query(
    select(devices.c.group, func.count(), func.sum(devices.c.online)).group_by(devices.c.group)
)
_OF_GROUP: Final = devices.c.group == bindparam("group")


def _counted_by(*what: ColumnElement[Any]) -> Query:
    return Query(select(*what, func.count()).where(_OF_GROUP).group_by(*what))


def _classes() -> Query:
    counted = (
        select(
            devices.c.class_key,
            func.count().label("members"),
            func.max(devices.c.floor).label("floor_max"),
            func.min(devices.c.id).label("example"),
        )
        .where(_OF_GROUP, devices.c.class_key.is_not(None))
        .group_by(devices.c.class_key)
        .subquery("counted")
    )
    return Query(
        select(counted.c.class_key, devices.c.properties, counted.c.members, counted.c.floor_max)
        .join(devices, devices.c.id == counted.c.example)
        .order_by(counted.c.class_key)
    )


_RUNS: Final = _counted_by(devices.c.running_update, devices.c.running_sha256)
_RUNS_BY_CLASS: Final = _counted_by(devices.c.class_key, devices.c.running_sha256, devices.c.floor)
_CLASSES: Final = _classes()


@cache
def _devices_of(a_group: bool, a_run: bool) -> Query:
    query = select(devices).where(devices.c.id > bindparam("after")).order_by(devices.c.id).limit(MOST)
    if a_group:
        query = query.where(_OF_GROUP)
    if a_run:
        query = query.where(devices.c.running_update == bindparam("runs"))
    return Query(query)


@cache
def _deployments_of(a_group: bool, states: int) -> Query:
    query = select(deployments).order_by(*NEWEST_DEPLOYMENT_FIRST).limit(MOST)
    if a_group:
        query = query.where(deployments.c.group == bindparam("group"))
    return Query(_in_states(query, deployments.c.state, states))


@cache
def _assignments_of(a_deployment: bool, a_device: bool, states: int) -> Query:
    query = (
        select(assignments)
        .where(assignments.c.device > bindparam("after"))
        .order_by(assignments.c.device, assignments.c.deployment)
        .limit(MOST)
    )
    if a_deployment:
        query = query.where(_OF_ONE)
    if a_device:
        query = query.where(assignments.c.device == bindparam("device"))
    return Query(_in_states(query, assignments.c.state, states))


@cache
def _devices_by_id(count: int) -> Query:
    return Query(select(devices).where(_one_of(devices.c.id, count)))


@cache
def _assignments_by_device(count: int) -> Query:
    return Query(select(assignments).where(_OF_ONE, _one_of(assignments.c.device, count)))


def _one_of(column: ColumnElement[str], count: int) -> ColumnElement[bool]:
    keys: list[BindParameter[str]] = [bindparam(f"key_{number}") for number in range(count)]
    return column == keys[0] if count == 1 else column.in_(keys)


def _by_key(query_for: Callable[[int], Query], keys: Sequence[str]) -> tuple[Query, dict[str, object]]:
    """Return the query for so many keys, and its values: the last key fills up to a power of two.

    So there are few statements, each put together once, and not one for every number of keys.
    """
    count = 1 << (len(keys) - 1).bit_length()
    filled = chain(keys, repeat(keys[-1], count - len(keys)))
    return query_for(count), {f"key_{number}": key for number, key in enumerate(filled)}


def _in_states(query: Select[Any], state: ColumnElement[str], count: int) -> Select[Any]:
    """Return the query for rows in one of so many states, which `_named` gives; all states when it is none."""
    named: list[BindParameter[str]] = [bindparam(f"state_{number}") for number in range(count)]
    return query.where(state.in_(named)) if named else query


def _named(states: Sequence[StrEnum]) -> dict[str, object]:
    return {f"state_{number}": state.value for number, state in enumerate(states)}


class SqlReader:
    """Answers from the database as it stood when the transaction around it began."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def device(self, device: str) -> DeviceRow | None:
        """Return one device."""
        return self.devices((device,)).get(device)

    def devices(self, ids: Iterable[str]) -> Mapping[str, DeviceRow]:
        """Return those of the devices that exist, by id."""
        found: dict[str, DeviceRow] = {}
        for chunk in chunks(ids):
            query, values = _by_key(_devices_by_id, chunk)
            found.update((row.id, row) for row in DEVICE.decode_all(self._rows(query, values)))
        return found

    def list_devices(
        self,
        *,
        group: str | None = None,
        runs: str | None = None,
        after: str = "",
        limit: int = PAGE_ROWS_MAX,
    ) -> Sequence[DeviceRow]:
        """Return devices in the order of their ids, beginning behind `after`; `runs` is an update's name (R22)."""
        values = {"after": after, "group": group, "runs": runs, "most": limit}
        return DEVICE.decode_all(self._rows(_devices_of(group is not None, runs is not None), values))

    def count_devices(self) -> Mapping[str, tuple[int, int]]:
        """Return for each group how many members it has, and how many of them are online."""
        return {group: (members, int(online)) for group, members, online in self._rows(_MEMBERS)}

    def classes(self, group: str) -> Sequence[GroupCount]:
        """Return the device classes within a group; their properties are those of one member."""
        rows = self._rows(_CLASSES, {"group": group})
        return [GroupCount(key, mapping_of(properties), *counts) for key, properties, *counts in rows]

    def runs(self, group: str) -> Mapping[tuple[str, str], int]:
        """Return how many members run each (update, sha256); ("", "") is nothing."""
        counts: dict[tuple[str, str], int] = {}
        for update, sha256, count in self._rows(_RUNS, {"group": group}):
            key = (update or "", sha256 or "")
            counts[key] = counts.get(key, 0) + count
        return counts

    def runs_by_class(self, group: str) -> Mapping[str, Mapping[tuple[str, int], int]]:
        """Return how many members of each class run which target above which floor."""
        found: dict[str, dict[tuple[str, int], int]] = {}
        for class_key, sha256, floor, count in self._rows(_RUNS_BY_CLASS, {"group": group}):
            if class_key is not None:
                found.setdefault(class_key, {})[sha256 or "", floor] = count
        return found

    def deployment(self, deployment: str) -> DeploymentRow | None:
        """Return one deployment."""
        return _one(DEPLOYMENT.decode_all(self._rows(_DEPLOYMENT, {"id": deployment})))

    def active(self, group: str) -> DeploymentRow | None:
        """Return the active deployment of a group."""
        return _one(DEPLOYMENT.decode_all(self._rows(_ACTIVE, {"group": group})))

    def list_deployments(
        self,
        *,
        group: str | None = None,
        states: Sequence[DeploymentState] = (),
        limit: int | None = PAGE_ROWS_MAX,
    ) -> Sequence[DeploymentRow]:
        """Return deployments, the newest first; all of them without a limit."""
        values = {"most": ALL_ROWS if limit is None else limit, "group": group}
        rows = self._rows(_deployments_of(group is not None, len(states)), values | _named(states))
        return DEPLOYMENT.decode_all(rows)

    def count_assignments(self, deployment: str) -> Tally:
        """Count the rows anew: what the tally must equal at every moment (R14).

        It is written without the core's own way of counting, so that one checks the other.
        """
        [counts] = self._rows(_TALLY, {"deployment": deployment})
        return Tally(**dict(zip(_COUNTED, counts, strict=True)))

    def assignment(self, deployment: str, device: str) -> AssignmentRow | None:
        """Return one assignment."""
        return self.assignments(((deployment, device),)).get((deployment, device))

    def assignments(self, keys: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], AssignmentRow]:
        """Return those of the assignments (deployment, device) that exist."""
        found: dict[tuple[str, str], AssignmentRow] = {}
        of_deployment: dict[str, list[str]] = {}
        for deployment, device in keys:
            of_deployment.setdefault(deployment, []).append(device)
        for deployment, members in of_deployment.items():
            # Pairs in one IN list would be one statement, and SQLite then goes through the whole table.
            for chunk in chunks(members):
                query, values = _by_key(_assignments_by_device, chunk)
                rows = self._rows(query, {"deployment": deployment, **values})
                found.update(((deployment, row.device), row) for row in ASSIGNMENT.decode_all(rows))
        return found

    def list_assignments(
        self,
        *,
        deployment: str | None = None,
        device: str | None = None,
        states: Sequence[AssignmentState] = (),
        after: str = "",
        limit: int = PAGE_ROWS_MAX,
    ) -> Sequence[AssignmentRow]:
        """Return assignments in the order of (device, deployment), beginning behind the device `after`.

        Pages fit together for one deployment; a page over all deployments can end between two rows of one device.
        """
        query = _assignments_of(deployment is not None, device is not None, len(states))
        values = {"after": after, "deployment": deployment, "device": device, "most": limit}
        return ASSIGNMENT.decode_all(self._rows(query, values | _named(states)))

    def update(self, update: str) -> UpdateRow | None:
        """Return one update by `provider/name:version`."""
        return _one(UPDATE.decode_all(self._rows(_UPDATE, {"name": update})))

    def update_by_sha256(self, sha256: str) -> UpdateRow | None:
        """Return one update by its identity."""
        return _one(UPDATE.decode_all(self._rows(_UPDATE_BY_SHA256, {"sha256": sha256})))

    def list_updates(self) -> Sequence[UpdateRow]:
        """Return all updates, the newest import first."""
        return UPDATE.decode_all(self._rows(_UPDATES))

    def note(self, key: str) -> str | None:
        """Return a note of the store about itself."""
        return _one([row[0] for row in self._rows(_NOTE, {"name": key})])

    def audit(
        self, *, about: str | None = None, limit: int = PAGE_ROWS_MAX, before: int | None = None
    ) -> Sequence[AuditRow]:
        """Return entries of the audit log, the newest first, beginning below the number `before`."""
        if about is None and before is None:
            return AUDIT.decode_all(self._rows(_NEWEST_AUDIT, {"most": limit}))
        query = select(audit).order_by(audit.c.number.desc()).limit(limit)
        if about is not None:
            query = query.where(audit.c.about == about)
        if before is not None:
            query = query.where(audit.c.number < before)
        return AUDIT.decode_all(self._rows(query))

    def _rows(
        self, query: Select[Any] | Query, values: Mapping[str, object] | None = None
    ) -> Sequence[Sequence[Any]]:
        with self._guarded():
            if isinstance(query, Query):
                return query.rows(self._connection, values or {})
            return self._connection.execute(query, values).all()

    def _guarded(self) -> AbstractContextManager[None]:
        return translated()


def chunks(keys: Iterable[K], size: int = KEYS_IN_ONE_STATEMENT) -> Iterator[list[K]]:
    """Yield the keys in lists that fit one statement."""
    rest = iter(keys)
    while chunk := list(islice(rest, size)):
        yield chunk


def _one(rows: Sequence[K]) -> K | None:
    return rows[0] if rows else None
