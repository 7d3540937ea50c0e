"""The commands in a real terminal: the question before a deployment is made, the live picture, and Ctrl-C."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cloud_stub.core.rows import AssignmentState
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.fakes import DirectService
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]


class Terminal:
    """A command on a pseudo-terminal, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.written = b""
        self._descriptor = descriptor

    def reads(self, text: str) -> bool:
        """Return whether `text` has been written by now."""
        with suppress(OSError):  # nothing at the moment, or the command has ended
            self.written += os.read(self._descriptor, 65_536)
        return text.encode() in self.written

    def types(self, text: str) -> None:
        """Type a line."""
        os.write(self._descriptor, text.encode())


@contextmanager
def terminal(*arguments: str | Path) -> Iterator[Terminal]:
    """Run `lastgood` on a terminal of its own."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    command = [sys.executable, ROOT / "lastgood.py", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(("answer", "code", "made"), [("y\n", 0, 1), ("n\n", 1, 0)])
def test_create_asks_once(service: DirectService, data: Path, answer: str, code: int, made: int) -> None:
    """The plan comes first; yes creates what was shown, no creates nothing."""
    one = samples.imported(service, "1.0")
    samples.fleet(service, "north", 2, one)
    with terminal("deploy", "create", "north", samples.ONE, "--data", data) as shown:
        until(lambda: shown.reads("Create it? [y/N]"), "the question")
        assert b"would be updated" in shown.written
        shown.types(answer)
        assert shown.process.wait(90) == code
    with service.read() as reader:
        assert len(reader.list_deployments()) == made


def test_watch_draws_and_ends_cleanly_on_ctrl_c(service: DirectService, data: Path) -> None:
    """The picture follows the rows; Ctrl-C is one word and 130, without a traceback."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    ids = samples.fleet(service, "north", 4, one)
    samples.deployed(service, "north")
    with terminal("deploy", "watch", "d1", "--data", data) as shown:
        until(lambda: shown.reads("0 devices run it, 4 not begun."), "the first picture")
        samples.settle(service, "d1", ids[:3], AssignmentState.SUCCEEDED)
        until(lambda: shown.reads("3 devices run it, 1 not begun."), "the next picture")
        shown.process.send_signal(signal.SIGINT)
        until(lambda: shown.reads("stopped.") or shown.process.poll() is not None, "its end")
        assert shown.process.wait(90) == 130
        shown.reads("")
        assert b"Traceback" not in shown.written
