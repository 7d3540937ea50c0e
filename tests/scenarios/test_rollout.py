"""The real cloud and fifty agents' cores in one thread under a virtual clock: one good rollout and one rollback.

No socket, no thread, no sleep. The scenario is one that ships, so that what a newcomer runs is what is held here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.core.facts import Sight
from simulator.core.fleet import failures, members
from simulator.core.scenario import Scenario, read_scenario
from simulator.virtual.world import Run, VirtualWorld

ROOT = Path(__file__).parents[2]
PATH = ROOT / "configs" / "scenarios" / "rollback.toml"
OTHER_PROCESS = """
import sys
FORBIDDEN = ("socket.", "_thread.start_new_thread", "subprocess.", "os.fork")
def refuse(event, arguments):
    if event.startswith(FORBIDDEN):
        raise AssertionError(f"a world in virtual time does {event} {arguments}")
from pathlib import Path
from simulator.core.scenario import read_scenario
from simulator.virtual.world import VirtualWorld
sys.addaudithook(refuse)
sys.stdout.write(VirtualWorld(read_scenario(Path(sys.argv[1]).read_text(), "rollback.toml")).run().trace)
"""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The shipped scenario."""
    return read_scenario(PATH.read_text(), PATH.name)


@pytest.fixture(scope="module")
def ran(scenario: Scenario) -> tuple[VirtualWorld, Run]:
    """One run of it."""
    world = VirtualWorld(scenario)
    return world, world.run()


def test_a_good_rollout_and_a_rollback_by_policy_end_as_expected(ran: tuple[VirtualWorld, Run]) -> None:
    """Fifty devices end on version 1, the policy has tripped once, and the cloud is right about each of them."""
    _, run = ran
    assert [judgement.sentence for judgement in run.ending.judgements if not judgement.held] == []
    assert run.ending.held, run.ending.broke
    assert run.checks > 1_000


def test_every_device_that_fails_is_one_that_the_seed_named(
    scenario: Scenario, ran: tuple[VirtualWorld, Run]
) -> None:
    """Who failed on version 2 was known beforehand, and each failure is counted against the update."""
    world, _ = ran
    named = failures(scenario.failure, members(scenario, scenario.seed), scenario.seed)
    with world.cloud.store.read() as reader:
        second = next(row for row in reader.list_deployments() if row.policy is not None)
        failed = [row.device for row in reader.list_assignments(deployment=second.id) if row.counted]
        assert second.trip is not None
        assert second.trip.failed >= 5
        assert 100 * second.trip.failed >= 10 * second.trip.base
    assert len(failed) >= 5
    assert {(device, "acme/app:2.0") for device in failed} <= set(named)


def test_the_devices_that_had_succeeded_went_back_too(ran: tuple[VirtualWorld, Run]) -> None:
    """Some members ran version 2 and committed it; none does now, and each flipped or went back by itself."""
    world, _ = ran
    sight: Sight = world.look(cloud=False, said=False)
    with world.cloud.store.read() as reader:
        second = next(row for row in reader.list_deployments() if row.policy is not None)
        assert second.tally.succeeded > 0
    assert {device.running for device in sight.devices.values()} == {"acme/app:1.0"}


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(
    scenario: Scenario, ran: tuple[VirtualWorld, Run]
) -> None:
    """The trace covers every byte of every message with its time, in another process with other hash seeds too.

    That process is refused a socket, a thread and a process of its own.
    """
    _, run = ran
    other = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(PATH)],
        capture_output=True,
        text=True,
        check=True,
        timeout=800,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"},
    )
    assert other.stdout == run.trace
    changed = VirtualWorld(scenario, scenario.seed + 1).run()
    assert changed.ending.held
    assert changed.trace != run.trace
