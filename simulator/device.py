"""A virtual device: the agent's own core, with slots kept in memory and work that only takes time.

It is not an imitation of the agent's rules: they run here unchanged (`agent/core`), slot moves included. Only what the
core's effects touch is modelled. It knows no asyncio and no socket, so it lives in every world. It keeps the order that
real devices keep: an effect changes the slots when its work is done, and a power loss in between leaves half of it.
"""

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from agent.core import slots as moves
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
    Install,
    Invalidate,
    Observed,
    Prepare,
    Progressed,
    Publish,
    Record,
    Rehash,
    Revert,
    Save,
    SlotTable,
    Start,
    Started,
    Stopped,
    StopWork,
    Tag,
    Ticked,
    Watch,
)
from protocol.errors import DeviceError
from protocol.lifecycle import WorkflowEvent as E
from protocol.lifecycle import WorkflowState
from protocol.manifest import Manifest, read_manifest
from protocol.outcomes import Reason
from protocol.topics import Kind
from simulator.core.chance import SeededChance
from simulator.core.fleet import How, Member
from simulator.core.invariants import check_slots
from simulator.core.model import Model as Model  # the worlds know it by the device it belongs to
from simulator.ports import Clock, Content, Got, Timer, Transport

CRASH_AFTER_MS: Final = 50  # how long a payload that crashes on start runs
FLIP_MS: Final = 2  # one half of a switch: a durable write
MANIFESTS_KEPT: Final = 64  # parsed ones, shared by all devices of a process


class VirtualDevice:
    """One device. Its world tells it what happens; it answers through its ports.

    `make_core` builds a core for every start of the device, as a process would; the record and the slots are what
    survives in between.
    """

    __slots__ = (
        "_busy",
        "_clock",
        "_content",
        "_inbox",
        "_life",
        "_make_core",
        "_model",
        "_running",
        "_timer",
        "_timer_at",
        "_transport",
        "_work",
        "chance",
        "connection",
        "core",
        "failed_attempts",
        "member",
        "on_change",
        "record",
        "slot_checks",
        "slots",
        "starts",
    )

    def __init__(
        self,
        member: Member,
        make_core: Callable[[], Device],
        chance: SeededChance,
        clock: Clock,
        transport: Transport,
        content: Content,
        model: Model,
        slots: SlotTable | None = None,
    ) -> None:
        self.member = member
        self.chance = chance
        self.slots = slots or moves.factory()
        self.record: Record | None = None
        self.core: Device | None = None
        self.connection: str | None = None
        self.starts = 0
        self.failed_attempts: dict[str, int] = {}  # update → attempts that were made to fail
        self.on_change: Callable[[VirtualDevice], None] | None = (
            None  # after every event that changed slots or phase
        )
        self.slot_checks = 0  # new tables that were held to the slots' invariants, and to what they were
        self._make_core = make_core
        self._clock = clock
        self._transport = transport
        self._content = content
        self._model = model
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._life = 0  # rises with every power loss: what an earlier life began never answers
        self._work = 0  # rises with every StopWork
        self._timer: Timer | None = None
        self._timer_at = 0
        self._running: tuple[object, ...] = ()

    # --- what its world tells it -------------------------------------------------------------------------------

    def start(self, record_lost: bool = False) -> None:
        """Start the agent, as after power came: recover the slots, and hand the core its record."""
        self._change(moves.recover(self.slots))
        self.starts += 1
        self.core = self._make_core()
        self.handle(Started(self.slots, None if record_lost else self.record))

    def lose_power(self) -> None:
        """Stop dead: what was under way is gone, and only the record and the slots stay."""
        self._life += 1
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.core = None
        self.connection = None

    def connected(self, connection: str) -> None:
        """The subscriptions are granted; `connection` is the nonce of this connection."""
        self.connection = connection
        self.handle(Connected(connection))

    def disconnected(self) -> None:
        """The connection ended."""
        if self.connection is not None:
            self.connection = None
            self.handle(Disconnected())

    def delivered(self, kind: Kind, payload: bytes) -> None:
        """A message arrived."""
        self.handle(Delivered(kind, payload))

    def handle(self, event: Event) -> None:
        """Feed the core one event, and carry out its effects; events that arise meanwhile wait their turn."""
        if self.core is None:
            return  # without power nobody hears it
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox and self.core is not None:
                effects = self.core.handle(self._inbox.popleft(), self._clock.now_ms())
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._busy = False
        self._mind_timer()
        self._tell_change()

    # --- what can be asked -------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its device id."""
        return self.member.id

    @property
    def running(self) -> str | None:
        """The update in the booted slot, by name."""
        return self.slots.running.update

    @property
    def phase(self) -> WorkflowState:
        """Where it stands with its order; idle while it is without power."""
        return self.core.workflow.state if self.core is not None else WorkflowState.IDLE

    @property
    def on_last_known_good(self) -> bool:
        """Whether it runs its last known good slot, with no trial open."""
        return self.slots.booted == self.slots.last_known_good and self.phase is WorkflowState.IDLE

    # --- effects -----------------------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Save(record):
                self.record = record
            case Publish(kind, payload):
                self._transport.publish(kind, payload)
            case Prepare():
                self._content.manifest(effect.order, self._mine(lambda got: self._prepared(effect.tag, got)))
            case Download():
                self._download(effect)
            case Install():
                self._install(effect)
            case Rehash(tag):
                self._later(self._model.rehash_ms, lambda: self._finish(tag, E.REHASHED))
            case Activate():
                self._activate(effect)
            case Start():
                duration = self.chance.spread_ms(self._model.restart_ms, self._model.restart_spread)
                self._later(duration, lambda: self._start(effect))
            case Watch():
                self._watch(effect)
            case Commit(tag, slot):
                self._later(
                    FLIP_MS,
                    lambda: self._moved(
                        tag, E.COMMITTED, E.COMMIT_FAILED, lambda: moves.commit(self.slots, slot)
                    ),
                )
            case Revert():
                self._revert(effect)
            case Invalidate(slot, reason):
                self._change(moves.invalidate(self.slots, slot, reason))
                self._inbox.append(Observed(self.slots))
            case StopWork():
                self._work += 1

    def _prepared(self, tag: Tag, got: Got) -> None:
        if got.manifest is not None:
            self.handle(Finished(tag, E.PREPARED, manifest=got.manifest))
        else:
            self._download_failed(tag, got)

    def _download_failed(self, tag: Tag, got: Got) -> None:
        event = E.VERIFY_FAILED if got.reason is Reason.VERIFY_FAILED else E.DOWNLOAD_FAILED
        reason = got.reason or Reason.NETWORK
        self.handle(Finished(tag, event, got.detail, reason, got.transient, got.refresh, slots=self.slots))

    def _download(self, effect: Download) -> None:
        manifest = _manifest(effect.manifest)
        begun = moves.begin(
            self.slots, effect.slot, str(manifest.update), manifest.sha256, manifest.release_counter
        )
        self._change(begun)
        if self._fails(effect.tag, str(manifest.update), "download_breaks"):
            broke = Got(
                reason=Reason.NETWORK, detail="the transfer broke off (by the scenario)", transient=True
            )
            self._later(1, lambda: self._download_failed(effect.tag, broke))
            return
        started = self._mine(lambda got: self._bytes_came(effect, manifest, got))
        self._content.files(effect.order, manifest, self.member.fetches, started)

    def _bytes_came(self, effect: Download, manifest: Manifest, got: Got) -> None:
        """The bytes are here and verified; what the modelled link would still need is waited for."""
        if got.reason is not None:
            self._download_failed(effect.tag, got)
            return
        done = lambda: self._finish(effect.tag, E.DOWNLOADED)  # noqa: E731 - named once, used twice
        total, rate = manifest.bytes_total, self._model.bytes_per_s
        if rate is None:
            self._later(1, done)
            return
        duration = self.chance.spread_ms(1_000 * total / rate, self._model.download_spread)
        self._later(duration // 2, lambda: self.handle(Progressed(effect.tag, total // 2, total)))
        self._later(duration, done)

    def _install(self, effect: Install) -> None:
        update = str(_manifest(effect.manifest).update)
        duration = self.chance.spread_ms(self._model.install_ms, self._model.install_spread)
        if self._fails(effect.tag, update, "install_fails"):
            failed = Finished(
                effect.tag,
                E.INSTALL_FAILED,
                "a step exited with 1 (by the scenario)",
                Reason.HANDLER_FAILED,
                slots=self.slots,
            )
            self._later(duration // 2, lambda: self.handle(failed))
            return
        self._later(duration, lambda: self._sealed(effect))

    def _sealed(self, effect: Install) -> None:
        self._change(moves.seal(self.slots, effect.slot))
        self._finish(effect.tag, E.INSTALLED)

    def _activate(self, effect: Activate) -> None:
        """Two durable writes; the power may fail between them."""

        def boot() -> None:
            self._moved(
                effect.tag, E.ACTIVATED, E.ACTIVATE_FAILED, lambda: moves.boot(self.slots, effect.slot)
            )

        def mark() -> None:
            try:
                self._change(moves.mark_trial(self.slots, effect.slot, effect.starts))
            except DeviceError as error:
                self._refused(effect.tag, E.ACTIVATE_FAILED, Reason.ACTIVATE_FAILED, error)
                return
            self._later_surely(FLIP_MS, boot)

        self._later_surely(FLIP_MS, mark)

    def _start(self, effect: Start) -> None:
        if effect.slot != self.slots.booted:
            self._finish(effect.tag, E.FELL_BACK)
            return
        table, may_start = moves.count_start(self.slots, effect.slot)
        self._change(table)
        if not may_start:
            self._finish(effect.tag, E.STARTS_EXHAUSTED)
            return
        self._finish(effect.tag, E.STARTED)
        held = self.slots.slots[effect.slot]
        if held.holds == "trial" and self._fails(effect.tag, held.update, "crash_on_start"):
            crashed = Stopped("it exited with 1 (by the scenario)")
            self._later(CRASH_AFTER_MS, lambda: self.handle(crashed))

    def _watch(self, effect: Watch) -> None:
        held = self.slots.slots[effect.slot]
        soak_ms = self._model.soak_ms
        if held.holds == "trial" and self._fails(effect.tag, held.update, "crash_on_start"):
            return  # its crash is on the way: no soak ends before it, also where a machine stood still meanwhile
        if held.holds == "trial" and self._fails(effect.tag, held.update, "health_fails"):
            detail = "the check 'http' answered 500 (by the scenario)"
            failed = Finished(effect.tag, E.HEALTH_FAILED, detail, Reason.HEALTH_FAILED)
            self._later(max(1, soak_ms // 2), lambda: self.handle(failed))
            return
        self._later(max(1, soak_ms), lambda: self._finish(effect.tag, E.HEALTH_PASSED))

    def _revert(self, effect: Revert) -> None:
        """Mark the trial bad, then boot the last known good one, then start it."""
        duration = self.chance.spread_ms(self._model.restart_ms, self._model.restart_spread)

        def started() -> None:
            self._finish(effect.tag, E.REVERTED)

        def boot() -> None:
            self._change(moves.boot(self.slots, self.slots.last_known_good))
            self._later_surely(duration, started)

        def mark() -> None:
            self._change(moves.mark_bad(self.slots, effect.reason))
            self._later_surely(FLIP_MS, boot)

        self._later_surely(FLIP_MS, mark)

    # --- helpers -----------------------------------------------------------------------------------------------

    def _fails(self, tag: Tag, update: str | None, how: How) -> bool:
        """Return whether the scenario makes this attempt fail in this way, and count the attempt if so."""
        failure = self._model.failures.get((self.member.id, update or ""))
        if failure is None or failure.how != how:
            return False
        if failure.attempts is None:
            return True
        key = f"{update}\x00{tag.epoch}"  # one attempt: it may start more than once
        if key not in self.failed_attempts and len(self.failed_attempts) >= failure.attempts:
            return False
        self.failed_attempts[key] = self.failed_attempts.get(key, 0) + 1
        return True

    def _moved(self, tag: Tag, done: E, failed: E, move: Callable[[], SlotTable]) -> None:
        try:
            self._change(move())
        except DeviceError as error:
            reason = Reason.COMMIT_FAILED if failed is E.COMMIT_FAILED else Reason.ACTIVATE_FAILED
            self._refused(tag, failed, reason, error)
            return
        self._finish(tag, done)

    def _refused(self, tag: Tag, event: E, reason: Reason, error: DeviceError) -> None:
        self.handle(Finished(tag, event, str(error), reason, slots=self.slots))

    def _finish(self, tag: Tag, event: E) -> None:
        self.handle(Finished(tag, event, slots=self.slots))

    def _change(self, table: SlotTable) -> None:
        check_slots(self.id, self.slots, table)
        self.slot_checks += 1
        self.slots = table

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Act after a time, unless the power failed or the work was stopped meanwhile."""
        life, work = self._life, self._work

        def act() -> None:
            if self._life == life and self._work == work:
                action()

        self._clock.call_later(delay_ms, act)

    def _later_surely(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Act after a time, unless the power failed meanwhile: a switch is not called off half-way."""
        life = self._life
        self._clock.call_later(delay_ms, lambda: action() if self._life == life else None)

    def _mine(self, answer: Callable[[Got], None]) -> Callable[[Got], None]:
        """Return an answer that is ignored after a power loss or a StopWork."""
        life, work = self._life, self._work
        return lambda got: answer(got) if self._life == life and self._work == work else None

    def _mind_timer(self) -> None:
        """Keep one timer for the core's `due`; one that fires too early looks again: cheaper than a new one."""
        due = self.core.due() if self.core is not None else None
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._clock.call_later(max(1, due - self._clock.now_ms()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        due = self.core.due() if self.core is not None else None
        if due is not None and due <= self._clock.now_ms():
            self.handle(Ticked())
        else:
            self._mind_timer()

    def _tell_change(self) -> None:
        if self.on_change is None:
            return
        now = (self.slots.booted, self.running, self.phase)
        if now != self._running:
            self._running = now
            self.on_change(self)


@lru_cache(maxsize=MANIFESTS_KEPT)
def _manifest(data: bytes) -> Manifest:
    return read_manifest(data)
