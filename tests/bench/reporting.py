"""Devices as written messages: what a fleet would say of its work, prepared before the clock starts.

It is not the simulator, which runs the agent's core: here a report costs nothing while the cloud is measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from protocol.lifecycle import WorkflowState
from protocol.messages import Assignment, Hello, Running, SlotReport, State, WorkReport, write

PHASES: Final = (
    WorkflowState.DOWNLOADING,
    WorkflowState.INSTALLING,
    WorkflowState.READY,
    WorkflowState.SWITCHING,
    WorkflowState.RESTARTING,
    WorkflowState.CONFIRMING,
)
MODEL: Final = "bench"


@dataclass(slots=True)
class Reporter:
    """One device: where it stands."""

    id: str
    group: str
    order: Assignment | None = None
    sequence: int = 0

    def hello(self, nonce: str) -> bytes:
        """Return what it says on connecting."""
        return write(
            Hello(
                device=self.id,
                instance=f"instance-{self.id}",
                connection=f"connection-{self.id}",
                sequence=self.sequence,
                digest=self._digest(),
                epoch=self.order.epoch if self.order else None,
                nonce=nonce,
            )
        )

    def state(self) -> bytes:
        """Return its next state: the next phase of its order, which the cloud has to write into two rows."""
        self.sequence += 1
        order = self.order
        work = WorkReport()
        if order is not None and order.deployment is not None:
            phase = PHASES[self.sequence % len(PHASES)]
            work = WorkReport(
                state=phase, deployment=order.deployment, epoch=order.epoch, attempt=order.attempt
            )
        running = "bench/payload:0.9"
        said = State(
            device=self.id,
            instance=f"instance-{self.id}",
            sequence=self.sequence,
            digest=self._digest(),
            epoch=order.epoch if order else None,
            epoch_in_work=order.epoch if order else None,
            properties={"manufacturer": "bench", "model": MODEL},
            tags={"group": self.group, "site": f"site-{sum(self.id.encode()) % 50}"},
            slots={
                "A": SlotReport(holds="good", update=running, sha256="cd" * 32),
                "B": SlotReport(holds="writing", starts_left=self.sequence % 4),
            },
            booted="A",
            last_known_good="A",
            running=Running(update=running, sha256="cd" * 32),
            work=work,
            agent_version="0.1.0",
        )
        return write(said)

    def _digest(self) -> str:
        return sha256(f"{self.id} {self.sequence}".encode()).hexdigest()


def in_batches(reporters: Sequence[Reporter], size: int, count: int) -> Iterator[list[tuple[str, bytes]]]:
    """Return `count` reports in batches; devices report in no order, and no device twice in one batch."""
    batch: list[tuple[str, bytes]] = []
    for index in range(count):
        reporter = reporters[index * 7_919 % len(reporters)]
        batch.append((reporter.id, reporter.state()))
        if len(batch) == size:
            yield batch
            batch = []
