"""A virtual device with the agent's real core, on a virtual clock: orders are signed and answered by hand."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.core.device import Device
from agent.core.model import Holds
from agent.core.settings import Settings
from protocol.envelope import DirectorKey, TrustedKeys
from protocol.lifecycle import WorkflowState
from protocol.manifest import Manifest, read_manifest
from protocol.messages import Ack, Assignment, Hello, OutcomeReport, Repository, State, Target, read, write
from protocol.outcomes import Reason, Result
from protocol.topics import Kind
from simulator.core.chance import SeededChance
from simulator.core.fleet import Failure, Failures, How, Member
from simulator.core.payload import make
from simulator.core.scenario import UpdatePart
from simulator.device import Model, VirtualDevice
from simulator.ports import Answer, Got
from simulator.virtual.clock import VirtualClock

KEY = DirectorKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
MEMBER = Member("dev-1", "all", "kitchen", {"model": "one"}, {"group": "kitchen"}, 0, True)
MADE = {
    name: make(UpdatePart(id=name, size_bytes=500, compatibility=[{"model": "one"}]), 1)
    for name in ("acme/app:1.0", "acme/app:2.0")
}
LONG_MS = 10 * 60_000


class FakeContent:
    """The port `Content`: answers on the clock, with what a test says."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.got = Got()
        self.asked = 0

    def manifest(self, order: Assignment, answer: Answer) -> None:
        """Answer with the manifest that the order names."""
        target = order.target
        data = MADE[target.update].manifest if target else None
        self.clock.call_later(5, lambda: answer(Got(manifest=data)))

    def files(self, order: Assignment, manifest: Manifest, fetches: bool, answer: Answer) -> None:
        """Answer with what the test has put into `got`."""
        self.asked += 1
        self.clock.call_later(5, lambda: answer(self.got))


class Bench:
    """One device, and a cloud written by hand that answers each hello and acknowledges each state."""

    def __init__(self, failing: Failures, settings: Settings, soak_ms: int) -> None:
        self.clock = VirtualClock()
        self.content = FakeContent(self.clock)
        self.epoch = 0
        self.order: bytes | None = None
        self.states: list[State] = []
        chance = SeededChance(1, "dev-1")
        keys = TrustedKeys([KEY.public_pem])

        def make_core() -> Device:
            return Device("dev-1", keys, chance, settings, dict(MEMBER.properties), dict(MEMBER.tags))

        model = Model(500, 0.3, 300, 0.3, soak_ms, failing)
        self.device = VirtualDevice(MEMBER, make_core, chance, self.clock, self, self.content, model)
        self.device.start()
        self.device.connected("c-1")

    def publish(self, kind: Kind, payload: bytes) -> None:
        """The port `Transport`: the cloud's answers come a little later."""
        if kind is Kind.STATE:
            self.states.append(read(State, payload))
            state = self.states[-1]
            self.answer(state.instance, state.sequence, state.digest, None)
        elif kind is Kind.HELLO:
            hello = read(Hello, payload)
            self.answer(hello.instance, hello.sequence, hello.digest, hello.nonce)
            if self.order is None or hello.epoch is None:
                self.deliver(Kind.DESIRED, self.signed(hello.nonce))

    def answer(self, instance: str, sequence: int, digest: str, nonce: str | None) -> None:
        """Acknowledge."""
        ack = Ack(
            device="dev-1",
            instance=instance,
            sequence=sequence,
            digest=digest,
            newest_epoch=self.epoch,
            nonce=nonce,
        )
        self.deliver(Kind.ACK, write(ack))

    def deliver(self, kind: Kind, payload: bytes) -> None:
        """Send to the device."""
        self.clock.call_later(10, lambda: self.device.delivered(kind, payload))

    def want(self, update: str) -> None:
        """Order an update, with a higher epoch."""
        self.epoch += 1
        self.wanted = update
        self.order = self.signed(None)
        self.deliver(Kind.DESIRED, self.order)

    def signed(self, nonce: str | None) -> bytes:
        """Return the order in force, or a hold when there is none."""
        if self.epoch == 0:
            hold = Assignment(
                device="dev-1", epoch=0, issued_ms=0, lifetime_ms=10**9, action="hold", nonce=nonce
            )
            return KEY.sign(write(hold))
        manifest = read_manifest(MADE[self.wanted].manifest)
        order = Assignment(
            device="dev-1",
            epoch=self.epoch,
            issued_ms=0,
            lifetime_ms=10**9,
            action="install",
            deployment=f"d{self.epoch}",
            attempt=1,
            nonce=nonce,
            target=Target(
                update=self.wanted,
                path=manifest.update.manifest_path,
                size_bytes=manifest.size_bytes,
                sha256=manifest.sha256,
            ),
            repository=Repository(url="http://repository"),
            allow_downgrade=True,
        )
        return KEY.sign(write(order))

    def until(self, holds: Callable[[], bool]) -> None:
        """Let time pass until something holds."""
        assert self.clock.run_while(lambda: not holds(), self.clock.now_ms() + LONG_MS), (
            "it never came to hold"
        )

    def outcome(self, epoch: int) -> OutcomeReport:
        """Return the outcome of an attempt, when it has been told."""
        self.until(lambda: any(each.epoch == epoch for state in self.states for each in state.outcomes))
        return next(each for state in self.states for each in state.outcomes if each.epoch == epoch)

    def settle(self) -> None:
        """Let time pass until the device is at rest."""
        self.until(lambda: self.device.phase is WorkflowState.IDLE)


def bench(
    how: How | None = None,
    attempts: int | None = None,
    settings: Settings | None = None,
    soak_ms: int = 1_000,
) -> Bench:
    """Return a device that runs version 1.0 and has the given failure for version 2.0."""
    failing = {("dev-1", "acme/app:2.0"): Failure(how, attempts)} if how else {}
    made = Bench(failing, settings or Settings(), soak_ms)
    made.clock.run_until(1_000)
    made.want("acme/app:1.0")
    assert made.outcome(1).result is Result.SUCCEEDED
    made.settle()
    return made


def test_an_update_is_installed_tried_and_committed() -> None:
    """The real core leads the modelled slots to the new version, and no invariant breaks on the way."""
    made = bench()
    made.want("acme/app:2.0")
    assert made.outcome(2).result is Result.SUCCEEDED
    assert made.device.running == "acme/app:2.0"
    assert made.device.on_last_known_good
    assert made.device.slot_checks > 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("crash_on_start", Reason.STARTS_EXHAUSTED),
        ("health_fails", Reason.HEALTH_FAILED),
        ("install_fails", Reason.HANDLER_FAILED),
        ("download_breaks", Reason.NETWORK),
    ],
)
def test_each_kind_of_failure_ends_on_the_last_known_good(how: How, reason: Reason) -> None:
    """The scenario's failure becomes the reason that a real device would report, and version 1.0 runs again."""
    made = bench(how, settings=Settings(download_tries_max=2))
    made.want("acme/app:2.0")
    outcome = made.outcome(2)
    made.settle()
    assert (outcome.result, outcome.reason) == (Result.FAILED, reason)
    assert made.device.running == "acme/app:1.0"
    assert made.device.on_last_known_good
    assert made.device.slot_checks > 0


def test_a_crash_comes_before_the_end_of_any_soak() -> None:
    """Where a machine stood still, both are due at once: a version that crashes must not be committed for it."""
    made = bench("crash_on_start", soak_ms=1)
    made.want("acme/app:2.0")
    outcome = made.outcome(2)
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.STARTS_EXHAUSTED)


def test_a_failure_of_the_first_attempt_lets_the_second_succeed() -> None:
    """`attempts = 1`: a retry, which has a higher epoch, goes through."""
    made = bench("health_fails", attempts=1)
    made.want("acme/app:2.0")
    assert made.outcome(2).result is Result.FAILED
    made.settle()
    made.want("acme/app:2.0")
    assert made.outcome(3).result is Result.SUCCEEDED
    assert made.device.running == "acme/app:2.0"


def test_a_download_that_breaks_off_is_tried_again() -> None:
    """A transient answer of the content port is a back-off of the core, and no failure."""
    made = bench()
    made.content.got = Got(reason=Reason.NETWORK, detail="broke off", transient=True)
    made.want("acme/app:2.0")
    asked = made.content.asked
    made.until(lambda: made.content.asked >= asked + 2)
    made.content.got = Got()
    assert made.outcome(2).result is Result.SUCCEEDED


@pytest.mark.parametrize("after_ms", range(5, 3_000, 45))
def test_a_power_loss_at_any_time_loses_nothing(after_ms: int) -> None:
    """Whenever the power fails, the device comes back with a bootable slot, and the update is finished."""
    made = bench(settings=Settings(trial_starts=5))
    made.want("acme/app:2.0")
    made.clock.run_until(made.clock.now_ms() + after_ms)
    made.device.lose_power()
    assert made.device.slots.running.holds in {Holds.GOOD, Holds.TRIAL}
    made.clock.run_until(made.clock.now_ms() + 500)
    made.device.start()
    made.device.connected("c-2")
    if made.device.core is not None and (made.device.record is None or (made.device.record.epoch or 0) < 2):
        made.deliver(
            Kind.DESIRED, made.signed(None)
        )  # the order was lost with the connection: hello repairs it
    assert made.outcome(2).result is Result.SUCCEEDED
    made.settle()
    assert made.device.running == "acme/app:2.0"
    assert made.device.on_last_known_good
    assert made.device.slot_checks > 0


def test_what_an_earlier_life_began_never_answers() -> None:
    """Timers and downloads of before a power loss change nothing afterwards."""
    made = bench()
    made.want("acme/app:2.0")
    made.until(lambda: made.device.phase is WorkflowState.INSTALLING)
    made.device.lose_power()
    before = made.device.slots
    made.clock.run_until(made.clock.now_ms() + LONG_MS)
    assert made.device.slots == before
    assert made.device.core is None
