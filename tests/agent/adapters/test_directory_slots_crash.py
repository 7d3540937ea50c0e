"""The slot backend `directory`, killed at every system call that changes the disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.adapters.slot_crashes import IDLE_CALLS, KILLED_AT

ROOT = Path(__file__).resolve().parents[3]
LEAST_POINTS = {"rename": 15, "fsync": 30, "symlink": 3, "unlink": 3, "chmod": 4}


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_a_bootable_slot(tmp_path: Path) -> None:
    """At every (call, ordinal) of a whole life: recovery is legal, what is trusted is whole, and updating goes on."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed, so no crash points are tried: apt-get install strace")
    names = ",".join(f"?{name},?{name}at" for name in IDLE_CALLS)
    inject = f"inject={names},?renameat2,?fchmodat:signal=KILL:when={KILLED_AT}"
    command = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={names},?renameat2,?fchmodat",
        "-e",
        inject,
    ]
    ran = subprocess.run(
        [*command, sys.executable, "-m", "tests.agent.adapters.slot_crashes", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    if "ptrace" in ran.stderr and not (tmp_path / "report.json").exists():
        pytest.skip(f"strace may not trace here, so no crash points are tried: {ran.stderr.strip()}")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["faults"] == []
    fired = report["points"]
    assert {name for name, least in LEAST_POINTS.items() if fired[name] < least} == set(), fired
