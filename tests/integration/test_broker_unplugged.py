"""The broker killed under a running cloud: the cloud starts it again, everybody reconnects, and nothing is lost."""

from collections import Counter

import pytest

from protocol.lifecycle import WorkflowState
from tests.integration.conftest import MakeAgent
from tests.integration.fleets import GROUP, enrol, members, new_fleet
from tests.processes import Cloud, beacon
from tests.waiting import until

DEVICES = 30
SOME = 5  # so many have succeeded, and so many have not, when the broker dies
SOAK_S = 3.0  # longer than a broker is away


def test_adding_a_device_cuts_nobody_off(cloud: Cloud, agent: MakeAgent) -> None:
    """The broker takes new tokens while the cloud's own connection and those of devices stay."""
    first = agent("stays", cloud.add("stays")["stays"], "stayers")
    until(lambda: cloud.online() == 1, "the first device")
    cloud.add("comes-1", "comes-2")
    agent("comes-3", cloud.add("comes-3")["comes-3"], "stayers")
    until(lambda: cloud.get("/devices/comes-3")["online"], "the last device")
    assert "connection to the broker ended" not in cloud.log
    assert first.log.count("connected to the broker") == 1


@pytest.mark.slow
def test_a_broker_that_died_in_a_rollout_is_started_again_and_nothing_is_lost(cloud: Cloud) -> None:
    """The cloud says that it ended and serves again on the same port; the rollout ends with the right counts."""
    with new_fleet() as fleet:
        enrol(cloud, fleet, members(DEVICES))
        until(lambda: cloud.get("/devices/v-029")["online"], "the fleet to be online")
        late = [f"v-{number:03}" for number in range(SOME)]
        for device in late:  # so that the middle of the rollout does not pass before it is seen
            fleet.lose_power(device)
        deployment = cloud.deploy(GROUP, cloud.take(beacon("1.0.0")))
        until(lambda: cloud.tally(deployment)["succeeded"] >= SOME, "the middle of the rollout")
        service, old = cloud.get("/service"), cloud.broker_pids
        cloud.kill_broker()
        for device in late:
            fleet.give_power(device)
        until(lambda: cloud.broker_pids and not set(cloud.broker_pids) & set(old), "another broker")
        rows = until(lambda: cloud.settled(deployment), "a verdict of every device")
        assert {(row["state"], row["attempt"]) for row in rows.values()} == {("succeeded", 1)}
        assert cloud.tally(deployment)["succeeded"] == DEVICES
        assert Counter(fleet.running().values()) == {"demo/beacon:1.0.0": DEVICES}
        after = cloud.get("/service")
        assert (after["broker_alive"], after["broker_port"]) == (True, service["broker_port"])
        assert "has ended by itself" in cloud.log
        assert "the broker serves again" in cloud.log


def test_a_verdict_made_without_a_broker_arrives_when_there_is_one(cloud: Cloud, agent: MakeAgent) -> None:
    """R7, R11: the trial waits for the cloud, commits, and its one verdict reaches it."""
    real = agent("trier", cloud.add("trier")["trier"], "triers", soak_s=SOAK_S)
    until(lambda: cloud.get("/devices/trier")["online"], "the device")
    deployment = cloud.deploy("triers", cloud.take(beacon("1.0.1")))

    def is_confirming() -> bool:
        record = real.record()
        return record is not None and record.workflow.state is WorkflowState.CONFIRMING

    until(is_confirming, "the trial")
    cloud.kill_broker()
    rows = until(lambda: cloud.settled(deployment), "the verdict")
    assert (rows["trier"]["state"], rows["trier"]["attempt"]) == ("succeeded", 1)
    assert real.version() == "1.0.1"
    assert "disconnected from the broker" in real.log


def test_a_device_that_is_added_without_a_broker_is_let_in_by_the_next(
    cloud: Cloud, agent: MakeAgent
) -> None:
    """Its token waits on the disk; the cloud goes on with its work meanwhile."""
    cloud.kill_broker()
    join = cloud.add("early")["early"]
    agent("early", join, "early")
    until(lambda: cloud.get("/devices/early")["online"], "the device")
