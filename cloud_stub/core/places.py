"""Which group and which device class a device is in, and which update of an offer fits it.

It is not about what a device is told (`offers.py`). Source: DESIGN.md section 2 and RULES.md R17.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

from cloud_stub.core.rows import DeviceRow, UpdateRef, UpdateRow
from protocol.errors import OperatorError
from protocol.identity import DEFAULT_GROUP, check_group
from protocol.lifecycle import PAST_NO_RETURN, WorkflowState
from protocol.manifest import fits

GROUP_TAG: Final = "group"
_CLASS_CHARACTERS_MAX: Final = 160  # of a class key that people read; longer ones end in a digest
_DIGEST_CHARACTERS: Final = (
    32  # of that digest: 128 bits, so that no device can take the name of another class
)
_SEPARATORS: Final = re.compile(r"[\\,=]")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_PAIR: Final = re.compile(r"((?:[^\\,=]|\\.)*)=((?:[^\\,=]|\\.)*)(?:, |$)", re.DOTALL)

Catalog = Mapping[str, UpdateRow]
"""The updates in question, by sha256."""


def group_of(override: str | None, tag: str | None) -> str:
    """Return the effective group: the operator's override, else the tag, else `$default`."""
    return override or tag or DEFAULT_GROUP


def group_tag_of(tags: Mapping[str, str]) -> str | None:
    """Return the group a device's tags name; a tag that cannot name a group is as good as none."""
    tag = tags.get(GROUP_TAG)
    if not tag:
        return None
    try:
        return check_group(tag)
    except OperatorError:
        return None


def class_key_of(properties: Mapping[str, str]) -> str:
    """Return the name of the device class that these compatibility properties make, and no other ones.

    A separator within a name or a value stands behind a backslash.
    """
    text = ", ".join(f"{_escaped(key)}={_escaped(properties[key])}" for key in sorted(properties))
    if len(text) <= _CLASS_CHARACTERS_MAX:
        return text
    return f"{text[:_CLASS_CHARACTERS_MAX]}… {sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]}"


def properties_of(class_key: str) -> Mapping[str, str] | None:
    """Return the properties that make a device class: the inverse of `class_key_of`, or None when the key was cut."""
    properties = {_plain(name): _plain(value) for name, value in _PAIR.findall(class_key)}
    return properties if class_key_of(properties) == class_key else None


def _escaped(text: str) -> str:
    return _SEPARATORS.sub(lambda found: f"\\{found[0]}", text)


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: found[1], text)


def may_change_place(work_state: WorkflowState) -> bool:
    """Return whether tags and properties of this report take effect; those of a trial wait for the commit (R17)."""
    return work_state not in PAST_NO_RETURN


def first_that_fits(
    offered: Sequence[UpdateRef], catalog: Catalog, properties: Mapping[str, str]
) -> UpdateRow | None:
    """Return the update of an offer for a device class: the first whose compatibility it meets."""
    for ref in offered:
        update = catalog.get(ref.sha256)
        if update is not None and fits(list(map(dict, update.compatibility)), properties):
            return update
    return None


def why_not_safe(
    update: UpdateRow,
    rollback_to: Sequence[UpdateRef] | None,
    catalog: Catalog,
    properties: Mapping[str, str],
    floor: int,
) -> str:
    """Return why a device cannot take the update, or not be taken back from it, or nothing when it can (R17, R20).

    It is asked for the plan, for each order, and at a trip too; `rollback_to` is None without a policy.
    """
    if update.release_counter < floor:
        return (
            f"the release counter of {update.update} is {update.release_counter}, below its floor of {floor}"
        )
    if rollback_to is None:
        return ""
    return why_unprotected(rollback_to, catalog, update, properties, floor)


def why_unprotected(
    rollback_to: Sequence[UpdateRef],
    catalog: Catalog,
    update: UpdateRow,
    properties: Mapping[str, str],
    floor: int,
) -> str:
    """Return why a class cannot be taken back to `rollback_to`, or nothing when it can (R17, R20)."""
    back = first_that_fits(rollback_to, catalog, properties)
    if back is None:
        return "no update of rollback_to fits its class"
    needed = max(update.release_counter, floor)
    if back.release_counter < needed:
        return (
            f"the release counter of {back.update} is {back.release_counter}, and {needed} is needed "
            f"({update.update} has {update.release_counter}, the highest floor is {floor})"
        )
    return ""


def is_at(device: DeviceRow, sha256_wanted: str) -> bool:
    """Return whether a device runs exactly this target, outside a trial."""
    return device.running_sha256 == sha256_wanted and device.work_state not in PAST_NO_RETURN
