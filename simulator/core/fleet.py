"""Who is in a fleet: one value for each device of a scenario, and which of them fail which update.

It connects nothing. It keeps the rule that who fails is named by the scenario's seed alone, so that a run can be
repeated, and a story can say beforehand whom it will hit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.core.chance import fraction
from simulator.core.scenario import FailurePart, FleetPart, Scenario

How = Literal["crash_on_start", "health_fails", "install_fails", "download_breaks"]


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a scenario."""

    id: str
    fleet: str
    group: str  # its tag's; an operator may move it elsewhere
    properties: Mapping[str, str]
    tags: Mapping[str, str]
    arrives_ms: int | None  # after the start; None: when a step lets its fleet join
    fetches: bool  # whether it downloads for itself rather than from the shared cache


@dataclass(frozen=True, slots=True)
class Failure:
    """How an update fails on a device, and for how many of its attempts (None: all)."""

    how: How
    attempts: int | None = None


Failures = Mapping[tuple[str, str], Failure]
"""What fails: (device, update) → how."""


def members(scenario: Scenario, seed: int) -> list[Member]:
    """Return the devices of a scenario, in the order of its fleets."""
    total = sum(fleet.count for fleet in scenario.fleet)
    rush_ms = 1_000 * total / scenario.network.connects_per_s
    found = []
    for fleet in scenario.fleet:
        tags = {**fleet.tags, "group": fleet.group}
        for device in fleet.device_ids():
            fetches = fraction(seed, "fetches", device) * scenario.download.real_one_in < 1
            arrives = _arrival(fleet, device, seed, rush_ms)
            found.append(Member(device, fleet.label, fleet.group, fleet.properties, tags, arrives, fetches))
    return found


def failures(rules: Sequence[FailurePart], fleet: Iterable[Member], seed: int) -> Failures:
    """Return who fails what; of two rules that name the same device and update the first one counts."""
    fleet = list(fleet)
    found: dict[tuple[str, str], Failure] = {}
    for rule in rules:
        for device in _chosen(rule, [member for member in fleet if in_scope(rule, member)], seed):
            found.setdefault((device, rule.update), Failure(rule.how, rule.attempts))
    return found


def in_scope(rule: FailurePart, member: Member) -> bool:
    """Return whether a rule is about a device."""
    return (
        (not rule.groups or member.group in rule.groups)
        and (not rule.fleets or member.fleet in rule.fleets)
        and (not rule.devices or member.id in rule.devices)
        and all(member.properties.get(key) == value for key, value in rule.properties.items())
    )


def draw(seed: int, device: str, update: str) -> float:
    """Return the lot, in [0, 1), that decides whether an update fails on a device: below the share it does."""
    return fraction(seed, "fails", device, update)


def _chosen(rule: FailurePart, scope: Sequence[Member], seed: int) -> list[str]:
    if rule.count is not None:
        ranked = sorted(scope, key=lambda member: draw(seed, member.id, rule.update))
        return [member.id for member in ranked[: rule.count]]
    share = 1.0 if rule.share is None else rule.share
    return [member.id for member in scope if draw(seed, member.id, rule.update) < share]


def _arrival(fleet: FleetPart, device: str, seed: int, rush_ms: float) -> int | None:
    if fleet.arrives == "by_step":
        return None
    over_ms = fleet.over_s * 1_000 if fleet.arrives == "over" else rush_ms
    return round(fraction(seed, "arrives", device) * over_ms)
