"""The loop around the core: events in, effects carried out in order, one at a time, in one thread.

It holds no rules (the core does) and touches nothing itself (adapters do). It keeps the order "record, then act": a
`Save` that fails drops everything that stands behind it (R1). Everything that other threads find out comes in through
one inbox; nothing but this loop calls the core.
"""

import contextlib
import queue
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from agent.adapters.worker import Ports, Worker
from agent.core.model import (
    Activate,
    Commit,
    Connected,
    Delivered,
    Disconnected,
    Download,
    Effect,
    Event,
    Install,
    Invalidate,
    Prepare,
    Publish,
    Record,
    Rehash,
    Revert,
    Save,
    SaveFailed,
    Start,
    Started,
    Stopped,
    StopWork,
    Ticked,
    Watch,
    Workflow,
)
from agent.ports import Link, Records
from protocol.errors import DeviceError
from protocol.lifecycle import WorkflowState

DELIVERED_MAX: Final = (
    1_000  # messages waiting in the inbox; what is dropped beyond is sent again by the cloud
)
POLL_S: Final = 0.5  # how often the application is asked whether it still runs
SAVES_FAILED_MAX: Final = 3  # on end, within one event: a core that insists is not asked a fourth time


class Core(Protocol):
    """What the loop wants from `core.device.Device`."""

    @property
    def record(self) -> Record:
        """What is kept across a power loss."""

    @property
    def workflow(self) -> Workflow:
        """Where the device stands with the order in work."""

    @property
    def reconnect_spread_ms(self) -> int | None:
        """The time over which the cloud wants reconnects spread."""

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Return what to do about an event."""

    def due(self) -> int | None:
        """Return when `Ticked` wants to be handled."""


class Runtime:
    """One agent at work. Wire it, `run` it in the main thread, and call `stop` from a signal handler."""

    def __init__(
        self,
        device: Core,
        records: Records,
        ports: Ports,
        say: Callable[[str], None] = lambda sentence: None,
        now_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._device = device
        self._records = records
        self._ports = ports
        self._say = say
        self._now_ms = now_ms
        self._inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stopping = False  # no Event: a second signal would wait for the lock that the first one holds
        self._worker = Worker(ports, self.post)
        self._link: Link | None = None
        self._end_told = False
        self._looked = 0.0
        self._said: tuple[object, ...] = ()

    def post(self, event: Event) -> None:
        """Put an event into the inbox; safe from any thread."""
        if isinstance(event, Delivered) and self._inbox.qsize() >= DELIVERED_MAX:
            return
        self._inbox.put(event)

    def stop(self) -> None:
        """End `run` soon; safe from a signal handler."""
        self._stopping = True
        self._inbox.put(None)

    def run(self, link: Link) -> None:
        """Recover, connect, and work until `stop`; then end the work, the application and the connection.

        Raises:
            DeviceError: the slots cannot be recovered.
            OperatorError: the connection's settings are no good.
        """
        self._link = link
        try:
            self.handle(self._started())
            link.start()
            while not self._stopping:
                self._turn()
        finally:
            self._worker.close()
            if self._ports.application.ends_with_agent:
                self._ports.application.stop()
            link.close()

    def handle(self, event: Event) -> None:
        """Give one event to the core, and carry out what it wants."""
        for _ in range(SAVES_FAILED_MAX):
            failed = self._carry_out(self._device.handle(event, self._now_ms()))
            self._tell(event)
            if failed is None:
                return
            self._say(failed.detail)
            event = failed

    def _started(self) -> Started:
        slots = self._ports.slots.recover()
        try:
            return Started(slots, self._records.load())
        except DeviceError as error:
            self._say(str(error))
            return Started(slots, None)

    def _turn(self) -> None:
        """Handle what is due, then one event, or find out that the application ended."""
        due, now = self._device.due(), self._now_ms()
        if due is not None and due <= now:
            self.handle(Ticked())
            due, now = self._device.due(), self._now_ms()
        wait_s = POLL_S if due is None else min(POLL_S, max(0.0, (due - now) / 1_000))
        event: Event | None = None
        with contextlib.suppress(queue.Empty):
            event = self._inbox.get(timeout=wait_s)
        if event is not None:
            self.handle(event)
        self._look_after_application()

    def _look_after_application(self) -> None:
        """Notice its end, but never before the core knows that it was started: that news may wait in the inbox."""
        if time.monotonic() - self._looked < POLL_S or self._worker.is_switching or not self._inbox.empty():
            return
        self._looked = time.monotonic()
        how = self._ports.application.ended()
        if how is None:
            self._end_told = False
        elif not self._end_told:
            self._end_told = True
            self._say(how)
            self.handle(Stopped(how))

    def _carry_out(self, effects: Iterable[Effect]) -> SaveFailed | None:
        for effect in effects:
            match effect:
                case Save():
                    try:
                        self._records.save(effect.record)
                    except DeviceError as error:
                        return SaveFailed(str(error))
                case Publish():
                    if self._link is not None:
                        self._link.publish(effect.kind, effect.payload)
                case StopWork():
                    self._worker.stop_work()
                case Start() | Revert():
                    self._end_told = False
                    self._worker.submit(effect)
                case (
                    Prepare()
                    | Download()
                    | Install()
                    | Rehash()
                    | Watch()
                    | Activate()
                    | Commit()
                    | Invalidate()
                ):
                    self._worker.submit(effect)
        return None

    def _tell(self, event: Event) -> None:
        """Say in one line what changed, for whoever watches the agent."""
        if isinstance(event, Connected):
            self._say("connected to the broker")
        elif isinstance(event, Disconnected):
            self._say("disconnected from the broker")
        spread = self._device.reconnect_spread_ms
        if self._link is not None and spread is not None:
            self._link.spread(spread)
        work, outcomes = self._device.workflow, self._device.record.outcomes
        newest = outcomes[-1][1] if outcomes else None
        told = (work.state, work.order.epoch if work.order else None, newest)
        if told == self._said:
            return
        before, self._said = self._said, told
        if newest is not None and (not before or newest != before[2]):
            why = newest.reason or newest.abandoned or ("already there" if newest.already_there else "")
            self._say(
                f"{newest.result}{f' ({why})' if why else ''}{': ' + newest.detail if newest.detail else ''}"
            )
        if not before or told[:2] != before[:2]:
            target = work.order.target.update if work.order and work.order.target else ""
            if before or work.state is not WorkflowState.IDLE:
                self._say(f"{work.state}{' ' + target if target else ''}")
