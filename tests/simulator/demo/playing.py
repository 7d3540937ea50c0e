"""The demo as a process of its own, with its folder and its lines where a test finds them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulator.demo.backstage import Backstage
from tests.processes import ROOT, environment


@contextmanager
def demo(spool: Path, tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Play the demo, with its folder below `spool` and its lines in `tmp_path/told`."""
    with (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "lastgood", "demo", "--quick", *words],
            cwd=ROOT,
            env={**environment(), "TMPDIR": str(spool), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def told(tmp_path: Path) -> str:
    """Return what it has printed."""
    return (tmp_path / "told").read_text()


def left_of(spool: Path) -> tuple[list[int], list[str]]:
    """Return the processes and the folders that it has left."""
    return Backstage(spool, "auto", lambda _: None).left_over(), [path.name for path in spool.iterdir()]
