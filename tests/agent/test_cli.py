"""`lastgood agent` as processes: joining, running, looking, and what it costs."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.directory_slots import DirectorySlots
from protocol.join import Join, encode_join
from tests.agent.adapters.updates import an_update
from tests.agent.builders import DIRECTOR
from tests.processes import run_lastgood
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
LASTGOOD = (sys.executable, "-c", "import lastgood; lastgood.main()")
IMPORT_S_MAX = 1.5  # the aim is 0.4 s on a quiet machine; a test on a noisy one only sees what is far off
RESIDENT_BYTES_MAX = 60_000_000


def agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `lastgood agent` to its end."""
    return run_lastgood("agent", *map(str, arguments))


def joining(device: str = "pi-1") -> str:
    """Return a text to join with, for a broker that is not there."""
    join = Join(broker="mqtt://127.0.0.1:1", device=device, token="t" * 27, keys_pem=(DIRECTOR.public_pem,))
    return encode_join(join)


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run `lastgood agent run` until the end of the block; its output goes to a file."""
    output = Path(arguments[arguments.index("--state") + 1]).parent / "output"
    with output.open("w") as file:
        command = [*LASTGOOD, "agent", "run", *map(str, arguments)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        yield process, output
    finally:
        process.kill()
        process.wait()


def test_it_joins_runs_and_ends_cleanly(tmp_path: Path) -> None:
    """One line joins; a second start needs the state folder alone; SIGTERM and SIGINT end it with code 0."""
    state = tmp_path / "state"
    with running("--join", joining(), "--state", state, "--tag", "group=lab") as (process, output):
        until(lambda: "cannot be reached" in output.read_text(), "the first try")
        assert "pi-1 works on" in output.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
        assert output.read_text().rstrip().endswith("stopped")
    with running("--state", state) as (process, output):
        until(lambda: "cannot be reached" in output.read_text(), "the first try")
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    assert "t" * 27 in (state / "agent.toml").read_text()


def test_it_joins_from_standard_input(tmp_path: Path) -> None:
    """With `--join -` the secret stands on no command line."""
    state = tmp_path / "state"
    command = [*LASTGOOD, "agent", "run", "--join", "-", "--state", str(state)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write(joining() + "\n")
        process.stdin.close()
        assert process.stdout is not None
        told = iter(process.stdout.readline, "")
        assert any("cannot be reached" in line for line in told)  # it has joined, and listens to signals
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    assert "t" * 27 in (state / "agent.toml").read_text()


def test_a_second_agent_on_the_same_state_is_refused(tmp_path: Path) -> None:
    """One sentence, exit code 1; and `status` says that the first one runs."""
    state = tmp_path / "state"
    with running("--join", joining(), "--state", state) as (process, output):
        until(lambda: "cannot be reached" in output.read_text(), "the first one")
        second = agent("run", "--state", state)
        assert second.returncode == 1
        assert f"Another agent (process {process.pid}) works on {state}" in second.stderr
        assert json.loads(agent("status", "--state", state, "--json").stdout)["agent_running"] is True
    assert json.loads(agent("status", "--state", state, "--json").stdout)["agent_running"] is False


def test_slots_shows_what_is(tmp_path: Path) -> None:
    """The table and the JSON say the same, with and without an agent."""
    state = tmp_path / "state"
    slots = DirectorySlots(state / "slots")
    state.mkdir()
    slots.recover()
    slots.begin("B", an_update("1.2.0").manifest)
    slots.seal("B")
    slots.activate("B", 3)
    shown = agent("slots", "--state", state)
    assert re.sub(r" +", " ", shown.stdout).splitlines() == [
        "SLOT BOOTED HOLDS UPDATE STARTS LEFT LAST KNOWN GOOD",
        "A empty - - yes",
        "B yes trial contoso/app:1.2.0 3",
    ]
    told = json.loads(agent("slots", "--state", state, "--json").stdout)
    assert told["B"]["sha256"] == an_update("1.2.0").sha256
    assert (told["B"]["booted"], told["A"]["last_known_good"], told["B"]["starts_left"]) == (True, True, 3)
    slots.revert("health_failed: it is ill")
    assert "bad (health_failed: it is ill)" in agent("slots", "--state", state).stdout


def test_status_tells_it_in_words(tmp_path: Path) -> None:
    """What runs, what is worked on, what the cloud lacks; also with a record that cannot be read."""
    state = tmp_path / "state"
    with running("--join", joining(), "--state", state) as (_, output):
        until(lambda: "cannot be reached" in output.read_text(), "the agent")
    shown = agent("status", "--state", state).stdout
    assert "device     pi-1" in shown
    assert "runs       nothing yet (slot A, empty)" in shown
    assert "work       idle" in shown
    (state / "record.json").write_bytes(b"{")
    broken = agent("status", "--state", state)
    assert broken.returncode == 0
    assert "cannot be read" in broken.stdout
    (state / "agent.toml").write_text("slots = 3\n")
    wrong = agent("slots", "--state", state)
    assert wrong.returncode == 1
    assert "'slots' is 3 in the configuration" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("status", "--state", "/nonexistent"), "There is no agent's state in /nonexistent"),
        (("status", "--state", "/" + "x" * 300), "cannot be read (File name too long)"),
        (("run", "--state", "STATE"), "run the line that `lastgood device add` printed"),
        (("run", "--state", "STATE", "--join", "rubbish"), "copy the whole line"),
        (("run", "--state", "STATE", "--join", "JOIN", "--tag", "lab"), "--tag wants NAME=VALUE"),
        (("run", "--state", "STATE", "--join", "JOIN", "--tag", "group=a b"), "cannot name a group"),
        (("run", "--state", "STATE", "--config", "/nonexistent"), "cannot be read"),
    ],
)
def test_a_wrong_use_is_told_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    """No traceback, exit code 1, and nothing is joined by halves."""
    words = {"STATE": str(tmp_path / "state"), "JOIN": joining()}
    ran = agent(*[words.get(word, word) for word in arguments])
    assert ran.returncode == 1
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "state" / "agent.toml").exists()


def test_the_idle_agent_is_small(tmp_path: Path) -> None:
    """Resident memory of an agent that has nothing to do."""
    state = tmp_path / "state"
    with running("--join", joining(), "--state", state) as (process, output):
        until(lambda: "cannot be reached" in output.read_text(), "the agent")
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        assert pages * os.sysconf("SC_PAGESIZE") < RESIDENT_BYTES_MAX


def test_looking_loads_little() -> None:
    """`status` brings no MQTT, HTTP or core: what it imports is what it needs."""
    script = (
        "import sys, lastgood\n"
        "code = lastgood.run(['agent', 'status', '--state', '/nonexistent'])\n"
        "heavy = {'paho', 'urllib3', 'asyncio', 'agent.core.device', 'agent.runtime', 'tarfile'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}')"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == "1 set()"
