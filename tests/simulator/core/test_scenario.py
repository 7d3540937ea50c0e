"""Scenario files: what is accepted, and how a mistake is named."""

from pathlib import Path

import pytest

from protocol.errors import OperatorError
from simulator.core.scenario import read_scenario
from tests.simulator.scenarios import SMALL

SHIPPED = sorted((Path(__file__).parents[3] / "configs" / "scenarios").glob("*.toml"))


def test_a_small_scenario_is_read_with_its_defaults() -> None:
    """What the file does not say has a value, and what it says is kept."""
    scenario = read_scenario(SMALL, "small.toml")
    assert (scenario.seed, scenario.device.trial_starts, scenario.download.real_one_in) == (3, 3, 1)
    assert list(scenario.fleet[1].device_ids()) == ["late-001", "late-002"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_scenario_is_valid(path: Path) -> None:
    """The files under configs/scenarios are examples that work."""
    assert read_scenario(path.read_text(), path.name).about


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count = 4", "count = 0", "fleet.0.count"),
        ("count = 4", "cuont = 4", "fleet.0.cuont"),
        ("count = 4", 'count = "4"', "fleet.0.count"),
        ("count = 4", f'count = 4\ntags = {{ note = "{"x" * 257}" }}', "fleet.0.tags.note"),
        ('do = "deploy"\n', 'do = "deploy"\ndevice_timeout_s = inf\n', "step.1.device_timeout_s"),
        ('do = "deploy"\n', 'do = "deploy"\nattempt_timeout_s = nan\n', "step.1.attempt_timeout_s"),
        ('group = "kitchen"\ncount = 4', 'group = "a/b"\ncount = 4', "fleet.0"),
        ("count = 4", 'count = 4\nid = "same"', "lacks {n}"),
        ("count = 4", 'count = 4\narrives = "over"', "over_s"),
        ("count = 4", "count = 4\nover_s = 2", "it arrives 'at_once'"),
        ('[[fleet]]\nname = "late"', "[[fleet]]", "two of them are called 'kitchen'"),
        ('id = "acme/app:1.0"', 'id = "acme/app"', "update.0"),
        ("count = 1\n", "count = 1\nshare = 0.5\n", "failure.0"),
        ('how = "health_fails"', 'how = "explodes"', "failure.0.how"),
        (
            'update = "acme/app:1.0"\nhow',
            'update = "acme/app:9"\nhow',
            "failure.0.update: there is no update",
        ),
        ('do = "import"', 'do = "export"', "step.0"),
        ('do = "deploy"\nname = "first"\n', 'do = "deploy"\n', "step.1.name"),
        ('updates = ["acme/app:1.0"]', 'updates = ["acme/app:2.0"]', "step.1: no step before it imports"),
        ('fleet = "late"', 'fleet = "kitchen"', "step.2.fleet"),
        ('do = "join"\nfleet = "late"', 'do = "retry"\ndeployment = "first"', "no step lets it join"),
        (
            'group = "kitchen", update',
            'group = "attic", update',
            "step.3.until.group: there is no group 'attic'",
        ),
        ("at_least = 5 }", "at_least = -5 }", "step.3.until.at_least"),
        ('deployment = "first"', 'deployment = "second"', "expect.0.deployment: no step before it deploys"),
        ("equals = 1", "", "expect.0"),
        ("seed = 3", "seed = ", "is not TOML"),
    ],
)
def test_a_mistake_is_named_by_its_field(old: str, new: str, said: str) -> None:
    """One sentence names the file, the field, and what is wrong with it; no control is read by nobody."""
    assert old in SMALL
    with pytest.raises(OperatorError) as error:
        read_scenario(SMALL.replace(old, new, 1), "small.toml")
    assert said in str(error.value)
    assert str(error.value).startswith("The scenario small.toml is not ")


def test_a_fleet_beyond_the_limit_is_refused() -> None:
    """The limit holds for all fleets together, before any device is made."""
    with pytest.raises(OperatorError, match="more than 100000 devices"):
        read_scenario(SMALL.replace("count = 4", "count = 100_000"), "small.toml")
