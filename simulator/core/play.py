"""Plays a scenario's steps on a stage, one look at a time, and judges at the end what was expected.

It has no clock and no loop: a world calls `advance` again and again with its own time, a virtual one or the wall's. It
keeps the rule that a step waits for a fact and never for a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import LastgoodError, ServiceError
from simulator.core.facts import Judgement, Sight, judge, needs_cloud, needs_said
from simulator.core.scenario import Scenario, UpdatePart
from simulator.core.script import Cancel, Deploy, Fact, Import, Join, Move, Retry, Step, Wait


class Stage(Protocol):
    """Where a scenario is played: a fleet, and a cloud whose operator does what the steps say.

    Every call may raise a `LastgoodError`, whose sentence ends the run.
    """

    def import_update(self, update: UpdatePart) -> None:
        """Make an update known to the cloud."""

    def deploy(self, step: Deploy) -> None:
        """Make a deployment, which is called by the step's name from now on."""

    def move(self, device: str, group: str | None) -> None:
        """Put a device into a group by the operator's override."""

    def cancel(self, deployment: str) -> None:
        """End a deployment, named as its step named it."""

    def retry(self, deployment: str, devices: Sequence[str]) -> None:
        """Give failed devices a new attempt."""

    def join(self, fleet: str) -> None:
        """Let a fleet arrive that was kept back."""

    def look(self, *, cloud: bool, said: bool) -> Sight:
        """Return everything as it is; the deployments, and what the cloud says of devices, only when asked for."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: the expectations one by one, and what went wrong before them, if anything did."""

    judgements: tuple[Judgement, ...]
    broke: str = ""

    @property
    def held(self) -> bool:
        """Whether everything was as expected."""
        return not self.broke and all(judgement.held for judgement in self.judgements)


class Play:
    """One run through a scenario. Times are seconds on the world's own clock."""

    def __init__(self, scenario: Scenario, stage: Stage, began_s: float, say: Callable[[str], None]) -> None:
        self._scenario = scenario
        self._stage = stage
        self._say = say
        self._began_s = began_s
        self._step = 0
        self._entered_s = began_s
        self._settling_s: float | None = None
        self.ending: Ending | None = None

    @property
    def waits_for(self) -> str:
        """What it waits for now, in a few words."""
        if self._step < len(self._scenario.step):
            return describe(self._scenario.step[self._step])
        return "what is expected"

    def advance(self, now_s: float) -> bool:
        """Carry out steps as far as the facts allow, and return whether the run is over (`ending` says how)."""
        try:
            return self._advance(now_s)
        except LastgoodError as error:  # the cloud refused a step, or the stage broke down
            self.ending = Ending((), f"{self.waits_for}: {error}")
            return True

    def _advance(self, now_s: float) -> bool:
        if self.ending is None and now_s - self._began_s > self._scenario.limit_s:
            self._end(f"the run took longer than limit_s = {self._scenario.limit_s:g}, in: {self.waits_for}")
        while self.ending is None and self._step < len(self._scenario.step):
            if not self._carry_out(self._scenario.step[self._step], now_s):
                return self.ending is not None
            self._step += 1
            self._entered_s = now_s
        if self.ending is None:
            self._settle(now_s)
        return self.ending is not None

    def _carry_out(self, step: Step, now_s: float) -> bool:
        """Return whether the step is done."""
        if isinstance(step, Wait):
            return self._wait(step, now_s)
        self._say(describe(step))
        match step:
            case Import():
                self._stage.import_update(
                    next(update for update in self._scenario.update if update.id == step.update)
                )
            case Deploy():
                self._stage.deploy(step)
            case Move():
                self._stage.move(step.device, step.group)
            case Cancel():
                self._stage.cancel(step.deployment)
            case Retry():
                self._stage.retry(step.deployment, step.devices)
            case Join():
                self._stage.join(step.fleet)
        return True

    def _wait(self, step: Wait, now_s: float) -> bool:
        judgement = self._judge(step.until)
        waited_s = now_s - self._entered_s
        if judgement.held:
            self._say(f"{describe(step)}: yes, after {waited_s:.1f} s")
        elif waited_s > step.within_s:
            self._end(f"waited {step.within_s:g} s in vain: {judgement.sentence}")
        return judgement.held

    def _settle(self, now_s: float) -> None:
        """End when everything expected holds, or when it had its time."""
        if self._settling_s is None:
            self._settling_s = now_s
        judgements = tuple(self._judge(fact) for fact in self._scenario.expect)
        if (
            all(judgement.held for judgement in judgements)
            or now_s - self._settling_s >= self._scenario.settle_s
        ):
            self.ending = Ending(judgements)

    def _end(self, broke: str) -> None:
        self.ending = Ending(tuple(self._judge(fact) for fact in self._scenario.expect), broke)

    def _judge(self, fact: Fact) -> Judgement:
        try:
            return judge(fact, self._stage.look(cloud=needs_cloud(fact), said=needs_said(fact)))
        except ServiceError as error:  # a cloud that restarts is looked at again
            return Judgement(False, str(error))


def describe(step: Step) -> str:
    """Return a step in a few words, as a progress line shows it."""
    match step:
        case Import():
            return f"import {step.update}"
        case Deploy():
            text = f"deploy {', '.join(step.updates)} to {step.group} as {step.name!r}"
            if step.policy is None:
                return text
            joined = "and" if step.policy.match == "all" else "or"
            back = ", ".join(step.policy.rollback_to)
            numbers = f"{step.policy.failed_count} failed {joined} {step.policy.failed_percent} %"
            return f"{text}; back to {back} at {numbers}"
        case Move():
            return (
                f"move {step.device} to {step.group}"
                if step.group
                else f"give {step.device} back to its tag's group"
            )
        case Cancel():
            return f"cancel {step.deployment!r}"
        case Retry():
            return f"retry {step.deployment!r}" + (f" on {', '.join(step.devices)}" if step.devices else "")
        case Join():
            return f"let {step.fleet} join"
        case Wait():
            return f"wait for {describe_fact(step.until)}"


def describe_fact(fact: Fact) -> str:
    """Return a fact in a few words."""
    values = fact.model_dump(mode="json", exclude_none=True, exclude={"what"})
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{fact.what} ({shown})" if shown else fact.what
