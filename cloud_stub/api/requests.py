"""What operators send: models of requests, how a request becomes a draft, and one plain sentence when it does not.

They hold no rules beyond the form of a request; a field that nothing reads is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloud_stub.core.commands import (
    ATTEMPT_TIMEOUT_MS_DEFAULT,
    DEVICE_TIMEOUT_MS_DEFAULT,
    DeploymentDraft,
    PolicyDraft,
)
from protocol.errors import OperatorError
from protocol.messages import EPOCH_MAX

DEVICES_MAX: Final = 10_000  # in one request that adds or retries devices
NAMES_MAX: Final = 100  # updates in one offer: one for each device class
START_AT_MS_MAX: Final = 253_370_764_800_000  # the year 9999: a later instant cannot be shown

_Names = Annotated[list[str], Field(min_length=1, max_length=NAMES_MAX)]
_Milliseconds = Annotated[int, Field(ge=0, le=EPOCH_MAX)]


class Request(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Check the fields of a request.

        Raises:
            OperatorError: one sentence, which names the first field that is wrong.
        """
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise OperatorError(sentence(error.errors(include_url=False, include_input=False))) from error


class AddDevicesRequest(Request):
    """Make devices known."""

    ids: Annotated[list[str], Field(min_length=1, max_length=DEVICES_MAX)]
    renew: bool = False


class MoveRequest(Request):
    """Put a device into a group, or with null back to its tag."""

    group: str | None


class WithdrawRequest(Request):
    """Stop offering an update."""

    why: Annotated[str, Field(min_length=1, max_length=500)]


class RetryRequest(Request):
    """Give every failed device, or the named ones, a new attempt."""

    devices: Annotated[list[str], Field(max_length=DEVICES_MAX)] = []


class PolicyRequest(Request):
    """A rollback policy: all three numbers and names, or no policy."""

    failed_percent: int
    failed_count: int
    rollback_to: _Names
    match: Literal["all", "any"] = "all"
    percent_of: Literal["group", "attempted"] = "group"

    def draft(self) -> PolicyDraft:
        """Return the policy's draft for the core."""
        back = tuple(self.rollback_to)
        return PolicyDraft(self.failed_percent, self.failed_count, back, self.match, self.percent_of)


class DraftRequest(Request):
    """A deployment as an operator writes it."""

    group: str
    updates: _Names
    policy: PolicyRequest | None = None
    start_at_ms: Annotated[int, Field(ge=0, le=START_AT_MS_MAX)] | None = None
    allow_downgrade: bool = False
    allow_withdrawn: bool = False
    retries: int = 0
    retry_delay_ms: _Milliseconds = 60_000
    device_timeout_ms: _Milliseconds = DEVICE_TIMEOUT_MS_DEFAULT
    attempt_timeout_ms: _Milliseconds = ATTEMPT_TIMEOUT_MS_DEFAULT

    def draft(self) -> DeploymentDraft:
        """Return the draft for the core."""
        policy = self.policy.draft() if self.policy else None
        own = {
            name: getattr(self, name)
            for name in DraftRequest.model_fields
            if name not in ("updates", "policy")
        }
        return DeploymentDraft(**own, updates=tuple(self.updates), policy=policy)


class CreateRequest(Request):
    """A draft, and the digest of the plan that was shown."""

    draft: DraftRequest
    plan_digest: str | None = None


def sentence(errors: Iterable[Mapping[str, Any]]) -> str:
    """Return the first of pydantic's errors as one plain sentence."""
    first = next(iter(errors))
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "draft")]
    name = ".".join(path) or "the request"
    owner = "The policy" if path[:1] == ["policy"] and len(path) > 1 else "The request"
    match first["type"]:
        case "missing" if owner == "The policy":
            return (
                f"The policy lacks {path[-1]}; give failed_percent, failed_count and rollback_to together, "
                "or no policy at all."
            )
        case "missing":
            return f"The request lacks {name}; give it."
        case "extra_forbidden":
            return f"{owner} has a field {name} that nothing reads; leave it out."
        case "json_invalid":
            return "The request is not JSON; send one JSON object."
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{name} is not valid: it should be {message[:1].lower()}{message[1:]}."
