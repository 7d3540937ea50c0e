"""What each effect of the core means in terms of ports, and the threads that carry out the long ones.

It decides nothing: an effect comes in, a result with its tag goes out. There are two lanes, each one thread with a
queue: `work` for what may take hours (fetch, install, check, watch), `switch` for starting and reverting, so that an
application that ended is started again while a download runs. A stopped job ends between two of its pieces; what it
wrote is of no consequence, since only `seal` makes a slot trusted, and sealing what was invalidated is refused.
"""

import contextlib
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.adapters import tree
from agent.adapters.download import check_space
from agent.adapters.durable import disk_failure, make_folder
from agent.adapters.handlers import Handlers
from agent.adapters.health import Watch as HealthWatch
from agent.core.model import (
    Activate,
    Commit,
    Download,
    Event,
    Finished,
    Holds,
    Install,
    Invalidate,
    Observed,
    Prepare,
    Progressed,
    Rehash,
    Revert,
    SlotName,
    SlotTable,
    Start,
    Stopped,
    Tag,
    Watch,
)
from agent.ports import Application, Fetcher, Slots, Stop, Trust, WorkFailed
from agent.ports import Stopped as WorkStopped
from protocol.errors import DeviceError, LastgoodError, OperatorError
from protocol.lifecycle import WorkflowEvent as E
from protocol.manifest import Manifest, read_manifest
from protocol.outcomes import Reason

PROGRESS_S: Final = 0.5  # between two reports of bytes to the core, which limits further
CLOSE_S: Final = 15.0  # for a lane to end its piece when the agent ends

Long = Prepare | Download | Install | Rehash | Watch
Switch = Start | Revert
Short = Activate | Commit | Invalidate
_FAILED: Final[dict[type, E]] = {
    Prepare: E.DOWNLOAD_FAILED,
    Download: E.DOWNLOAD_FAILED,
    Install: E.INSTALL_FAILED,
    Rehash: E.VERIFY_FAILED,
    Watch: E.HEALTH_FAILED,
    Start: E.HEALTH_FAILED,
    Activate: E.ACTIVATE_FAILED,
    Commit: E.COMMIT_FAILED,
    Revert: E.REVERT_FAILED,
}
_VERIFIES: Final = (Prepare, Download, Install)


@dataclass(frozen=True, slots=True)
class Ports:
    """All that effects are carried out with; `downloads` is a folder that belongs to the fetcher."""

    slots: Slots
    fetcher: Fetcher
    trust: Trust
    handlers: Handlers
    application: Application
    watch: HealthWatch
    downloads: Path


class Worker:
    """Carries out effects, and posts what came of them."""

    def __init__(self, ports: Ports, post: Callable[[Event], None]) -> None:
        self._ports = ports
        self._post = post
        self._work = _Lane("work")
        self._switch = _Lane("switch")

    def submit(self, effect: Long | Switch | Short) -> None:
        """Carry out an effect: short ones at once, the others in their lane. A watch ends with the next effect."""
        self._work.stop_watch()
        if isinstance(effect, Activate | Commit | Invalidate):
            self._carry_out(effect, lambda: False)
            return
        lane = self._switch if isinstance(effect, Start | Revert) else self._work
        lane.add(lambda stop: self._carry_out(effect, stop), is_watch=isinstance(effect, Watch))

    def stop_work(self) -> None:
        """Stop what the work lane does; it ends between two pieces, and its result is not posted."""
        self._work.stop()

    @property
    def is_switching(self) -> bool:
        """Whether a start or revert is in hand, so that the application's end is no news."""
        return self._switch.is_busy

    def close(self) -> None:
        """Stop both lanes, and wait for the end of their pieces."""
        self._work.close()
        self._switch.close()

    def _carry_out(self, effect: Long | Switch | Short, stop: Stop) -> None:
        try:
            self._ACTS[type(effect)](self, effect, stop)
        except WorkStopped:
            return  # the core has gone on; nobody waits for this result
        except LastgoodError as error:
            self._failed(effect, error)
        except Exception as error:  # noqa: BLE001 - the outermost loop of a lane: a handler from elsewhere may raise anything
            self._failed(effect, DeviceError(f"An unexpected error: {type(error).__name__}: {error}"))

    def _failed(self, effect: Long | Switch | Short, error: LastgoodError) -> None:
        slots = self._probe()
        if isinstance(effect, Invalidate):
            if slots is not None:
                self._post(Observed(slots))
            return
        known = isinstance(error, WorkFailed)
        reason = error.reason if isinstance(error, WorkFailed) else ""
        event = _FAILED[type(effect)]
        if reason == Reason.VERIFY_FAILED and isinstance(effect, _VERIFIES):
            event = E.VERIFY_FAILED
        if isinstance(effect, Start):
            reason = ""  # whatever the disk or the command said: the trial did not start
        elif not known and isinstance(effect, Long):
            reason = Reason.DISK
        transient = isinstance(error, WorkFailed) and error.transient
        refresh = isinstance(error, WorkFailed) and error.refresh
        self._post(Finished(effect.tag, event, str(error), reason, transient, refresh, slots=slots))

    def _probe(self) -> SlotTable | None:
        try:
            return self._ports.slots.probe()
        except LastgoodError:
            return None

    def _done(self, tag: Tag, event: E, detail: str = "") -> None:
        self._post(Finished(tag, event, detail, slots=self._ports.slots.probe()))

    # --- one for each effect ---

    def _prepare(self, effect: Prepare, stop: Stop) -> None:
        manifest = self._ports.trust.manifest_of(effect.order)
        if stop():
            raise WorkStopped
        self._post(Finished(effect.tag, E.PREPARED, manifest=manifest))

    def _download(self, effect: Download, stop: Stop) -> None:
        ports, manifest = self._ports, _read(effect.manifest)
        try:
            if effect.fresh:
                shutil.rmtree(ports.downloads, ignore_errors=True)
            make_folder(ports.downloads)
            # Asked while the slot still holds what it held: a refusal leaves it untouched.
            check_space(manifest, ports.downloads, slot=ports.slots.path(effect.slot))
        except OSError as error:
            raise disk_failure(error, "preparing the download") from error
        if stop():
            raise WorkStopped
        ports.slots.begin(effect.slot, effect.manifest)
        self._post(
            Observed(ports.slots.probe())
        )  # the download takes long: what a report says of the slot is true
        ports.fetcher.fetch(effect.order, manifest, ports.downloads, stop=stop, tell=self._teller(effect.tag))
        self._done(effect.tag, E.DOWNLOADED)

    def _install(self, effect: Install, stop: Stop) -> None:
        ports, manifest = self._ports, _read(effect.manifest)
        folder = ports.slots.begin(effect.slot, effect.manifest)
        try:
            ports.handlers.install(manifest, ports.downloads, folder, stop=stop)
        except LastgoodError:
            # Half an update is worth nothing, and may fill the disk on which the next one has to begin.
            with contextlib.suppress(OSError):
                tree.empty(folder)
            raise
        if stop():
            raise WorkStopped
        ports.slots.seal(effect.slot)
        shutil.rmtree(ports.downloads, ignore_errors=True)  # what is sealed needs no second copy
        self._done(effect.tag, E.INSTALLED)

    def _rehash(self, effect: Rehash, stop: Stop) -> None:
        if self._ports.slots.rehash(effect.slot, stop=stop):
            self._done(effect.tag, E.REHASHED)
        else:
            detail = f"Slot {effect.slot} no longer holds what was sealed in it."
            self._done(effect.tag, E.VERIFY_FAILED, detail)

    def _watch(self, effect: Watch, stop: Stop) -> None:
        def failed(sentence: str) -> None:
            self._post(Finished(effect.tag, E.HEALTH_FAILED, sentence, Reason.HEALTH_FAILED))

        def held() -> None:
            # The loop looks every now and then; no soak is held by an application that has ended since.
            if self._ports.application.ended() is None:
                self._post(Finished(effect.tag, E.HEALTH_PASSED))

        self._ports.watch.run(stop=stop, held=held, failed=failed)

    def _activate(self, effect: Activate, _: Stop) -> None:
        self._ports.slots.activate(effect.slot, effect.starts)
        self._done(effect.tag, E.ACTIVATED)

    def _commit(self, effect: Commit, _: Stop) -> None:
        self._ports.slots.commit(effect.slot)
        self._done(effect.tag, E.COMMITTED)

    def _invalidate(self, effect: Invalidate, _: Stop) -> None:
        self._ports.slots.invalidate(effect.slot, effect.reason)
        self._post(Observed(self._ports.slots.probe()))

    def _start(self, effect: Start, _: Stop) -> None:
        slots = self._ports.slots
        booted = slots.probe().booted
        if booted != effect.slot:
            self._done(effect.tag, E.FELL_BACK, f"Slot {booted} is booted, not slot {effect.slot}.")
        elif not slots.count_start(effect.slot):
            ended = self._ports.application.ended() or ""  # how the last start went says more than the count
            self._done(
                effect.tag, E.STARTS_EXHAUSTED, f"Slot {effect.slot} has no start left. {ended}".strip()
            )
        else:
            self._run(effect.slot)
            self._done(effect.tag, E.STARTED)

    def _revert(self, effect: Revert, _: Stop) -> None:
        slots = self._ports.slots
        slots.revert(effect.reason)
        try:
            self._run(slots.probe().booted)
        except DeviceError as error:
            # The device is back all the same; that nothing runs is the next thing that the core hears.
            self._done(effect.tag, E.REVERTED, str(error))
            self._post(Stopped(str(error)))
            return
        self._done(effect.tag, E.REVERTED)

    def _run(self, slot: SlotName) -> None:
        """Start what the slot holds; nothing is started whose bytes were not verified (slot invariant 5)."""
        ports = self._ports
        holds = ports.slots.probe().slots[slot].holds
        if holds is Holds.EMPTY:
            ports.application.stop()  # a device that never had an update goes back to running nothing
            return
        if holds is Holds.UNKNOWN and not ports.slots.rehash(slot, stop=lambda: False):
            raise WorkFailed(
                Reason.DISK, f"It is unknown what slot {slot} holds, so nothing is started from it."
            )
        ports.application.start(ports.slots.path(slot))

    def _teller(self, tag: Tag) -> Callable[[int, int], None]:
        last = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last >= PROGRESS_S:
                last = time.monotonic()
                self._post(Progressed(tag, done, total))

        return tell

    _ACTS: Final[dict[type, Callable[..., None]]] = {
        Prepare: _prepare,
        Download: _download,
        Install: _install,
        Rehash: _rehash,
        Watch: _watch,
        Activate: _activate,
        Commit: _commit,
        Invalidate: _invalidate,
        Start: _start,
        Revert: _revert,
    }


class _Lane:
    """One thread that does one job after another; each job is given its own `stop`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._open: list[_Job] = []  # in hand or waiting
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        with self._lock:
            return bool(self._open)

    def add(self, act: Callable[[Stop], None], *, is_watch: bool) -> None:
        job = _Job(act, threading.Event(), is_watch)
        with self._lock:
            self._open.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def stop(self) -> None:
        with self._lock:
            for job in self._open:
                job.stopped.set()

    def stop_watch(self) -> None:
        with self._lock:
            for job in self._open:
                if job.is_watch:
                    job.stopped.set()

    def close(self) -> None:
        self.stop()
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.stopped.is_set():
                job.act(job.stopped.is_set)
            with self._lock:
                self._open.remove(job)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    act: Callable[[Stop], None]
    stopped: threading.Event
    is_watch: bool


def _read(data: bytes) -> Manifest:
    try:
        return read_manifest(data)
    except OperatorError as error:
        raise WorkFailed(Reason.VERIFY_FAILED, str(error)) from error
