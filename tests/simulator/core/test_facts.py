"""Facts judged from one look, with their numbers in the sentence."""

import pytest
from pydantic import TypeAdapter

from simulator.core.facts import DeploymentSight, DeviceSight, Sight, judge
from simulator.core.script import Fact

V1, V2 = "acme/app:1.0", "acme/app:2.0"
SIGHT = Sight(
    devices={
        "k-1": DeviceSight("kitchen", V1, True, True),
        "k-2": DeviceSight("kitchen", V2, True, False, "confirming"),
        "g-1": DeviceSight("garage", None, False, True),
    },
    deployments={"first": DeploymentSight("d1", "active", {"failed": 2, "counted": 1})},
    said={"k-1": ("kitchen", V1), "k-2": ("kitchen", V2), "g-1": ("garage", None)},
)


@pytest.mark.parametrize(
    ("fact", "held", "said"),
    [
        (
            {"what": "runs", "group": "kitchen", "update": V1},
            False,
            "1 run acme/app:1.0, 1 run acme/app:2.0; 2 of 2",
        ),
        ({"what": "runs", "group": "kitchen", "update": V1, "at_least": 1}, True, "1 of 2"),
        ({"what": "runs", "group": "attic", "update": V1}, False, "no device"),
        ({"what": "device_runs", "device": "k-2", "update": V2}, True, "k-2 runs"),
        ({"what": "device_runs", "device": "g-1", "update": V2}, False, "g-1 runs nothing"),
        ({"what": "deployment", "deployment": "first", "state": "active"}, True, "is active"),
        ({"what": "deployment", "deployment": "second", "state": "active"}, False, "is not there"),
        ({"what": "count", "deployment": "first", "of": "failed", "equals": 2}, True, "counts 2 failed"),
        (
            {"what": "count", "deployment": "first", "of": "counted", "at_least": 2},
            False,
            "counts 1 counted; at least 2",
        ),
        ({"what": "count", "deployment": "first", "of": "counted", "at_most": 0}, False, "at most 0"),
        ({"what": "online"}, False, "2 of 3"),
        ({"what": "online", "group": "kitchen"}, True, "2 of 2"),
        ({"what": "on_last_known_good"}, False, "1 of 3 devices are off their last known good (k-2)"),
        ({"what": "cloud_agrees"}, True, "wrong about 0 of 3"),
    ],
)
def test_a_fact_is_judged_with_its_numbers(fact: dict[str, object], held: bool, said: str) -> None:
    """Each kind of fact, held and not held."""
    parsed: Fact = TypeAdapter(Fact).validate_python(fact)
    judgement = judge(parsed, SIGHT)
    assert judgement.held is held
    assert said in judgement.sentence


def test_a_cloud_that_is_wrong_is_found() -> None:
    """What the cloud says of one device differs from what is true."""
    wrong = Sight(SIGHT.devices, {}, dict(SIGHT.said) | {"k-1": ("kitchen", V2)})
    fact: Fact = TypeAdapter(Fact).validate_python({"what": "cloud_agrees"})
    assert not judge(fact, wrong).held
