"""A cloud without sockets for tests: the real orchestrator and store, and devices as written messages.

It is not the simulator: a device here says exactly what a test tells it to say.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import (
    AddDevices,
    Command,
    CreateDeployment,
    DeploymentDraft,
    ImportUpdate,
    PolicyDraft,
)
from cloud_stub.core.rows import AssignmentRow, DeploymentRow, DeviceRow
from cloud_stub.orchestrator import (
    Asked,
    Delivered,
    Linked,
    Now,
    Orchestrator,
    Publish,
    Sent,
    Settings,
    Ticked,
)
from cloud_stub.orchestrator.clock import UNWATCHED_MS_MAX
from cloud_stub.orchestrator.outbox import Outbox
from protocol import messages
from protocol.envelope import DirectorKey, TrustedKeys
from protocol.lifecycle import WorkflowState
from protocol.messages import Ack, Assignment, Hello, OutcomeReport, Repository, Running, State, WorkReport
from protocol.outcomes import Abandoned, Reason, Result
from protocol.topics import Kind, Topics

START_MS = 1_800_000_000_000
WATCHED_MS = 60_000  # the end of a long wait, through which the cloud ticks


class EvenChance:
    """A chance that is none: always in the middle, tokens counted."""

    def __init__(self) -> None:
        self.count = 0

    def uniform(self) -> float:
        """Return one half."""
        return 0.5

    def token(self) -> str:
        """Return the next number as text."""
        self.count += 1
        return f"token-{self.count}"


@dataclass
class Pi:
    """One device: what it would say, and what it was told."""

    id: str
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=lambda: {"model": "pi4"})
    instance: str = "one"
    connection: str = "c1"
    sequence: int = 0
    epoch: int | None = None
    running: Running | None = None
    floor: int = 0
    outcomes: list[OutcomeReport] = field(default_factory=list)
    work: WorkReport = field(default_factory=WorkReport)
    order: Assignment | None = None
    acks: list[Ack] = field(default_factory=list)
    nonces: int = 0


class Cloud:
    """The real orchestrator on a real store in memory, under a clock that tests move."""

    def __init__(self, settings: Settings | None = None, store: Any = None) -> None:
        self.key = DirectorKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
        self.keys = TrustedKeys([self.key.public_pem])
        self.store = store or open_store("sqlite://")
        self.settings = settings or Settings(heartbeat_ms=1_000, sync_window_ms=1_000)
        self.now = Now(START_MS, 0)
        self.pis: dict[str, Pi] = {}
        self.restart()

    def restart(self) -> None:
        """Begin anew with the same rows, as after a crash."""
        outbox = Outbox(
            self.key, lambda device, until: Repository(url="http://repo", query=f"d={device}"), Topics()
        )
        self.orchestrator = Orchestrator(self.store, outbox, EvenChance(), self.settings)
        self.feed(Linked(True))

    def feed(self, *inputs: Any) -> list[Publish]:
        """Handle inputs, hand what is published to the devices, and report orders as sent."""
        published: list[Publish] = []
        batch: Sequence[Any] = inputs
        while batch:
            out = self.orchestrator.handle(batch, self.now)
            published += out
            for message in out:
                self._hand_over(message)
            batch = [Sent(*message.order) for message in out if message.order]
        return published

    def wait(self, ms: int, *, stepping: int = 0) -> list[Publish]:
        """Let time pass, and tick; `stepping` moves the wall clock further than the other.

        Of a long time the cloud lives through the last minute, tick by tick; before that it stood still (R12).
        """
        told: list[Publish] = []
        rest_ms = min(ms, WATCHED_MS)
        self.now = Now(self.now.wall_ms + ms - rest_ms + stepping, self.now.mono_ms + ms - rest_ms)
        if ms > rest_ms:
            told += self.feed(Ticked())
        while rest_ms > UNWATCHED_MS_MAX:
            rest_ms -= UNWATCHED_MS_MAX
            self.now = Now(self.now.wall_ms + UNWATCHED_MS_MAX, self.now.mono_ms + UNWATCHED_MS_MAX)
            told += self.feed(Ticked())
        self.now = Now(self.now.wall_ms + rest_ms, self.now.mono_ms + rest_ms)
        return told + self.feed(Ticked())

    def stall(self, ms: int) -> list[Publish]:
        """Let the cloud's process stand still while both clocks go on; then it ticks."""
        self.now = Now(self.now.wall_ms + ms, self.now.mono_ms + ms)
        return self.feed(Ticked())

    def listen(self) -> None:
        """Let so much time pass that every living device must have been heard since the start; no wall clock moves."""
        heard_ms = self.settings.sync_window_ms + self.settings.heartbeat_ms
        self.now = Now(self.now.wall_ms, self.now.mono_ms + heard_ms)

    def live(self, ms: int) -> list[Publish]:
        """Let time pass with every device saying hello at its end, as heartbeats do."""
        told = self.wait(ms)
        for pi in self.pis.values():
            told += self.hello(pi)
        return told + self.wait(0)

    def do(self, command: Command) -> Any:
        """Carry out a command, or raise its error."""
        asked = Asked(command, "tester")
        self.feed(asked)
        if asked.reply.error:
            raise asked.reply.error
        return asked.reply.result

    def update(self, name: str, *, model: str | Sequence[str] = "pi4", counter: int = 0) -> str:
        """Import an update without files and return its name."""
        models = [model] if isinstance(model, str) else list(model)
        self.do(ImportUpdate(manifest(name, models, counter)))
        return name

    def deploy(self, group: str, *updates: str, policy: PolicyDraft | None = None, **more: Any) -> str:
        """Create a deployment and return its id."""
        draft = DeploymentDraft(group, updates, policy, **more)
        return str(self.do(CreateDeployment(draft)).id)

    def pi(self, device: str, group: str | None = None, *, model: str = "pi4", silent: bool = False) -> Pi:
        """Add a device that says hello and reports itself."""
        self.do(AddDevices({device: "hash"}))
        pi = Pi(device, tags={"group": group} if group else {}, properties={"model": model})
        self.pis[device] = pi
        if not silent:
            self.hello(pi)
            self.state(pi)
        return pi

    def fleet(self, count: int, group: str, *, model: str = "pi4") -> list[Pi]:
        """Add several devices."""
        return [self.pi(f"{group}-{number:03}", group, model=model) for number in range(count)]

    def hello(self, pi: Pi, **more: Any) -> list[Publish]:
        """Say hello, asking with a nonce."""
        pi.nonces += 1
        said = Hello(
            device=pi.id,
            instance=pi.instance,
            connection=pi.connection,
            sequence=pi.sequence,
            digest=sha256(str(pi.sequence).encode()).hexdigest(),
            epoch=pi.epoch,
            nonce=f"n{pi.nonces}",
            **more,
        )
        return self.feed(Delivered(Kind.HELLO, pi.id, messages.write(said)))

    def state(self, pi: Pi, **more: Any) -> list[Publish]:
        """Report the whole state under the next sequence number."""
        pi.sequence += 1
        return self.feed(Delivered(Kind.STATE, pi.id, messages.write(self.state_of(pi, **more))))

    def state_of(self, pi: Pi, **more: Any) -> State:
        """Return the state as it would be reported now."""
        return State(
            device=pi.id,
            instance=pi.instance,
            sequence=pi.sequence,
            digest=sha256(str(pi.sequence).encode()).hexdigest(),
            epoch=pi.epoch,
            properties=pi.properties,
            tags=pi.tags,
            running=pi.running,
            floor=pi.floor,
            work=pi.work,
            outcomes=tuple(pi.outcomes),
            **more,
        )

    def begin(self, pi: Pi, phase: WorkflowState = WorkflowState.DOWNLOADING) -> Assignment:
        """Report that the device works on its order."""
        order = accepted(pi)
        pi.work = WorkReport(
            state=phase, deployment=order.deployment, epoch=order.epoch, attempt=order.attempt
        )
        self.state(pi)
        return order

    def succeed(self, pi: Pi, order: Assignment | None = None) -> None:
        """Report that the device committed its order."""
        order = order or accepted(pi)
        assert order.target is not None
        pi.running = Running(update=order.target.update, sha256=order.target.sha256)
        self.end(pi, order, Result.SUCCEEDED)

    def fail(
        self, pi: Pi, reason: Reason = Reason.HEALTH_FAILED, phase: WorkflowState = WorkflowState.CONFIRMING
    ) -> None:
        """Report that the device's attempt failed."""
        self.end(pi, accepted(pi), Result.FAILED, reason, phase)

    def end(
        self,
        pi: Pi,
        order: Assignment,
        result: Result,
        reason: Reason | None = None,
        phase: WorkflowState = WorkflowState.IDLE,
        abandoned: Abandoned | None = None,
    ) -> None:
        """Report an outcome."""
        assert order.deployment is not None
        assert order.attempt is not None
        pi.work = WorkReport()
        pi.outcomes = [
            *pi.outcomes,
            OutcomeReport(
                epoch=order.epoch,
                deployment=order.deployment,
                attempt=order.attempt,
                result=result,
                reason=reason,
                phase=phase,
                abandoned=abandoned,
                running_sha256=pi.running.sha256 if pi.running else None,
            ),
        ]
        self.state(pi)

    def deployment(self, deployment: str) -> DeploymentRow:
        """Return a deployment's row."""
        with self.store.read() as reader:
            row: DeploymentRow | None = reader.deployment(deployment)
        assert row is not None
        return row

    def device(self, device: str) -> DeviceRow:
        """Return a device's row."""
        with self.store.read() as reader:
            row: DeviceRow | None = reader.device(device)
        assert row is not None
        return row

    def row(self, deployment: str, device: str) -> AssignmentRow:
        """Return an assignment's row."""
        with self.store.read() as reader:
            row: AssignmentRow | None = reader.assignment(deployment, device)
        assert row is not None
        return row

    def check_tallies(self) -> None:
        """Hold every deployment's counters to a count of its rows (R14)."""
        with self.store.read() as reader:
            for deployment in reader.list_deployments():
                assert deployment.tally == reader.count_assignments(deployment.id), deployment.id

    def _hand_over(self, message: Publish) -> None:
        pi = self.pis.get(message.device)
        if pi is None:
            return
        if message.kind is Kind.DESIRED:
            order = messages.read(Assignment, self.keys.open_envelope(message.payload))
            if pi.epoch is None or order.epoch > pi.epoch:
                pi.order, pi.epoch = order, order.epoch
        if message.kind is Kind.ACK:
            ack = messages.read(Ack, message.payload)
            pi.acks.append(ack)
            if ack.sequence >= pi.sequence:
                pi.outcomes = []


def accepted(pi: Pi) -> Assignment:
    """Return the order a device has accepted."""
    assert pi.order is not None, f"{pi.id} was ordered nothing"
    return pi.order


def manifest(name: str, models: Sequence[str], counter: int = 0) -> bytes:
    """Return a manifest with one small file."""
    provider, rest = name.split("/")
    title, version = rest.split(":")
    content = sha256(name.encode()).digest()
    return json.dumps(
        {
            "manifestVersion": "5.0",
            "updateId": {"provider": provider, "name": title, "version": version},
            "compatibility": [{"model": model} for model in models],
            "instructions": {"steps": [{"handler": "archive", "files": ["app.tar"]}]},
            "files": [
                {
                    "filename": "app.tar",
                    "sizeInBytes": 10,
                    "hashes": {"sha256": base64.b64encode(content).decode()},
                }
            ],
            "releaseCounter": counter,
        }
    ).encode()
