"""One device: orders, the agent's table, the record and the conversation composed into one object without I/O.

It does nothing itself: events in, effects out, in the manner of a sans-I/O protocol. It keeps the rules that the record
is written before anything that depends on it (R1), that a switch waits for the cloud's word (R4), and that a result
of an earlier effect changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import is_
from typing import Any, Final

from agent.core import orders, reporting
from agent.core.conversation import Conversation
from agent.core.model import (
    Chance,
    Commit,
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
    Revert,
    Save,
    SaveFailed,
    SlotTable,
    Start,
    Started,
    Stopped,
    StopWork,
    Tag,
    Ticked,
    Watch,
    Workflow,
)
from agent.core.resume import Evidence, evidence_of
from agent.core.settings import (
    RESTART_CALM_MS,
    RESTART_WAIT_FIRST_MS,
    RESTART_WAIT_MOST_MS,
    SAVE_WAIT_FIRST_MS,
    SAVE_WAIT_MOST_MS,
    Settings,
    backoff,
)
from agent.core.status import sentence
from agent.core.steps import (
    Ask,
    Conclude,
    Facts,
    Happening,
    Reply,
    Wait,
    begin_revert,
    end,
    failed,
    runs_committed,
    spoil,
)
from agent.core.trying import is_committing
from agent.core.workflow import step
from protocol.envelope import TrustedKeys
from protocol.errors import MessageRefused
from protocol.lifecycle import PAST_NO_RETURN
from protocol.lifecycle import WorkflowEvent as _E
from protocol.lifecycle import WorkflowState as _S
from protocol.messages import Ack, Assignment, Progress, Sync, read, write
from protocol.outcomes import Reason
from protocol.topics import EVERYONE, Kind

_AT_REST: Final = frozenset({_S.IDLE, _S.DOWNLOADING, _S.INSTALLING, _S.READY})  # the booted slot is no trial
_WITHOUT_RECORD: Final = (
    StopWork,
    Invalidate,
    Start,
    Watch,
    Revert,
)  # safe to do though the disk refused the record
_DEFAULTS: Final = Settings()


class Device:
    """Events in, effects out. Carry out the effects of one event, in order, before the next event is handled.

    `now_ms` is a monotonic clock of this process. `Started` is the first event. When a `Save` fails, do nothing that
    stands behind it in the list, and handle `SaveFailed` next. Results of effects come back as `Finished`, with the
    effect's tag and, when the slots changed, with their table; `Invalidate` answers with `Observed`.
    """

    __slots__ = (
        "_attempt",
        "_behind",
        "_chance",
        "_content",
        "_device",
        "_done",
        "_durable",
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
        "_restart_due",
        "_restarted_at",
        "_restarts",
        "_save_due",
        "_save_tries",
        "_settings",
        "_shown",
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
        self._record = Record(instance="")
        self._durable: Record | None = None  # what is surely on the disk
        self._attempt: Record | None = None  # what the newest Save tried to write
        self._slots: SlotTable | None = None
        self._in_force: Assignment | None = None  # the order of the record's epoch
        self._manifest: bytes | None = None  # of the order in work
        self._content: reporting.Content | None = None
        self._shown: tuple[Any, ...] = ()  # what the content was made of
        self._refused: Counter[str] = Counter()
        self._done = 0  # ordinal whose result has come
        self._now = 0
        self._effects: list[Effect] = []
        self._behind: list[Effect] = []  # what stood behind the newest Save
        self._work_due: int | None = None
        self._restart_due: int | None = None
        self._restarted_at = 0
        self._restarts = 0
        self._save_due: int | None = None
        self._save_tries = 0
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
        if not isinstance(event, SaveFailed) and self._attempt is not None:
            self._durable, self._attempt, self._save_tries, self._save_due = self._attempt, None, 0, None
        _HANDLERS[type(event)](self, event)
        return self._conclude(may_save=not isinstance(event, SaveFailed))

    def due(self) -> int | None:
        """Return when `Ticked` wants to be handled, on the clock of `now_ms`; None: not before another event."""
        times = (self._work_due, self._restart_due, self._save_due, self._talk.due())
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
        self._durable = event.record
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
                self._plan_restart()
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
        if self.workflow.state is _S.CONFIRMING and not is_committing(self.workflow):
            self._feed(Happening(_E.STOPPED, detail=event.detail))
            return
        self._feed(Happening(_E.STOPPED, detail=event.detail))
        self._plan_restart()

    def _progressed(self, event: Progressed) -> None:
        order = self.workflow.order
        late = (
            self._progress_at is None or self._now - self._progress_at >= self._settings.progress_interval_ms
        )
        mine = event.tag.ordinal == self.workflow.ordinal and event.tag.start == self._record.start
        if order is None or not (late and mine and self.connected):
            return
        self._progress_at = self._now
        progress = Progress(
            device=self._device,
            deployment=order.deployment or "",
            epoch=order.epoch,
            attempt=order.attempt or 0,
            phase=self.workflow.state,
            bytes_done=event.bytes_done,
            bytes_total=event.bytes_total,
        )
        self._effects.append(Publish(Kind.PROGRESS, write(progress)))

    def _ticked(self, event: Ticked) -> None:
        if self._work_due is not None and self._work_due <= self._now:
            self._work_due = None
            self._feed(Happening(_E.TIMER))
        if self._restart_due is not None and self._restart_due <= self._now:
            self._restart()

    def _save_failed(self, event: SaveFailed) -> None:
        """Act on nothing that needed the record; past the point of no return the slots decide (the agent's table)."""
        self._attempt = None
        self._save_tries += 1
        delay_ms = backoff(self._save_tries, SAVE_WAIT_FIRST_MS, SAVE_WAIT_MOST_MS, self._chance.uniform())
        self._save_due = self._now + delay_ms
        withheld, self._behind = self._behind, []
        work = self.workflow
        durable = self._durable.workflow.state if self._durable is not None else _S.IDLE
        if work.state is _S.IDLE or (work.state in PAST_NO_RETURN and durable in PAST_NO_RETURN):
            if work.state is _S.CONFIRMING and any(isinstance(effect, Commit) for effect in withheld):
                self._give_up_commit(event.detail)
            else:
                self._effects += [effect for effect in withheld if isinstance(effect, _WITHOUT_RECORD)]
        else:
            self._end_for_disk(event.detail)
        if any(isinstance(effect, Publish) and effect.kind is Kind.HELLO for effect in withheld):
            self._talk.ask(self._now)
        self._talk.changed(self._now)

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
                self._feed(self._ordered(order))
            else:
                self._readdress(order)
            if self.workflow.state is _S.DOWNLOADING and self._work_due is not None:
                self._work_due = self._now  # there are new addresses to try

    def _acked(self, payload: bytes) -> None:
        ack = read(Ack, payload)
        if ack.device != self._device:
            self._refused["device"] += 1
            return
        if ack.instance != self._record.instance:
            return  # it speaks to the folder before this one, or to a twin (R8)
        answers = self._talk.hear(ack, self._record, self._now)
        record = self._record
        differs = ack.sequence == record.sequence and ack.digest not in {None, record.digest}
        if ack.sequence > record.sequence or differs:
            # the cloud has a later state of this instance than the disk: an old copy of the folder came back
            self._record = replace(record, sequence=ack.sequence, digest="")
            self._shown = ()
        else:
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
        before = self.workflow
        work, acts = step(before, happening, self._facts())
        if work is not before:
            self._record = replace(self._record, workflow=work)
        if work.state is not before.state:
            self._work_due = None
            if work.state is _S.IDLE:
                self._manifest = None
                self._talk.addressed()
        for act in acts:
            decide = _DECISIONS.get(type(act))
            if decide is None:
                self._effects.append(act)  # type: ignore[arg-type]  # what is no decision is an effect
            else:
                decide(self, act)
        self._go_on()

    def _go_on(self) -> None:
        work = self.workflow
        if work.state is _S.READY and not work.phase and work.order is not None and work.order.offline_ok:
            self._feed(Happening(_E.GATE_OPENED))
        elif work.next is not None and not (
            work.state in {_S.SWITCHING, _S.REVERTING} or is_committing(work)
        ):
            self._record = replace(self._record, workflow=replace(work, next=None))
            self._feed(self._ordered(work.next))

    def _ordered(self, order: Assignment) -> Happening:
        if order.action == "hold" or order.target is None:
            return Happening(_E.HELD, order)
        work = self.workflow
        wanted = order.target.sha256
        if work.state is _S.IDLE:
            same = runs_committed(self.slots, wanted)
        else:
            same = (
                work.order is not None
                and work.order.target is not None
                and work.order.target.sha256 == wanted
            )
        return Happening(_E.ORDERED_SAME if same else _E.ORDERED_OTHER, order)

    def _readdress(self, order: Assignment) -> None:
        """New addresses and lifetime for the order of this epoch, wherever it waits or is worked on (R1)."""
        work = self.workflow
        new = {"repository": order.repository, "issued_ms": order.issued_ms, "lifetime_ms": order.lifetime_ms}
        if work.order is not None and work.order.epoch == order.epoch:
            work = replace(work, order=work.order.model_copy(update=new))
        if work.next is not None and work.next.epoch == order.epoch:
            work = replace(work, next=work.next.model_copy(update=new))
        self._record = replace(self._record, workflow=work)

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

    def _reply(self, act: Reply) -> None:
        self._record = replace(self._record, answer_epoch=act.epoch, answer=act.answer)

    def _wait(self, act: Wait) -> None:
        self._work_due = None if act.delay_ms is None else self._now + act.delay_ms

    def _ask(self, act: Ask) -> None:
        self._talk.ask(self._now, addresses=act.addresses)

    # --- the application of a slot that is no trial ------------------------------------------------------------

    def _plan_restart(self) -> None:
        if self._now - self._restarted_at >= RESTART_CALM_MS:
            self._restarts = 0
        self._restarts += 1
        delay_ms = backoff(
            self._restarts, RESTART_WAIT_FIRST_MS, RESTART_WAIT_MOST_MS, self._chance.uniform()
        )
        self._restart_due = self._now + delay_ms

    def _restart(self) -> None:
        self._restart_due = None
        if self.workflow.state is _S.SWITCHING or is_committing(self.workflow):
            self._restart_due = self._now + RESTART_WAIT_FIRST_MS  # soon it is known which slot is to run
        elif self.workflow.state in _AT_REST and self.slots.running.sha256 is not None:
            self._restarted_at = self._now
            self._effects.append(Start(Tag(0, 0, self._record.start), self.slots.booted))

    # --- a disk that refuses -----------------------------------------------------------------------------------

    def _give_up_commit(self, detail: str) -> None:
        work, facts, acts = self.workflow, self._facts(), list[Any]()
        work = begin_revert(
            work, facts, acts, failed(work, facts, Reason.COMMIT_FAILED, detail), Reason.COMMIT_FAILED
        )
        self._record = replace(self._record, workflow=work)
        self._work_due = None
        self._effects += acts

    def _end_for_disk(self, detail: str) -> None:
        work, facts, acts = self.workflow, self._facts(), list[Any]()
        if work.state in PAST_NO_RETURN:  # in memory alone: what is durable is still `ready`
            work = replace(work, state=_S.READY)
        self._effects.append(StopWork())
        if work.state is _S.INSTALLING or work.phase == "files":
            spoil(work, facts, self._effects, None)  # type: ignore[arg-type]  # an Invalidate is an effect
        self._record = replace(
            self._record, workflow=end(work, failed(work, facts, Reason.DISK, detail), acts)
        )
        self._work_due = None
        for act in acts:
            self._remember(act)

    # --- the end of every event --------------------------------------------------------------------------------

    def _conclude(self, *, may_save: bool) -> list[Effect]:
        """Number the report if its content is new, then put Save before the acts, and what is to be said behind them."""
        talk = self._talk
        if talk.full_again is not None and talk.full_again <= self._now:
            talk.full()
        content = self._report()
        work = self.workflow
        waits_at_gate = work.state is _S.READY and not work.phase
        waits_in_trial = work.state is _S.CONFIRMING and self._settings.needs_cloud and not work.cloud_reached
        talk.asking = (
            waits_at_gate or waits_in_trial or any(reporting.lacks_reach(o) for _, o in self._record.outcomes)
        )
        effects = self._effects
        effects += talk.flush(self._record, content, self._refused.total(), self._now)
        due = self._save_due is None or self._save_due <= self._now
        if may_save and self._record is not self._durable and (due or effects):
            self._attempt, self._save_due, self._behind = self._record, None, effects
            return [Save(self._record), *effects]
        return effects

    def _report(self) -> reporting.Content:
        record, work, slots = self._record, self.workflow, self.slots
        made_of = (
            work.state,
            work.order,
            work.stuck,
            record.epoch,
            record.outcomes,
            record.outcomes_folded,
            record.floor,
            record.answer_epoch,
            slots,
            self._properties,
            self._tags,
            self._talk.minimal,
        )
        if self._content is not None and self._shown and all(map(is_, made_of, self._shown)):
            return self._content
        self._content = content = reporting.content_of(
            self._device,
            record,
            slots,
            self._properties,
            self._tags,
            self._settings.agent_version,
            minimal=self._talk.minimal,
        )
        numbered = reporting.numbered(record, content)
        if numbered is not record:
            self._record = numbered
            self._talk.changed(self._now)
        self._shown = (*made_of[:4], self._record.outcomes, *made_of[5:])
        return content

    def _new_record(self) -> Record:
        """A new instance; its floor is rebuilt from what its slots hold (R3, R8)."""
        slots = self.slots.slots.values()
        floor = max((slot.release_counter for slot in slots if slot.holds is Holds.GOOD), default=0)
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

_DECISIONS: Final[Mapping[type, Callable[[Device, Any], None]]] = {
    Conclude: Device._remember,
    Reply: Device._reply,
    Wait: Device._wait,
    Ask: Device._ask,
}
