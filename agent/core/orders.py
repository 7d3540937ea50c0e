"""Which orders a device accepts: signature, device, epoch, lifetime and, for the first one, the nonce (R1, R3).

It changes nothing: it says what an envelope is, and `device.py` records it. It keeps the rule that nothing is parsed
before a trusted key has signed it, and that an order is judged once, when it arrives.

A device's own wall clock may be off by years, so lifetime is held against cloud time that is proven: `issued_ms` of
the order in force, plus what this process's monotonic clock has counted since. A late order can slip through while
nothing newer is known (then the gate, R4, stops it). A higher epoch with an earlier instant means that the cloud's
clock was set back; it is believed, for a device must not go deaf over a clock that once ran ahead.
"""

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, replace

from agent.core.model import Record, Workflow
from protocol.envelope import TrustedKeys
from protocol.errors import LastgoodError, MessageRefused, SignatureRefused
from protocol.messages import Assignment, read
from protocol.strict_json import parse


@dataclass(frozen=True, slots=True)
class Accepted:
    """A new order: record epoch and envelope, then act."""

    order: Assignment
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The order in force again, with newer addresses and lifetime; the workflow stays as it is."""

    order: Assignment
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The order in force, as it is known."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not to be obeyed, and counted under this reason."""

    reason: str


Judgement = Accepted | Refreshed | Duplicate | Refused


class CloudTime:
    """The cloud's time as far as it is proven: what it signed last, and this process's monotonic clock."""

    __slots__ = ("_heard_ms", "_issued_ms")

    def __init__(self) -> None:
        self._issued_ms: int | None = None
        self._heard_ms = 0

    def learn(self, issued_ms: int, now_ms: int) -> None:
        """The cloud has signed this instant, and it is known at `now_ms` of the monotonic clock."""
        self._issued_ms, self._heard_ms = issued_ms, now_ms

    def is_over(self, order: Assignment, now_ms: int) -> bool:
        """Return whether an order's lifetime is surely over."""
        if self._issued_ms is None or order.issued_ms < self._issued_ms:
            return False
        return self._issued_ms + (now_ms - self._heard_ms) > order.issued_ms + order.lifetime_ms


def judge(
    payload: bytes,
    *,
    device: str,
    keys: TrustedKeys,
    record: Record,
    in_force: Assignment | None,
    nonces: Collection[str],
    time: CloudTime,
    now_ms: int,
) -> Judgement:
    """Return what an envelope means to this device; `in_force` is the order of the record's epoch, as accepted.

    `nonces` are those of this device's own hellos since its start.
    """
    try:
        order = read(Assignment, keys.open_envelope(payload))
    except SignatureRefused:
        return Refused("signature")
    except MessageRefused as error:
        return Refused(error.reason)
    if order.device != device:
        return Refused("device")
    if (order.deployment is None) != (order.attempt is None):  # a cancel names both, a hold neither
        return Refused("fields")
    if time.is_over(order, now_ms):
        return Refused("expired")
    if record.epoch is None:
        return Accepted(order, payload) if order.nonce in nonces else Refused("nonce")
    if order.epoch < record.epoch:
        return Refused("epoch")
    if order.epoch > record.epoch:
        return Accepted(order, payload)
    if in_force is None or _meaning(order) != _meaning(in_force):
        return Refused("epoch_conflict")
    return Refreshed(order, payload) if order.issued_ms > in_force.issued_ms else Duplicate()


def readdressed(work: Workflow, order: Assignment) -> Workflow:
    """Return the work with an order's newer addresses and lifetime, wherever that order waits or is worked on (R1)."""
    new = {"repository": order.repository, "issued_ms": order.issued_ms, "lifetime_ms": order.lifetime_ms}
    if work.order is not None and work.order.epoch == order.epoch:
        work = replace(work, order=work.order.model_copy(update=new))
    if work.next is not None and work.next.epoch == order.epoch:
        work = replace(work, next=work.next.model_copy(update=new))
    return work


def reread(envelope: bytes | None) -> Assignment | None:
    """Return the order of an envelope that this device verified when it accepted it; None when it cannot be read.

    The signature is not judged again: a key may have been replaced since, and an order is judged at acceptance (R1).
    """
    if envelope is None:
        return None
    try:
        body = parse(envelope).get("payload")
        return read(Assignment, base64.b64decode(body, validate=True)) if isinstance(body, str) else None
    except (LastgoodError, binascii.Error):
        return None


def _meaning(order: Assignment) -> tuple[object, ...]:
    return order.action, order.deployment, order.attempt, order.target.sha256 if order.target else None
