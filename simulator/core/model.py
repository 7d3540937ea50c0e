"""How long the work of a scenario's devices takes, and how their agents are set."""

from dataclasses import dataclass
from typing import Final

from agent.core.settings import Settings
from simulator.core.fleet import Failures
from simulator.core.scenario import Scenario

AGENT_VERSION: Final = "virtual"


@dataclass(frozen=True, slots=True)
class Model:
    """How long the work of every device takes, in milliseconds, and who fails what."""

    install_ms: float
    install_spread: float
    restart_ms: float
    restart_spread: float
    soak_ms: int
    failures: Failures
    bytes_per_s: int | None = None
    download_spread: float = 0.0
    rehash_ms: int = 20


def model_of(scenario: Scenario, failing: Failures) -> Model:
    """Return the model of work that a scenario describes."""
    return Model(
        install_ms=scenario.install.median_s * 1_000,
        install_spread=scenario.install.spread,
        restart_ms=scenario.restart.median_s * 1_000,
        restart_spread=scenario.restart.spread,
        soak_ms=round(scenario.device.soak_s * 1_000),
        failures=failing,
        bytes_per_s=scenario.download.bytes_per_s,
        download_spread=scenario.download.spread,
    )


def settings_of(scenario: Scenario) -> Settings:
    """Return the agent's settings that a scenario asks for."""
    return Settings(
        agent_version=AGENT_VERSION,
        heartbeat_ms=round(scenario.device.heartbeat_s * 1_000),
        download_tries_max=scenario.device.download_tries,
        trial_starts=scenario.device.trial_starts,
    )
