"""A device's world in memory: a disk that keeps the record, slots that follow the pure rules, a cloud that answers.

It is a fake of what stands around the core, never of the core. Nothing happens by itself: a test performs the effects
that wait, one by one or all, and can lose the power at any point in between.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from agent.core import slots as rules
from agent.core.device import Device
from agent.core.model import (
    Activate,
    Commit,
    Connected,
    Delivered,
    Disconnected,
    Download,
    Effect,
    Event,
    Finished,
    Holds,
    Install,
    Invalidate,
    Observed,
    Prepare,
    Publish,
    Record,
    Rehash,
    Revert,
    Save,
    SaveFailed,
    SlotTable,
    Start,
    Started,
    StopWork,
    Ticked,
    Watch,
)
from agent.core.record import decode, encode
from agent.core.settings import Settings
from protocol.errors import DeviceError
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState
from protocol.manifest import read_manifest
from protocol.messages import Ack, Assignment, Hello, OutcomeReport, State, read, write
from protocol.topics import Kind
from tests.agent.builders import DEVICE, KEYS, PROPERTIES, a_manifest, sha_of, signed, slots_running


class SeededChance:
    """Chance that is the same in every run."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._tokens = 0

    def uniform(self) -> float:
        """Return the next number."""
        return self._random.random()

    def token(self) -> str:
        """Return the next token."""
        self._tokens += 1
        return f"token-{self._random.getrandbits(32):08x}-{self._tokens}"


class Rig:
    """One device, its disk and slots, and a cloud that knows what a database would."""

    def __init__(
        self,
        *,
        slots: SlotTable | None = None,
        settings: Settings | None = None,
        properties: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.chance = SeededChance(seed)
        self.settings = settings or Settings(agent_version="1.0")
        self.properties = properties or PROPERTIES
        self.slots = slots or slots_running(a_manifest("1.0"))
        self.disk: bytes | None = None
        self.disk_full = False
        self.manifests: dict[str, bytes] = {}
        self.now_ms = 0
        self.waiting: list[Effect] = []  # effects that were not performed yet
        self.log: list[Effect] = []
        self.sent: list[Publish] = []  # and not taken in by the cloud yet
        self.hellos: list[Hello] = []  # every one ever said
        self.states: list[State] = []
        self.seen: list[tuple[str, int, dict[str, Any]]] = []  # outcomes in the cloud's database
        self.held: State | None = None  # newest state in the cloud's database
        self.newest_epoch = 0
        self.connections = 0
        self.watch: Callable[[], None] = lambda: None
        self.device = self._new()

    # --- the agent's life ---

    def _new(self) -> Device:
        return Device(DEVICE, KEYS, self.chance, self.settings, self.properties, {"group": "hall-1"})

    def start(self, *, record_lost: bool = False) -> "Rig":
        """Start the agent on what the disk and the slots hold."""
        self.device = self._new()
        self.waiting = []
        self.slots = rules.recover(self.slots)
        record = None if record_lost or self.disk is None else decode(self.disk)
        self.do(Started(self.slots, record))
        return self

    def lose_power(self) -> None:
        """Forget everything but disk and slots, and start again."""
        self.start()

    def connect(self) -> "Rig":
        """Let the broker grant the subscriptions."""
        self.connections += 1
        self.do(Connected(f"connection-{self.connections}"))
        return self

    def disconnect(self) -> None:
        """End the connection."""
        self.do(Disconnected())

    def do(self, event: Event) -> list[Effect]:
        """Feed one event, keep the record, and queue what is to be done."""
        effects = self.device.handle(event, self.now_ms)
        self.log += effects
        for index, effect in enumerate(effects):
            if isinstance(effect, Save):
                assert index == 0, "Save comes first"
                if self.disk_full:
                    return effects[:1] + self.do(SaveFailed("no space left on the disk"))
                self.disk = encode(effect.record)
                assert decode(self.disk) == effect.record
            elif isinstance(effect, Publish):
                self._note(effect)
            elif isinstance(effect, StopWork):
                self.waiting = [
                    e for e in self.waiting if isinstance(e, Invalidate | Start | Commit | Activate | Revert)
                ]
            else:
                self.waiting.append(effect)
        self.watch()
        return effects

    def _note(self, publish: Publish) -> None:
        self.sent.append(publish)
        if publish.kind is Kind.HELLO:
            self.hellos.append(read(Hello, publish.payload))
        elif publish.kind is Kind.STATE:
            self.states.append(read(State, publish.payload))

    def tick(self, ms: int = 0) -> None:
        """Let time pass, or jump to what is due."""
        due = self.device.due()
        self.now_ms = self.now_ms + ms if ms else max(self.now_ms, due if due is not None else self.now_ms)
        self.do(Ticked())

    # --- work ---

    def next(self, kind: type[Effect]) -> Any:
        """Return the effect of this kind that waits."""
        return next(effect for effect in self.waiting if isinstance(effect, kind))

    def finish(self, effect: Any, event: E, **fields: Any) -> None:
        """Let an effect end as a test says, without touching the slots."""
        if effect in self.waiting:
            self.waiting.remove(effect)
        self.do(Finished(effect.tag, event, slots=self.slots, **fields))

    def perform(self, effect: Any = None) -> None:
        """Carry out the first effect that waits, or this one, and let it succeed."""
        effect = effect or self.waiting[0]
        self.waiting.remove(effect)
        event: Event
        if isinstance(effect, Invalidate):
            self.slots = rules.invalidate(self.slots, effect.slot, effect.reason)
            event = Observed(self.slots)
        else:
            event = _PERFORM[type(effect)](self, effect)
        self.watch()
        self.do(event)

    def work(self, *, until: WorkflowState | None = None, rounds: int = 60) -> "Rig":
        """Perform what waits and answer hellos, until the device has nothing to do or reaches a state."""
        for _ in range(rounds):
            if until is not None and self.state is until:
                break
            if self.waiting:
                self.perform()
            elif not self.answer_hello():
                break
        return self

    # --- the cloud ---

    def order(self, order: Assignment, manifest: bytes | None = None) -> None:
        """Sign an order and deliver it."""
        if manifest is not None:
            self.manifests[sha_of(manifest)] = manifest
        self.newest_epoch = max(self.newest_epoch, order.epoch)
        self.do(Delivered(Kind.DESIRED, signed(order)))

    def first_order(self, order: Assignment, manifest: bytes | None = None) -> None:
        """Deliver an order that echoes the nonce of the newest hello that bore one (R3)."""
        self.order(order.model_copy(update={"nonce": self.hellos[-1].nonce}), manifest)

    def ack(self, **changes: Any) -> None:
        """Deliver an acknowledgement of what the database holds."""
        fields: dict[str, Any] = {
            "device": DEVICE,
            "instance": self.device.record.instance,
            "sequence": self.held.sequence if self.held else 0,
            "digest": self.held.digest if self.held else None,
            "newest_epoch": self.newest_epoch,
        }
        self.do(Delivered(Kind.ACK, write(Ack(**{**fields, **changes}))))

    def answer_hello(self) -> bool:
        """Take in all that was sent; say whether there was anything, and answer it."""
        sent, self.sent = self.sent, []
        nonce = None
        for publish in sent:
            if publish.kind is Kind.STATE:
                self.take_in(read(State, publish.payload))
            elif publish.kind is Kind.HELLO:
                nonce = read(Hello, publish.payload).nonce or nonce
        if sent:
            self.ack(nonce=nonce)
        return bool(sent)

    def take_in(self, state: State) -> None:
        """Keep a state as the database would: whole, by its sequence."""
        if self.held is None or self.held.instance != state.instance or state.sequence >= self.held.sequence:
            self.held = state
            for outcome in state.outcomes:
                entry = (outcome.deployment, outcome.attempt, outcome.model_dump())
                if entry not in self.seen:
                    self.seen.append(entry)

    # --- views ---

    @property
    def state(self) -> WorkflowState:
        """The state of the work."""
        return self.device.workflow.state

    @property
    def outcomes(self) -> list[OutcomeReport]:
        """The outcomes that the record holds."""
        return [outcome for _, outcome in self.device.record.outcomes]

    @property
    def record(self) -> Record:
        """The record as the disk has it."""
        assert self.disk is not None
        return decode(self.disk)


def come_to(state: WorkflowState, order: Assignment, manifest: bytes) -> Rig:
    """Return a device that has come to a state with its first order; on its way back, because a check failed."""
    rig = Rig().start().connect()
    rig.answer_hello()
    rig.first_order(order, manifest)
    if state is WorkflowState.REVERTING:
        rig.work(until=WorkflowState.CONFIRMING)
        rig.finish(rig.next(Watch), E.HEALTH_FAILED, reason="health_failed")
    rig.work(until=state)
    assert rig.state is state
    return rig


def _prepare(rig: Rig, effect: Prepare) -> Event:
    assert effect.order.target is not None
    return Finished(effect.tag, E.PREPARED, manifest=rig.manifests[effect.order.target.sha256])


def _download(rig: Rig, effect: Download) -> Event:
    manifest = read_manifest(effect.manifest)
    rig.slots = rules.begin(
        rig.slots, effect.slot, str(manifest.update), manifest.sha256, manifest.release_counter
    )
    return Finished(effect.tag, E.DOWNLOADED, slots=rig.slots)


def _install(rig: Rig, effect: Install) -> Event:
    rig.slots = rules.seal(rig.slots, effect.slot)
    return Finished(effect.tag, E.INSTALLED, slots=rig.slots)


def _rehash(rig: Rig, effect: Rehash) -> Event:
    whole = rig.slots.slots[effect.slot].holds in {Holds.SEALED, Holds.GOOD}
    return Finished(effect.tag, E.REHASHED if whole else E.VERIFY_FAILED, slots=rig.slots)


def _activate(rig: Rig, effect: Activate) -> Event:
    rig.slots = rules.activate(rig.slots, effect.slot, effect.starts)
    return Finished(effect.tag, E.ACTIVATED, slots=rig.slots)


def _start(rig: Rig, effect: Start) -> Event:
    if rig.slots.booted != effect.slot:
        return Finished(effect.tag, E.FELL_BACK, slots=rig.slots)
    rig.slots, may_start = rules.count_start(rig.slots, effect.slot)
    return Finished(effect.tag, E.STARTED if may_start else E.STARTS_EXHAUSTED, slots=rig.slots)


def _watch(rig: Rig, effect: Watch) -> Event:
    return Finished(effect.tag, E.HEALTH_PASSED)


def _commit(rig: Rig, effect: Commit) -> Event:
    try:
        rig.slots = rules.commit(rig.slots, effect.slot)
    except DeviceError as error:
        return Finished(effect.tag, E.COMMIT_FAILED, str(error), slots=rig.slots)
    return Finished(effect.tag, E.COMMITTED, slots=rig.slots)


def _revert(rig: Rig, effect: Revert) -> Event:
    rig.slots = rules.revert(rig.slots, effect.reason)
    return Finished(effect.tag, E.REVERTED, slots=rig.slots)


_PERFORM: dict[type, Callable[[Rig, Any], Event]] = {
    Prepare: _prepare,
    Download: _download,
    Install: _install,
    Rehash: _rehash,
    Activate: _activate,
    Start: _start,
    Watch: _watch,
    Commit: _commit,
    Revert: _revert,
}
