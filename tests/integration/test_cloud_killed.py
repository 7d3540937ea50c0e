"""The cloud killed with SIGKILL in the middle of a rollout, and started again on the same folder: it finishes it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import MakeAgent
from tests.integration.fleets import GROUP, enrol, members, new_fleet
from tests.processes import Cloud, beacon, is_there
from tests.waiting import until

DEVICES = 60
SOME = 10  # so many have succeeded, and so many have not, when the cloud dies


@pytest.fixture
def cloud(engine: str, tmp_path: Path) -> Iterator[Cloud]:
    """A cloud of the test's own, since it dies."""
    with Cloud(tmp_path / "cloud", engine) as cloud:
        yield cloud


@pytest.mark.slow
def test_a_cloud_that_was_killed_finishes_its_rollout(cloud: Cloud, agent: MakeAgent) -> None:
    """Every device ends on the version after one attempt; tally, rows and the devices' own truth agree."""
    with new_fleet() as fleet:
        enrol(cloud, fleet, members(DEVICES))
        late = [f"v-{number:03}" for number in range(SOME)]
        real = agent("real-1", cloud.add("real-1")["real-1"], GROUP)
        until(lambda: cloud.online() == DEVICES + 1, "the fleet to be online")
        update = cloud.take(beacon("1.0.0"))
        for device in late:  # so that the middle of the rollout does not pass before it is seen
            fleet.lose_power(device)
        deployment = cloud.deploy(GROUP, update)
        until(lambda: cloud.tally(deployment)["succeeded"] >= SOME, "the middle of the rollout")
        old_broker = cloud.broker_pids
        cloud.kill()
        until(lambda: not any(map(is_there, old_broker)), "the killed cloud's broker to end")

        cloud.start()
        for device in late:
            fleet.give_power(device)
        assert not set(cloud.broker_pids) & set(old_broker)
        rows = until(lambda: cloud.settled(deployment), "a verdict of every device")
        assert Counter(row["state"] for row in rows.values()) == {"succeeded": DEVICES + 1}
        assert {row["attempt"] for row in rows.values()} == {1}
        tally = cloud.tally(deployment)
        assert {name: count for name, count in tally.items() if count} == {"succeeded": DEVICES + 1}
        assert Counter(fleet.running().values()) == {update.name: DEVICES}
        assert real.version() == "1.0.0"
        runs = cloud.get(f"/groups/{GROUP}")["runs"]
        assert [(row["update"], row["count"]) for row in runs] == [(update.name, DEVICES + 1)]
        told = [row["what"] for row in cloud.get("/audit", about=deployment)]
        assert told == ["deployment.started", "deployment.created"]
