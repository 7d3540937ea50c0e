"""An agent killed at many points of an update: it always comes back, with an application that runs."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.directory_slots import DirectorySlots
from tests.agent.adapters.files_server import Files, serving
from tests.agent.test_runtime import Agent, an_app, at_work, lives
from tests.forked import Forked
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
KILLED_AT = (1, 2, 4, 5, 7, 8, 10, 11, 13, 14)  # renames: each durable step of record and slots is one


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Files]]:
    """The state of an agent that runs version 1, and a server that has version 2."""
    with serving() as files:
        first = Agent(tmp_path_factory.mktemp("first") / "state", files)
        first.state.mkdir(parents=True)
        with at_work(first):
            first.order(10, an_app("1.0.0"))
            assert first.outcome(10) == ("succeeded", None)
        files.add(an_app("2.0.0"))
        yield first.state, files


@pytest.mark.slow
@pytest.mark.parametrize("point", KILLED_AT)
def test_an_agent_killed_anywhere_comes_back(running: tuple[Path, Files], point: int, tmp_path: Path) -> None:
    """Killed before a durable step, it is started again: the update succeeds, one application runs, slots are whole."""
    before, files = running
    state = tmp_path / "state"
    shutil.copytree(before, state, symlinks=True)
    assert _killed(state, files.url, point), "the kill has fired"
    _comes_back(state, files.url, point)


def _words(state: Path, url: str) -> list[str]:
    return ["-m", "tests.agent.agent_process", str(state), url]


def _outcomes(state: Path) -> str:
    path = state.parent / "outcomes"
    return path.read_text() if path.exists() else ""


def _killed(state: Path, url: str, point: int) -> bool:
    """Run the agent until its kill, or until it has succeeded when the point is beyond its calls."""
    process = Forked(
        [*_words(state, url), str(point)],
        cwd=ROOT,
        env=os.environ,
        out=state.parent / "log",
        err=state.parent / "log",
    )
    until(lambda: process.poll() is not None or "20 succeeded" in _outcomes(state), f"the kill at {point}")
    killed = process.poll() is not None
    process.kill()  # also when the point lies beyond the calls of this update: a kill after it, then
    assert process.wait(90) == -signal.SIGKILL
    return killed


def _comes_back(state: Path, url: str, point: int) -> None:
    orphans = _applications(state)
    (state.parent / "hellos").unlink(missing_ok=True)
    log = state.parent / "log"
    process = Forked(_words(state, url), cwd=ROOT, env=os.environ, out=log, err=log)
    try:
        until((state.parent / "hellos").exists, f"a hello after the kill at {point}")
        until(lambda: "20 succeeded" in _outcomes(state), f"the success after the kill at {point}")
        table = DirectorySlots(state / "slots").probe()
        assert (table.running.update, str(table.running.holds)) == ("contoso/app:2.0.0", "good"), point
        assert table.booted == table.last_known_good
        assert all(DirectorySlots(state / "slots").rehash(slot) for slot in ("A", "B"))
        until(lambda: (state / "data" / "up").read_text() == "2.0.0", "version 2")
        until(lambda: len(_applications(state)) == 1, f"one application after {point}; before: {orphans}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    until(lambda: not _applications(state), "the end of the application")


def _applications(state: Path) -> list[int]:
    """The processes that run from this state's slots."""
    wanted = f"LASTGOOD_DATA={state / 'data'}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and lives(int(path.name)):
            try:
                ours = wanted in (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if ours and (path / "stat").read_text().rpartition(")")[2].split()[3] == path.name:
                found.append(int(path.name))
    return found
