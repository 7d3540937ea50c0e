"""What goes into the orchestrator and what comes out of it, as values.

They hold no rules. `Now` carries both clocks, since the cloud's wall clock decides starts and its monotonic clock
decides what could have been heard (R12).
"""

from dataclasses import dataclass, field
from typing import Any, Final

from cloud_stub.core.commands import Command
from protocol.errors import LastgoodError
from protocol.topics import Kind

HEARTBEAT_MS_DEFAULT: Final = 60_000  # a fleet of 100,000 then says 1,700 hellos a second
SYNC_WINDOW_MS_DEFAULT: Final = 10_000  # spreads the answers of a fleet to a sync
OFFLINE_DEBOUNCE_MS: Final = 3_000  # a device that reconnects within it was never offline
ORDER_LIFETIME_MS: Final = (
    86_400_000  # an order not accepted for a day asks for a new one; signed addresses live as long
)
HEARTBEATS_MISSED: Final = 3  # after so many without a word a device counts as offline, will or no will
SWEEP_MS: Final = 10_000  # how often that is looked at, and what else may wait
CONNECTS_PER_S: Final = (
    1_000  # of reconnecting devices: half of what the slower broker took on a busy machine
)
RECONNECT_SPREAD_MS_MIN: Final = 1_000  # also a few devices should not come back in the same instant
REFUSALS_TOLD_MAX: Final = (
    5  # log lines about one device's refused messages between two sweeps; the rest is counted
)
TURN_ROWS_MAX: Final = (
    500  # devices decided, published or timed out in one transaction: others must get their turn
)
CLOCK_STEP_MS_MAX: Final = 60_000  # a larger step of wall against monotonic clock disarms the time-outs (R12)


@dataclass(frozen=True, slots=True)
class Now:
    """One moment: UTC milliseconds, and milliseconds of a clock that never steps."""

    wall_ms: int
    mono_ms: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person, a test or a scenario may choose."""

    heartbeat_ms: int = HEARTBEAT_MS_DEFAULT
    sync_window_ms: int = SYNC_WINDOW_MS_DEFAULT
    reconnect_spread_ms: int = 10_000  # until the devices have been counted
    connects_per_s: int = CONNECTS_PER_S
    offline_debounce_ms: int = OFFLINE_DEBOUNCE_MS
    rollback_retries: int = 3  # the own budget of a deployment that a trip made (R24)


@dataclass(frozen=True, slots=True)
class Linked:
    """The cloud's connection to the broker came up (with its subscriptions granted) or went down."""

    up: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message of a device arrived."""

    kind: Kind
    device: str
    payload: bytes


@dataclass(slots=True)
class Reply:
    """Where the answer to a command is put, when its transaction is durable."""

    result: Any = None
    error: LastgoodError | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asks for something."""

    command: Command
    who: str
    reply: Reply = field(default_factory=Reply)


@dataclass(frozen=True, slots=True)
class Sent:
    """An order was handed to the broker; only now is its epoch published."""

    device: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed."""


Input = Linked | Delivered | Asked | Sent | Ticked


@dataclass(frozen=True, slots=True)
class Publish:
    """A message to send, now that what it says is durable. `order` names the device and epoch of a desired state."""

    kind: Kind
    device: str
    topic: str
    payload: bytes
    qos: int
    order: tuple[str, int] | None = None
