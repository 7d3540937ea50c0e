"""Whether a fact of a scenario holds, judged from one look at the fleet and the cloud.

It looks at nothing itself: a world makes the `Sight`. Every judgement is a sentence with the numbers in it, so that a
run that failed says why.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.core.script import (
    CloudAgrees,
    Counted,
    Deployment,
    DeviceRuns,
    Fact,
    OnLastKnownGood,
    Online,
    Runs,
)


@dataclass(frozen=True, slots=True)
class DeviceSight:
    """One device as it is."""

    group: str
    running: str | None  # provider/name:version, from its slots
    online: bool
    on_last_known_good: bool  # booted is last known good, and no trial is open
    phase: str = "idle"


@dataclass(frozen=True, slots=True)
class DeploymentSight:
    """One deployment as the cloud tells it."""

    id: str
    state: str
    tally: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at everything; `said` is what the cloud says of each device: (group, running)."""

    devices: Mapping[str, DeviceSight]
    deployments: Mapping[str, DeploymentSight] = field(default_factory=dict)
    said: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a fact holds, and a sentence that says so with its numbers."""

    held: bool
    sentence: str


def needs_cloud(fact: Fact) -> bool:
    """Return whether judging it takes a look at the deployments."""
    return isinstance(fact, Deployment | Counted)


def needs_said(fact: Fact) -> bool:
    """Return whether judging it takes what the cloud says of every device."""
    return isinstance(fact, CloudAgrees)


def judge(fact: Fact, sight: Sight) -> Judgement:
    """Return whether the fact holds in this sight."""
    match fact:
        case Runs():
            return _runs(fact, sight)
        case DeviceRuns():
            device = sight.devices.get(fact.device)
            runs = (device.running if device else None) or "nothing"
            return Judgement(runs == fact.update, f"{fact.device} runs {runs}; {fact.update} is expected")
        case Deployment():
            found = sight.deployments.get(fact.deployment)
            state = found.state if found else "not there"
            return Judgement(
                state == fact.state, f"deployment {fact.deployment!r} is {state}; {fact.state} is expected"
            )
        case Counted():
            return _counted(fact, sight)
        case Online():
            return _online(fact, sight)
        case OnLastKnownGood():
            off = [name for name, device in sight.devices.items() if not device.on_last_known_good]
            return Judgement(
                not off,
                f"{len(off)} of {len(sight.devices)} devices are off their last known good{_named(off)}",
            )
        case CloudAgrees():
            wrong = [
                name
                for name, device in sight.devices.items()
                if sight.said.get(name) != (device.group, device.running)
            ]
            return Judgement(
                not wrong,
                f"the cloud is wrong about {len(wrong)} of {len(sight.devices)} devices{_named(wrong)}",
            )


def _runs(fact: Runs, sight: Sight) -> Judgement:
    running = Counter(
        device.running or "nothing" for device in sight.devices.values() if device.group == fact.group
    )
    total = sum(running.values())
    wanted = total if fact.at_least is None else fact.at_least
    shown = (
        ", ".join(f"{count} run {update}" for update, count in running.most_common(4)) or "it has no device"
    )
    return Judgement(
        total > 0 and running[fact.update] >= wanted,
        f"group {fact.group}: {shown}; {wanted} of {total} with {fact.update} are expected",
    )


def _counted(fact: Counted, sight: Sight) -> Judgement:
    found = sight.deployments.get(fact.deployment)
    if found is None:
        return Judgement(False, f"deployment {fact.deployment!r} is not there")
    count = found.tally.get(fact.of, 0)
    bounds = [
        (fact.at_least is None or count >= fact.at_least, f"at least {fact.at_least}", fact.at_least),
        (fact.at_most is None or count <= fact.at_most, f"at most {fact.at_most}", fact.at_most),
        (fact.equals is None or count == fact.equals, f"{fact.equals}", fact.equals),
    ]
    wanted = " and ".join(text for _, text, bound in bounds if bound is not None)
    sentence = f"deployment {fact.deployment!r} counts {count} {fact.of}; {wanted} are expected"
    return Judgement(all(holds for holds, _, _ in bounds), sentence)


def _online(fact: Online, sight: Sight) -> Judgement:
    mine = [device for device in sight.devices.values() if fact.group in (None, device.group)]
    online = sum(device.online for device in mine)
    wanted = len(mine) if fact.at_least is None else fact.at_least
    where = f" of group {fact.group}" if fact.group else ""
    return Judgement(
        online >= wanted, f"{online} of {len(mine)} devices{where} are online; {wanted} are expected"
    )


def _named(names: list[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''})"
