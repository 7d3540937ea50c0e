"""Running a short command: in a process group of its own, with a time-out, with bounded output, stoppable.

It does not supervise what goes on running (`application.py` does). Nothing a command started is left behind.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from agent.ports import Stop, Stopped

OUTPUT_BYTES_MAX: Final = 8_192  # of a command's output that is kept: its end, where the error stands
POLL_S: Final = 0.1  # how often `stop` is asked while a command is silent
AFTER_END_S: Final = 0.5  # for the last output once the command itself has ended


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code (negative: a signal), None when its time was up, and the end of its output."""

    code: int | None
    output: str

    @property
    def last_line(self) -> str:
        """The last line it wrote that is not empty."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""

    def sentence(self, what: str, timeout_s: float) -> str | None:
        """Return None when it ended well, or a sentence that says how it did not."""
        if self.code == 0:
            return None
        if self.code is None:
            how = f"did not end within {timeout_s:g} s"
        elif self.code < 0:
            how = f"was ended by {signal_name(-self.code)}"
        else:
            how = f"ended with exit code {self.code}"
        return f"{what} {how}{': ' + self.last_line if self.last_line else ''}."


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stop: Stop = lambda: False,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command to its end, and end it when its time is up.

    Raises:
        OSError: it cannot be run.
        Stopped: `stop` said so; the command was ended.
    """
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, **(variables or {})},
        start_new_session=True,
        bufsize=0,
    )
    assert process.stdout is not None  # PIPE was asked for
    try:
        return _attend(process, process.stdout, time.monotonic() + timeout_s, stop)
    finally:
        _end_group(process)
        process.stdout.close()


def signal_name(number: int) -> str:
    """Return a signal's name, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _attend(process: subprocess.Popen[bytes], pipe: IO[bytes], deadline: float, stop: Stop) -> Ended:
    kept = b""
    grace: float | None = None  # a child of the command may hold the pipe open: do not wait for that one
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if stop():
                raise Stopped
            if process.poll() is not None and grace is None:
                grace = now + AFTER_END_S
            if now >= deadline or (grace is not None and now >= grace):
                return Ended(process.poll(), kept.decode("utf-8", "replace"))
            if selector.select(POLL_S):
                piece = os.read(pipe.fileno(), 65_536)
                if not piece:
                    break
                kept = (kept + piece)[-OUTPUT_BYTES_MAX:]
    while process.poll() is None and time.monotonic() < deadline:
        if stop():
            raise Stopped
        time.sleep(0.01)  # it closed its output and still runs
    return Ended(process.poll(), kept.decode("utf-8", "replace"))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # also what the command left behind in its group
    process.wait()
