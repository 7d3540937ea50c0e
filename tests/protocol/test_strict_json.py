"""JSON that two parsers could read differently is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MessageRefused
from protocol.strict_json import MESSAGE_BYTES_MAX, dump, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=6)


@given(OBJECTS)
def test_parse_is_the_inverse_of_dump(value: dict[str, object]) -> None:
    """And equal values are equal bytes, in whatever order their keys stood."""
    assert parse(dump(value)) == value
    assert dump(dict(reversed(value.items()))) == dump(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1}x',
        b'{"a":1,}',
        b'{"a":1,"a":1}',
        b'{"b":{"a":1,"a":2}}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\x01"}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 40_000,
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    """Each is refused as `not_json`, and none raises anything else."""
    with pytest.raises(MessageRefused) as refused:
        parse(data)
    assert refused.value.reason == "not_json"


@pytest.mark.parametrize("data", [b"[]", b"1", b'"a"', b"null", b"true"])
def test_a_message_is_an_object(data: bytes) -> None:
    """Other JSON values are no messages."""
    with pytest.raises(MessageRefused, match="not an object"):
        parse(data)


def test_a_whole_surrogate_pair_is_one_character() -> None:
    """An escaped pair is Unicode; half of one is not."""
    assert parse(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_size_is_judged_before_anything_is_parsed() -> None:
    """At the cap it is read, one byte over it is refused as `too_large`."""
    fill = MESSAGE_BYTES_MAX - len(b'{"a":""}')
    assert len(parse(b'{"a":"' + b"x" * fill + b'"}')["a"]) == fill
    with pytest.raises(MessageRefused) as refused:
        parse(b'{"a":"' + b"x" * (fill + 1) + b'"}')
    assert refused.value.reason == "too_large"
    with pytest.raises(MessageRefused):
        parse(b"{}", bytes_max=1)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    """Whatever arrives, the answer is an object or a `MessageRefused`; the standard parser agrees with the object."""
    try:
        value = parse(data)
    except MessageRefused:
        return
    assert value == json.loads(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: object()}])
def test_dump_refuses_what_is_not_json(value: object) -> None:
    """What could not be read back is not written."""
    with pytest.raises((ValueError, TypeError)):
        dump(value)
