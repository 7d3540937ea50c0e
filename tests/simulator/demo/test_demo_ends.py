"""How the demo ends when its story does not: nothing of what it started is left, neither processes nor files."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import Forked
from tests.processes import environment
from tests.waiting import until

Demo = Callable[[str], Forked]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Starts the demo on a broker, with its temporary folder in `work`."""
    (tmp_path / "work").mkdir()
    started: list[Forked] = []

    def start(broker: str) -> Forked:
        words = ("-m", "lastgood", "demo", "--quick", "--broker", broker)
        env = environment() | {"TMPDIR": str(tmp_path / "work")}
        out, err = tmp_path / "out", tmp_path / "err"
        started.append(Forked(words, cwd=tmp_path, env=env, out=out, err=err))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def left_in(folder: Path) -> list[object]:
    """Return what still lies or works there."""
    mark = os.fsencode(folder)
    commands = [command_of(entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [*folder.iterdir(), *(command for command in commands if mark in command)]


def command_of(process: Path) -> bytes:
    """Return its command line; nothing when it has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_ctrl_c_ends_all_that_the_demo_started(demo: Demo, tmp_path: Path) -> None:
    """In the middle of the gathering, with a cloud, its broker, and an agent that is only just starting."""
    process = demo("embedded")
    until(
        lambda: process.poll() is not None or "lastgood agent run" in (tmp_path / "out").read_text(),
        "an agent",
    )
    assert left_in(tmp_path / "work") != []
    process.send_signal(signal.SIGINT)
    assert process.wait(180) == 130, (tmp_path / "err").read_text()
    assert left_in(tmp_path / "work") == []


def test_a_story_that_fails_leaves_nothing(demo: Demo, tmp_path: Path) -> None:
    """A broker that is not there: one sentence, exit code 1."""
    assert demo("mqtt://127.0.0.1:1").wait(180) == 1
    assert "127.0.0.1:1" in (tmp_path / "err").read_text()
    assert left_in(tmp_path / "work") == []
