"""JSON read strictly and written in one way.

It is not a schema (`messages.py` and `manifest.py` hold those). It keeps the rule that what two parsers could read
differently is refused: duplicate keys, NaN and infinities, texts that are no Unicode, more bytes than agreed.
"""

import json
from math import isfinite
from typing import Any, Final, NoReturn

from protocol.errors import MessageRefused

MESSAGE_BYTES_MAX: Final = 262_144  # one message; the brokers are configured with the same cap


def parse(data: bytes, *, bytes_max: int = MESSAGE_BYTES_MAX) -> dict[str, Any]:
    """Read one JSON object from UTF-8 bytes.

    Raises:
        MessageRefused: too large, not JSON, not an object, a duplicate key, NaN or infinity, or half a surrogate pair.
    """
    if len(data) > bytes_max:
        raise MessageRefused("too_large", f"It is {len(data)} bytes, and {bytes_max} is the most.")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises on half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise MessageRefused("not_json", f"It is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise MessageRefused("not_json", "It is JSON, but not an object.")
    return value


def dump(value: object) -> bytes:
    """Write a value as canonical JSON: keys sorted, no spaces, UTF-8, so that equal values are equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):  # 1e999 is JSON's grammar, and infinity to every reader that keeps doubles
        raise ValueError(f"{text[:32]} is beyond every number")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
