"""The virtual fleet of these tests: devices on real MQTT whose work takes a while, so that it can be disturbed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from agent.core.settings import Settings
from simulator.core.fleet import Failures, Member
from simulator.device import Model
from simulator.live.fleet import FleetOptions, LiveFleet
from tests.processes import PROPERTIES, Cloud

GROUP: Final = "field"
MODEL: Final = Model(
    install_ms=2_000, install_spread=0.6, restart_ms=500, restart_spread=0.5, soak_ms=500, failures={}
)


def members(count: int) -> Sequence[Member]:
    """Return so many devices of one group; one in ten really downloads."""
    return [
        Member(f"v-{number:03}", "all", GROUP, PROPERTIES, {"group": GROUP}, number * 10, number % 10 == 0)
        for number in range(count)
    ]


def new_fleet(failing: Failures | None = None) -> LiveFleet:
    """Return a fleet without a device, not started."""
    model = replace(MODEL, failures=failing or {})
    return LiveFleet(FleetOptions(7, model, Settings(agent_version="virtual")))


def enrol(cloud: Cloud, fleet: LiveFleet, devices: Sequence[Member]) -> None:
    """Add devices to a cloud, and let them connect."""
    joins = cloud.add(*(member.id for member in devices))
    fleet.add([(member, joins[member.id]) for member in devices])
