"""What runs from the booted slot: a supervised process, a systemd unit, or nothing.

It does not decide when something is started, or how often (`runtime.py` and the core do). It keeps two rules: an
application that a killed agent left behind is found and ended before another is started, and no process is ever
signalled that is not surely ours. So nobody starts before its process id is on the disk: the command waits behind a
shell's `read` until then. The application is not tied to the agent's life: it goes on serving while an agent that
was killed comes back.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.adapters import commands, durable
from agent.ports import WorkFailed
from protocol.errors import DeviceError
from protocol.outcomes import Reason

STOP_S: Final = 10.0  # between the polite signal and the other one
KILL_S: Final = 30.0  # for the kernel to end what was killed; more means it hangs in a device
LOG_BYTES_MAX: Final = 1_048_576  # of the log and of the one before it, each
TAIL_BYTES: Final = 4_096  # of the log that is looked at for the last line
UNIT_POLL_S: Final = 5.0  # between two questions to systemd
SYSTEMCTL_TIMEOUT_S: Final = 120.0  # systemd's own default is 90
_POLL_FIRST_S: Final = 0.02  # to the second look at a session that ends; each pause is longer
_POLL_LAST_S: Final = 0.25  # a look reads all of /proc
_WAIT_FOR_GO: Final = 'read -r go && exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How the application is started: `{slot}` and `{data}` in the command stand for the two folders."""

    command: tuple[str, ...]
    data: Path  # the application's own writable folder; slots are read-only
    log: Path
    pid_file: Path
    variables: Mapping[str, str]
    stop_s: float = STOP_S
    log_bytes_max: int = LOG_BYTES_MAX


class ProcessApplication:
    """The port `Application` for a process in a session of its own."""

    ends_with_agent = True

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: str | None = None
        self._lock = threading.Lock()  # the worker starts and stops, the loop asks

    def start(self, folder: Path) -> None:
        """End what runs, also what an earlier agent left behind, and start anew from this folder.

        Raises:
            WorkFailed: `handler_failed` when the slot holds no such command, `disk` or `no_space`.
        """
        with self._lock:
            self._stop()
            try:
                self._start(folder)
            except OSError as error:
                raise durable.disk_failure(error, "starting the application") from error

    def stop(self) -> None:
        """End it, and wait until it is gone.

        Raises:
            DeviceError: it cannot be ended.
        """
        with self._lock:
            self._stop()

    def ended(self) -> str | None:
        """Return how it ended by itself, or None while it runs or is meant not to; keeps its log bounded, too."""
        if not self._lock.acquire(blocking=False):
            return None  # it is being started or stopped at this moment
        try:
            if self._process is None:
                return self._ended
            self._rotate()
            pid = self._process.pid
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            # Its children have no business without it. Until it is collected nobody else can bear its number.
            _end_session(pid, KILL_S, signal.SIGKILL)
            self._ended = self._how(self._process.wait())
            self._process = None
            return self._ended
        finally:
            self._lock.release()

    def _start(self, folder: Path) -> None:
        settings = self._settings
        durable.make_folder(settings.data, mode=0o755)
        words = {"slot": str(folder), "data": str(settings.data)}
        argv = [_filled(part, words) for part in settings.command]
        _check_command(argv[0])
        with open(settings.log, "ab", buffering=0) as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT_FOR_GO, "lastgood", *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **self._variables(words)},
                start_new_session=True,
                bufsize=0,
            )
        assert process.stdin is not None  # PIPE was asked for
        self._process, self._ended = process, None
        with process.stdin:
            _note(settings.pid_file, process.pid)
            with contextlib.suppress(BrokenPipeError):  # it is gone already: `ended` will say so
                process.stdin.write(b"go\n")

    def _variables(self, words: Mapping[str, str]) -> dict[str, str]:
        return {
            "LASTGOOD_SLOT": words["slot"],
            "LASTGOOD_DATA": words["data"],
            # Root writes into read-only folders: byte code there would change what was sealed (R25).
            "PYTHONPYCACHEPREFIX": os.path.join(words["data"], ".pycache"),
            **{name: _filled(value, words) for name, value in self._settings.variables.items()},
        }

    def _stop(self) -> None:
        process, self._process, self._ended = self._process, None, None
        pid = process.pid if process else _noted(self._settings.pid_file)
        if pid is not None:
            if not _end_session(pid, self._settings.stop_s, signal.SIGTERM):
                _end_session(pid, KILL_S, signal.SIGKILL)
            if _members(pid):
                raise DeviceError(f"The application's process {pid} cannot be ended; restart the device.")
        if process is not None:
            process.wait()
        with contextlib.suppress(OSError):
            durable.remove_file(self._settings.pid_file)

    def _how(self, code: int) -> str:
        how = f"was ended by {commands.signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        last = _last_line(self._settings.log)
        return f"The application {how}{': ' + last if last else ''}."

    def _rotate(self) -> None:
        """Copy, then truncate: the application keeps its open file, which appends."""
        log = self._settings.log
        with contextlib.suppress(OSError):
            if log.stat().st_size > self._settings.log_bytes_max:
                with open(log, "r+b") as file:
                    file.seek(-self._settings.log_bytes_max, os.SEEK_END)
                    kept = file.read(self._settings.log_bytes_max)
                    file.truncate(0)
                log.with_name(log.name + ".1").write_bytes(kept)


class SystemdUnit:
    """The port `Application` for a systemd unit, whose own file names `ROOT/current`.

    A unit that systemd has restarted by itself counts as ended: the starts of a trial are ours to count and to bound.
    """

    ends_with_agent = False

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._asked = 0.0
        self._wanted = False
        self._ended: str | None = None

    def start(self, folder: Path) -> None:
        """Restart the unit, so that it runs from what is booted now.

        Raises:
            WorkFailed: `handler_failed`; systemd could not restart it.
        """
        self._systemctl("restart")
        self._wanted, self._ended = True, None

    def stop(self) -> None:
        """Stop the unit.

        Raises:
            WorkFailed: systemd could not stop it.
        """
        self._wanted, self._ended = False, None
        self._systemctl("stop")

    def ended(self) -> str | None:
        """Return how the unit ended, asking systemd every few seconds."""
        if not self._wanted or time.monotonic() - self._asked < UNIT_POLL_S:
            return self._ended
        self._asked = time.monotonic()
        show = ["systemctl", "show", "--property=ActiveState,NRestarts", "--", self._unit]
        with contextlib.suppress(OSError):
            output = commands.run(show, timeout_s=SYSTEMCTL_TIMEOUT_S).output
            told = dict(line.partition("=")[::2] for line in output.splitlines())
            if (state := told.get("ActiveState")) in {"failed", "inactive"}:
                self._ended = f"The unit {self._unit} is {state}."
            elif (restarts := told.get("NRestarts", "0")) not in {"", "0"}:  # a start of ours sets it to 0
                self._ended = f"The unit {self._unit} ended, and systemd restarted it (NRestarts={restarts})."
            else:
                self._ended = None
        return self._ended

    def _systemctl(self, verb: str) -> None:
        try:
            ended = commands.run(["systemctl", verb, "--", self._unit], timeout_s=SYSTEMCTL_TIMEOUT_S)
        except OSError as error:
            raise WorkFailed(Reason.HANDLER_FAILED, f"systemctl cannot be run: {error.strerror}.") from error
        if sentence := ended.sentence(f"systemctl {verb} {self._unit}", SYSTEMCTL_TIMEOUT_S):
            raise WorkFailed(Reason.HANDLER_FAILED, sentence)


class NoApplication:
    """The port `Application` for a device whose slots hold data alone."""

    ends_with_agent = False

    def start(self, folder: Path) -> None:
        """Nothing is started."""

    def stop(self) -> None:
        """Nothing runs."""

    def ended(self) -> str | None:
        """Nothing ends."""
        return None


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace("{" + word + "}", value)
    return text


def _check_command(command: str) -> None:
    found = os.access(command, os.X_OK) if "/" in command else shutil.which(command)
    if not found:
        raise WorkFailed(
            Reason.HANDLER_FAILED,
            f"The application's command {command!r} is not there, or is not executable.",
        )


def _note(pid_file: Path, pid: int) -> None:
    started = _started_ticks(pid)
    note = {"pid": pid, "started_ticks": started, "boot": _boot(), "version": 1}
    durable.replace_file(pid_file, json.dumps(note).encode())


def _noted(pid_file: Path) -> int | None:
    """Return the process id of what an earlier agent left behind, if that surely is it."""
    try:
        note = json.loads(pid_file.read_bytes()[:4_096])
        pid, ticks, boot = int(note["pid"]), note["started_ticks"], note["boot"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if boot != _boot() or ticks is None or pid <= 1:
        return None
    now = _started_ticks(pid)
    if now is None and _members(pid):
        return pid  # the first process is gone, its session is not: no other session can bear the number meanwhile
    return pid if now == ticks else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _started_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int | str) -> Sequence[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything: state is 0, start 19."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (OSError, ValueError):
        return ()
    return text.rpartition(")")[2].split()


def _members(session: int) -> list[int]:
    """Return the living processes of a session; the dead that nobody collected are not among them."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and _session_of(int(name)) == session:
            fields = _stat(name)
            if fields and fields[0] not in {"Z", "X"}:
                found.append(int(name))
    return found


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:  # it has ended
        return None


def _end_session(session: int, patience_s: float, number: signal.Signals) -> bool:
    """Send the signal to each process of the session, the newborn too, and return whether all are gone in time."""
    deadline, pause_s = time.monotonic() + patience_s, _POLL_FIRST_S
    told: set[int] = set()
    while members := _members(session):
        for pid in members:
            if pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(_POLL_LAST_S, pause_s * 1.5)
    return True


def _last_line(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            tail = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
