"""Processes of lastgood that begin where a fresh Python would have finished importing: for tests that start dozens.

Each is a real process in a session of its own, forked (by the standard library's fork server) from one that has
imported what agent, cloud and commands import, which takes many times longer than what most of them then do. What the
import itself costs, and what it brings, is for the tests that start Python anew.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Final, TextIO

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "agent.cli",
        "agent.runtime",
        "agent.adapters.download",
        "agent.adapters.mqtt",
        "cloud_stub.api.app",
        "cloud_stub.cli.cloud",
        "cloud_stub.cli.deploy",
        "cloud_stub.cli.device",
        "cloud_stub.cli.update",
        "cloud_stub.service",
        "inspector.cli",
        "sqlalchemy.dialects.sqlite",
        "uvicorn.protocols.http.h11_impl",
        "tests.empty_database",
        __name__,
    ]
)
_LOCK: Final = threading.Lock()  # the library looks after all its processes whenever one is started


class Forked:
    """One process, with what tests use of `subprocess.Popen`; `words` are for Python: `-m MODULE …` or `FILE …`."""

    def __init__(
        self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], out: Path, err: Path
    ) -> None:
        self.words = tuple(words)
        given = (self.words, cwd, dict(env), out, err)
        self._process = _CONTEXT.Process(target=_live, args=given, daemon=True)
        with _LOCK:
            self._process.start()
        pid = self._process.pid
        assert pid is not None  # it was started
        self.pid: Final = pid

    def poll(self) -> int | None:
        """Return its exit code (negative: the signal that ended it), or None while it runs."""
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on for longer than `timeout` seconds.
        """
        if self.poll() is None:
            connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            assert timeout is not None  # without one the wait has no other end
            raise subprocess.TimeoutExpired(self.words, timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.send_signal(signal.SIGKILL)


def _live(words: Sequence[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path) -> None:
    """Be what `python WORDS` would be, with its output appended to files."""
    gc.freeze()  # what was imported is shared: a collection would write into each of its pages
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.stdout, sys.stderr = _appending(out, 1), _appending(err, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _appending(path: Path, number: int) -> TextIO:
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(opened, number)
    os.close(opened)
    return open(number, "w", buffering=1, closefd=False)
