"""One transaction of the orchestrator: rows saved with their counts, policies judged, messages gathered.

It decides nothing about devices or deployments by itself but this: whoever saves an assignment changes its
deployment's tally by the row's transition and judges the policy at once, for each row of a batch (R14).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cloud_stub.core import counting
from cloud_stub.core import policy as policies
from cloud_stub.core.chance import Chance
from cloud_stub.core.rows import (
    AssignmentRow,
    DeploymentRow,
    DeviceRow,
    GroupCount,
    Policy,
    UpdateRef,
    UpdateRow,
)
from cloud_stub.orchestrator.values import Publish, Settings
from cloud_stub.ports import Unit
from protocol.lifecycle import DeploymentState

log = logging.getLogger(__name__)


class AckDue(NamedTuple):
    """An acknowledgement to be built when everything else of the turn is done, from what its rows then say."""

    device: str
    nonce: str | None
    refused: str | None


@dataclass(slots=True)
class Turn:
    """What one transaction has at hand. `trip` is called when a policy's numbers are reached."""

    unit: Unit
    now_ms: int
    observed_ms: int
    chance: Chance
    settings: Settings
    trip: "Callable[[Turn, DeploymentRow, Policy, int, int], None]"
    publishes: list[Publish] = field(default_factory=list)
    accounts_changed: bool = False
    acks: list[AckDue] = field(default_factory=list)
    _classes: dict[str, Sequence[GroupCount]] = field(default_factory=dict)

    def mark(self) -> tuple[int, int]:
        """Return how much has been gathered, for `undo`."""
        return len(self.publishes), len(self.acks)

    def undo(self, mark: tuple[int, int]) -> None:
        """Forget the messages that were gathered since a mark, and what was counted meanwhile."""
        del self.publishes[mark[0] :]
        del self.acks[mark[1] :]
        self._classes.clear()

    def save(self, old: AssignmentRow | None, new: AssignmentRow) -> None:
        """Put an assignment, and carry its transition into the tally and the policy."""
        if new is old or new == old:
            return
        self.unit.put_assignment(new)
        if old is not None and counting.counts_alike(old, new):
            return
        deployment = self.deployment(new.deployment)
        deployment = replace(deployment, tally=counting.changed(deployment.tally, old, new))
        self.unit.put_deployment(deployment)
        self.judge(deployment)

    def judge(self, deployment: DeploymentRow) -> None:
        """Trip the policy of an active deployment when its numbers are reached; it trips exactly once."""
        policy = deployment.policy
        if deployment.state is not DeploymentState.ACTIVE or policy is None or deployment.tally.counted == 0:
            return
        tally, members = deployment.tally, self.protected_members(deployment, policy)
        base = policies.base_of(policy, tally, members)
        if policies.trips(policy, tally.counted, base, group=members + tally.moved_on):
            self.trip(self, deployment, policy, tally.counted, base)

    def protected_members(self, deployment: DeploymentRow, policy: Policy) -> int:
        """Count the current members in the policy's base `group` (R13)."""
        catalog = self.catalog((*deployment.updates, *policy.rollback_to))
        classes = self.classes(deployment.group)
        return policies.protected_members(deployment.updates, catalog, classes, deployment.tally)

    def classes(self, group: str) -> Sequence[GroupCount]:
        """Return the device classes within a group and their counts, read once until a member changes its place."""
        if group not in self._classes:
            self._classes[group] = self.unit.class_members(group)
        return self._classes[group]

    def put_device(self, old: DeviceRow | None, new: DeviceRow) -> None:
        """Put a device, and forget the class counts that it changes."""
        if old is None or (old.group, old.class_key) != (new.group, new.class_key):
            self._classes.pop(new.group, None)
            if old is not None:
                self._classes.pop(old.group, None)
        if new != old:
            self.unit.put_device(new)

    def raised(self, device: DeviceRow) -> DeviceRow:
        """Return the device with a higher epoch, whose order is still to be decided (R2)."""
        epoch = max(device.epoch + 1, self.now_ms, (device.reported_epoch or 0) + 1)
        return replace(device, epoch=epoch, order_stale=True)

    def deployment(self, deployment: str) -> DeploymentRow:
        """Return a deployment that an assignment names."""
        row = self.unit.deployment(deployment)
        if row is None:
            raise LookupError(f"an assignment names the deployment {deployment!r}, which is not in the store")
        return row

    def catalog(self, refs: Iterable[UpdateRef]) -> Mapping[str, UpdateRow]:
        """Return the updates that are named, by sha256."""
        found = (self.unit.update_by_sha256(ref.sha256) for ref in refs)
        return {row.sha256: row for row in found if row is not None}

    def audit(self, who: str, what: str, about: str, **facts: object) -> None:
        """Append to the audit log, and say it in the program's log."""
        self.unit.add_audit(self.now_ms, who, what, about, facts)
        log.info("%s %s by %s %s", what, about, who, facts or "")
