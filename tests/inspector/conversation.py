"""One small conversation between a device and its cloud, as arrivals, for the inspector's tests."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inspector.core.seen import Arrival
from protocol.envelope import DirectorKey
from protocol.lifecycle import WorkflowState
from protocol.messages import (
    Ack,
    Assignment,
    Gone,
    Hello,
    Message,
    OutcomeReport,
    Progress,
    Repository,
    Running,
    SlotReport,
    State,
    Sync,
    Target,
    write,
)
from protocol.outcomes import Reason, Result
from protocol.topics import EVERYONE, Kind, Topics

DEVICE: Final = "pi-17"
START_MS: Final = 1_795_480_000_123
SHA: Final = "ab" * 32
KEY: Final = DirectorKey(Ed25519PrivateKey.from_private_bytes(b"1" * 32))
OTHER_KEY: Final = DirectorKey(Ed25519PrivateKey.from_private_bytes(b"2" * 32))

HELLO: Final = Hello(
    device=DEVICE, instance="inst-1", connection="conn-1", sequence=11, digest=SHA, nonce="nonce-77"
)
STATE: Final = State(
    device=DEVICE,
    instance="inst-1",
    sequence=12,
    digest=SHA,
    epoch=7,
    slots={"A": SlotReport(holds="good"), "B": SlotReport(holds="bad", reason="health_failed")},
    booted="A",
    last_known_good="A",
    running=Running(update="acme/app:1.0.0", sha256=SHA),
    outcomes=(
        OutcomeReport(
            epoch=7,
            deployment="d-42",
            attempt=1,
            result=Result.FAILED,
            phase=WorkflowState.CONFIRMING,
            reason=Reason.HEALTH_FAILED,
            detail="answered 500\x1b[31m",
        ),
    ),
)
PROGRESS: Final = Progress(
    device=DEVICE,
    deployment="d-42",
    epoch=7,
    attempt=1,
    phase=WorkflowState.DOWNLOADING,
    bytes_done=500_000,
    bytes_total=1_200_000,
)
ORDER: Final = Assignment(
    device=DEVICE,
    epoch=7,
    issued_ms=START_MS,
    lifetime_ms=86_400_000,
    action="install",
    deployment="d-42",
    attempt=1,
    target=Target(update="acme/app:2.0.0", path="acme/app/2.0.0.json", size_bytes=400, sha256=SHA),
    repository=Repository(url="http://127.0.0.1:8080/repo"),
)
ACK: Final = Ack(device=DEVICE, instance="inst-1", sequence=11, digest=SHA, newest_epoch=7, nonce="nonce-77")
GONE: Final = Gone(device=DEVICE, connection="conn-1")
SYNC: Final = Sync(device=EVERYONE, window_ms=30_000)

MESSAGES: Final[tuple[tuple[Kind, Message], ...]] = (
    (Kind.HELLO, HELLO),
    (Kind.DESIRED, ORDER),
    (Kind.ACK, ACK),
    (Kind.PROGRESS, PROGRESS),
    (Kind.STATE, STATE),
    (Kind.SYNC, SYNC),
    (Kind.GONE, GONE),
)


def arrival(kind: Kind, message: Message, at_ms: int = START_MS, device: str | None = None) -> Arrival:
    """The message as a broker delivers it; an assignment in an envelope signed by `KEY`."""
    payload = KEY.sign(write(message)) if kind is Kind.DESIRED else write(message)
    return Arrival(at_ms, Topics().build(kind, device or message.device), payload, qos=1)


def conversation() -> list[Arrival]:
    """One message of each kind, 12 ms apart."""
    return [arrival(kind, message, START_MS + 12 * number) for number, (kind, message) in enumerate(MESSAGES)]
