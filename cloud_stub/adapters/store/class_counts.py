"""The device classes of groups, counted once in a transaction and then changed with each device that is put.

It runs no SQL and judges nothing. It keeps the rule that a count which cannot be kept exactly is dropped and counted
again: judging a policy after every report (R14) must not go through the whole group each time.
"""

from collections.abc import Sequence
from dataclasses import replace

from cloud_stub.core.rows import DeviceRow, GroupCount


class ClassCounts:
    """Counts by group, then by class key, for the groups that were asked for."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, GroupCount]] = {}

    def of(self, group: str) -> Sequence[GroupCount] | None:
        """Return a group's classes in the order of their keys, or None when they have to be counted."""
        counts = self._groups.get(group)
        return None if counts is None else [counts[key] for key in sorted(counts)]

    def learn(self, group: str, counted: Sequence[GroupCount]) -> Sequence[GroupCount]:
        """Take note of what the database counted."""
        self._groups[group] = {count.class_key: count for count in counted}
        return counted

    def change(self, old: DeviceRow | None, new: DeviceRow) -> None:
        """Follow a device from its old row, as the transaction saw it, to its new one."""
        if old is not None and (old.group, old.class_key, old.floor) == (new.group, new.class_key, new.floor):
            return
        if (
            old is not None
            and (old.group, old.class_key) == (new.group, new.class_key)
            and old.floor < new.floor
        ):
            self._rise(new)  # each success does this
            return
        if old is not None:
            self._leave(old)
        self._join(new)

    def clear(self) -> None:
        """Count everything again when it is next asked for."""
        self._groups.clear()

    def _rise(self, row: DeviceRow) -> None:
        counts = self._groups.get(row.group)
        if counts is not None and row.class_key is not None and counts[row.class_key].floor_max < row.floor:
            counts[row.class_key] = replace(counts[row.class_key], floor_max=row.floor)

    def _leave(self, row: DeviceRow) -> None:
        counts = self._groups.get(row.group)
        if counts is None or row.class_key is None:
            return
        count = counts[row.class_key]
        if count.members == 1:
            del counts[row.class_key]
        elif row.floor > 0 and row.floor == count.floor_max:
            del self._groups[row.group]  # another member may hold the highest floor, or none
        else:
            counts[row.class_key] = replace(count, members=count.members - 1)

    def _join(self, row: DeviceRow) -> None:
        counts = self._groups.get(row.group)
        if counts is None or row.class_key is None:
            return
        count = counts.get(row.class_key)
        if count is None:
            counts[row.class_key] = GroupCount(row.class_key, row.properties, 1, row.floor)
        else:
            floor_max = max(count.floor_max, row.floor)
            counts[row.class_key] = replace(count, members=count.members + 1, floor_max=floor_max)
