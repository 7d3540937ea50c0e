"""A scenario file: what the fleet is, how it behaves, what fails, what the operator does, and what must hold.

It runs nothing (`live/` and `virtual/` do). It keeps the rule that a mistake in the file is found when it is read, and
named by its field: every name that a step or an expectation uses must exist.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol.errors import OperatorError
from protocol.identity import UpdateId, check_device_id, check_group
from protocol.lifecycle import DeploymentState

SCENARIO_BYTES_MAX: Final = 1_048_576  # a scenario is written by hand
DEVICES_MAX: Final = 100_000  # of one scenario: what virtual time carries in a reasonable memory
STEPS_MAX: Final = 500
WITHIN_S_DEFAULT: Final = 60.0
NUMBER_FIELD: Final = "{n}"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=86_400.0)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9$][A-Za-z0-9._-]*$")
]
Words = dict[str, str]


class Part(BaseModel):
    """A part of a scenario. An unknown field is refused: a control that nothing reads is a defect (STYLE.md 18)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FleetPart(Part):
    """Devices of one class in one group."""

    group: str
    count: Annotated[int, Field(ge=1, le=DEVICES_MAX)]
    name: Name | None = None  # the group's, unless given
    id: Annotated[str, StringConstraints(max_length=60)] | None = None  # `{n}` becomes the device's number
    properties: Annotated[Words, Field(min_length=1, max_length=5)]
    tags: Words = {}
    arrives: Literal["at_once", "over", "by_step"] = "at_once"
    over_s: Seconds = 0.0

    @property
    def label(self) -> str:
        """What steps and failures call it."""
        return self.name or self.group

    def device_ids(self) -> Iterator[str]:
        """Yield the ids of its devices, numbered from 1 and padded to one width."""
        pattern = self.id or f"{self.label}-{NUMBER_FIELD}"
        width = max(3, len(str(self.count)))
        for number in range(1, self.count + 1):
            yield pattern.replace(NUMBER_FIELD, f"{number:0{width}}")

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        _or_value_error(check_group, self.group)
        if self.id is not None and NUMBER_FIELD not in self.id and self.count > 1:
            raise ValueError(
                f"its id {self.id!r} lacks {NUMBER_FIELD}, so that all devices would have the same one"
            )
        _or_value_error(check_device_id, next(self.device_ids()))
        if self.arrives == "over" and self.over_s <= 0:
            raise ValueError("it arrives 'over' a time, and over_s is missing")
        return self


class UpdatePart(Part):
    """An update that the scenario makes and imports: one file of bytes that come from the seed."""

    id: str
    size_bytes: Annotated[int, Field(ge=1, le=1_073_741_824)] = 65_536
    compatibility: Annotated[list[Words], Field(min_length=1, max_length=10)]
    release_counter: Count = 0

    @model_validator(mode="after")
    def _has_an_id(self) -> Self:
        _or_value_error(UpdateId.parse, self.id)
        return self


class NetworkPart(Part):
    """What the modelled parts of the network cost, beside the real ones."""

    latency_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0
    spread: Annotated[float, Field(ge=0, le=2)] = 0.5
    connects_per_s: Annotated[float, Field(gt=0, le=100_000)] = (
        1_000.0  # how fast a fleet that arrives at once arrives
    )


class DownloadPart(Part):
    """How devices get their files."""

    real_one_in: Annotated[int, Field(ge=1, le=DEVICES_MAX)] = 1  # one device in so many fetches for itself
    bytes_per_s: Annotated[int, Field(ge=1)] | None = None  # of the modelled link; None: no time at all
    spread: Annotated[float, Field(ge=0, le=2)] = 0.3


class WorkPart(Part):
    """How long a piece of work takes on a device."""

    median_s: Seconds
    spread: Annotated[float, Field(ge=0, le=2)] = 0.3


class DevicePart(Part):
    """How every device is set."""

    heartbeat_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    soak_s: Seconds = 1.0  # how long the health checks watch a trial
    trial_starts: Annotated[int, Field(ge=1, le=16)] = 3
    download_tries: Annotated[int, Field(ge=1, le=100)] = 8


class StormPart(Part):
    """Faults that last until a time, all from the seed; afterwards everything must converge. Virtual time only."""

    until_s: Annotated[float, Field(gt=0, le=86_400)]
    loss: Share = 0.0  # of messages, either way
    duplicate: Share = 0.0
    late: Share = 0.0  # held up for up to late_s, so that later ones overtake them
    late_s: Seconds = 3.0
    drop_connection: Share = 0.0  # with each message of a device
    fetch_fails: Share = 0.0  # of downloads
    power_losses: Annotated[int, Field(ge=0, le=1_000_000)] = 0  # of devices, those at work first
    dark_s: Seconds = 8.0  # the most that a device stays without power
    cloud_kills_s: list[Seconds] = []  # when the cloud is killed
    cloud_down_s: Seconds = 4.0


class FailurePart(Part):
    """Which update fails, on whom, and how. Without `share`, `count` or `devices` it fails on all in scope."""

    update: str
    how: Literal["crash_on_start", "health_fails", "install_fails", "download_breaks"]
    share: Share | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    devices: list[str] = []
    groups: list[str] = []
    fleets: list[str] = []
    properties: Words = {}
    attempts: Annotated[int, Field(ge=1)] | None = None  # only the first so many attempts of a device fail

    @model_validator(mode="after")
    def _chooses_in_one_way(self) -> Self:
        ways = [self.share is not None, self.count is not None, bool(self.devices)]
        if sum(ways) > 1:
            raise ValueError("it chooses devices in two ways; give one of share, count and devices")
        return self


# --- Facts: what can be waited for and expected ------------------------------------------------------------------


class Runs(Part):
    """So many devices of a group run an update (all, unless a number is given)."""

    what: Literal["runs"]
    group: str
    update: str
    at_least: Count | None = None


class DeviceRuns(Part):
    """One device runs an update."""

    what: Literal["device_runs"]
    device: str
    update: str


class Deployment(Part):
    """A deployment, by the name its step gave it, is in a state; `rollback of NAME` is the one that its trip made."""

    what: Literal["deployment"]
    deployment: str
    state: Annotated[DeploymentState, Field(strict=False)]


class Counted(Part):
    """The cloud counts so many devices of a deployment in a state."""

    what: Literal["count"]
    deployment: str
    of: Literal[
        "pending",
        "working",
        "succeeded",
        "already_there",
        "failed",
        "counted",
        "canceled",
        "incompatible",
        "dropped",
    ]
    at_least: Count | None = None
    at_most: Count | None = None
    equals: Count | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_least is None and self.at_most is None and self.equals is None:
            raise ValueError("it counts without a bound; give at_least, at_most or equals")
        return self


class Online(Part):
    """So many devices are connected (all that have joined, unless a number is given)."""

    what: Literal["online"]
    group: str | None = None
    at_least: Count | None = None


class OnLastKnownGood(Part):
    """Every device runs its last known good slot, and none is in a trial."""

    what: Literal["on_last_known_good"]


class CloudAgrees(Part):
    """What the cloud says of every device (what it runs, and in which group it is) is what is true."""

    what: Literal["cloud_agrees"]


Fact = Annotated[
    Runs | DeviceRuns | Deployment | Counted | Online | OnLastKnownGood | CloudAgrees,
    Field(discriminator="what"),
]


# --- Steps: what the operator does, in order ---------------------------------------------------------------------


class Import(Part):
    """Make an update known to the cloud."""

    do: Literal["import"]
    update: str


class PolicyPart(Part):
    """When the group goes back by itself."""

    failed_percent: Annotated[int, Field(ge=1, le=100)]
    failed_count: Annotated[int, Field(ge=1)]
    rollback_to: list[str]
    match: Literal["all", "any"] = "all"
    percent_of: Literal["group", "attempted"] = "group"


class Deploy(Part):
    """Offer updates to a group. `name` is what later steps call the deployment."""

    do: Literal["deploy"]
    name: Name
    group: str
    updates: Annotated[list[str], Field(min_length=1)]
    policy: PolicyPart | None = None
    allow_downgrade: bool = False
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    retry_delay_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    device_timeout_s: Annotated[float, Field(ge=1)] = 3_600.0
    attempt_timeout_s: Annotated[float, Field(ge=1)] = 7_200.0


class Move(Part):
    """Put a device into a group by the operator's override; without a group it goes back to its tag's."""

    do: Literal["move"]
    device: str
    group: str | None = None


class Cancel(Part):
    """End a deployment for good."""

    do: Literal["cancel"]
    deployment: str


class Retry(Part):
    """Give every failed device, or the named ones, a new attempt."""

    do: Literal["retry"]
    deployment: str
    devices: list[str] = []


class Join(Part):
    """Let a fleet arrive that was kept back with `arrives = "by_step"`."""

    do: Literal["join"]
    fleet: str


class Wait(Part):
    """Wait for a fact; the scenario fails when it does not come in time."""

    do: Literal["wait"]
    until: Fact
    within_s: Annotated[float, Field(gt=0, le=86_400)] = WITHIN_S_DEFAULT


Step = Annotated[Import | Deploy | Move | Cancel | Retry | Join | Wait, Field(discriminator="do")]


class Scenario(Part):
    """One scenario file, read and checked."""

    name: Name
    about: str = ""
    seed: int = 1
    limit_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0  # the whole run, arrival included
    settle_s: Seconds = 15.0  # how long after the last step what is expected may take to come true
    fleet: Annotated[list[FleetPart], Field(min_length=1, max_length=1_000)]
    update: list[UpdatePart] = []
    network: NetworkPart = NetworkPart()
    download: DownloadPart = DownloadPart()
    install: WorkPart = WorkPart(median_s=0.5)
    restart: WorkPart = WorkPart(median_s=0.3)
    device: DevicePart = DevicePart()
    failure: list[FailurePart] = []
    storm: StormPart | None = None
    step: Annotated[list[Step], Field(max_length=STEPS_MAX)] = []
    expect: list[Fact] = []

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for where, sentence in _unknown_names(self):
            raise ValueError(f"{where}: {sentence}")
        return self


def read_scenario(text: str, name: str) -> Scenario:
    """Read a scenario; `name` is what error messages call the file.

    Raises:
        OperatorError: it is not TOML, or a field is missing, unknown or wrong; the sentence names the field.
    """
    if len(text.encode()) > SCENARIO_BYTES_MAX:
        raise OperatorError(f"The scenario {name} is larger than {SCENARIO_BYTES_MAX} bytes.")
    try:
        fields: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OperatorError(f"The scenario {name} is not TOML: {error}.") from error
    try:
        return Scenario.model_validate(fields)
    except ValidationError as error:
        raise OperatorError(f"The scenario {name} is not valid at {_first(error, fields)}") from error


def _or_value_error(check: Callable[[str], object], text: str) -> None:
    """Run a check of `protocol`, in the words that pydantic gives a place to."""
    try:
        check(text)
    except OperatorError as error:
        raise ValueError(str(error)) from error


def _first(error: ValidationError, fields: Mapping[str, Any]) -> str:
    errors = error.errors(include_url=False, include_input=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # a slip makes two errors
    place = [str(part) for part in first["loc"] if not _is_tag(part, first["loc"], fields)]
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{'.'.join(place)}: {message}." if place else f"{message}."


def _is_tag(part: str | int, place: tuple[str | int, ...], fields: Mapping[str, Any]) -> bool:
    """Return whether a part of an error's place is pydantic's name for a kind of step or fact, and no field."""
    value: Any = fields
    for key in place[: place.index(part)]:
        in_table = isinstance(value, Mapping) and key in value
        in_list = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if in_table or in_list:
            value = value[key]
    return isinstance(value, Mapping) and part in (value.get("do"), value.get("what"))


def _unknown_names(scenario: Scenario) -> Iterator[tuple[str, str]]:
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


ROLLBACK_OF: Final = "rollback of "
"""What stands before a deployment's name to mean the one that its trip made."""


def _in_failures(scenario: Scenario, names: _Names) -> Iterator[tuple[str, str]]:
    for number, failure in enumerate(scenario.failure):
        where = f"failure.{number}"
        yield from names.missing(f"{where}.update", "update", failure.update)
        for kind, used in (("group", failure.groups), ("fleet", failure.fleets), ("device", failure.devices)):
            for name in used:
                yield from names.missing(f"{where}.{kind}s", kind, name)


def _in_steps(scenario: Scenario, names: _Names) -> Iterator[tuple[str, str]]:
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
