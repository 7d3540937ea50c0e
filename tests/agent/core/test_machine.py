"""A device through everything at once: orders, failures, power losses, a full disk, a lost record, a silent cloud.

Random walks look for what no single test thinks of. At every step the slots are legal, and what was once recorded as
an outcome is with the cloud or still on the disk; when the faults stop, the device comes to rest with everything told.
"""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.core import slots as rules
from agent.core.model import (
    Activate,
    Commit,
    Download,
    Effect,
    Install,
    Invalidate,
    Prepare,
    Rehash,
    Revert,
    SlotTable,
    Start,
    Stopped,
    Watch,
)
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState as S
from protocol.messages import Assignment
from tests.agent.builders import a_hold, a_manifest, an_order, sha_of
from tests.agent.fakes_core import Rig

MANIFESTS = [a_manifest("1.0"), a_manifest("2.0", release_counter=1), a_manifest("3.0", release_counter=2)]
FAILURES: dict[type, list[tuple[E, dict[str, Any]]]] = {
    Prepare: [
        (E.DOWNLOAD_FAILED, {"transient": True}),
        (E.DOWNLOAD_FAILED, {"refresh": True}),
        (E.VERIFY_FAILED, {}),
    ],
    Download: [
        (E.DOWNLOAD_FAILED, {"transient": True}),
        (E.DOWNLOAD_FAILED, {"reason": "disk"}),
        (E.VERIFY_FAILED, {}),
    ],
    Install: [(E.INSTALL_FAILED, {}), (E.VERIFY_FAILED, {})],
    Rehash: [(E.VERIFY_FAILED, {})],
    Activate: [(E.ACTIVATE_FAILED, {})],
    Start: [(E.HEALTH_FAILED, {"detail": "no such file"})],
    Watch: [(E.HEALTH_FAILED, {"detail": "http: 500"})],
    Commit: [(E.COMMIT_FAILED, {})],
    Revert: [(E.REVERT_FAILED, {"detail": "EIO"})],
}
Key = tuple[int, str, int]


class Walk(RuleBasedStateMachine):
    """One device, walked at random."""

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        """Start a device that runs version 1."""
        self.rig = Rig(seed=seed)
        for manifest in MANIFESTS:
            self.rig.manifests[sha_of(manifest)] = manifest
        self.newest: Assignment | None = None
        self.recorded: set[Key] = set()
        self.good: tuple[str, object] | None = None
        self.rig.watch = self.look
        self.rig.start()
        self.rig.connect()

    # --- what is true at every instant ---

    def look(self) -> None:
        """Hold slots and outcomes to their invariants, after every effect and every event."""
        slots = self.rig.slots
        assert rules.faults(slots) == []
        last_good = slots.slots[slots.last_known_good]
        if self.good is not None and self.good[0] == slots.last_known_good:
            assert last_good.sha256 == self.good[1], "the last known good slot was written"
        self.good = (slots.last_known_good, last_good.sha256)
        if self.rig.disk is not None:
            self.recorded |= {_key(outcome) for _, outcome in self.rig.record.outcomes}

    @invariant()
    def nothing_recorded_is_lost(self) -> None:
        """Every outcome that ever was on the disk is there still, or with the cloud."""
        if hasattr(self, "rig") and self.rig.disk is not None:
            here = {_key(outcome) for _, outcome in self.rig.record.outcomes}
            there = {(seen[2]["epoch"], seen[0], seen[1]) for seen in self.rig.seen}
            if self.rig.record.outcomes_folded:  # beyond the cap only their number is told (R7)
                self.recorded &= here | there
            assert self.recorded <= here | there

    @invariant()
    def never_idle_while_a_trial_is_booted(self) -> None:
        """Unless the agent has just been told of it."""
        if hasattr(self, "rig") and self.rig.slots.running.holds == "trial":
            assert self.rig.state in {S.SWITCHING, S.RESTARTING, S.CONFIRMING, S.REVERTING}

    # --- the cloud ---

    @rule(
        which=st.integers(0, 2),
        kind=st.sampled_from(["install", "install", "install", "retry", "hold", "cancel"]),
    )
    def order(self, which: int, kind: str) -> None:
        """Order something newer."""
        epoch = self.rig.newest_epoch + 1
        last = self.newest
        if kind in {"hold", "cancel"} or (kind == "retry" and (last is None or last.target is None)):
            named = kind == "cancel" and last is not None
            order = a_hold(
                epoch, last.deployment if named and last else None, last.attempt if named and last else None
            )
        elif kind == "retry" and last is not None:
            order = an_order(
                epoch, deployment=last.deployment, attempt=(last.attempt or 0) + 1, target=last.target
            )
        else:
            order = an_order(epoch, MANIFESTS[which], allow_downgrade=which == 0)
        self.newest = order
        self.deliver()

    @rule()
    def deliver(self) -> None:
        """Deliver the newest order, which may be known already, with the nonce of the newest hello."""
        if self.newest is not None:
            nonces = [hello.nonce for hello in self.rig.hellos[-3:] if hello.nonce]
            self.rig.order(self.newest.model_copy(update={"nonce": nonces[-1] if nonces else None}))

    @rule()
    def answer(self) -> None:
        """The cloud takes in what was sent, and answers."""
        self.rig.answer_hello()

    @rule()
    def lose_messages(self) -> None:
        """The broker drops everything."""
        self.rig.sent.clear()

    @rule()
    def reconnect(self) -> None:
        """The connection breaks and comes back."""
        self.rig.disconnect()
        self.rig.connect()

    # --- the device ---

    def ready_effects(self) -> list[Effect]:
        """Return what could be done next: short effects are done at once, so they come first."""
        first: list[Effect] = [effect for effect in self.rig.waiting if isinstance(effect, Invalidate)]
        return first or self.rig.waiting

    @precondition(lambda self: self.rig.waiting)
    @rule(which=st.integers(0, 5))
    def succeed(self, which: int) -> None:
        """One effect is carried out."""
        effects = self.ready_effects()
        self.rig.perform(effects[which % len(effects)])

    @rule()
    def work(self) -> None:
        """Everything goes well for a while."""
        self.rig.work(rounds=6)

    @precondition(lambda self: any(not isinstance(effect, Invalidate) for effect in self.rig.waiting))
    @rule(which=st.integers(0, 5), how=st.integers(0, 2))
    def fail(self, which: int, how: int) -> None:
        """One effect fails in one of its ways."""
        for short in [effect for effect in self.rig.waiting if isinstance(effect, Invalidate)]:
            self.rig.perform(short)
        effects = self.rig.waiting
        if effects:
            effect = effects[which % len(effects)]
            event, fields = FAILURES[type(effect)][how % len(FAILURES[type(effect)])]
            self.rig.finish(effect, event, **fields)

    @rule()
    def application_ends(self) -> None:
        """What runs ends by itself."""
        self.rig.do(Stopped("exit 1"))

    @rule()
    def time_passes(self) -> None:
        """What is due next is due."""
        self.rig.tick()

    @rule()
    def power_fails(self) -> None:
        """Between two effects."""
        self.rig.lose_power()

    @precondition(
        lambda self: any(isinstance(effect, Activate | Revert | Commit) for effect in self.rig.waiting)
    )
    @rule()
    def power_fails_in_the_middle(self) -> None:
        """Between the halves of a switch, or after a commit whose result nobody heard."""
        effect = next(e for e in self.rig.waiting if isinstance(e, Activate | Revert | Commit))
        slots = self.rig.slots
        if isinstance(effect, Activate):
            self.rig.slots = rules.mark_trial(slots, effect.slot, effect.starts)
        elif isinstance(effect, Revert):
            self.rig.slots = rules.mark_bad(slots, effect.reason)
        else:
            self.rig.slots = rules.commit(slots, effect.slot)
        self.rig.lose_power()

    @precondition(lambda self: self.rig.slots.booted != self.rig.slots.last_known_good)
    @rule()
    def the_bootloader_goes_back(self) -> None:
        """The trial did not come up, and the bootloader took the other slot."""
        slots = self.rig.slots
        self.rig.slots = SlotTable(slots.slots, slots.last_known_good, slots.last_known_good)
        self.rig.lose_power()

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        """The disk refuses the record, or takes it again."""
        self.rig.disk_full = full

    @rule()
    def record_is_lost(self) -> None:
        """The record cannot be read at the next start; what it held is gone for good."""
        self.recorded = set()
        self.rig.disk = None
        self.rig.start()
        self.rig.connect()

    # --- when the faults stop ---

    def is_saved(self) -> bool:
        """Whether the disk has what the device knows."""
        return self.rig.disk is not None and self.rig.record == self.rig.device.record

    def teardown(self) -> None:
        """Come to rest: idle, everything acknowledged, the newest order ended."""
        if not hasattr(self, "rig"):
            return
        rig = self.rig
        rig.disk_full = False
        rig.disconnect()
        rig.connect()
        for _ in range(60):
            rig.work()
            if self.newest is not None and rig.device.record.epoch != self.newest.epoch:
                self.deliver()
            elif rig.state is S.IDLE and rig.device.acknowledged and not rig.waiting and self.is_saved():
                break
            rig.tick()
        else:
            raise AssertionError(f"no rest: {rig.device.waits_for()} {rig.device.workflow} {rig.waiting}")
        assert rig.record.outcomes == ()
        assert rig.slots.booted == rig.slots.last_known_good
        newest = self.newest
        if newest is not None and newest.action == "install":
            assert (newest.deployment, newest.attempt) in {(seen[0], seen[1]) for seen in rig.seen}
        if rig.held is not None:
            assert rig.held.work.state is S.IDLE


def _key(outcome: Any) -> Key:
    return outcome.epoch, outcome.deployment, outcome.attempt


Walk.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_a_device_walked_at_random_keeps_its_promises = Walk.TestCase
