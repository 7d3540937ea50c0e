"""A scenario's stage in the live world: a fleet on real MQTT, and a running cloud behind its API.

It holds no rules: `simulator/core/play.py` says what is done when, and `simulator/core/facts.py` what holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from protocol.errors import OperatorError
from simulator.core.facts import DeploymentSight, Sight
from simulator.core.fleet import Member
from simulator.core.payload import make
from simulator.core.scenario import UpdatePart
from simulator.core.script import ROLLBACK_OF, Deploy
from simulator.live.cloud import CloudApi
from simulator.live.fleet import LiveFleet


class LiveStage:
    """The port `Stage` on a live fleet and a cloud's API."""

    def __init__(
        self, fleet: LiveFleet, api: CloudApi, members: Sequence[Member], seed: int, *, renew: bool
    ) -> None:
        self._fleet = fleet
        self._api = api
        self._members = members
        self._seed = seed
        self._renew = renew
        self._deployments: dict[str, str] = {}

    def arrive(self) -> int:
        """Register and add the devices that arrive by themselves; return how many they are."""
        return self._add(member for member in self._members if member.arrives_ms is not None)

    def import_update(self, update: UpdatePart) -> None:
        """Make an update known to the cloud."""
        self._api.import_update(make(update, self._seed))

    def deploy(self, step: Deploy) -> None:
        """Make a deployment."""
        draft = {
            "group": step.group,
            "updates": step.updates,
            "policy": step.policy.model_dump() if step.policy else None,
            "allow_downgrade": step.allow_downgrade,
            "retries": step.retries,
            "retry_delay_ms": round(step.retry_delay_s * 1_000),
            "device_timeout_ms": round(step.device_timeout_s * 1_000),
            "attempt_timeout_ms": round(step.attempt_timeout_s * 1_000),
        }
        self._deployments[step.name] = self._api.deploy(draft)

    def move(self, device: str, group: str | None) -> None:
        """Put a device into a group by the operator's override."""
        self._api.move(device, group)
        self._fleet.move(device, group)

    def cancel(self, deployment: str) -> None:
        """End a deployment."""
        self._api.cancel(self._id(deployment))

    def retry(self, deployment: str, devices: Sequence[str]) -> None:
        """Give failed devices a new attempt."""
        self._api.retry(self._id(deployment), devices)

    def join(self, fleet: str) -> None:
        """Let a fleet arrive that was kept back."""
        self._add(replace(member, arrives_ms=0) for member in self._members if member.fleet == fleet)

    def look(self, *, cloud: bool, said: bool) -> Sight:
        """Return everything as it is."""
        devices = self._fleet.sights()
        told = self._api.devices() if said else {}
        return Sight(devices, self._deployment_sights() if cloud else {}, told)

    def _add(self, members: Iterable[Member]) -> int:
        fleet = list(members)
        texts = self._api.add_devices([member.id for member in fleet], renew=self._renew)
        self._fleet.add((member, texts[member.id]) for member in fleet)
        return len(fleet)

    def _id(self, name: str) -> str:
        """Return the id of a deployment that a step, or the trip of one, has made."""
        known = self._deployments.get(name.removeprefix(ROLLBACK_OF))
        if known is None:
            raise OperatorError(f"No deployment is called {name!r}.")
        if not name.startswith(ROLLBACK_OF):
            return known
        back = self._api.deployment(known)["rollback"]
        if back is None:
            raise OperatorError(f"The deployment {name.removeprefix(ROLLBACK_OF)!r} was not rolled back.")
        return str(back)

    def _deployment_sights(self) -> Mapping[str, DeploymentSight]:
        found = {}
        for name, identity in self._deployments.items():
            view = self._api.deployment(identity)
            found[name] = DeploymentSight(identity, view["state"], view["tally"])
            if view["rollback"]:
                back = self._api.deployment(view["rollback"])
                found[f"{ROLLBACK_OF}{name}"] = DeploymentSight(back["id"], back["state"], back["tally"])
        return found
