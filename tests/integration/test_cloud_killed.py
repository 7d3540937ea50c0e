"""The cloud killed with SIGKILL in the middle of a rollout, and started again on the same folder: it finishes it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.core.fleet import failures
from simulator.core.scenario import FailurePart
from tests.integration.conftest import MakeAgent
from tests.integration.fleets import GROUP, enrol, members, new_fleet
from tests.processes import Cloud, beacon, is_there
from tests.waiting import until

DEVICES = 60
FAILING = 4  # of them; one waits without power, so that the cloud dies with some failures counted and no trip
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


@pytest.mark.slow
def test_a_cloud_killed_between_failures_and_after_the_trip_takes_the_whole_group_back(
    tmp_path: Path,
) -> None:
    """One trip with the right numbers, one rollback, and every device on version 1, whoever had succeeded too."""
    group = members(DEVICES // 2)
    one, two = beacon("1.0.0"), beacon("2.0.0")
    failing = failures([FailurePart(update=two.name, how="crash_on_start", count=FAILING)], group, 7)
    last = max(device for device, _ in failing)
    with Cloud(tmp_path / "cloud", "embedded") as cloud, new_fleet(failing) as fleet:
        enrol(cloud, fleet, group)
        first = cloud.deploy(GROUP, cloud.take(one))
        until(lambda: cloud.tally(first)["succeeded"] == len(group), "version 1 everywhere")
        fleet.lose_power(last)
        policy = {"failed_percent": 10, "failed_count": FAILING, "rollback_to": [one.name]}
        second = cloud.deploy(GROUP, cloud.take(two), policy=policy)
        until(lambda: cloud.tally(second)["counted"] == FAILING - 1, "all failures but one")
        cloud.kill()

        cloud.start()
        tally = cloud.tally(second)
        assert (tally["counted"], cloud.get(f"/deployments/{second}")["state"]) == (FAILING - 1, "active")
        fleet.give_power(last)
        until(lambda: cloud.get(f"/deployments/{second}")["state"] == "rolled_back", "the trip")
        cloud.kill()

        cloud.start()
        until(lambda: set(fleet.running().values()) == {one.name}, "version 1 on every device")
        (back,) = [row["id"] for row in cloud.get("/deployments") if row["cause"] == second]
        until(lambda: cloud.tally(back)["succeeded"] == len(group), "the cloud to know it")
        tripped, rows = cloud.get(f"/deployments/{second}"), cloud.rows(second)
        assert tripped["trip"]["failed"] == tripped["tally"]["counted"] == FAILING
        assert {device for device, row in rows.items() if row["state"] == "failed"} == {
            name for name, _ in failing
        }
        assert (
            Counter(row["state"] for row in rows.values())["succeeded"] == tripped["tally"]["succeeded"] > 0
        )
        told = [row["what"] for row in cloud.get("/audit", about=second)]
        assert told.count("deployment.rolled_back") == 1
