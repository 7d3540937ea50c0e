"""Whether the names that a scenario uses exist, and exist once.

It is a part of reading a scenario (`scenario.py`), and holds no model of its own.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from simulator.core.script import (
    ROLLBACK_OF,
    Cancel,
    CloudAgrees,
    Counted,
    Deploy,
    Deployment,
    DeviceRuns,
    Fact,
    Import,
    Join,
    Move,
    OnLastKnownGood,
    Online,
    Retry,
    Runs,
    Wait,
)

if TYPE_CHECKING:
    from simulator.core.scenario import Scenario

DEVICES_MAX: Final = 100_000  # of one scenario: what virtual time carries in a reasonable memory


def unknown_names(scenario: "Scenario") -> Iterator[tuple[str, str]]:
    """Yield (field, sentence) for every name that is used and does not exist, and every one that exists twice."""
    groups = {fleet.group for fleet in scenario.fleet} | {
        step.group for step in scenario.step if isinstance(step, Move) and step.group
    }
    labels = [fleet.label for fleet in scenario.fleet]
    updates = [update.id for update in scenario.update]
    for what, names in (("fleet", labels), ("update", updates)):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield what, f"two of them are called {name!r}; give each a name of its own"
    if sum(fleet.count for fleet in scenario.fleet) > DEVICES_MAX:
        yield "fleet", f"its counts add up to more than {DEVICES_MAX} devices"
        return
    ids = [device for fleet in scenario.fleet for device in fleet.device_ids()]
    known = set(ids)
    if len(known) != len(ids):
        yield "fleet", "two fleets make the same device id; give each a pattern of its own in `id`"
    there = _Names(groups, set(labels), set(updates), known)
    yield from _in_failures(scenario, there)
    yield from _in_steps(scenario, there)


class _Names:
    def __init__(self, groups: set[str], fleets: set[str], updates: set[str], devices: set[str]) -> None:
        self.sets = {"group": groups, "fleet": fleets, "update": updates, "device": devices}
        self.deployments: set[str] = set()

    def missing(self, where: str, kind: str, name: str) -> Iterator[tuple[str, str]]:
        """Yield one sentence when there is no such thing."""
        if name not in self.sets[kind]:
            yield where, f"there is no {kind} {name!r} in the scenario"

    def missing_deployment(self, where: str, name: str) -> Iterator[tuple[str, str]]:
        """Yield one sentence when no step before has made the deployment; a trip's is called `rollback of NAME`."""
        if name.removeprefix(ROLLBACK_OF) not in self.deployments:
            yield where, f"no step before it deploys {name!r}"


def _in_failures(scenario: "Scenario", names: _Names) -> Iterator[tuple[str, str]]:
    for number, failure in enumerate(scenario.failure):
        where = f"failure.{number}"
        yield from names.missing(f"{where}.update", "update", failure.update)
        for kind, used in (("group", failure.groups), ("fleet", failure.fleets), ("device", failure.devices)):
            for name in used:
                yield from names.missing(f"{where}.{kind}s", kind, name)


def _in_steps(scenario: "Scenario", names: _Names) -> Iterator[tuple[str, str]]:
    imported: set[str] = set()
    late = {fleet.label for fleet in scenario.fleet if fleet.arrives == "by_step"}
    for number, step in enumerate(scenario.step):
        where = f"step.{number}"
        match step:
            case Import():
                yield from names.missing(f"{where}.update", "update", step.update)
                imported.add(step.update)
            case Deploy():
                yield from names.missing(f"{where}.group", "group", step.group)
                for update in (*step.updates, *(step.policy.rollback_to if step.policy else ())):
                    if update not in imported:
                        yield where, f"no step before it imports {update!r}"
                if step.name in names.deployments:
                    yield f"{where}.name", f"a step before it deploys {step.name!r} already"
                names.deployments.add(step.name)
            case Move():
                yield from names.missing(f"{where}.device", "device", step.device)
            case Cancel() | Retry():
                yield from names.missing_deployment(f"{where}.deployment", step.deployment)
            case Join():
                if step.fleet not in late:
                    yield f"{where}.fleet", f"there is no fleet {step.fleet!r} that arrives 'by_step'"
                late.discard(step.fleet)
            case Wait():
                yield from _in_fact(f"{where}.until", step.until, names)
    for label in sorted(late):
        yield "step", f"the fleet {label!r} arrives 'by_step', and no step lets it join"
    for number, fact in enumerate(scenario.expect):
        yield from _in_fact(f"expect.{number}", fact, names)


def _in_fact(where: str, fact: Fact, names: _Names) -> Iterator[tuple[str, str]]:
    match fact:
        case Runs():
            yield from names.missing(f"{where}.group", "group", fact.group)
            yield from names.missing(f"{where}.update", "update", fact.update)
        case DeviceRuns():
            yield from names.missing(f"{where}.device", "device", fact.device)
            yield from names.missing(f"{where}.update", "update", fact.update)
        case Deployment() | Counted():
            yield from names.missing_deployment(f"{where}.deployment", fact.deployment)
        case Online(group=str() as group):
            yield from names.missing(f"{where}.group", "group", group)
        case Online() | OnLastKnownGood() | CloudAgrees():
            pass
