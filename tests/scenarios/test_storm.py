"""Faults, then quiet: through lost, doubled and late messages, power losses and killed clouds everything converges.

Invariants (slots, epochs, one verdict an attempt, one active deployment in a group, tally = recount) are checked at
every step of these runs by the world itself; a breach raises where it happens. A seed that failed becomes a named test.
"""

from pathlib import Path

import pytest

from simulator.core.scenario import Scenario, StormPart, read_scenario
from simulator.virtual.world import VirtualWorld

PATH = Path(__file__).parents[2] / "configs" / "scenarios" / "storm.toml"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The shipped storm."""
    return read_scenario(PATH.read_text(), PATH.name)


@pytest.mark.parametrize("seed", [1, 2])
def test_after_the_storm_everything_converges(scenario: Scenario, seed: int) -> None:
    """Whatever was lost, each device ends on version 1, the cloud knows it, and no invariant broke on the way."""
    run = VirtualWorld(scenario, seed).run()
    assert [judgement.sentence for judgement in run.ending.judgements if not judgement.held] == []
    assert run.ending.held, run.ending.broke
    assert run.lost > 100
    assert run.power_losses > 50
    assert run.cloud_starts > 3


def test_every_fault_of_a_storm_acts(scenario: Scenario) -> None:
    """A control that nothing reads is a defect: without a storm nothing is lost, with it everything of it happens."""
    first = scenario.model_copy(
        update={"step": scenario.step[:6], "expect": scenario.expect[1:2]}
    )  # version 1 alone
    quiet = VirtualWorld(first.model_copy(update={"storm": None}), 1).run()
    assert (quiet.lost, quiet.power_losses, quiet.cloud_starts) == (0, 0, 1)
    assert quiet.ending.held, quiet.ending.judgements
    only_kills = first.model_copy(update={"storm": StormPart(until_s=60, cloud_kills_s=[1, 6])})
    world = VirtualWorld(only_kills, 1)
    killed = world.run()
    assert (killed.lost, killed.power_losses, killed.cloud_starts) == (0, 0, 3)
    assert world.cloud.unsent > 0  # the second kill came between a commit and what follows from it
    assert killed.ending.held, killed.ending.judgements


def test_the_same_seed_makes_the_same_storm(scenario: Scenario) -> None:
    """Faults are drawn from the seed like everything else."""
    short = scenario.model_copy(update={"step": scenario.step[:3], "expect": []})
    assert VirtualWorld(short, 5).run().trace == VirtualWorld(short, 5).run().trace
