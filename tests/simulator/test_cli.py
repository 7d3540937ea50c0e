"""`lastgood sim`: exit codes, what is printed, and a whole live run on its own cloud."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lastgood import run
from tests.simulator.scenarios import SMALL
from tests.waiting import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
ROLLBACK = ROOT / "configs" / "scenarios" / "rollback.toml"
STORM = ROOT / "configs" / "scenarios" / "storm.toml"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A scenario of six devices, one of which fails."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def lines(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> tuple[int, str]:
    """Run a command, and return its exit code and all that it printed."""
    code = run(["sim", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_check_says_what_would_be_and_who_would_fail(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started, and the failing device is named by the seed."""
    code, said = lines(capsys, ["check", str(small)])
    assert code == 0
    assert "seed 3, 6 devices" in said
    assert "acme/app:1.0 fails on 1 in kitchen (health_fails): " in said
    assert lines(capsys, ["check", str(small), "--seed", "4"])[1] != said


def test_a_scenario_that_is_not_valid_is_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and one sentence that names file and field."""
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace("count = 4", "count = 0"))
    code, said = lines(capsys, ["run", str(path)])
    assert code == 2
    assert "fleet.0.count" in said


def test_a_storm_is_refused_in_the_live_world(capsys: pytest.CaptureFixture[str]) -> None:
    """A part of a scenario that a world would not play is said, not skipped."""
    code, said = lines(capsys, ["run", str(STORM)])
    assert code == 2
    assert "--world virtual" in said


def test_what_a_live_run_does_not_play_is_said(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its network is real; the run itself needs a cloud, and none is there."""
    small.write_text(small.read_text() + "\n[network]\nlatency_ms = 50\n")
    code, said = lines(capsys, ["run", str(small), "--url", "http://127.0.0.1:1", "--token", "t"])
    assert code == 1
    assert "latency_ms of [network] is for virtual time" in said
    assert "latency_ms" not in lines(capsys, ["run", str(small), "--world", "virtual"])[1]


def test_a_run_that_holds_exits_with_0_and_prints_its_seed_first(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In virtual time; the first line repeats the run."""
    code, said = lines(capsys, ["run", str(small), "--world", "virtual"])
    assert code == 0
    assert said.startswith("seed 3 · scenario small")
    assert "small: everything held." in said


def test_a_run_that_does_not_hold_exits_with_1_and_prints_how_to_repeat_it(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence has the numbers, and the command has the seed."""
    small.write_text(SMALL.replace("equals = 1", "equals = 2"))
    code, said = lines(capsys, ["run", str(small), "--world", "virtual", "--seed", "11"])
    assert code == 1
    assert "NOT HELD  deployment 'first' counts 1 counted; 2 are expected" in said
    assert f"Repeat it with:  lastgood sim run {small} --seed 11 --world virtual" in said


def test_json_comes_from_the_same_judgements(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is one JSON object; the rest goes to standard error."""
    assert run(["sim", "run", str(small), "--world", "virtual", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["held"] is True
    assert result["seed"] == 3
    assert result["judgements"][0]["held"] is True


def test_without_a_cloud_one_sentence_says_what_to_do(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data folder has no cloud."""
    code, said = lines(capsys, ["run", str(small), "--data", str(tmp_path / "nothing")])
    assert code == 1
    assert "lastgood cloud up" in said
    assert lines(capsys, ["run", str(small), "--url", "http://127.0.0.1:1"])[0] == 2
    code, said = lines(capsys, ["run", str(small), "--url", "http://[::1", "--token", "x"])
    assert (code, "is not the address of a cloud" in said) == (1, True)
    code, said = lines(capsys, ["run", str(small), "--url", "http://127.0.0.1:1", "--token", "é"])
    assert (code, "look at --token" in said) == (1, True)


@pytest.mark.slow
def test_a_live_run_on_its_own_cloud_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped scenario with a real cloud, broker and downloads, to its expectations."""
    code, said = lines(capsys, ["run", str(ROLLBACK), "--own-cloud"])
    assert code == 0, said
    assert "rollback: everything held." in said
    assert "50 connections" in said


@pytest.mark.slow
def test_sigterm_ends_its_own_cloud_too(tmp_path: Path) -> None:
    """As Ctrl-C does: the run ends with 130, and nothing answers where its cloud was."""
    out = tmp_path / "out"
    words = ["sim", "run", str(ROLLBACK), "--own-cloud", "--broker", "embedded"]
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "lastgood", *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        found = until(
            lambda: re.search(r"own cloud at http://127\.0\.0\.1:(\d+)", out.read_text()), "its cloud"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 130, out.read_text()
    finally:
        process.kill()
        process.wait()
    with socket.socket() as probe:
        assert found is not None
        assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0
