"""Playing a scenario's steps on a stage that is written by hand."""

from collections.abc import Callable, Sequence

from protocol.errors import OperatorError, ServiceError
from simulator.core.facts import DeploymentSight, DeviceSight, Sight
from simulator.core.play import Play
from simulator.core.scenario import UpdatePart, read_scenario
from simulator.core.script import Deploy
from tests.simulator.scenarios import SMALL

SCENARIO = read_scenario(SMALL, "small.toml")


class FakeStage:
    """A stage that notes what it is asked, and shows what a test puts into `sight`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.sight = Sight({})
        self.fails: Callable[[], None] = lambda: None

    def import_update(self, update: UpdatePart) -> None:
        """Note it."""
        self.done.append(f"import {update.id}")

    def deploy(self, step: Deploy) -> None:
        """Note it."""
        self.fails()
        self.done.append(f"deploy {step.name}")

    def move(self, device: str, group: str | None) -> None:
        """Note it."""
        self.done.append(f"move {device}")

    def cancel(self, deployment: str) -> None:
        """Note it."""
        self.done.append(f"cancel {deployment}")

    def retry(self, deployment: str, devices: Sequence[str]) -> None:
        """Note it."""
        self.done.append(f"retry {deployment}")

    def join(self, fleet: str) -> None:
        """Note it."""
        self.done.append(f"join {fleet}")

    def look(self, *, cloud: bool, said: bool) -> Sight:
        """Show it."""
        if cloud and not self.sight.deployments:
            raise ServiceError("The cloud does not answer.")
        return self.sight


def begun(stage: FakeStage) -> Play:
    """Return a play at its beginning."""
    return Play(SCENARIO, stage, 0.0, lambda _: None)


def all_run(count: int) -> dict[str, DeviceSight]:
    """Return devices that run the update."""
    return {f"k-{number}": DeviceSight("kitchen", "acme/app:1.0", True, True) for number in range(count)}


def test_steps_go_in_order_until_one_waits() -> None:
    """A wait holds up what stands behind it until its fact holds, and no longer."""
    stage = FakeStage()
    play = begun(stage)
    assert not play.advance(1.0)
    assert stage.done == ["import acme/app:1.0", "deploy first", "join late"]
    assert play.waits_for.startswith("wait for runs")
    stage.sight = Sight(all_run(5), {"first": DeploymentSight("d1", "active", {"counted": 1})})
    assert play.advance(2.0)
    assert play.ending is not None
    assert play.ending.held


def test_a_wait_in_vain_ends_the_run_with_its_numbers() -> None:
    """The sentence says what was seen when the time was up."""
    stage = FakeStage()
    play = begun(stage)
    assert not play.advance(0.0)
    stage.sight = Sight(all_run(4))
    assert not play.advance(60.0)
    assert play.advance(60.1)
    assert play.ending is not None
    assert not play.ending.held
    assert "4 run acme/app:1.0" in play.ending.broke


def test_what_is_expected_has_time_to_settle_and_no_more() -> None:
    """A cloud that does not answer is looked at again until settle_s is over."""
    stage = FakeStage()
    stage.sight = Sight(all_run(5))
    play = begun(stage)
    assert not play.advance(0.0)
    assert not play.advance(SCENARIO.settle_s - 0.1)
    assert play.advance(SCENARIO.settle_s)
    assert play.ending is not None
    assert [judgement.sentence for judgement in play.ending.judgements] == ["The cloud does not answer."]


def test_a_step_that_the_cloud_refuses_ends_the_run() -> None:
    """The cloud's own sentence is what the operator reads."""

    def refuse() -> None:
        raise OperatorError("update acme/app:1.0 is not imported")

    stage = FakeStage()
    stage.fails = refuse
    play = begun(stage)
    assert play.advance(0.0)
    assert play.ending is not None
    assert "is not imported" in play.ending.broke


def test_the_whole_run_has_a_limit() -> None:
    """limit_s ends a run whatever it waits for."""
    stage = FakeStage()
    play = begun(stage)
    assert not play.advance(0.0)
    assert play.advance(SCENARIO.limit_s + 1)
    assert play.ending is not None
    assert "limit_s" in play.ending.broke
