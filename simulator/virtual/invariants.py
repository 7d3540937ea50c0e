"""What must hold at every moment of a run, checked while it runs and not at its end (DESIGN.md section 6).

It changes nothing, and raises at the first breach: the run stops where the rule broke.
"""

from typing import Any

from cloud_stub.orchestrator import Publish
from cloud_stub.ports import Store
from protocol.lifecycle import DeploymentState
from protocol.messages import State, read
from protocol.topics import Kind
from simulator.core.invariants import InvariantBroken


class Invariants:
    """Watches messages and the cloud's rows; each device holds its own slots to theirs."""

    def __init__(self) -> None:
        self.checks = 0
        self._epochs: dict[str, int] = {}
        self._ordered: dict[str, int] = {}
        self._verdicts: dict[tuple[str, str, int, int], tuple[str, str | None]] = {}
        self._tallies: dict[str, Any] = {}

    def message_passed(self, way: str, device: str, kind: Kind, payload: bytes) -> None:
        """Hold a message to what its device said before: epochs never fall, a verdict is decided once (R1, R7)."""
        if way != "up" or kind is not Kind.STATE:
            return
        self.checks += 1
        state = read(State, payload)
        self._epoch_never_falls(device, state.epoch)
        for outcome in state.outcomes:
            key = (device, outcome.deployment, outcome.attempt, outcome.epoch)
            said = (str(outcome.result), str(outcome.reason) if outcome.reason else None)
            known = self._verdicts.setdefault(key, said)
            if known != said and said[1] != "fell_back":  # a later fall-back withdraws a success (R18)
                raise InvariantBroken(
                    f"{device}: attempt {key[1:]} ended {known}, and later {said} (one verdict an attempt)."
                )

    def turn_ended(self, store: Store, publishes: list[Publish]) -> None:
        """Hold the cloud's rows to the rules after a transaction, and what it sends to what it sent before."""
        self.checks += 1
        for publish in publishes:
            if publish.order is not None:
                device, epoch = publish.order
                if epoch < self._ordered.get(device, 0):
                    raise InvariantBroken(
                        f"{device}: the cloud sent epoch {epoch} after {self._ordered[device]} (R2)."
                    )
                self._ordered[device] = epoch
        with store.read() as reader:
            deployments = reader.list_deployments()
            active = [row.group for row in deployments if row.state is DeploymentState.ACTIVE]
            if len(active) != len(set(active)):
                raise InvariantBroken(
                    f"a group has two active deployments: {sorted(active)} (section 3, rule 1)."
                )
            for row in deployments:
                if self._tallies.get(row.id) == row.tally:
                    continue
                counted = reader.count_assignments(row.id)
                if counted != row.tally:
                    raise InvariantBroken(
                        f"deployment {row.id}: the tally is {row.tally}, a count of its rows {counted} (R14)."
                    )
                self._tallies[row.id] = row.tally

    def everything_counted(self, store: Store) -> None:
        """Recount every deployment, whether its tally changed or not."""
        self._tallies.clear()
        self.turn_ended(store, [])

    def _epoch_never_falls(self, device: str, epoch: int | None) -> None:
        known = self._epochs.get(device, 0)
        if (epoch or 0) < known:
            raise InvariantBroken(f"{device}: its epoch fell from {known} to {epoch} (R1).")
        self._epochs[device] = epoch or 0
