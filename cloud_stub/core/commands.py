"""What an operator can ask of the cloud, as values; the orchestrator carries each out in one transaction.

They hold no rules: what is refused, and why, is said by the core that carries them out (`OperatorError`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DEVICE_TIMEOUT_MS_DEFAULT = (
    3_600_000  # an hour of silence: longer than any reboot, shorter than a working day
)
ATTEMPT_TIMEOUT_MS_DEFAULT = 7_200_000


@dataclass(frozen=True, slots=True)
class AddDevices:
    """Make devices known, each with the hash of its token; those that exist get a new token only with `renew`."""

    hashes: Mapping[str, str]  # device id → password hash
    renew: bool = False


@dataclass(frozen=True, slots=True)
class MoveDevice:
    """Put a device into a group by the operator's override; None gives it back to its tag."""

    device: str
    group: str | None


@dataclass(frozen=True, slots=True)
class ImportUpdate:
    """Make an update known. Its files are already stored and checked."""

    manifest: bytes


@dataclass(frozen=True, slots=True)
class WithdrawUpdate:
    """Stop offering an update (R22)."""

    update: str
    why: str


@dataclass(frozen=True, slots=True)
class PolicyDraft:
    """A rollback policy as an operator writes it."""

    failed_percent: int
    failed_count: int
    rollback_to: tuple[str, ...]
    match: Literal["all", "any"] = "all"
    percent_of: Literal["group", "attempted"] = "group"


@dataclass(frozen=True, slots=True)
class DeploymentDraft:
    """A deployment as an operator writes it; `plan` answers for it, and `CreateDeployment` makes it."""

    group: str
    updates: tuple[str, ...]
    policy: PolicyDraft | None = None
    start_at_ms: int | None = None
    allow_downgrade: bool = False
    allow_withdrawn: bool = False  # the explicit word for an update that was withdrawn
    retries: int = 0
    retry_delay_ms: int = 60_000
    device_timeout_ms: int = DEVICE_TIMEOUT_MS_DEFAULT
    attempt_timeout_ms: int = ATTEMPT_TIMEOUT_MS_DEFAULT


@dataclass(frozen=True, slots=True)
class CreateDeployment:
    """Make the deployment that was planned; `plan_digest` refuses it when the plan has changed since it was shown."""

    draft: DeploymentDraft
    plan_digest: str | None = None


@dataclass(frozen=True, slots=True)
class CancelDeployment:
    """End a deployment for good (DESIGN.md section 3, rule 4)."""

    deployment: str


@dataclass(frozen=True, slots=True)
class RetryDeployment:
    """Give every failed device, or the named ones, a new attempt (R15)."""

    deployment: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResumeRestored:
    """Go on after a restore from an old backup, having seen what would be ordered (R2)."""


Command = (
    AddDevices
    | MoveDevice
    | ImportUpdate
    | WithdrawUpdate
    | CreateDeployment
    | CancelDeployment
    | RetryDeployment
    | ResumeRestored
)
