"""The supervised application: real processes, real orphans, and nobody else's process touched."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.application import NoApplication, ProcessApplication, ProcessSettings
from agent.ports import WorkFailed
from protocol.outcomes import Reason
from tests.waiting import until

SERVE = 'echo "slot $LASTGOOD_SLOT data $1"; echo $$ > "$LASTGOOD_DATA/pid"; exec sleep 600'


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """A slot with a program in it."""
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot" / "serve").write_text(f"#!/bin/sh\n{SERVE}\n")
    (tmp_path / "slot" / "serve").chmod(0o755)
    return tmp_path / "slot"


def settings(
    slot: Path, command: tuple[str, ...] = ("{slot}/serve", "{data}"), **more: object
) -> ProcessSettings:
    """Return settings for a program of the slot."""
    state = slot.parent
    fields: dict[str, object] = {"stop_s": 5.0, "variables": {"PORT": "80", "FROM": "{slot}"}} | more
    return ProcessSettings(command, state / "data", state / "log", state / "pid", **fields)  # type: ignore[arg-type]


@pytest.fixture
def application(slot: Path) -> Iterator[ProcessApplication]:
    """An application, ended after the test."""
    application = ProcessApplication(settings(slot))
    yield application
    application.stop()


def lives(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pid_of(slot: Path) -> int:
    """Wait until the program has told its process id."""
    path = slot.parent / "data" / "pid"
    return int(until(lambda: path.exists() and path.read_text().strip(), "the program"))


def test_it_runs_from_its_slot_with_its_own_data(application: ProcessApplication, slot: Path) -> None:
    """The command's words are filled in, output goes to the log, and `ended` is silent while it runs."""
    application.start(slot)
    pid = pid_of(slot)
    assert application.ended() is None
    assert (slot.parent / "log").read_text() == f"slot {slot} data {slot.parent / 'data'}\n"
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"FROM={slot}".encode() in environment
    assert os.getsid(pid) == pid
    application.stop()
    assert not lives(pid)
    assert application.ended() is None, "what was stopped on purpose did not end by itself"


def test_how_it_ended_is_told(slot: Path) -> None:
    """Exit code and last line, or the signal."""
    application = ProcessApplication(settings(slot, ("/bin/sh", "-c", "echo no config >&2; exit 3")))
    application.start(slot)
    assert until(application.ended, "the end") == "The application ended with exit code 3: no config."
    application = ProcessApplication(settings(slot))
    application.start(slot)
    os.kill(pid_of(slot), signal.SIGKILL)
    assert "was ended by SIGKILL" in str(until(application.ended, "the end"))


def test_a_missing_command_is_the_updates_fault(slot: Path) -> None:
    """A slot that does not hold what is to be started cannot be started."""
    with pytest.raises(WorkFailed, match="not there, or is not executable") as failed:
        ProcessApplication(settings(slot, ("{slot}/none",))).start(slot)
    assert failed.value.reason is Reason.HANDLER_FAILED


def test_one_that_does_not_listen_is_killed(slot: Path) -> None:
    """After the polite signal and its time comes the other one, for the whole session."""
    text = 'trap "" TERM; sleep 600 & echo $! > "$LASTGOOD_DATA/child"; echo $$ > "$LASTGOOD_DATA/pid"; wait; wait'
    application = ProcessApplication(settings(slot, ("/bin/sh", "-c", text), stop_s=0.2))
    application.start(slot)
    pid = pid_of(slot)
    child = int((slot.parent / "data" / "child").read_text())
    application.stop()
    assert not lives(pid)
    assert not lives(child)


def test_who_is_born_while_it_ends_is_asked_to_end_too(slot: Path) -> None:
    """A process that the application starts when it is told to end hears the polite signal as well."""
    text = (
        "import os, signal, sys; from pathlib import Path; os.chdir(os.environ['LASTGOOD_DATA'])\n"
        "def gently(*_): Path('child').write_text('gently'); os._exit(0)\n"
        "def end(*_):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the child must not miss it\n"
        "    if os.fork(): os._exit(0)\n"
        "    signal.signal(signal.SIGTERM, gently)\n"
        "    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})\n"
        "    while True: signal.pause()\n"
        "signal.signal(signal.SIGTERM, end); Path('pid').write_text(str(os.getpid()))\n"
        "while True: signal.pause()"
    )
    application = ProcessApplication(settings(slot, (sys.executable, "-c", text), stop_s=120))
    application.start(slot)
    pid_of(slot)
    application.stop()
    assert (slot.parent / "data" / "child").read_text() == "gently"


def test_an_orphan_is_found_and_ended(slot: Path) -> None:
    """What an agent left behind when it was killed is ended before anything else is started."""
    script = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, os.getcwd());"
        "from tests.agent.adapters.test_application import ProcessApplication, settings;"
        "slot = Path(sys.argv[1]); ProcessApplication(settings(slot)).start(slot); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", script, str(slot)], cwd=root).returncode == -9
    orphan = pid_of(slot)
    assert lives(orphan)
    (slot.parent / "data" / "pid").unlink()
    application = ProcessApplication(settings(slot))
    application.start(slot)
    assert not lives(orphan)
    assert pid_of(slot) != orphan
    application.stop()


def test_nothing_starts_before_its_process_id_is_on_the_disk(slot: Path) -> None:
    """An agent that dies in between leaves no unknown process: the command waits for a word that never comes."""
    (slot.parent / "pid").mkdir()  # the note cannot be written
    application = ProcessApplication(settings(slot))
    with pytest.raises(WorkFailed):
        application.start(slot)
    until(application.ended, "the end of what waited")
    assert not (slot.parent / "data" / "pid").exists()


@pytest.mark.parametrize("lie", ["ticks", "boot", "rubbish", "init"])
def test_nobody_elses_process_is_ended(application: ProcessApplication, slot: Path, lie: str) -> None:
    """A process id that was given to somebody else, another boot, a note that is none: left alone."""
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        application.start(slot)
        pid_of(slot)
        note = json.loads((slot.parent / "pid").read_bytes())
        application.stop()
        note["pid"] = 1 if lie == "init" else other.pid
        stat = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()
        note["started_ticks"] = int(stat[19]) - (1 if lie == "ticks" else 0)
        if lie == "boot":
            note["boot"] = "another"
        (slot.parent / "pid").write_text("{" if lie == "rubbish" else json.dumps(note))
        ProcessApplication(settings(slot)).stop()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_its_log_is_bounded(slot: Path) -> None:
    """The log is copied and cut while the application goes on writing into it."""
    text = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; while :; do echo last; sleep 0.1; done"
    application = ProcessApplication(settings(slot, ("/bin/sh", "-c", text), log_bytes_max=10_000))
    application.start(slot)
    log, older = slot.parent / "log", slot.parent / "log.1"

    def is_cut() -> bool:
        application.ended()
        return (
            older.exists()
            and "last" in (log.read_text() + older.read_text())
            and log.stat().st_size <= 10_000
        )

    until(is_cut, "the end of the output")
    assert older.stat().st_size <= 10_000
    application.stop()


def test_no_application_is_one_too(slot: Path) -> None:
    """A device whose slots hold data alone starts nothing, and nothing ends."""
    application = NoApplication()
    application.start(slot)
    assert application.ended() is None
    application.stop()
