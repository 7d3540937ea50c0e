"""The demo's cloud is killed in the middle of its story, and started again: the story ends as it was told."""

import contextlib
import json
import os
import re
import select
import signal
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from tests.forked import Forked
from tests.processes import ROOT, environment
from tests.simulator.demo.playing import demo, left_of, told
from tests.waiting import DEADLINE_S, until

MOMENTS = (
    "deploy create west",  # version 1 is on its way to all groups
    "the fault of the update",  # the bad version is on its way, and some have failed
    "without a hand",  # the policy has tripped, and the group is on its way back
)


@pytest.mark.slow
def test_a_cloud_that_is_killed_in_the_demos_rollouts_finishes_them_with_the_right_counts(
    spool: Path, tmp_path: Path
) -> None:
    """SIGKILL three times. The demo itself asserts who failed, the trip's numbers, and what every group runs."""
    clouds: list[Forked] = []
    with demo(spool, tmp_path, "--broker", "embedded") as process:

        def tells(what: str) -> bool:
            assert process.poll() is None, told(tmp_path)
            assert not clouds or clouds[-1].poll() is None, (tmp_path / "cloud.err").read_text()
            return what in told(tmp_path)

        try:
            for moment in MOMENTS:
                until(partial(tells, moment), moment)
                until(partial(needs_no_cloud, tmp_path), "a moment at which no command asks the cloud")
                data = data_of(tmp_path)
                kill(json.loads((data / "client.json").read_bytes())["pid"])
                clouds.append(start_again(data, tmp_path))
            until(lambda: tells("It took"), "the story's end", 4 * DEADLINE_S)
            clouds[-1].send_signal(signal.SIGTERM)
            assert clouds[-1].wait(DEADLINE_S) == 0
            assert process.wait(DEADLINE_S) == 0, told(tmp_path)
        finally:
            for cloud in clouds:
                cloud.kill()
    assert "asserted: every group runs version 1 alone" in told(tmp_path)
    trip = re.search(r"the policy tripped: (\d+) of (\d+) failed", told(tmp_path))
    listed = [line.split() for line in told(tmp_path).splitlines() if line.startswith("d4 ")]
    assert trip is not None
    assert trip[1] in listed[0], "what the list counts is what the policy has counted"
    assert left_of(spool) == ([], [])


def data_of(tmp_path: Path) -> Path:
    """Return the folder of the demo's cloud."""
    return Path(re.findall(r"everything it writes lies in (\S+)", told(tmp_path))[0])


def needs_no_cloud(tmp_path: Path) -> bool:
    """Whether all three deployments are made and no command of the story runs: each has its folder for so long."""
    data = data_of(tmp_path)
    with contextlib.closing(sqlite3.connect(f"file:{data / 'cloud.db'}?mode=ro", uri=True)) as rows:
        made = rows.execute("SELECT count(*) FROM deployments").fetchone()[0]
    return made >= 3 and not any(data.parent.glob("tmp*"))


def kill(pid: int) -> None:
    """End a process as a power cut would, and wait until its ports and its lock are free."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], DEADLINE_S)[0]
    finally:
        os.close(handle)


def start_again(data: Path, tmp_path: Path) -> Forked:
    """Start the cloud of the demo's folder, as a user would."""
    words = ("cloud", "up", "--data", str(data), "--broker", "embedded", "--heartbeat", "10")
    out, err = tmp_path / "cloud.out", tmp_path / "cloud.err"
    return Forked(("-m", "lastgood", *words), cwd=ROOT, env=environment(), out=out, err=err)
