"""One device: orders, the agent's table, the record and the conversation composed into one object without I/O.

It does nothing itself: events in, effects out, in the manner of a sans-I/O protocol. It keeps the rules that the record
is written before anything that depends on it (R1), that a switch waits for the cloud's word (R4), and that a result
of an earlier effect changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from agent.core import orders, reporting
from agent.core.conversation import Conversation
from agent.core.disk import go_on_without_record
from agent.core.model import (
    Chance,
    Connected,
    Delivered,
    Described,
    Disconnected,
    Effect,
    Event,
    Finished,
    Holds,
    Invalidate,
    Observed,
    Progressed,
    Publish,
    Record,
    SaveFailed,
    SlotTable,
    Start,
    Started,
    Stopped,
    Tag,
    Ticked,
    Workflow,
)
from agent.core.restarts import Restarts
from agent.core.resume import Evidence, evidence_of
from agent.core.saving import Saves
from agent.core.settings import Settings
from agent.core.slots import invalidate
from agent.core.status import sentence
from agent.core.steps import Acts, Ask, Conclude, Facts, Happening, Reply, Wait, ordered
from agent.core.trying import is_committing
from agent.core.workflow import step
from protocol.envelope import TrustedKeys
from protocol.errors import MessageRefused
from protocol.lifecycle import WorkflowEvent as _E
from protocol.lifecycle import WorkflowState as _S
from protocol.messages import Ack, Assignment, Sync, read
from protocol.topics import EVERYONE, Kind

_AT_REST: Final = frozenset({_S.IDLE, _S.DOWNLOADING, _S.INSTALLING, _S.READY})  # the booted slot is no trial
_DEFAULTS: Final = Settings()


class Device:
    """Events in, effects out. Carry out the effects of one event, in order, before the next event is handled.

    `now_ms` is a monotonic clock of this process. `Started` is the first event. When a `Save` fails, do nothing that
    stands behind it in the list, and handle `SaveFailed` next. Results of effects come back as `Finished`, with the
    effect's tag and, when the slots changed, with their table; `Invalidate` answers with `Observed`.
    """

    __slots__ = (
        "_chance",
        "_device",
        "_done",
        "_effects",
        "_in_force",
        "_keys",
        "_manifest",
        "_now",
        "_progress_at",
        "_properties",
        "_reach_from",
        "_record",
        "_refused",
        "_report",
        "_restarts",
        "_saves",
        "_settings",
        "_slots",
        "_tags",
        "_talk",
        "_time",
        "_work_due",
    )

    def __init__(
        self,
        device: str,
        keys: TrustedKeys,
        chance: Chance,
        settings: Settings = _DEFAULTS,
        properties: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._device = device
        self._keys = keys
        self._chance = chance
        self._settings = settings
        self._properties: Mapping[str, str] = properties or {}
        self._tags: Mapping[str, str] = tags or {}
        self._talk = Conversation(device, chance, settings.heartbeat_ms)
        self._time = orders.CloudTime()
        self._saves = Saves(chance)
        self._restarts = Restarts(chance)
        self._report = reporting.Report(device, settings.agent_version)
        self._record = Record(instance="")
        self._slots: SlotTable | None = None
        self._in_force: Assignment | None = None  # the order of the record's epoch
        self._manifest: bytes | None = None  # of the order in work
        self._refused: Counter[str] = Counter()
        self._done = 0  # ordinal whose result has come
        self._now = 0
        self._effects: list[Effect] = []
        self._work_due: int | None = None
        self._progress_at: int | None = None
        self._reach_from = 0

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Return what to do about an event: `Save` first, then the acts that depend on it.

        Raises:
            TableBroken: a bug of ours.
            LookupError: the first event was not `Started`.
        """
        self._now = now_ms
        self._effects = []
        if not isinstance(event, SaveFailed):
            self._saves.succeeded()
        _HANDLERS[type(event)](self, event)
        acts = self._say()
        return acts if isinstance(event, SaveFailed) else self._saves.before(self._record, acts, now_ms)

    def due(self) -> int | None:
        """Return when `Ticked` wants to be handled, on the clock of `now_ms`; None: not before another event."""
        times = (self._work_due, self._restarts.due, self._saves.due, self._talk.due())
        known = [time for time in times if time is not None]
        return min(known) if known else None

    # --- views, for `status` and for the runtime ---------------------------------------------------------------

    @property
    def device(self) -> str:
        """The device's id."""
        return self._device

    @property
    def record(self) -> Record:
        """The record as it stands in memory; the newest `Save` carried it, unless the disk refused."""
        return self._record

    @property
    def workflow(self) -> Workflow:
        """Where the order in work stands."""
        return self._record.workflow

    @property
    def slots(self) -> SlotTable:
        """The slots as they were last read back.

        Raises:
            LookupError: before `Started`.
        """
        if self._slots is None:
            raise LookupError("The first event of a device is `Started`.")
        return self._slots

    @property
    def order_in_force(self) -> Assignment | None:
        """The order of the highest epoch accepted."""
        return self._in_force

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._talk.connection is not None

    @property
    def acknowledged(self) -> bool:
        """Whether the cloud has said that it has the newest state."""
        return self._talk.held

    @property
    def reconnect_spread_ms(self) -> int | None:
        """The first reconnect comes after uniform(0, this); None until the cloud has said it."""
        return self._talk.reconnect_spread_ms

    @property
    def refused(self) -> Mapping[str, int]:
        """Messages refused since the start, by reason."""
        return self._refused

    def waits_for(self) -> str:
        """Return one sentence: what the device waits for now."""
        seconds = None if self._work_due is None else max(0, self._work_due - self._now) // 1000
        return sentence(self.workflow, self._settings, connected=self.connected, again_s=seconds)

    # --- events ------------------------------------------------------------------------------------------------

    def _started(self, event: Started) -> None:
        self._slots = event.slots
        record = event.record or self._new_record()
        self._saves.begin(event.record)
        self._record = replace(record, start=record.start + 1)
        self._in_force = orders.reread(record.envelope)
        if self._in_force is not None:
            self._time.learn(self._in_force.issued_ms, self._now)
        self._reach_from = self._now
        self._feed(Happening(_E.RESTARTED, self._in_force))
        running = self.slots.running
        if self.workflow.state in _AT_REST and running.sha256 is not None:
            self._effects.insert(0, Start(Tag(0, 0, self._record.start), self.slots.booted))

    def _connected(self, event: Connected) -> None:
        self._talk.open(event.connection, self._now)

    def _disconnected(self, event: Disconnected) -> None:
        self._talk.close()

    def _delivered(self, event: Delivered) -> None:
        reader = {Kind.DESIRED: self._desired, Kind.ACK: self._acked, Kind.SYNC: self._synced}.get(event.kind)
        if reader is None:
            self._refused["topic"] += 1
            return
        try:
            reader(event.payload)
        except MessageRefused as error:
            self._refused[error.reason] += 1

    def _finished(self, event: Finished) -> None:
        if event.slots is not None:
            self._slots = event.slots
        tag = event.tag
        if tag.start != self._record.start:
            return
        if tag.ordinal == 0:
            if event.event is _E.HEALTH_FAILED:  # the committed application did not start
                self._restarts.plan(self._now)
            return
        if tag.ordinal != self.workflow.ordinal or tag.ordinal == self._done:
            return
        if event.event is not _E.HEALTH_PASSED:  # the checks go on after it
            self._done = tag.ordinal
        if event.event is _E.PREPARED:
            self._manifest = event.manifest
        self._feed(
            Happening(
                event.event,
                detail=event.detail,
                reason=event.reason,
                transient=event.transient,
                refresh=event.refresh,
                manifest=event.manifest,
                read_back=event.slots is not None,
            )
        )

    def _observed(self, event: Observed) -> None:
        self._slots = event.slots
        work = self.workflow
        if work.state is _S.IDLE and evidence_of(event.slots, None, None) is Evidence.ASTRAY:
            self._feed(Happening(_E.FELL_BACK, self._in_force))

    def _described(self, event: Described) -> None:
        self._properties, self._tags = event.properties, event.tags

    def _application_stopped(self, event: Stopped) -> None:
        on_trial = self.workflow.state is _S.CONFIRMING and not is_committing(self.workflow)
        self._feed(Happening(_E.STOPPED, detail=event.detail))
        if not on_trial:
            self._restarts.plan(self._now)

    def _progressed(self, event: Progressed) -> None:
        order = self.workflow.order
        late = (
            self._progress_at is None or self._now - self._progress_at >= self._settings.progress_interval_ms
        )
        mine = event.tag.ordinal == self.workflow.ordinal and event.tag.start == self._record.start
        if order is None or not (late and mine and self.connected):
            return
        self._progress_at = self._now
        payload = reporting.progress_of(
            self._device, order, self.workflow.state, event.bytes_done, event.bytes_total
        )
        self._effects.append(Publish(Kind.PROGRESS, payload))

    def _ticked(self, event: Ticked) -> None:
        if self._work_due is not None and self._work_due <= self._now:
            self._work_due = None
            self._feed(Happening(_E.TIMER))
        if self._restarts.is_due(self._now):
            self._restart()

    def _save_failed(self, event: SaveFailed) -> None:
        withheld, durable = self._saves.refused(self._now), self._saves.durable_state
        work, acts = go_on_without_record(self.workflow, self._facts(), durable, withheld, event.detail)
        self._take(work, acts)
        if any(isinstance(effect, Publish) and effect.kind is Kind.HELLO for effect in withheld):
            self._talk.ask(self._now)
        self._talk.changed(self._now)
        self._go_on()

    # --- messages ----------------------------------------------------------------------------------------------

    def _desired(self, payload: bytes) -> None:
        judgement = orders.judge(
            payload,
            device=self._device,
            keys=self._keys,
            record=self._record,
            in_force=self._in_force,
            nonces=self._talk.nonces,
            time=self._time,
            now_ms=self._now,
        )
        if isinstance(judgement, orders.Refused):
            self._refused[judgement.reason] += 1
        elif not isinstance(judgement, orders.Duplicate):
            order = judgement.order
            self._in_force = order
            self._time.learn(order.issued_ms, self._now)
            self._talk.addressed()
            self._record = replace(self._record, epoch=order.epoch, envelope=judgement.envelope)
            if isinstance(judgement, orders.Accepted):
                self._feed(ordered(order, self.workflow, self.slots))
            else:
                self._record = replace(self._record, workflow=orders.readdressed(self.workflow, order))
            if self.workflow.state is _S.DOWNLOADING and self._work_due is not None:
                self._work_due = self._now  # there are new addresses to try

    def _acked(self, payload: bytes) -> None:
        ack = read(Ack, payload)
        if ack.device != self._device:
            self._refused["device"] += 1
            return
        if ack.instance != self._record.instance:
            return  # it speaks to the folder before this one, or to a twin (R8)
        if ack.sequence > reporting.SEQUENCE_HEARD_MAX:
            self._refused["sequence"] += 1
            return  # behind it no number would be left to report under
        answers = self._talk.hear(ack, self._record, self._now)
        record = self._record
        differs = ack.sequence == record.sequence and ack.digest not in {None, record.digest}
        if ack.sequence > record.sequence or differs:
            # the cloud has a later state of this instance than the disk: an old copy of the folder came back
            self._record = replace(record, sequence=ack.sequence, digest="")
        elif self._talk.covers(ack, record):
            self._record = reporting.acknowledged(record, ack.sequence)
        if answers:
            self._answered(ack)

    def _answered(self, ack: Ack) -> None:
        if any(reporting.lacks_reach(outcome) for _, outcome in self._record.outcomes):
            self._record = reporting.with_reach(self._record, max(0, self._now - self._reach_from))
        work = self.workflow
        if work.state is _S.CONFIRMING:
            self._feed(Happening(_E.CLOUD_REACHED))
        elif work.state is _S.READY and work.order is not None:
            stands = ack.newest_epoch == work.order.epoch == self._record.epoch
            if stands and not work.phase:
                self._feed(Happening(_E.GATE_OPENED))

    def _synced(self, payload: bytes) -> None:
        parsed = read(Sync, payload)
        if parsed.device != EVERYONE:
            self._refused["device"] += 1
            return
        self._talk.sync(parsed.window_ms, self._now)

    # --- the table ---------------------------------------------------------------------------------------------

    def _feed(self, happening: Happening) -> None:
        """Take one step, carry out its decisions, and go on with what waits."""
        self._take(*step(self.workflow, happening, self._facts()))
        self._go_on()

    def _take(self, work: Workflow, acts: Acts) -> None:
        before = self.workflow
        if work is not before:
            self._record = replace(self._record, workflow=work)
        if work.state is not before.state:
            self._work_due = None
            if work.state is _S.IDLE:
                self._manifest = None
                self._talk.addressed()
        for act in acts:
            match act:
                case Conclude():
                    self._remember(act)
                case Reply():
                    self._record = replace(self._record, answer_epoch=act.epoch, answer=act.answer)
                case Wait():
                    self._work_due = None if act.delay_ms is None else self._now + act.delay_ms
                case Ask():
                    self._talk.ask(self._now, addresses=act.addresses)
                case Invalidate():
                    # Distrusted from now on, though the backend's word is still to come: never flip to it meanwhile.
                    self._slots = invalidate(self.slots, act.slot, act.reason)
                    self._effects.append(act)
                case _:
                    self._effects.append(act)

    def _go_on(self) -> None:
        work = self.workflow
        if work.state is _S.READY and not work.phase and work.order is not None and work.order.offline_ok:
            self._feed(Happening(_E.GATE_OPENED))
        elif work.next is not None and not (
            work.state in {_S.SWITCHING, _S.REVERTING} or is_committing(work) or self._is_astray()
        ):
            self._record = replace(self._record, workflow=replace(work, next=None))
            self._feed(ordered(work.next, self.workflow, self.slots))

    def _is_astray(self) -> bool:
        """Whether a late fall-back is not settled yet: until then no slot may be written."""
        return self.workflow.state is _S.IDLE and self.slots.booted != self.slots.last_known_good

    def _facts(self) -> Facts:
        return Facts(
            self.slots,
            self._properties,
            self._record.floor,
            self._record.start,
            self._settings,
            self._chance,
            self._manifest,
            self._record.ended,
        )

    def _remember(self, act: Conclude) -> None:
        self._record = reporting.with_outcome(self._record, act.outcome)
        if act.floor > self._record.floor:
            self._record = replace(self._record, floor=act.floor)
        if reporting.lacks_reach(act.outcome):
            self._reach_from = self._now
            self._talk.ask(self._now)

    # --- the application of a slot that is no trial ------------------------------------------------------------

    def _restart(self) -> None:
        if self.workflow.state is _S.SWITCHING or is_committing(self.workflow):
            self._restarts.postpone(self._now)
            return
        self._restarts.done(self._now)
        if self.workflow.state in _AT_REST and self.slots.running.sha256 is not None:
            self._effects.append(Start(Tag(0, 0, self._record.start), self.slots.booted))

    # --- the end of every event --------------------------------------------------------------------------------

    def _say(self) -> list[Effect]:
        """Number the report if its content is new, and put what is to be said now behind the acts."""
        talk, work = self._talk, self.workflow
        talk.look_up(self._now)
        self._record = self._report.look(
            self._record, self.slots, self._properties, self._tags, minimal=talk.minimal
        )
        if self._report.is_new:
            talk.changed(self._now)
        at_gate = work.state is _S.READY and not work.phase
        in_trial = work.state is _S.CONFIRMING and self._settings.needs_cloud and not work.cloud_reached
        talk.asking = at_gate or in_trial or any(reporting.lacks_reach(o) for _, o in self._record.outcomes)
        return self._effects + talk.flush(
            self._record, self._report.content, self._refused.total(), self._now
        )

    def _new_record(self) -> Record:
        """A new instance; its floor is rebuilt from what its slots hold (R3, R8)."""
        slots = self.slots
        trusted = [slot for slot in slots.slots.values() if slot.holds is Holds.GOOD]
        if slots.slots[slots.last_known_good].holds is Holds.UNKNOWN:
            trusted.append(slots.slots[slots.last_known_good])
        floor = max((slot.release_counter for slot in trusted), default=0)
        return Record(instance=self._chance.token(), floor=floor)


_HANDLERS: Final[Mapping[type, Callable[[Device, Any], None]]] = {
    Started: Device._started,
    Connected: Device._connected,
    Disconnected: Device._disconnected,
    Delivered: Device._delivered,
    Finished: Device._finished,
    Observed: Device._observed,
    Described: Device._described,
    Stopped: Device._application_stopped,
    Progressed: Device._progressed,
    Ticked: Device._ticked,
    SaveFailed: Device._save_failed,
}
