"""The real cloud in virtual time: its orchestrator and its database in memory, fed by the clock instead of a thread.

It holds no rules. A restart throws away everything that is not in the database, as a killed process would.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_stub.core.commands import Command
from cloud_stub.orchestrator import (
    Asked,
    Delivered,
    Input,
    Linked,
    Now,
    Orchestrator,
    Publish,
    Sent,
    Settings,
    Ticked,
)
from cloud_stub.orchestrator.outbox import Outbox
from cloud_stub.orchestrator.values import Reply
from cloud_stub.ports import Store
from protocol.envelope import DirectorKey
from protocol.messages import Repository
from protocol.topics import Kind, Topics
from simulator.core.chance import SeededChance
from simulator.virtual.clock import VirtualClock, VirtualTimer
from simulator.virtual.network import Network

WALL_MS: Final = 1_800_000_000_000  # UTC at the start of every run
BATCH_MS: Final = 5  # a writer's batch: inputs that come within it share a transaction
OPERATOR: Final = "scenario"


class VirtualCloud:
    """One cloud process after another over one store."""

    def __init__(
        self, store: Store, clock: VirtualClock, network: Network, seed: int, settings: Settings
    ) -> None:
        self.store = store
        self.starts = 0
        self.turns = 0
        self.unsent = 0  # messages that followed from what was committed, when the process was killed
        self.after_turn: Callable[[list[Publish]], None] | None = None
        seed_bytes = blake2b(f"{seed}\x00director".encode(), digest_size=32).digest()
        self.director = DirectorKey(Ed25519PrivateKey.from_private_bytes(seed_bytes))
        self._clock = clock
        self._network = network
        self._seed = seed
        self._settings = settings
        self._inbox: list[Input] = []
        self._batch: VirtualTimer | None = None
        self._tick: VirtualTimer | None = None
        self._core: Orchestrator | None = None
        self._doom: Callable[[], None] | None = None  # ends the process amid the next messages that it sends
        self._chance = SeededChance(seed, "doom")

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self._core is not None

    def start(self) -> None:
        """Start a process: it connects to the broker, and asks everyone to say hello."""
        self.starts += 1
        outbox = Outbox(
            self.director, lambda device, _until: Repository(url=f"http://repository/{device}"), Topics()
        )
        self._core = Orchestrator(
            self.store, outbox, SeededChance(self._seed, f"cloud {self.starts}"), self._settings
        )
        self._feed(Linked(True))
        self._mind_ticks()

    def die_sending(self, doom: Callable[[], None] | None) -> None:
        """Have `doom` called when the process has committed something, and sent a part of what follows; None: never."""
        self._doom = doom

    def kill(self) -> None:
        """End the process where it stands: what it had not committed is lost, and so is what it had not sent."""
        self._core, self._doom = None, None
        self._inbox.clear()
        for timer in (self._batch, self._tick):
            if timer is not None:
                timer.cancel()
        self._batch = None

    def deliver(self, device: str, kind: Kind, payload: bytes) -> None:
        """Take a message of a device; without a process nobody hears it."""
        if self._core is not None:
            self._feed(Delivered(kind, device, payload))

    def ask(self, command: Command) -> Any:
        """Carry out an operator's command at once, and return its result.

        Raises:
            LastgoodError: the cloud refused it.
        """
        reply = Reply()
        self._handle([Asked(command, OPERATOR, reply)])
        if reply.error is not None:
            raise reply.error
        return reply.result

    def now(self) -> Now:
        """Return both of the cloud's clocks."""
        mono_ms = self._clock.now_ms()
        return Now(WALL_MS + mono_ms, mono_ms)

    def _feed(self, item: Input) -> None:
        self._inbox.append(item)
        if self._batch is None:
            self._batch = self._clock.call_later(BATCH_MS, self._run_batch)

    def _run_batch(self) -> None:
        self._batch = None
        batch, self._inbox = self._inbox, []
        self._handle(batch)

    def _handle(self, inputs: list[Input]) -> None:
        if self._core is None:
            return
        publishes = self._core.handle(inputs, self.now())
        self.turns += 1
        if self.after_turn is not None:
            self.after_turn(publishes)
        doom = self._doom if publishes else None
        if doom is not None:
            sent = int(self._chance.uniform() * len(publishes))
            self.unsent += len(publishes) - sent
            publishes = publishes[:sent]
        for publish in publishes:
            self._network.down(publish.device, publish.kind, publish.payload)
            if publish.order is not None:
                self._feed(Sent(*publish.order))
        if doom is not None:
            doom()

    def _mind_ticks(self) -> None:
        if self._core is None:
            return
        now = self.now()
        self._tick = self._clock.call_later(max(1, self._core.due_ms(now) - now.mono_ms), self._on_tick)

    def _on_tick(self) -> None:
        self._feed(Ticked())
        self._mind_ticks()
