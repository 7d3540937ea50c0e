"""A real agent killed with SIGKILL at every durable step of an update: it always comes back with a running application.

The points are generated: one update is watched step by step (`mortal.py`), and every step that it took becomes a point
at which a later update of the same kind is cut. So there are points in each state of the workflow, and between every
two effects of each. What a power cut leaves of unsynced writes is another matter (tests/agent/adapters proves that).
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.core.slots import faults
from protocol.lifecycle import WorkflowState
from tests.processes import BEACON, BEACON_THAT_CRASHES, Agent, Cloud, Update, beacon
from tests.waiting import until

MORTAL = Path(__file__).with_name("mortal.py")
AGENTS = 4  # at work beside each other; each has its own group and its own versions
TRIES = 3  # for a point: a step that depends on when the cloud's word arrives may be left out once
STARTS = 2  # of a trial: one is used up by the cut, and a version that crashes is given up sooner
FIRST = "1.0.0"


class Patient:
    """One real agent that is killed again and again, and the cloud it belongs to."""

    def __init__(self, cloud: Cloud, folder: Path, device: str, stack: contextlib.ExitStack) -> None:
        self.cloud = cloud
        self.folder = folder / device
        self.folder.mkdir(parents=True)
        join = cloud.add(device)[device]
        command = (str(MORTAL), str(self.folder))
        self.agent = Agent(device, self.folder, join, group=device, command=command, trial_starts=STARTS)
        self.runs = FIRST
        stack.enter_context(self.agent)

    def watch(self, update: Update, state: str) -> list[str]:
        """Let one update pass, and return its steps."""
        (self.folder / "journal").unlink(missing_ok=True)
        deployment = self.cloud.deploy(self.agent.group, update)
        self.finish(deployment, state, version_of(update))
        steps = (self.folder / "journal").read_text().splitlines()
        pairs = zip(["", *steps], steps, strict=False)
        # Between two removals on end nothing is decided: they empty one slot.
        return [
            step for before, step in pairs if not before.startswith("remove") or not step.startswith("remove")
        ]

    def die_at(self, point: str, update: Update, state: str) -> bool:
        """Let one update be cut at a point, start the agent again, and see it through; False: it was not cut."""
        (self.folder / "journal").unlink(missing_ok=True)
        (self.folder / "die").write_text(point)
        deployment = self.cloud.deploy(self.agent.group, update)
        until(lambda: not self.agent.is_running() or self._is_over(deployment), f"the end at {point}")
        (self.folder / "die").unlink()
        was_cut = not self.agent.is_running()
        if was_cut:
            assert self.agent.died() == -9, self.agent.log[-2_000:]
            self.is_legal()
            self.agent.start()
            until(lambda: self.agent.version() in {self.runs, version_of(update)}, "an application")
        self.finish(deployment, state, version_of(update))
        return was_cut

    def finish(self, deployment: str, state: str, version: str) -> None:
        """Wait for the one verdict, and hold everything to it: the cloud, the slots, the application."""
        until(lambda: self._is_over(deployment), f"the verdict on {version}")
        row = self.cloud.rows(deployment)[self.agent.device]
        assert (row["state"], row["attempt"]) == (state, 1), row
        tally = {name: number for name, number in self.cloud.tally(deployment).items() if number}
        if state == "succeeded":
            assert tally == {"succeeded": 1}
            self.runs = version
        else:
            assert (row["party"], tally) == ("update", {"failed": 1, "counted": 1}), row
        self.is_legal()
        slots = self.agent.slots()
        assert slots.booted == slots.last_known_good
        assert slots.running.update == f"demo/beacon:{self.runs}"
        until(lambda: self.agent.version() == self.runs, f"{self.runs} to answer")

    def is_legal(self) -> None:
        """Hold the slots to their invariants: a legal table, and a last known good slot that is whole."""
        assert faults(self.agent.slots()) == []
        assert self.agent.holds_what_it_runs()

    def _is_over(self, deployment: str) -> bool:
        record = self.agent.record()
        quiet = record is not None and record.workflow.state is WorkflowState.IDLE and not record.outcomes
        return quiet and bool(self.cloud.settled(deployment))


@pytest.fixture(scope="module")
def updates(a_cloud: Cloud) -> Mapping[str, Iterator[Update]]:
    """New versions for ever, imported when they are asked for: `good` ones, and `bad` ones that crash at start."""
    lock, numbers = threading.Lock(), count(1)

    def made(folder: Path) -> Iterator[Update]:
        while True:
            with lock:
                number = next(numbers)
            yield a_cloud.take(beacon(f"2.0.{number}", folder=folder))

    a_cloud.take(beacon(FIRST))
    return {"good": made(BEACON), "bad": made(BEACON_THAT_CRASHES)}


@pytest.fixture(scope="module")
def patients(
    a_cloud: Cloud, updates: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sequence[Patient]]:
    """Agents that run the first version."""
    folder = tmp_path_factory.mktemp("agents")
    with contextlib.ExitStack() as stack:
        found = [Patient(a_cloud, folder, f"mortal-{number}", stack) for number in range(AGENTS)]
        for patient in found:
            first = Update(f"demo/beacon:{FIRST}", b"", {})
            patient.finish(a_cloud.deploy(patient.agent.group, first), "succeeded", FIRST)
        yield found


def version_of(update: Update) -> str:
    """Return the version of an update."""
    return update.name.rpartition(":")[2]


def cut_everywhere(
    patients: Sequence[Patient], points: Sequence[str], updates: Iterator[Update], state: str
) -> list[str]:
    """Cut an update at each point, on whichever agent is free, and return the points that never came."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for point in points:
        waiting.put(point)
    lock, missed = threading.Lock(), list[str]()

    def fresh() -> Update:
        with lock:
            return next(updates)

    def work(patient: Patient) -> None:
        while not waiting.empty():
            try:
                point = waiting.get_nowait()
            except queue.Empty:
                return
            if not any(patient.die_at(point, fresh(), state) for _ in range(TRIES)):
                missed.append(point)

    with ThreadPoolExecutor(len(patients)) as pool:
        for done in [pool.submit(work, patient) for patient in patients]:
            done.result()
    # A record is saved once more or less by when the cloud's word arrives: its later saves are no step of every update.
    return [point for point in missed if not point.startswith("rename record.json") or point.endswith(" 1")]


@pytest.mark.slow
def test_an_agent_killed_at_any_step_of_a_good_update_ends_on_it(
    patients: Sequence[Patient], updates: Mapping[str, Iterator[Update]]
) -> None:
    """One verdict, the new version in a legal slot, and an application that answers, wherever the update was cut."""
    points = patients[0].watch(next(updates["good"]), "succeeded")
    states = {"downloading", "installing", "ready", "switching", "restarting", "confirming", "idle"}
    assert len(points) >= 10
    assert {point.split()[-2] for point in points} == states
    assert cut_everywhere(patients, points, updates["good"], "succeeded") == []


@pytest.mark.slow
def test_an_agent_killed_at_any_step_of_going_back_ends_on_its_last_known_good(
    patients: Sequence[Patient], updates: Mapping[str, Iterator[Update]]
) -> None:
    """A version that crashes is left wherever the way back was cut, and is counted once, as the update's fault."""
    steps = patients[0].watch(next(updates["bad"]), "failed")
    started = next(number for number, step in enumerate(steps) if step.startswith("start application"))
    points = steps[started:]  # until then it is an update like a good one
    assert {point.split()[-2] for point in points} >= {"restarting", "confirming", "reverting"}
    assert cut_everywhere(patients, points, updates["bad"], "failed") == []
