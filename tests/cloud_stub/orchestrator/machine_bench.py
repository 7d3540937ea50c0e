"""Devices that behave as the agent's table says, over a link that holds messages back, doubles and reorders them.

It is the bench of `test_machine.py`; it judges nothing but that an acknowledgement speaks of what the database has.
"""

from dataclasses import dataclass, field
from typing import Any

from cloud_stub.orchestrator import Delivered, Publish
from protocol import messages
from protocol.lifecycle import PAST_NO_RETURN, WorkflowState
from protocol.messages import Ack, Answer, Assignment, Running, WorkReport
from protocol.outcomes import Abandoned, Reason, Result
from protocol.topics import Kind
from tests.cloud_stub.orchestrator.cloud_bench import Cloud, Pi

W = WorkflowState
PHASES = (W.DOWNLOADING, W.INSTALLING, W.READY, W.SWITCHING, W.RESTARTING, W.CONFIRMING)


@dataclass
class Box(Pi):
    """A device that knows what it works on, and what it ran before."""

    working: Assignment | None = None
    phase: WorkflowState = W.IDLE
    done_epoch: int = 0  # of the newest order that it took up
    before: Running | None = None
    answer: Answer | None = None
    concluded: set[tuple[str | None, int | None]] = field(default_factory=set)  # deployments and attempts


class Field(Cloud):
    """A cloud whose incoming messages can be held back and let go in one batch."""

    def __init__(self) -> None:
        self.held: list[Delivered] | None = None
        self.past: list[Delivered] = []
        super().__init__()

    def feed(self, *inputs: Any) -> list[Publish]:
        """Handle inputs, or hold back what devices say."""
        self.past += [item for item in inputs if isinstance(item, Delivered)]
        if self.held is not None and inputs and all(isinstance(item, Delivered) for item in inputs):
            self.held += inputs
            return []
        return super().feed(*inputs)

    def let_go(self, order: str, *more: Any) -> None:
        """Handle all that was held back, with more inputs in the middle, in one transaction."""
        held, self.held = self.held or [], None
        if order == "backwards":
            held.reverse()
        elif order == "doubled":
            held = [item for item in held for _ in range(2)]
        middle = len(held) // 2
        super().feed(*held[:middle], *more, *held[middle:])

    def box(self, device: str, group: str | None, model: str) -> Box:
        """Add a device that says hello and reports itself."""
        made = self.pi(device, group, model=model, silent=True)
        box = Box(made.id, made.tags, made.properties)
        self.pis[device] = box
        self.hello(box)
        self.tell(box)
        return box

    def tell(self, box: Box) -> None:
        """Report the whole state as it is."""
        box.work = WorkReport()
        if box.working is not None:
            box.work = WorkReport(
                state=box.phase,
                deployment=box.working.deployment,
                epoch=box.working.epoch,
                attempt=box.working.attempt,
            )
        self.state(
            box, answer=box.answer, epoch_in_work=box.working.epoch if box.working is not None else None
        )

    def obey(self, box: Box) -> None:
        """Take up the newest order, as the agent's table says."""
        order = box.order
        if order is None or order.epoch <= box.done_epoch:
            return
        working, past = box.working, box.phase in PAST_NO_RETURN
        if order.action == "hold":
            box.done_epoch = order.epoch
            self._hold(box, order, working, past)
            return
        assert order.target is not None
        if working is not None and working.target is not None:
            same = working.target.sha256 == order.target.sha256
            phase = box.phase
            self.ended(box, Result.ABANDONED, abandoned=Abandoned.RETRIED if same else Abandoned.REPLACED)
            if same:
                box.working, box.phase = order, phase
        box.done_epoch = order.epoch
        if box.working is None:
            box.working, box.phase = order, W.DOWNLOADING
            if box.running is not None and box.running.sha256 == order.target.sha256:
                self.ended(box, Result.SUCCEEDED, already_there=True)

    def ended(
        self,
        box: Box,
        result: Result,
        reason: Reason | None = None,
        abandoned: Abandoned | None = None,
        *,
        already_there: bool = False,
    ) -> None:
        """End the attempt in work with an outcome, which the next state carries."""
        order, phase = box.working, box.phase
        assert order is not None
        assert order.target is not None
        assert order.deployment is not None
        assert order.attempt is not None
        if result is Result.SUCCEEDED and not already_there:
            box.before, box.running = (
                box.running,
                Running(update=order.target.update, sha256=order.target.sha256),
            )
        box.outcomes = [
            *box.outcomes,
            messages.OutcomeReport(
                epoch=order.epoch,
                deployment=order.deployment,
                attempt=order.attempt,
                result=result,
                reason=reason,
                phase=phase,
                abandoned=abandoned,
                already_there=already_there,
                running_sha256=box.running.sha256 if box.running else None,
            ),
        ]
        box.concluded.add((order.deployment, order.attempt))
        box.working, box.phase = None, W.IDLE

    def _hold(self, box: Box, order: Assignment, working: Assignment | None, past: bool) -> None:
        named = (order.deployment, order.attempt)
        if working is None:
            fresh = order.deployment is not None and named not in box.concluded
            box.answer = Answer(epoch=order.epoch, answer="canceled" if fresh else "held")
        elif past:
            box.answer = Answer(epoch=order.epoch, answer="too_late")
        else:
            box.answer = Answer(epoch=order.epoch, answer="canceled")
            self.ended(box, Result.ABANDONED, abandoned=Abandoned.CANCELED)

    def _hand_over(self, message: Publish) -> None:
        if message.kind is Kind.ACK:
            ack = messages.read(Ack, message.payload)
            assert ack.newest_epoch == self.device(message.device).epoch, (
                "R4: it opens the gate for an older order"
            )
        if message.kind is Kind.DESIRED and self.pis[message.device].epoch is None:
            order = messages.read(Assignment, self.keys.open_envelope(message.payload))
            if order.nonce is None:  # it is refused (R3): the cloud does not know yet that the disk was lost
                return
        super()._hand_over(message)
