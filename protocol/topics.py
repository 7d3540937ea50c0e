"""MQTT topics of lastgood: what there is, how a name is built, and how it is read back.

It is not about payloads (`messages.py`). It keeps the rule that devices publish under `up/` and read under
`down/` (DESIGN.md section 4), so that a broker's access list is two lines. `build` and `parse` are inverses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocol.errors import MessageRefused, OperatorError
from protocol.identity import DEVICE_ID_PATTERN

DEFAULT_PREFIX: Final = "lg/v1"
EVERYONE: Final = "all"  # stands where a device id stands; `check_device_id` reserves it


class Kind(StrEnum):
    """What a message is; the last level of its topic."""

    HELLO = "hello"
    STATE = "state"
    PROGRESS = "progress"
    GONE = "gone"
    DESIRED = "desired"
    ACK = "ack"
    SYNC = "sync"


class Direction(StrEnum):
    """Which way a message goes; the level behind the prefix."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who sends a kind of message, how surely, and what it is for."""

    direction: Direction
    publisher: str
    qos: int
    what: str


RULES: Final[Mapping[Kind, Rule]] = {
    Kind.HELLO: Rule(
        Direction.UP,
        "device",
        1,
        "on every connect and heartbeat: instance, sequence, epoch, digest of its state, nonce",
    ),
    Kind.STATE: Rule(
        Direction.UP, "device", 1, "the whole reported state, with all outcomes not yet acknowledged"
    ),
    Kind.PROGRESS: Rule(Direction.UP, "device", 0, "phase and bytes, rate-limited, may be lost"),
    Kind.GONE: Rule(Direction.UP, "broker", 1, "the last will"),
    Kind.DESIRED: Rule(Direction.DOWN, "cloud", 1, "the signed assignment: the device's whole desired state"),
    Kind.ACK: Rule(
        Direction.DOWN, "cloud", 1, "what the cloud's database has of the device, and its newest epoch"
    ),
    Kind.SYNC: Rule(Direction.DOWN, "cloud", 0, "asks everyone to say hello within a window"),
}


_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*")


def check_prefix(text: str) -> str:
    """Return `text` when topics can begin with it: no wildcard, no empty level, nothing that an access list misreads.

    Raises:
        OperatorError: it is no such prefix.
    """
    if not _PREFIX.fullmatch(text):
        raise OperatorError(
            f"The topic prefix {text!r} is not usable: take levels of letters, digits and . _ -, "
            f"as in {DEFAULT_PREFIX}."
        )
    return text


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic read: the kind of its messages, and the device it belongs to (`all` for everybody's)."""

    kind: Kind
    device: str


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics under one prefix."""

    prefix: str = DEFAULT_PREFIX

    def build(self, kind: Kind, device: str) -> str:
        """Return the topic of `kind` for `device`."""
        return f"{self.prefix}/{RULES[kind].direction}/{device}/{kind}"

    def parse(self, topic: str) -> Topic:
        """Read a topic; the inverse of `build`.

        Raises:
            MessageRefused: it is not a topic of this prefix, or names no device.
        """
        head, _, tail = topic.partition(self.prefix + "/")
        levels = tail.split("/")
        if head or len(levels) != 3 or levels[2] not in _KINDS:
            raise MessageRefused("topic", f"{topic!r} is not a topic of lastgood under {self.prefix!r}.")
        direction, device, kind = levels[0], levels[1], Kind(levels[2])
        fits = (
            device == EVERYONE
            if kind is Kind.SYNC
            else bool(_DEVICE_ID.fullmatch(device)) and device != EVERYONE
        )
        if RULES[kind].direction != direction or not fits:
            raise MessageRefused("topic", f"{topic!r} is not a topic of lastgood under {self.prefix!r}.")
        return Topic(kind, device)

    def read_by_device(self, device: str) -> tuple[str, ...]:
        """Return the filters that a device subscribes to."""
        return (
            self.build(Kind.DESIRED, device),
            self.build(Kind.ACK, device),
            self.build(Kind.SYNC, EVERYONE),
        )

    def read_by_cloud(self) -> tuple[str, ...]:
        """Return the filters that the cloud subscribes to."""
        return tuple(
            f"{self.prefix}/up/+/{kind}" for kind, rule in RULES.items() if rule.direction is Direction.UP
        )


_KINDS: Final = frozenset(kind.value for kind in Kind)
_DEVICE_ID: Final = re.compile(DEVICE_ID_PATTERN[1:-1])
