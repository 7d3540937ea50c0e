"""A scenario file: what the fleet is, how it behaves, what fails, what the operator does, and what must hold.

It runs nothing (`live/` and `virtual/` do). It keeps the rule that a mistake in the file is found when it is read, and
named by its field: every name that a step or an expectation uses must exist.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from protocol.errors import OperatorError
from protocol.identity import UpdateId, check_device_id, check_group
from protocol.messages import Words
from simulator.core.names import DEVICES_MAX, unknown_names
from simulator.core.script import Count, Fact, Name, Part, Step

SCENARIO_BYTES_MAX: Final = 1_048_576  # a scenario is written by hand
STEPS_MAX: Final = 500
NUMBER_FIELD: Final = "{n}"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=86_400.0)]


class FleetPart(Part):
    """Devices of one class in one group."""

    group: str
    count: Annotated[int, Field(ge=1, le=DEVICES_MAX)]
    name: Name | None = None  # the group's, unless given
    id: Annotated[str, StringConstraints(max_length=60)] | None = None  # `{n}` becomes the device's number
    properties: Annotated[Words, Field(min_length=1, max_length=5)]
    tags: Words = Field(default_factory=dict)
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
        if self.arrives != "over" and self.over_s > 0:
            raise ValueError(f"over_s is for arrives = 'over', and it arrives {self.arrives!r}")
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
    """How fast a fleet connects; and what a message takes in virtual time, for a live run's network is real."""

    latency_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0  # virtual time only, as its spread
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
    cloud_kills_s: list[Seconds] = Field(default_factory=list)
    """When the cloud is killed: the first at once, the second amid sending what it has committed, and so on in turn."""
    cloud_down_s: Seconds = 4.0


class FailurePart(Part):
    """Which update fails, on whom, and how. Without `share`, `count` or `devices` it fails on all in scope."""

    update: str
    how: Literal["crash_on_start", "health_fails", "install_fails", "download_breaks"]
    share: Share | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    devices: list[str] = Field(default_factory=list)
    groups: list[str] = Field(default_factory=list)
    fleets: list[str] = Field(default_factory=list)
    properties: Words = Field(default_factory=dict)
    attempts: Annotated[int, Field(ge=1)] | None = None  # only the first so many attempts of a device fail

    @model_validator(mode="after")
    def _chooses_in_one_way(self) -> Self:
        ways = [self.share is not None, self.count is not None, bool(self.devices)]
        if sum(ways) > 1:
            raise ValueError("it chooses devices in two ways; give one of share, count and devices")
        return self


class Scenario(Part):
    """One scenario file, read and checked."""

    name: Name
    about: str = ""
    seed: int = 1
    limit_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0  # the whole run, arrival included
    settle_s: Seconds = 15.0  # how long after the last step what is expected may take to come true
    fleet: Annotated[list[FleetPart], Field(min_length=1, max_length=1_000)]
    update: list[UpdatePart] = Field(default_factory=list)
    network: NetworkPart = NetworkPart()
    download: DownloadPart = DownloadPart()
    install: WorkPart = WorkPart(median_s=0.5)
    restart: WorkPart = WorkPart(median_s=0.3)
    device: DevicePart = DevicePart()
    failure: list[FailurePart] = Field(default_factory=list)
    storm: StormPart | None = None
    step: Annotated[list[Step], Field(max_length=STEPS_MAX)] = Field(default_factory=list)
    expect: list[Fact] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for where, sentence in unknown_names(self):
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
    first = next(
        (each for each in errors if each["type"] == "extra_forbidden"), errors[0]
    )  # a slip makes two errors
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
