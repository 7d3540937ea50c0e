"""Whatever operators, devices, links and clocks do, in any order: what must hold after every turn, and at the end.

The cloud is the real one on a real store. Devices behave (`machine_bench.py`); everything around them does not. The
invariants bear the numbers of the rules that they hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import getfullargspec
from random import Random

import pytest

from cloud_stub.core import offers, policy
from cloud_stub.core.commands import (
    AddDevices,
    CancelDeployment,
    MoveDevice,
    PolicyDraft,
    RetryDeployment,
    WithdrawUpdate,
)
from cloud_stub.core.counting import OPEN, VERDICTS
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow
from cloud_stub.orchestrator import Asked, Linked, Ticked
from protocol.errors import OperatorError
from protocol.lifecycle import DEPLOYMENT, PAST_NO_RETURN, DeploymentState, WorkflowState
from protocol.outcomes import Reason, Result
from tests.cloud_stub.orchestrator.machine_bench import PHASES, Box, Field
from tests.cloud_stub.orchestrator.rule_bench import V1, V2, V3

S = AssignmentState
BOTH = "acme/both:1.0"
GROUPS = ("north", "south", None)
SEEDS = range(16)  # about half a second each; more find more, and one that fails stays here by its number
MOVES = 70  # in one run
NAMES = ("a", "b", "c", "d", "e")
VERSIONS = (V1, V2, V3, BOTH)
ORDERS = ("as sent", "backwards", "doubled")
FAILURES = (
    Reason.NETWORK,
    Reason.NO_SPACE,
    Reason.HANDLER_FAILED,
    Reason.HEALTH_FAILED,
    Reason.STARTS_EXHAUSTED,
)
Key = tuple[str, str]


class CloudMachine:
    """Random moves of everybody, and what must hold all the same."""

    def __init__(self) -> None:
        self.cloud = Field()
        self.rows: Mapping[Key, AssignmentRow] = {}
        self.deployments: Mapping[str, DeploymentRow] = {}
        self.devices: Mapping[str, DeviceRow] = {}

    def begin(self) -> None:
        """Four devices of one class, and one of another; one group runs something already."""
        for version in (V1, V2, V3):
            self.cloud.update(version)
        self.cloud.update(BOTH, model=["pi4", "pi9"])
        for name, group in zip(NAMES, ("north", "north", "north", "south", None), strict=True):
            self.cloud.box(name, group, "pi9" if name == "e" else "pi4")
        self.cloud.deploy("north", V1)
        for _ in PHASES:
            for name in NAMES:
                self.on(name)

    def box(self, name: str) -> Box:
        """Return a device."""
        found = self.cloud.pis[name]
        assert isinstance(found, Box)
        return found

    # what devices do

    def on(self, name: str) -> None:
        """A device takes up its newest order, or goes on by one phase, through the gate, to its success."""
        box = self.box(name)
        epoch = box.done_epoch
        self.cloud.obey(box)
        if box.working is not None and box.done_epoch == epoch:
            at = PHASES.index(box.phase)
            if box.phase is WorkflowState.READY and not self._passes_gate(box):
                return
            if box.phase is PHASES[-1]:
                self.cloud.ended(box, Result.SUCCEEDED)
            else:
                box.phase = PHASES[at + 1]
        self.cloud.tell(box)

    def fails(self, name: str, reason: Reason) -> None:
        """What a device works on fails."""
        box = self.box(name)
        if box.working is not None:
            self.cloud.ended(box, Result.FAILED, reason)
            self.cloud.tell(box)

    def crashes_on(self, name: str) -> None:
        """A device goes through all phases unheard, and fails in its trial."""
        box = self.box(name)
        self.cloud.obey(box)
        if box.working is not None and (box.phase in PAST_NO_RETURN or self._passes_gate(box)):
            box.phase = WorkflowState.CONFIRMING
            self.cloud.ended(box, Result.FAILED, Reason.HEALTH_FAILED)
        self.cloud.tell(box)

    def falls_back(self, name: str) -> None:
        """A device runs what it ran before, and says no more than that (R18)."""
        box = self.box(name)
        if box.working is None and box.before is not None:
            box.running, box.before = box.before, None
            self.cloud.tell(box)

    def says_hello(self, name: str) -> None:
        """A heartbeat that asks."""
        self.cloud.hello(self.box(name))

    def changes_its_tag(self, name: str, group: str | None) -> None:
        """Somebody edits the device's own configuration."""
        box = self.box(name)
        box.tags = {"group": group} if group else {}
        self.cloud.tell(box)

    def changes_its_class(self, name: str, model: str) -> None:
        """A device reports other properties than before."""
        box = self.box(name)
        box.properties = {"model": model}
        self.cloud.tell(box)

    def raises_its_floor(self, name: str, floor: int) -> None:
        """A device reports a higher floor than any update has a counter."""
        box = self.box(name)
        box.floor = max(box.floor, floor)
        self.cloud.tell(box)

    def loses_its_disk(self, name: str) -> None:
        """A new instance, without epoch, slots or outcomes."""
        box = self.box(name)
        box.instance += "+"
        box.sequence, box.epoch, box.done_epoch, box.order = 0, None, 0, None
        box.running, box.before, box.working, box.phase = None, None, None, WorkflowState.IDLE
        box.outcomes, box.answer, box.concluded = [], None, set()
        self.cloud.hello(box)
        self.cloud.tell(box)

    # what the link does

    def holds_back(self) -> None:
        """Messages of devices queue up."""
        if self.cloud.held is None:
            self.cloud.held = []

    def lets_go(self, order: str) -> None:
        """They arrive in one batch, in any order."""
        self.cloud.let_go(order)

    def lets_go_around_a_move(self, order: str, name: str, group: str | None) -> None:
        """The same, with an operator's move and a tick among them."""
        self.cloud.let_go(order, Asked(MoveDevice(name, group), "tester"), Ticked())

    def says_again(self, back: int) -> None:
        """A message of the past arrives once more; one of an instance that is gone would be a clone's."""
        if not self.cloud.past:
            return
        item = self.cloud.past[-min(back, len(self.cloud.past))]
        if f'"instance":"{self.box(item.device).instance}"'.encode() in item.payload:
            self.cloud.feed(item)
            self.cloud.past.pop()

    def unplugs_and_plugs(self) -> None:
        """The cloud loses its broker for a while."""
        self.cloud.feed(Linked(False))
        self.cloud.wait(5_000)
        self.cloud.feed(Linked(True))

    # what operators and time do

    def deploys(
        self, group: str | None, version: str, draft: PolicyDraft | None, start_ms: int | None, retries: int
    ) -> None:
        """A deployment of anything, with or without a policy, now or soon."""
        self._try(
            lambda: self.cloud.deploy(
                group or "$default",
                version,
                policy=draft,
                allow_downgrade=True,
                retries=retries,
                retry_delay_ms=1_000,
                device_timeout_ms=6_000,
                start_at_ms=self.cloud.now.wall_ms + start_ms if start_ms else None,
            )
        )

    def ends_or_retries(self, which: int, verb: type[CancelDeployment | RetryDeployment]) -> None:
        """Cancel or retry one of the newest."""
        newest = sorted(self.deployments, key=lambda name: int(name[1:]))[-1 - which :]
        if newest:
            self._try(lambda: self.cloud.do(verb(newest[0])))

    def moves(self, name: str, group: str | None) -> None:
        """The operator's override."""
        self.cloud.do(MoveDevice(name, group))

    def withdraws(self, version: str) -> None:
        """An update is withdrawn by hand."""
        self._try(lambda: self.cloud.do(WithdrawUpdate(version, "it smokes")))

    def renews_a_token(self, name: str) -> None:
        """A new token, which also ends the hold of a clone."""
        self.cloud.do(AddDevices({name: "other"}, renew=True))

    def time_passes(self, ms: int, step: int) -> None:
        """Time passes, and sometimes the wall clock steps."""
        self.cloud.wait(ms, stepping=step)

    def restarts(self) -> None:
        """The cloud dies and starts again."""
        self.cloud.restart()

    # what must hold

    def holds(self) -> None:
        """Everything that is true after every turn."""
        with self.cloud.store.read() as reader:
            deployments = {row.id: row for row in reader.list_deployments()}
            devices = {row.id: row for row in reader.list_devices()}
            rows = {(row.deployment, row.device): row for row in reader.list_assignments()}
            assert all(row.tally == reader.count_assignments(row.id) for row in deployments.values()), "R14"
        for name, before in self.deployments.items():
            self._of_deployment(before, deployments[name])
        active = [row.group for row in deployments.values() if row.state is DeploymentState.ACTIVE]
        assert len(active) == len(set(active)), "R14: one active in a group"
        causes = [row.cause for row in deployments.values() if row.cause]
        assert len(causes) == len(set(causes)), "R14: one rollback of a deployment"
        for device_id, was in self.devices.items():
            assert devices[device_id].epoch >= was.epoch, "R2: an epoch fell"
        for key, row in rows.items():
            self._of_row(self.rows.get(key), row, deployments[row.deployment])
        self.rows, self.deployments, self.devices = rows, deployments, devices
        self._of_orders()
        self._of_policies()

    def converges(self) -> None:
        """In the end everything converges: each device is told what the rows say, and reaches a verdict."""
        self.cloud.let_go("as sent")
        for turn in range(20):
            self.cloud.wait(4_000_000 if turn in {7, 13} else 1_000)
            for name in NAMES:
                if self.devices[name].cloned:
                    self.renews_a_token(name)
                self.cloud.hello(self.box(name))
                self.on(name)
        self.cloud.wait(20_000)
        self.holds()
        for name in NAMES:
            self._ended_well(self.devices[name], self.box(name))

    # helpers

    def _of_deployment(self, was: DeploymentRow, row: DeploymentRow) -> None:
        if not DEPLOYMENT[was.state]:
            frozen = replace(was, tally=row.tally)
            assert row == frozen, "an ended deployment changed"
        if row.state is not was.state:
            assert row.state in reachable(was.state)
        assert (row.state is DeploymentState.ROLLED_BACK) == (row.trip is not None)

    def _of_row(self, was: AssignmentRow | None, row: AssignmentRow, deployment: DeploymentRow) -> None:
        assert not row.suspended or row.state in OPEN, "R15: suspended while a retry is open, and no longer"
        assert row.retry_at_ms is None or row.state is S.FAILED
        assert not (row.moved_on and deployment.state is DeploymentState.ACTIVE and row.retry_at_ms)
        if was is None:
            return
        assert row.attempt >= was.attempt, "an attempt fell"
        same = row.attempt == was.attempt and row.sha256 == was.sha256
        if same and was.state in VERDICTS and row.state is not was.state:
            fell = was.state is S.SUCCEEDED and (row.reason is Reason.FELL_BACK or was.already_there)
            guess = was.state is S.FAILED and was.reason is Reason.TIMED_OUT
            assert row.state in VERDICTS or row.state is S.UNPROTECTED, "a verdict was overwritten"
            assert fell or guess or row.state is S.UNPROTECTED, "rule 9: a verdict was decided twice"
        if was.counted and not row.counted and row.sha256 == was.sha256:
            told = row.state is S.SUCCEEDED or was.guessed or (row.began_ms and row.reason is None)
            assert told, "R15: only a success clears a counted failure"

    def _of_orders(self) -> None:
        with self.cloud.store.read() as reader:
            for device in self.devices.values():
                if device.order_action != "install" or device.order_stale:
                    continue
                deployment = self.deployments[device.order_deployment or ""]
                update = reader.update(device.order_update or "")
                assert update is not None
                assert deployment.group == device.group, "R19: an order of a group that it left"
                assert deployment.state is DeploymentState.ACTIVE, "an order of an ended deployment"
                allowed = update.sha256 in deployment.allowed_withdrawn
                assert update.withdrawn_ms is None or allowed, "R22: a withdrawn update is ordered"
                row = self.rows[deployment.id, device.id]
                assert row.state not in {S.UNPROTECTED, S.INCOMPATIBLE}, "R17"
                assert not device.cloned, "R8"
                assert row.attempt == device.order_attempt

    def _of_policies(self) -> None:
        """No policy is beyond its numbers without having tripped (R14), counted anew from devices and rows."""
        with self.cloud.store.read() as reader:
            for row in self.deployments.values():
                if row.state is DeploymentState.ACTIVE and row.policy is not None:
                    refs = (*row.updates, *row.policy.rollback_to)
                    catalog = {
                        ref.sha256: found for ref in refs if (found := reader.update_by_sha256(ref.sha256))
                    }
                    tally = reader.count_assignments(row.id)
                    members = policy.protected_members(row.updates, catalog, reader.classes(row.group), tally)
                    base = policy.base_of(row.policy, tally, members)
                    assert not policy.trips(row.policy, tally.counted, base, members + tally.moved_on), "R14"

    def _ended_well(self, device: DeviceRow, box: Box) -> None:
        assert not device.order_stale
        assert device.published_epoch == device.epoch == device.reported_epoch == box.epoch, "not converged"
        with self.cloud.store.read() as reader:
            active = reader.active(device.group)
            mine = reader.assignment(active.id, device.id) if active else None
            refs = (*active.updates, *(active.policy.rollback_to if active.policy else ())) if active else ()
            catalog = {ref.sha256: found for ref in refs if (found := reader.update_by_sha256(ref.sha256))}
            caused = reader.assignment(active.cause, device.id) if active and active.cause else None
        offer = offers.offer(device, offers.Situation(active, mine, None, catalog, False, 0, caused))
        over = mine is not None and mine.state is S.FAILED and mine.attempt == device.order_attempt
        if not over:  # an attempt that failed was its order, and needs no hold behind it
            assert (offer.order.action, offer.order.sha256) == (device.order_action, device.order_sha256)
        if device.order_action == "install" and not over:
            assert mine is not None
            assert offer.order.attempt == mine.attempt == device.order_attempt, (
                "asking twice changes something"
            )
            assert mine.state is S.SUCCEEDED, (mine, device)
        stuck = [
            row
            for row in self.rows.values()
            if row.device == device.id
            and row.state is S.PENDING
            and not DEPLOYMENT[self.deployments[row.deployment].state]
        ]
        assert not stuck, "an ended deployment shows a device as pending for ever"

    def _passes_gate(self, box: Box) -> bool:
        if self.cloud.held is not None:
            return False
        self.cloud.hello(box)
        return box.working is not None and box.acks[-1].newest_epoch == box.working.epoch == box.epoch

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OperatorError:
            return


def reachable(state: DeploymentState) -> set[DeploymentState]:
    """Return what a deployment can become from a state, in any number of moves."""
    found: set[DeploymentState] = set()
    for after in DEPLOYMENT[state].values():
        found |= {after} | reachable(after)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_comes_in_any_order_the_rules_hold(seed: int) -> None:
    """R2, R4, R8, R14 to R20, R22: invariants after each of the random moves, and in the end all converge."""
    random, machine, done = Random(seed), CloudMachine(), []
    machine.begin()
    machine.holds()
    names, weights = zip(*WEIGHTS.items(), strict=True)
    try:
        for _ in range(MOVES):
            move = random.choices(names, weights)[0]
            some = [random.choice(CHOICES[name]) for name in getfullargspec(getattr(machine, move)).args[1:]]
            done.append((move, *some))
            getattr(machine, move)(*some)
            machine.holds()
        machine.converges()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}; after {done}") from error


DRAFTS = [
    PolicyDraft(percent, count, (back,), match, of)
    for percent in (20, 60)
    for count in (1, 2, 3, 4)
    for back in (V1, V3, BOTH)
    for match in ("all", "any")
    for of in ("group", "attempted")
]
CHOICES: Mapping[str, Sequence[object]] = {
    "name": NAMES,
    "group": GROUPS,
    "model": ("pi4", "pi4", "pi9", "pi7"),
    "floor": (0, 1),
    "reason": FAILURES,
    "order": ORDERS,
    "back": range(1, 30),
    "version": VERSIONS,
    "draft": (None, *DRAFTS, *DRAFTS[:24]),
    "start_ms": (None, None, None, 3_000),
    "retries": (0, 1),
    "which": range(3),
    "verb": (CancelDeployment, RetryDeployment, RetryDeployment),
    "ms": (10, 1_000, 2_500, 8_000),
    "step": (0, 0, 0, 0, 0, 0, 90_000, -90_000),
}
WEIGHTS: Mapping[str, float] = {
    "on": 30,
    "fails": 12,
    "crashes_on": 6,
    "falls_back": 3,
    "says_hello": 3,
    "changes_its_tag": 3,
    "changes_its_class": 1.5,
    "raises_its_floor": 1,
    "loses_its_disk": 1,
    "holds_back": 4,
    "lets_go": 5,
    "lets_go_around_a_move": 3,
    "says_again": 3,
    "unplugs_and_plugs": 1,
    "deploys": 6,
    "ends_or_retries": 5,
    "moves": 6,
    "withdraws": 1.5,
    "renews_a_token": 1,
    "time_passes": 8,
    "restarts": 2,
}
