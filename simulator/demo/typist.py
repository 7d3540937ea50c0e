"""The hand that types the operator's commands: each in a process of its own, forked from one that has imported them.

A story types twenty commands, and to import takes each of them longer than what it then does.
"""

import gc
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simulator.signals import uninterrupted

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_IMPORTED: Final = (
    "lastgood",
    "agent.cli",
    "agent.config",
    "cloud_stub.cli.deploy",
    "cloud_stub.cli.device",
    "cloud_stub.cli.group",
    "cloud_stub.cli.update",
    "cloud_stub.core.packing",
)


@dataclass(frozen=True, slots=True)
class Typed:
    """What a command printed, and how it ended."""

    code: int  # negative: the signal that ended it, SIGKILL when it went on for too long
    printed: str
    complained: str


def import_ahead() -> None:
    """Choose what is imported once for all commands; before the first, since the whole process has one such choice."""
    _CONTEXT.set_forkserver_preload(list(_IMPORTED))


def type_command(
    words: Sequence[str], folder: Path, variables: Mapping[str, str], deadline_s: float
) -> Typed:
    """Run `lastgood WORDS` in a folder, with these environment variables alone, to its end or the deadline."""
    with tempfile.TemporaryDirectory(dir=folder) as spool:
        out, err = Path(spool, "out"), Path(spool, "err")
        for each in (out, err):
            each.touch()  # also for a command that is ended before it has begun
        process = _CONTEXT.Process(
            target=_be_lastgood, args=(tuple(words), folder, dict(variables), out, err), daemon=True
        )
        try:
            with uninterrupted():
                process.start()
            process.join(deadline_s)
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
        return Typed(process.exitcode or 0, out.read_text(), err.read_text())


def _be_lastgood(
    words: Sequence[str], folder: Path, variables: Mapping[str, str], out: Path, err: Path
) -> None:
    gc.freeze()  # what was imported is shared: a collection would write into each of its pages
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    with out.open("w") as sys.stdout, err.open("w") as sys.stderr:
        sys.argv = ["lastgood", *words]
        runpy.run_module("lastgood", run_name="__main__", alter_sys=True)
