"""Topics: `build` and `parse` are inverses, and everything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MessageRefused, OperatorError
from protocol.topics import EVERYONE, RULES, Direction, Kind, Topic, Topics, check_prefix

DEVICES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(
    lambda text: text != EVERYONE
)
PREFIXES = st.sampled_from(["lg/v1", "lg", "a/b/c", "lg/v1/up"])


@given(PREFIXES, st.sampled_from(Kind), DEVICES)
def test_parse_is_the_inverse_of_build(prefix: str, kind: Kind, device: str) -> None:
    """For every kind and device, under any prefix."""
    topics = Topics(prefix)
    device = EVERYONE if kind is Kind.SYNC else device
    assert topics.parse(topics.build(kind, device)) == Topic(kind, device)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "lg/v1",
        "lg/v1/",
        "lg/v1/up/d",
        "lg/v1/up/d/hello/x",
        "x/lg/v1/up/d/hello",
        "lg/v2/up/d/hello",
        "lg/v1/down/d/hello",
        "lg/v1/up/d/desired",
        "lg/v1/up/d/unknown",
        "lg/v1/up//hello",
        "lg/v1/up/all/hello",
        "lg/v1/down/all/desired",
        "lg/v1/down/d/sync",
        "lg/v1/up/all/sync",
        "lg/v1/up/+/hello",
        "lg/v1/up/d\n/hello",
        "lg/v1/up/-d/hello",
        "lg/v1/up/" + "d" * 65 + "/hello",
        "LG/v1/up/d/hello",
        "lg/v1/lg/v1/up/d/hello",
    ],
)
def test_what_is_no_topic_of_ours_is_refused(topic: str) -> None:
    """Wrong prefix, direction, depth, kind or device: refused as `topic`."""
    with pytest.raises(MessageRefused) as refused:
        Topics().parse(topic)
    assert refused.value.reason == "topic"


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text raises anything else; what parses is built back to itself."""
    topics = Topics()
    for topic in (text, f"lg/v1/up/{text}/hello", f"lg/v1/{text}"):
        try:
            read = topics.parse(topic)
        except MessageRefused:
            continue
        assert topics.build(read.kind, read.device) == topic


def test_the_filters_cover_every_kind_once() -> None:
    """Each side subscribes to what the other sends, and to no more."""
    topics = Topics()
    assert set(topics.read_by_cloud()) == {f"lg/v1/up/+/{k}" for k in ("hello", "state", "progress", "gone")}
    assert topics.read_by_device("d") == ("lg/v1/down/d/desired", "lg/v1/down/d/ack", "lg/v1/down/all/sync")
    assert set(RULES) == set(Kind)
    assert all(rule.publisher != "cloud" for rule in RULES.values() if rule.direction is Direction.UP)


@pytest.mark.parametrize(
    "prefix", ["", "/", "a/", "/a", "a//b", "a/+", "a/#", "#", "$SYS", "a b", "a\nuser x", "%u"]
)
def test_prefixes_that_no_filter_and_no_list_could_hold_are_refused(prefix: str) -> None:
    """A prefix with wildcards, empty levels or line ends is refused."""
    with pytest.raises(OperatorError, match="prefix"):
        check_prefix(prefix)


@pytest.mark.parametrize("prefix", ["lg/v1", "lg", "a/b/c", "0.x_y-z"])
def test_usable_prefixes_pass(prefix: str) -> None:
    """And come back as they are."""
    assert check_prefix(prefix) == prefix
