"""Who plays in the demo: groups, device classes, and whom the seed makes fail on version 2.

It starts nothing. The same seed names the same devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.core.settings import Settings
from simulator.core.fleet import Failures, Member, failures
from simulator.core.scenario import FailurePart
from simulator.device import Model
from simulator.live.fleet import FleetOptions

GOOD: Final = "demo/beacon:1.0.0"
BAD: Final = "demo/beacon:2.0.0"
NORTH, SOUTH, WEST = "north", "south", "west"
FAILED_COUNT: Final = 5
FAILED_PERCENT: Final = 10
REAL_ONE_IN: Final = 20  # so many virtual devices share one real download
MODELS: Final = ("pi4", "pi5")
REAL_AGENTS: Final = ("real-1", "real-2", "real-3")


@dataclass(frozen=True, slots=True)
class Cast:
    """The virtual devices, those that come late included."""

    seed: int
    fleet: tuple[Member, ...]
    late: Member
    stray: Member  # in no group until an operator moves it
    failing: Failures

    @property
    def failing_names(self) -> list[str]:
        """The virtual devices on which version 2 fails, by the seed."""
        return sorted(device for device, _ in self.failing)

    def options(self) -> FleetOptions:
        """Return how the virtual fleet behaves: work takes seconds, so that a story can be followed."""
        model = Model(
            install_ms=5_000,
            install_spread=0.4,
            restart_ms=1_200,
            restart_spread=0.4,
            soak_ms=1_000,
            failures=self.failing,
        )
        return FleetOptions(seed=self.seed, model=model, settings=Settings(agent_version="virtual"))


def cast(seed: int, *, quick: bool) -> Cast:
    """Return the cast: 210 virtual devices, or 60 for a quick rehearsal."""
    sizes = {NORTH: 30, SOUTH: 15, WEST: 15} if quick else {NORTH: 90, SOUTH: 60, WEST: 60}
    fleet = tuple(_member(group, number) for group, size in sizes.items() for number in range(1, size + 1))
    failing = _failures_that_trip(sizes[NORTH] + 1 + len(REAL_AGENTS)) - len(REAL_AGENTS)
    rule = FailurePart(update=BAD, how="crash_on_start", count=failing, groups=[NORTH])
    late, stray = _member(NORTH, 0, "latecomer"), _member("", 0, "stray")
    return Cast(seed, fleet, late, stray, failures([rule], fleet, seed))


def _failures_that_trip(members: int) -> int:
    """Just so many devices fail, so that no real one is called back before its failure was seen."""
    return max(FAILED_COUNT, -(-FAILED_PERCENT * members // 100))


def properties(number: int) -> dict[str, str]:
    """Return the compatibility properties of a device: two classes take turns."""
    return {"manufacturer": "acme", "model": MODELS[number % len(MODELS)]}


def counted(names: Sequence[str], most: int = 6) -> str:
    """Return a list of names in a few words."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _member(group: str, number: int, name: str = "") -> Member:
    tags = {"group": group} if group else {}
    return Member(
        id=name or f"{group}-{number:03}",
        fleet="demo",
        group=group or "$default",
        properties=properties(number),
        tags=tags,
        arrives_ms=number * 25,  # forty connections a second: every broker takes that
        fetches=number % REAL_ONE_IN == 0,
    )
