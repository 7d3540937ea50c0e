"""The demo's cast and its backstage; the story itself is run by `.ci/run`, on both brokers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.demo.backstage import Backstage, DemoFailed
from simulator.demo.cast import BAD, FAILED_COUNT, FAILED_PERCENT, NORTH, REAL_AGENTS, cast
from simulator.demo.typist import type_command


def test_the_cast_is_as_large_as_was_said() -> None:
    """At least 200 virtual devices, three groups, two device classes."""
    made = cast(7, quick=False)
    assert len(made.fleet) >= 200
    assert len({member.group for member in made.fleet}) == 3
    assert len({member.properties["model"] for member in made.fleet}) == 2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("quick", [True, False])
def test_every_seed_names_the_same_devices_and_enough_to_trip(seed: int, quick: bool) -> None:
    """Who fails is the seed's choice alone; with the real agents they reach the policy, and some devices are well."""
    made = cast(seed, quick=quick)
    assert made.failing == cast(seed, quick=quick).failing
    north = [member.id for member in made.fleet if member.group == NORTH]
    assert {update for _, update in made.failing} == {BAD}
    failing = len(made.failing_names) + len(REAL_AGENTS)
    members = len(north) + len(REAL_AGENTS) + 1
    assert failing >= FAILED_COUNT
    assert 100 * failing >= FAILED_PERCENT * members
    assert set(north) - set(made.failing_names)


def test_a_process_that_was_left_behind_is_found(tmp_path: Path) -> None:
    """Whatever still works in the demo's folder is reported, also what an agent started."""
    backstage = Backstage(tmp_path, "auto", lambda _: None)
    assert backstage.left_over() == []
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "slots")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"up\n"
        assert backstage.left_over() == [left.pid]
        left.kill()


def test_a_fact_that_never_comes_true_ends_the_story(tmp_path: Path) -> None:
    """It is waited for with a deadline, and named."""
    with pytest.raises(DemoFailed, match="the moon is blue"):
        Backstage(tmp_path, "auto", lambda _: None).until("the moon is blue", lambda: None, 0.01)


def test_a_command_is_shown_and_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is shown as a user types it, a secret shortened; its output is returned, and a refusal ends the story."""
    shown: list[str] = []
    with Backstage(tmp_path, "auto", shown.append) as backstage:
        assert "Deliver updates to fleets" in backstage.command("--help")
        with pytest.raises(DemoFailed, match=r"(?s)ended with 2: .*No such option"):
            backstage.command("device", "add", "--wrong", secret="--wrong")
        with pytest.raises(DemoFailed, match="ended with 1: lastgood: No cloud is known here"):
            backstage.quietly("group", "list")
        assert {path.name for path in tmp_path.iterdir()} == {"configs"}, (
            "what they printed is no longer kept"
        )
    assert shown == ["lastgood --help", "lastgood device add --wrong…"]
    assert capsys.readouterr() == ("", "")


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    """At its deadline, as a power cut would."""
    fifo = tmp_path / "manifest"
    os.mkfifo(fifo)
    typed = type_command(
        ["update", "import", str(fifo), "--url", "http://127.0.0.1:9", "--token", "t"], tmp_path, {}, 1
    )
    assert (typed.code, typed.printed) == (-signal.SIGKILL, "")
