"""A hand-written fake of the port `Link`, with a small cloud behind it: it signs, acknowledges, remembers."""

import threading
from collections.abc import Callable
from typing import Any

from agent.core.model import Connected, Delivered, Disconnected, Event
from protocol.messages import Ack, Assignment, Hello, State, read, write
from protocol.topics import Kind
from tests.agent.builders import DIRECTOR


class FakeLink:
    """Takes what the runtime publishes, and answers as a cloud would."""

    def __init__(self) -> None:
        self.inbox: Callable[[Event], None] = lambda event: None
        self.order: Assignment | None = None
        self.hellos: list[Hello] = []
        self.states: list[State] = []
        self.progressed: list[bytes] = []
        self.spreads: list[int] = []
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Connect at once."""
        self.calls.append("start")
        self.inbox(Connected("c-1"))

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Answer what a device says."""
        if kind is Kind.HELLO:
            hello = read(Hello, payload)
            self.hellos.append(hello)
            with self._lock:
                self._offer(hello)
                self._ack(hello.instance, hello.sequence, hello.digest if self.states else None, hello.nonce)
        elif kind is Kind.STATE:
            state = read(State, payload)
            self.states.append(state)
            self._ack(state.instance, state.sequence, state.digest, None)
        else:
            self.progressed.append(payload)

    def spread(self, milliseconds: int) -> None:
        """Remember what the cloud told."""
        self.spreads.append(milliseconds)

    def close(self) -> None:
        """Remember the end."""
        self.calls.append("close")

    def give(self, order: Assignment) -> None:
        """Order something, now and to whoever says hello later."""
        with self._lock:
            self.order = order
            if self.hellos:
                self._offer(self.hellos[-1], again=True)

    def drop(self) -> None:
        """Lose the connection, and get it back."""
        self.inbox(Disconnected())
        self.inbox(Connected("c-2"))

    def outcomes(self) -> list[tuple[int, str, Any]]:
        """Every outcome that arrived, in order: epoch, result, reason."""
        found: dict[int, tuple[int, str, Any]] = {}
        for state in list(self.states):
            for each in state.outcomes:
                found[each.epoch] = (each.epoch, str(each.result), each.reason and str(each.reason))
        return list(found.values())

    def _offer(self, hello: Hello, *, again: bool = False) -> None:
        if self.order is not None and (again or hello.epoch != self.order.epoch):
            order = self.order.model_copy(update={"nonce": hello.nonce})
            self.inbox(Delivered(Kind.DESIRED, DIRECTOR.sign(write(order))))

    def _ack(self, instance: str, sequence: int, digest: str | None, nonce: str | None) -> None:
        held = self.states[-1].sequence if self.states else 0
        ack = Ack(
            device="pi-1",
            instance=instance,
            sequence=min(sequence, held),
            digest=digest if sequence <= held else None,
            newest_epoch=self.order.epoch if self.order else 0,
            nonce=nonce,
            reconnect_spread_ms=1_500,
        )
        self.inbox(Delivered(Kind.ACK, write(ack)))
