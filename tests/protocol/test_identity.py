"""Names of devices, groups and updates, and the order of versions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import OperatorError
from protocol.identity import DEFAULT_GROUP, UpdateId, Version, check_device_id, check_group
from protocol.messages import Target

PARTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}", fullmatch=True)
VERSIONS = st.lists(st.integers(0, 2_147_483_647), min_size=1, max_size=4).map(
    lambda ns: ".".join(map(str, ns))
)


@pytest.mark.parametrize("text", ["a", "0", "pi-17", "A.b_c-9", "a" * 64, "All"])
def test_a_device_id_is_returned_as_it_is(text: str) -> None:
    """Everything the pattern of DESIGN.md section 4 allows is allowed."""
    assert check_device_id(text) == text
    assert check_group(text) == text


@pytest.mark.parametrize(
    "text", ["", "-a", ".a", "a" * 65, "a/b", "a b", "a+", "#", "é", "a\n", "\na", "a\x00"]
)
def test_what_is_no_device_id_is_refused(text: str) -> None:
    """Wildcards, separators, line ends and other scripts would break topics and access lists."""
    with pytest.raises(OperatorError, match="is not a device id"):
        check_device_id(text)
    with pytest.raises(OperatorError, match="cannot name a group"):
        check_group(text)


def test_all_is_everybodys_topic_and_no_device() -> None:
    """`down/all/sync` would else be one device's, and the others' at once."""
    with pytest.raises(OperatorError):
        check_device_id("all")


def test_the_default_group_has_a_name_no_tag_can_have_by_accident() -> None:
    """`$default` is a group, and no device id."""
    assert check_group(DEFAULT_GROUP) == "$default"
    with pytest.raises(OperatorError):
        check_device_id(DEFAULT_GROUP)
    with pytest.raises(OperatorError):
        check_group("$other")


@given(PARTS, PARTS, VERSIONS)
def test_an_update_id_round_trips(provider: str, name: str, version: str) -> None:
    """`parse` is the inverse of `str`, and the path it makes is one that an assignment can carry."""
    update = UpdateId.of(provider, name, version)
    assert UpdateId.parse(str(update)) == update
    assert str(UpdateId.parse(str(update))) == f"{provider}/{name}:{version}"
    target = Target(update=str(update), path=update.manifest_path, size_bytes=1, sha256="0" * 64)
    assert target.path == update.manifest_path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/b",
        "a:1",
        "/b:1",
        "a/:1",
        "a/b:",
        "a/b/c:1",
        "a/b:c:1",
        "a/b:1.",
        "a/b:v1",
        "../b:1",
        "a b/c:1",
        "a/b:1\n",
    ],
)
def test_what_is_no_update_id_is_refused(text: str) -> None:
    """An update id becomes a path: nothing that could leave the repository passes."""
    with pytest.raises(OperatorError):
        UpdateId.parse(text)


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".1", "1..2", "1.2.3.4.5", "-1", "1a", "2147483648", "1 ", "1\n", "١"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    """One to four numbers below 2³¹, in ASCII digits."""
    with pytest.raises(OperatorError, match="is not a version"):
        Version.parse(text)


@given(VERSIONS, VERSIONS)
def test_versions_are_ordered_by_their_numbers(one: str, other: str) -> None:
    """The order is that of the four numbers, whole and consistent with equality and hash."""
    a, b = Version.parse(one), Version.parse(other)
    assert (a < b, a == b, a > b) == (a.numbers < b.numbers, a.numbers == b.numbers, a.numbers > b.numbers)
    assert a != b or hash(a) == hash(b)


def test_missing_numbers_count_as_zero_and_digits_are_no_letters() -> None:
    """1.2 is 1.2.0.0, and 1.10 comes after 1.9."""
    assert Version.parse("1.2") == Version.parse("1.2.0.0")
    assert Version.parse("1.9") < Version.parse("1.10")
    assert Version.parse("1") != "1"
