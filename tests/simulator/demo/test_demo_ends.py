"""How the demo ends when it does not end well: real processes, and nothing of them left.

Its good end is played by `.ci/run`, on both brokers.
"""

import signal
from pathlib import Path

import pytest

from tests.simulator.demo.playing import demo, left_of, told
from tests.waiting import DEADLINE_S, until


@pytest.mark.parametrize(
    "moment", ["a cloud is up", "real agent processes are online"], ids=["early", "with agents"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_demo_that_is_stopped_leaves_nothing(
    moment: str, number: signal.Signals, spool: Path, tmp_path: Path
) -> None:
    """Cloud, broker, agents and their applications end with it, its folder is gone, and it says so in one line."""
    with demo(spool, tmp_path, "--broker", "embedded") as process:
        until(lambda: moment in told(tmp_path) or process.poll() is not None, moment)
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 130, told(tmp_path)
    assert told(tmp_path).endswith("lastgood: stopped.\n")
    assert "Traceback" not in told(tmp_path)
    assert left_of(spool) == ([], [])


@pytest.mark.parametrize(
    ("broker", "said"),
    [
        ("mqtt://nowhere:x", "lastgood: The cloud did not start: "),
        (
            "mqtt://127.0.0.1:1",
            "lastgood: The cloud is up, but nothing answers at its broker's address: mqtt:",
        ),
    ],
    ids=["no address", "nobody there"],
)
def test_a_demo_that_cannot_begin_says_why(broker: str, said: str, spool: Path, tmp_path: Path) -> None:
    """With a broker that is none: one sentence, exit code 1, nothing left."""
    with demo(spool, tmp_path, "--broker", broker) as process:
        assert process.wait(DEADLINE_S) == 1, told(tmp_path)
    assert "Traceback" not in told(tmp_path)
    assert said in told(tmp_path)
    assert left_of(spool) == ([], [])


@pytest.mark.slow
def test_a_demo_that_is_kept_runs_until_it_is_stopped(spool: Path, tmp_path: Path) -> None:
    """After its good end everything is left running, and the page answers; Ctrl-C ends all of it."""
    with demo(spool, tmp_path, "--broker", "embedded", "--keep") as process:
        until(
            lambda: "Ctrl-C ends it" in told(tmp_path) or process.poll() is not None,
            "the story's end",
            4 * DEADLINE_S,
        )
        running, _ = left_of(spool)
        assert len(running) >= 2 + 2 * 3, "a cloud, its broker, and three agents with an application each"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130, told(tmp_path)
    assert "asserted: every group runs version 1 alone" in told(tmp_path)
    assert left_of(spool) == ([], [])
