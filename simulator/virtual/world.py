"""A scenario in virtual time: the real cloud, and agents' real cores, on one heap, from one seed.

No socket, no thread, no sleep: a day passes in seconds, and the same seed makes the same bytes. Faults (loss,
duplicates, late messages, broken connections, power losses, killed clouds) are on while the scenario's storm lasts;
afterwards everything must converge, and what was expected must hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from agent.core.device import Device
from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import (
    AddDevices,
    CancelDeployment,
    CreateDeployment,
    DeploymentDraft,
    ImportUpdate,
    MoveDevice,
    PolicyDraft,
    RetryDeployment,
)
from cloud_stub.orchestrator import Settings
from protocol.envelope import TrustedKeys
from protocol.errors import LastgoodError
from protocol.manifest import Manifest, read_manifest
from protocol.messages import Assignment
from protocol.outcomes import Reason
from simulator.core.chance import SeededChance
from simulator.core.facts import DeploymentSight, DeviceSight, Sight
from simulator.core.fleet import Member, failures, members
from simulator.core.model import model_of, settings_of
from simulator.core.payload import make
from simulator.core.play import Ending, Play
from simulator.core.scenario import Scenario, StormPart, UpdatePart
from simulator.core.script import ROLLBACK_OF, Deploy
from simulator.device import VirtualDevice
from simulator.ports import Answer, Got
from simulator.virtual.clock import VirtualClock
from simulator.virtual.cloud import VirtualCloud
from simulator.virtual.invariants import Invariants
from simulator.virtual.network import QUIET, Conditions, Network

LOOK_MS: Final = 250  # between two looks at the facts that the scenario waits for
FETCH_MS: Final = 15.0  # a request to the repository


@dataclass(frozen=True, slots=True)
class Run:
    """How a virtual run ended."""

    ending: Ending
    trace: str  # digest over all messages
    messages: int
    lost: int
    power_losses: int
    cloud_starts: int
    checks: int
    virtual_ms: int
    steps: int


class VirtualWorld:
    """The port `Stage` in virtual time."""

    def __init__(
        self, scenario: Scenario, seed: int | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.scenario = scenario
        self.seed = scenario.seed if seed is None else seed
        self.clock = VirtualClock()
        self.invariants = Invariants()
        self.devices: dict[str, VirtualDevice] = {}
        self.power_losses = 0
        self._tell = say
        self._members = members(scenario, self.seed)
        self._model = model_of(scenario, failures(scenario.failure, self._members, self.seed))
        self._settings = settings_of(scenario)
        self._chance = SeededChance(self.seed, "world")
        calm = Conditions(
            latency_ms=scenario.network.latency_ms or QUIET.latency_ms, spread=scenario.network.spread
        )
        self._calm = calm
        self.network = Network(self.clock, self.seed, calm)
        heartbeat_ms = round(scenario.device.heartbeat_s * 1_000)
        cloud_settings = Settings(heartbeat_ms=heartbeat_ms, sync_window_ms=min(10_000, heartbeat_ms))
        self.cloud = VirtualCloud(
            open_store("sqlite://"), self.clock, self.network, self.seed, cloud_settings
        )
        self._keys = TrustedKeys([self.cloud.director.public_pem])
        self._repository = MemoryRepository(self.clock, self.seed)
        self._here: set[str] = set()  # devices whose fleet has joined, though they may not have arrived
        self._deployments: dict[str, str] = {}
        self._groups: dict[str, str] = {}

    def run(self) -> Run:
        """Play the scenario to its end, and return how it went.

        Raises:
            InvariantBroken: a rule did not hold on the way.
        """
        self.network.to_cloud = self.cloud.deliver
        self.network.watch = self.invariants.message_passed
        self.cloud.after_turn = lambda publishes: self.invariants.turn_ended(self.cloud.store, publishes)
        self.cloud.start()
        self.cloud.ask(AddDevices({member.id: "of no use here" for member in self._members}))
        for member in self._members:
            self._make(member)
            if member.arrives_ms is not None:
                self._arrive(member, member.arrives_ms)
        if self.scenario.storm is not None:
            self._let_storm(self.scenario.storm)
        play = Play(self.scenario, self, 0.0, self._say)
        self._play(play)
        ending = play.ending
        if ending is None:
            raise RuntimeError("the play ended without an ending")
        self.invariants.everything_counted(self.cloud.store)
        return Run(
            ending,
            self.network.trace,
            self.network.messages,
            self.network.lost,
            self.power_losses,
            self.cloud.starts,
            self.invariants.checks + sum(device.slot_checks for device in self.devices.values()),
            self.clock.now_ms(),
            self.clock.steps,
        )

    # --- the stage ---------------------------------------------------------------------------------------------

    def import_update(self, update: UpdatePart) -> None:
        """Make an update known to the cloud."""
        made = make(update, self.seed)
        self._repository.add(made.manifest)
        self._ask(lambda: self.cloud.ask(ImportUpdate(made.manifest)))

    def deploy(self, step: Deploy) -> None:
        """Make a deployment."""
        policy = step.policy
        draft = DeploymentDraft(
            group=step.group,
            updates=tuple(step.updates),
            policy=PolicyDraft(
                policy.failed_percent,
                policy.failed_count,
                tuple(policy.rollback_to),
                policy.match,
                policy.percent_of,
            )
            if policy
            else None,
            allow_downgrade=step.allow_downgrade,
            retries=step.retries,
            retry_delay_ms=round(step.retry_delay_s * 1_000),
            device_timeout_ms=round(step.device_timeout_s * 1_000),
            attempt_timeout_ms=round(step.attempt_timeout_s * 1_000),
        )
        made = self._ask(lambda: self.cloud.ask(CreateDeployment(draft)))
        self._deployments[step.name] = made if isinstance(made, str) else made.id

    def move(self, device: str, group: str | None) -> None:
        """Put a device into a group by the operator's override."""
        self._ask(lambda: self.cloud.ask(MoveDevice(device, group)))
        self._groups[device] = group or next(member.group for member in self._members if member.id == device)

    def cancel(self, deployment: str) -> None:
        """End a deployment."""
        self._ask(lambda: self.cloud.ask(CancelDeployment(self._id(deployment))))

    def retry(self, deployment: str, devices: Sequence[str]) -> None:
        """Give failed devices a new attempt."""
        self._ask(lambda: self.cloud.ask(RetryDeployment(self._id(deployment), tuple(devices))))

    def join(self, fleet: str) -> None:
        """Let a fleet arrive that was kept back."""
        for member in self._members:
            if member.fleet == fleet:
                self._arrive(member, round(self._chance.uniform() * 1_000))

    def look(self, *, cloud: bool, said: bool) -> Sight:
        """Return everything as it is."""
        devices = {
            name: DeviceSight(
                self._groups.get(name, device.member.group),
                device.running,
                device.connection is not None,
                device.on_last_known_good,
                str(device.phase),
            )
            for name, device in self.devices.items()
            if name in self._here
        }
        return Sight(devices, self._deployment_sights() if cloud else {}, self._said_of() if said else {})

    # --- faults ------------------------------------------------------------------------------------------------

    def lose_power(self, device: VirtualDevice, dark_ms: int) -> None:
        """Take a device's power for a while."""
        self.power_losses += 1
        device.lose_power()
        link = self.network.link(device.id)
        link.cut()

        def back() -> None:
            device.start()
            link.open()

        self.clock.call_later(max(1, dark_ms), back)

    def restart_cloud(self, down_ms: int) -> None:
        """Kill the cloud, and start another one over the same database after a while."""
        if self.cloud.up:
            self.cloud.kill()
            self.clock.call_later(down_ms, self.cloud.start)

    def _let_storm(self, storm: StormPart) -> None:
        self.network.conditions = replace(
            self._calm,
            loss=storm.loss,
            duplicate=storm.duplicate,
            late=storm.late,
            late_ms=storm.late_s * 1_000,
            drop_connection=storm.drop_connection,
        )
        self._repository.fails = storm.fetch_fails
        down_ms = round(storm.cloud_down_s * 1_000)
        for number, at_s in enumerate(storm.cloud_kills_s):
            kill = partial(self.restart_cloud, down_ms)
            amid = partial(self.cloud.die_sending, kill)
            self.clock.call_later(round(at_s * 1_000), amid if number % 2 else kill)
        for _ in range(storm.power_losses):
            at_ms = round(self._chance.uniform() * storm.until_s * 1_000)
            self.clock.call_later(at_ms, lambda: self._strike(storm))
        self.clock.call_later(round(storm.until_s * 1_000), self._calm_down)

    def _strike(self, storm: StormPart) -> None:
        """Take the power of a device that has it; those in the middle of their work are struck first."""
        lit = [device for device in self.devices.values() if device.core is not None]
        busy = [device for device in lit if device.phase != "idle"]
        choice = busy or lit
        if choice:
            device = choice[int(self._chance.uniform() * len(choice))]
            self.lose_power(device, round(self._chance.uniform() * storm.dark_s * 1_000))

    def _calm_down(self) -> None:
        self.cloud.die_sending(None)
        self.network.conditions = self._calm
        self._repository.fails = 0.0

    # --- helpers -----------------------------------------------------------------------------------------------

    def _play(self, play: Play) -> None:
        while not play.advance(self.clock.now_ms() / 1_000):
            self.clock.run_until(self.clock.now_ms() + LOOK_MS)

    def _make(self, member: Member) -> None:
        chance = SeededChance(self.seed, member.id)
        keys, settings = self._keys, self._settings

        def make_core() -> Device:
            return Device(member.id, keys, chance, settings, dict(member.properties), dict(member.tags))

        link = self.network.link(member.id)
        device = VirtualDevice(member, make_core, chance, self.clock, link, self._repository, self._model)
        link.on_up = device.connected
        link.on_down = device.disconnected
        link.on_message = device.delivered
        self.devices[member.id] = device

    def _arrive(self, member: Member, delay_ms: int) -> None:
        device, link = self.devices[member.id], self.network.link(member.id)
        self._here.add(member.id)

        def arrive() -> None:
            device.start()
            link.open()

        self.clock.call_later(delay_ms, arrive)

    def _ask(self, ask: Callable[[], Any]) -> Any:
        """Ask the cloud; an operator whose cloud is down tries again until it is up."""
        if not self.cloud.up and not self.clock.run_while(
            lambda: not self.cloud.up, self.clock.now_ms() + 600_000
        ):
            raise LastgoodError("The cloud did not come back within ten minutes.")
        return ask()

    def _id(self, name: str) -> str:
        """Return the id of a deployment that a step, or the trip of one, has made."""
        known = self._deployments.get(name.removeprefix(ROLLBACK_OF))
        if known is None:
            raise LastgoodError(f"No deployment is called {name!r}.")
        if not name.startswith(ROLLBACK_OF):
            return known
        with self.cloud.store.read() as reader:
            row = reader.deployment(known)
        if row is None or row.rollback is None:
            raise LastgoodError(f"The deployment {name.removeprefix(ROLLBACK_OF)!r} was not rolled back.")
        return row.rollback

    def _deployment_sights(self) -> Mapping[str, DeploymentSight]:
        found = {}
        with self.cloud.store.read() as reader:
            for name, identity in self._deployments.items():
                row = reader.deployment(identity)
                back = reader.deployment(row.rollback) if row is not None and row.rollback else None
                for label, each in ((name, row), (f"{ROLLBACK_OF}{name}", back)):
                    if each is not None:
                        tally = {field: getattr(each.tally, field) for field in each.tally.__slots__}
                        found[label] = DeploymentSight(each.id, str(each.state), tally)
        return found

    def _said_of(self) -> Mapping[str, tuple[str, str | None]]:
        with self.cloud.store.read() as reader:
            rows = reader.devices(self.devices)
        return {name: (row.group, row.running_update) for name, row in rows.items()}

    def _say(self, sentence: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.clock.now_ms() / 1_000:9.3f} s  {sentence}")


class MemoryRepository:
    """The port `Content` in memory: manifests by sha256, and files that are only time."""

    def __init__(self, clock: VirtualClock, seed: int) -> None:
        self.fails = 0.0
        self._clock = clock
        self._chance = SeededChance(seed, "repository")
        self._manifests: dict[str, bytes] = {}

    def add(self, manifest: bytes) -> None:
        """Put a manifest in."""
        self._manifests[read_manifest(manifest).sha256] = manifest

    def manifest(self, order: Assignment, answer: Answer) -> None:
        """Answer with a manifest's bytes."""
        data = self._manifests.get(order.target.sha256) if order.target else None
        if data is None:
            self._later(answer, Got(reason=Reason.SERVER, detail="there is no such manifest", refresh=True))
        else:
            self._later(answer, Got(manifest=data))

    def files(self, order: Assignment, manifest: Manifest, fetches: bool, answer: Answer) -> None:
        """Answer that the files are there."""
        self._later(answer, Got())

    def _later(self, answer: Answer, got: Got) -> None:
        if self.fails and self._chance.uniform() < self.fails:
            got = Got(reason=Reason.NETWORK, detail="the transfer broke off", transient=True)
        self._clock.call_later(self._chance.spread_ms(FETCH_MS, 0.5), lambda: answer(got))
