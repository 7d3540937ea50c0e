"""The update service's conductor: a batch of inputs in, one durable transaction, messages to send out.

It is synchronous, and holds no rules and no I/O of its own: `handle(inputs, now)` runs the pure core over the rows of
one transaction, and returns what to publish once that is durable. A thread, or the virtual clock, only feeds it.
It keeps the rule that the cloud acknowledges after its database has it, never before (DESIGN.md section 4).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from cloud_stub.core.chance import Chance
from cloud_stub.core.commands import (
    AddDevices,
    CancelDeployment,
    Command,
    CreateDeployment,
    ImportUpdate,
    MoveDevice,
    ResumeRestored,
    RetryDeployment,
    WithdrawUpdate,
)
from cloud_stub.orchestrator import catalog, deployments, enrolment, reports
from cloud_stub.orchestrator.clock import Observed
from cloud_stub.orchestrator.outbox import Outbox
from cloud_stub.orchestrator.reports import Read
from cloud_stub.orchestrator.turn import Turn
from cloud_stub.orchestrator.values import (
    RECONNECT_SPREAD_MS_MIN,
    REFUSALS_TOLD_MAX,
    SWEEP_MS,
    Asked,
    Delivered,
    Input,
    Linked,
    Now,
    Publish,
    Sent,
    Settings,
    Ticked,
)
from cloud_stub.ports import Store, Unit
from protocol.errors import LastgoodError, MessageRefused, ServiceError
from protocol.messages import Gone, Hello, Message, Progress, State

__all__ = [
    "Asked",
    "Delivered",
    "Input",
    "Linked",
    "Now",
    "Orchestrator",
    "Publish",
    "Sent",
    "Settings",
    "Ticked",
]

log = logging.getLogger(__name__)

TICK_MS = 1_000  # how often time-outs, schedules and retries are looked at


class Orchestrator:
    """Feeds inputs through one transaction at a time. Not thread-safe: one feeder."""

    def __init__(self, store: Store, outbox: Outbox, chance: Chance, settings: Settings) -> None:
        self._store = store
        self._outbox = outbox
        self._chance = chance
        self._settings = settings
        self._observed = Observed(settings)
        self._leaving: dict[
            str, tuple[str, int]
        ] = {}  # device → (connection, monotonic ms when it counts as offline)
        self._sweep_due_ms = 0
        self._refusals: Counter[str] = Counter()  # by device, since the last sweep
        self._swept: dict[str, str] = {}  # ended deployment → the device up to which it was looked through
        self.refused: Counter[str] = Counter()
        self.accounts_changed = False  # the set of device tokens differs from what the broker was told

    def handle(self, inputs: Sequence[Input], now: Now) -> list[Publish]:
        """Carry a batch of inputs through one durable transaction, and return what to publish.

        A command's answer stands in its `Reply` afterwards. An input that is refused loses its own changes only.

        Raises:
            ServiceError: the database refused; nothing of the batch happened.
        """
        read = [_read(item) for item in inputs]  # before the transaction: others may write meanwhile
        for item in inputs:
            if isinstance(item, Linked):
                # kept though the database refuse: silence must not count meanwhile (R12)
                self._observed.linked(item.up, now)
        try:
            with self._store.transaction() as unit:
                turn = self._turn(unit, now)
                reports.look_ahead(unit, inputs, read)
                for item, said in zip(inputs, read, strict=True):
                    self._one(turn, item, said, now)
                self._outbox.decide_and_send(turn)
        except BaseException as error:
            self._observed.missed(now)
            _not_done(inputs, error)
            raise
        self.accounts_changed |= turn.accounts_changed
        return turn.publishes

    def due_ms(self, now: Now) -> int:
        """Return the monotonic milliseconds at which `Ticked` wants to be handled."""
        return now.mono_ms + TICK_MS

    def _turn(self, unit: Unit, now: Now) -> Turn:
        observed_ms = self._observed.at(unit, now)
        return Turn(unit, now.wall_ms, observed_ms, self._chance, self._settings, deployments.trip)

    def _one(self, turn: Turn, item: Input, said: Read, now: Now) -> None:
        """Handle one input; a tick in parts, so that one that fails keeps no other from its turn."""
        if not isinstance(item, Ticked):
            self._apart(turn, item, lambda: self._dispatch(turn, item, said, now))
            return
        for part in self._parts_of_tick(turn, now):
            self._apart(turn, item, part)

    def _apart(self, turn: Turn, item: Input, act: Callable[[], None]) -> None:
        """Do one thing; what it published and put is undone when it is refused."""
        mark = turn.mark()
        try:
            with turn.unit.savepoint():
                act()
        except MessageRefused as error:
            turn.undo(mark)
            self._refuse(turn, item, error)
        except ServiceError:
            raise
        except LastgoodError as error:
            turn.undo(mark)
            if isinstance(item, Asked):
                item.reply.error = error
        except Exception as error:  # one poisonous input must not take the batch of all others with it
            turn.undo(mark)
            log.exception("an input failed: %s", type(item).__name__)
            if isinstance(item, Asked):
                item.reply.error = LastgoodError(
                    f"The cloud failed to do this; its log has the details ({error!r})."
                )
            self._refuse(turn, item, MessageRefused("failed", f"The cloud failed at it ({error!r})."))

    def _dispatch(self, turn: Turn, item: Input, said: Read, now: Now) -> None:
        match item:
            case Delivered():
                self._delivered(turn, item, said, now)
            case Asked():
                item.reply.result = _carry_out(turn, item.command, item.who)
            case Sent():
                enrolment.sent(turn, item)
            case Linked():
                if item.up:
                    self._outbox.sync(turn)

    def _delivered(self, turn: Turn, item: Delivered, said: Read, now: Now) -> None:
        if not isinstance(said, Message):
            raise said or LookupError("a message that was not read")
        if said.device != item.device:
            raise MessageRefused(
                "other_device", f"A message of {item.device} names the device {said.device!r}."
            )
        device = turn.unit.device(item.device)
        if device is None:
            raise MessageRefused(
                "unknown_device", f"{item.device} is not known; add it with `lastgood device add`."
            )
        match said:
            case Hello():
                self._leaving.pop(device.id, None)
                reports.hello(turn, self._outbox, device, said)
            case State():
                reports.state(turn, self._outbox, device, said)
            case Progress():
                reports.progress(turn, device, said)
            case Gone():
                if reports.is_current(device, said):
                    self._leaving[device.id] = (
                        said.connection,
                        now.mono_ms + self._settings.offline_debounce_ms,
                    )

    def _parts_of_tick(self, turn: Turn, now: Now) -> Sequence[Callable[[], None]]:
        """Return what is to be looked at now.

        What orders by itself (schedules, retries) waits as the time-outs do until every living device must have been
        heard: one that is ahead must show first that this store is an old backup (R2). So a schedule that is due may
        start one sync window and one heartbeat after a start of the cloud, or after its broker came back.
        """
        parts = [
            lambda: self._observed.keep(turn.unit),
            lambda: self._leave(turn, now),
        ]
        sweeps = now.mono_ms >= self._sweep_due_ms
        if sweeps:
            self._sweep_due_ms = now.mono_ms + SWEEP_MS
            parts.append(lambda: self._spread(turn))
            parts.append(self._tell_refusals)
        if self._observed.armed(now):
            parts.append(lambda: deployments.start_due(turn))
            parts.append(lambda: deployments.retry_due(turn))
            parts.append(lambda: deployments.time_out_due(turn))
            if sweeps:
                parts.append(lambda: reports.offline_unheard(turn))
                parts.append(lambda: deployments.close_passed_over(turn, self._swept))
        return parts

    def _spread(self, turn: Turn) -> None:
        """Tell devices to come back within a time that the broker can bear (DESIGN.md section 4, "Reconnect")."""
        devices = sum(members for members, _ in turn.unit.count_devices().values())
        spread_ms = max(RECONNECT_SPREAD_MS_MIN, devices * 1_000 // self._settings.connects_per_s)
        self._settings = replace(self._settings, reconnect_spread_ms=spread_ms)

    def _tell_refusals(self) -> None:
        for device, count in self._refusals.items():
            if count > REFUSALS_TOLD_MAX:
                log.warning("refused %d more messages of %s", count - REFUSALS_TOLD_MAX, device)
        self._refusals.clear()

    def _leave(self, turn: Turn, now: Now) -> None:
        for device_id, (connection, due_ms) in list(self._leaving.items()):
            if due_ms <= now.mono_ms:
                del self._leaving[device_id]
                device = turn.unit.device(device_id)
                if device is not None:
                    reports.offline(turn, device, connection)

    def _refuse(self, turn: Turn, item: Input, error: MessageRefused) -> None:
        if isinstance(item, Delivered):
            self.refused[error.reason] += 1
            self._refusals[item.device] += 1
            if self._refusals[item.device] <= REFUSALS_TOLD_MAX:
                log.warning("refused a message on up/%s/%s: %s", item.device, item.kind, error)
            device = turn.unit.device(item.device)
            if device is not None and item.kind.value == "state":
                reports.refused(turn, self._outbox, device, error)


def _not_done(inputs: Sequence[Input], error: BaseException) -> None:
    """Say to everybody who asked that nothing happened, whatever their part of the batch had come to."""
    failure = (
        error
        if isinstance(error, ServiceError)
        else ServiceError("The cloud failed to do this; its log has the details.")
    )
    for item in inputs:
        if isinstance(item, Asked):
            item.reply.result, item.reply.error = None, failure


def _read(item: Input) -> Read:
    """Return what a message says, or the error to be raised when its turn comes; None for other inputs."""
    if not isinstance(item, Delivered):
        return None
    try:
        return reports.read(item.kind, item.payload)
    except Exception as error:  # noqa: BLE001 - raised in its turn, so that it does not take the batch with it
        return error


def _carry_out(turn: Turn, command: Command, who: str) -> object:
    match command:
        case AddDevices():
            return enrolment.add(turn, command, who)
        case MoveDevice():
            return enrolment.move(turn, command.device, command.group, who)
        case ImportUpdate():
            return catalog.add(turn, command.manifest, who)
        case WithdrawUpdate():
            return catalog.withdraw(turn, command.update, command.why, who)
        case CreateDeployment():
            return deployments.create(turn, command.draft, command.plan_digest, who)
        case CancelDeployment():
            return deployments.cancel(turn, command.deployment, who)
        case RetryDeployment():
            return deployments.retry(turn, command.deployment, command.devices, who)
        case ResumeRestored():
            return enrolment.resume(turn, who)
