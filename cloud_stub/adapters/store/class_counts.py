"""The device classes of groups, counted once in a transaction and then changed with each device that is put.

It runs no SQL and judges nothing. Judging a policy after each report (R14) must not go through the whole group each
time, and asks for no floor: a highest floor that cannot be kept exactly is counted again when somebody asks for it.
"""

from collections.abc import Sequence
from dataclasses import replace

from cloud_stub.core.rows import DeviceRow, GroupCount


class ClassCounts:
    """Counts by group, then by class key, for the groups that were asked for."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, GroupCount]] = {}
        self._floors_unsure: set[str] = set()  # groups that a holder of a highest floor has left

    def of(self, group: str, *, floors: bool = True) -> Sequence[GroupCount] | None:
        """Return a group's classes in the order of their keys, or None when they have to be counted.

        Without `floors` a highest floor may be that of a member who has left.
        """
        counts = self._groups.get(group)
        if counts is None or (floors and group in self._floors_unsure):
            return None
        return [counts[key] for key in sorted(counts)]

    def learn(self, group: str, counted: Sequence[GroupCount]) -> Sequence[GroupCount]:
        """Take note of what the database counted."""
        self._groups[group] = {count.class_key: count for count in counted}
        self._floors_unsure.discard(group)
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
        self._floors_unsure.clear()

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
            return
        counts[row.class_key] = replace(count, members=count.members - 1)
        if row.floor > 0 and row.floor == count.floor_max:
            self._floors_unsure.add(row.group)  # another member may hold it, or none

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
