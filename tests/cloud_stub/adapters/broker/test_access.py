"""The access list as a table, and the filters' tables: pure."""

import random

import pytest

from cloud_stub.adapters.broker import CLOUD, INSPECT, BrokerError
from cloud_stub.adapters.broker.access import (
    check_names,
    covers,
    may_publish,
    may_subscribe,
    mosquitto_device_acl,
    mosquitto_service_acl,
)
from cloud_stub.adapters.broker.filters import FilterTable, is_filter

LEVELS = ["a", "b", "+", "#", "$x", ""]


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT's matching, written once more and slowly."""
    outer, inner = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and outer[0] in ("+", "#"):
        return False
    for index, level in enumerate(outer):
        if level == "#":
            return True
        if index >= len(inner) or level not in ("+", inner[index]):
            return False
    return len(outer) == len(inner)


def some_filters(source: random.Random, count: int) -> list[str]:
    """Random well-formed filters of up to four levels."""
    made: list[str] = []
    while len(made) < count:
        one = "/".join(source.choice(LEVELS) for _ in range(source.randint(1, 4)))
        if is_filter(one):
            made.append(one)
    return made


def test_covers_is_containment() -> None:
    """For 20,000 random pairs: a covered filter matches no topic that the covering one does not, `#`
    included."""
    source = random.Random(7)
    topics = [one for one in some_filters(source, 600) if "+" not in one and "#" not in one]
    seen = 0
    for allowed, asked in zip(some_filters(source, 20_000), some_filters(source, 20_000), strict=True):
        if covers(allowed, asked) and not allowed.startswith(("+", "#")):
            seen += 1
            assert all(matches(allowed, topic) for topic in topics if matches(asked, topic)), (allowed, asked)
    assert seen > 200


@pytest.mark.parametrize(
    ("allowed", "asked", "expected"),
    [
        ("a/#", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "a/+/c", True),
        ("a/#", "a/#", True),
        ("a/#", "#", False),
        ("a/#", "+/b", False),
        ("a/b", "a/b/#", False),
        ("a/+", "a/b", True),
        ("a/+", "a/#", False),
        ("a/+", "a", False),
        ("a/b", "a/+", False),
        ("a/b", "A/b", False),
        ("a/b", "a/b/", False),
    ],
)
def test_covers(allowed: str, asked: str, expected: bool) -> None:
    """The edges of containment, one by one."""
    assert covers(allowed, asked) is expected


@pytest.mark.parametrize("one", ["", "a#", "#/a", "a+", "+a/b", "a\0", "$share/g/a", "/".join("a" * 17)])
def test_malformed_filters(one: str) -> None:
    """No filter: misplaced wildcards, shared subscriptions, and trees too deep to walk."""
    assert not is_filter(one)


def test_filter_table_equals_a_walk_over_all_filters() -> None:
    """Random subscriptions and unsubscriptions: the table finds what comparing every filter finds, with
    the highest QoS."""
    source = random.Random(11)
    table: FilterTable[int] = FilterTable()
    held: dict[tuple[str, int], int] = {}
    topics = [one for one in some_filters(source, 400) if "+" not in one and "#" not in one]
    for topic_filter in some_filters(source, 3_000):
        subscriber, qos = source.randrange(5), source.randrange(2)
        if source.random() < 0.5:
            table.add(topic_filter, subscriber, qos)
            held[topic_filter, subscriber] = qos
        elif held:
            gone = source.choice(list(held))
            del held[gone]
            table.remove(*gone)
        topic = source.choice(topics)
        expected: dict[int, int] = {}
        for (one, who), granted in held.items():
            if matches(one, topic):
                expected[who] = max(granted, expected.get(who, 0))
        assert table.match(topic) == expected
    for one, who in list(held):
        table.remove(one, who)
    assert len(table) == 0


def test_device_table() -> None:
    """The specification of a device's account, in both directions."""
    for kind in ("hello", "state", "progress", "gone"):
        assert may_publish("d", f"lg/v1/up/d/{kind}", "lg/v1")
        assert not may_publish("d", f"lg/v1/up/e/{kind}", "lg/v1")
        assert not may_publish("d", f"lg/v2/up/d/{kind}", "lg/v1")
    assert not may_publish("d", "lg/v1/down/d/desired", "lg/v1")
    assert may_subscribe("d", "lg/v1/down/d/+", "lg/v1")
    assert may_subscribe("d", "lg/v1/down/all/sync", "lg/v1")
    assert not may_subscribe("d", "lg/v1/up/d/state", "lg/v1")
    assert not may_subscribe("d", "$share/g/lg/v1/down/d/#", "lg/v1")


def test_service_table() -> None:
    """The cloud does everything under the prefix, the inspector hears it, the probe and unknown services
    do nothing."""
    assert may_publish(CLOUD, "lg/v1/down/d/desired", "lg/v1")
    assert not may_publish(CLOUD, "other", "lg/v1")
    assert may_subscribe(INSPECT, "lg/v1/#", "lg/v1")
    assert not may_subscribe(INSPECT, "#", "lg/v1")
    assert not may_publish(INSPECT, "lg/v1/up/_inspect/hello", "lg/v1")
    for name in ("_probe", "_other"):
        assert not may_publish(name, f"lg/v1/up/{name}/hello", "lg/v1")
        assert not may_subscribe(name, f"lg/v1/down/{name}/#", "lg/v1")


def test_mosquittos_lists_say_the_same() -> None:
    """The generated access lists, whole."""
    assert mosquitto_device_acl("p").splitlines() == [
        "pattern write p/up/%u/hello",
        "pattern write p/up/%u/state",
        "pattern write p/up/%u/progress",
        "pattern write p/up/%u/gone",
        "pattern read p/down/%u/#",
        "pattern read p/down/all/#",
    ]
    assert mosquitto_service_acl("p").splitlines() == [
        "user _cloud",
        "topic write p/#",
        "topic read p/#",
        "user _inspect",
        "topic read p/#",
        "user _probe",
    ]


@pytest.mark.parametrize(
    "name", ["", "all", "_other", "_probe", "a b", "a:b", "a\nb", "+", "#", "a/b", "-a", "x" * 65, "é"]
)
def test_names_that_no_list_could_hold_are_refused(name: str) -> None:
    """A name that would break out of a file, a pattern or the address of everybody is refused with a
    sentence."""
    with pytest.raises(BrokerError, match="is not usable"):
        check_names([name])


def test_good_names_pass() -> None:
    """Device ids and the two services pass."""
    check_names(["dev-1", "A", "0.x_y-z", "x" * 64, CLOUD, INSPECT])
