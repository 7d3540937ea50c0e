"""What can be waited for and expected in a scenario (facts), and what its operator does (steps).

They are words only: `facts.py` judges the one, `play.py` carries out the other.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from protocol.lifecycle import DeploymentState

WITHIN_S_DEFAULT: Final = 60.0
TIMEOUT_S_MAX: Final = 31_536_000.0  # a year: longer is a slip
ROLLBACK_OF: Final = "rollback of "
"""What stands before a deployment's name to mean the one that its trip made."""

Count = Annotated[int, Field(ge=0)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9$][A-Za-z0-9._-]*$")
]


class Part(BaseModel):
    """A part of a scenario. An unknown field is refused: a control that nothing reads is a defect."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
    device_timeout_s: Annotated[float, Field(ge=1, le=TIMEOUT_S_MAX)] = 3_600.0
    attempt_timeout_s: Annotated[float, Field(ge=1, le=TIMEOUT_S_MAX)] = 7_200.0


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
