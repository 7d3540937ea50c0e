"""The form of a deployment: its fields as text, and how they become the same request that the API takes.

It holds no rules beyond reading numbers and instants; what a policy needs is said by the request and the core.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cloud_stub.api.requests import DraftRequest
from cloud_stub.core.commands import ATTEMPT_TIMEOUT_MS_DEFAULT, DEVICE_TIMEOUT_MS_DEFAULT
from protocol.errors import OperatorError

Fields = Mapping[str, list[str]]
_MINUTE_MS: Final = 60_000
DEFAULTS: Final[Fields] = {
    "group": [""],
    "update": [],
    "policy": ["on"],
    "failed_percent": ["10"],
    "failed_count": ["5"],
    "rollback_to": [],
    "match": ["all"],
    "percent_of": ["group"],
    "start": [""],
    "retries": ["0"],
    "retry_delay": ["1"],
    "device_timeout": [str(DEVICE_TIMEOUT_MS_DEFAULT // _MINUTE_MS)],
    "attempt_timeout": [str(ATTEMPT_TIMEOUT_MS_DEFAULT // _MINUTE_MS)],
    "allow_downgrade": [],
    "allow_withdrawn": [],
}
"""Every field with what it holds before anybody writes; times in minutes."""


def fields_of(pairs: Iterable[tuple[str, str]]) -> Fields:
    """Return the form's fields from the pairs of an address or a form; names it does not have are left out."""
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in DEFAULTS:
            given.setdefault(name, []).append(value.strip())
    return {**DEFAULTS, **given}


def draft_of(fields: Fields) -> DraftRequest:
    """Return the request that the fields make.

    Raises:
        OperatorError: a field is missing or is no number; one sentence.
    """
    request: dict[str, Any] = {
        "group": _one(fields, "group"),
        "updates": [name for name in fields["update"] if name],
        "retries": _number(fields, "retries"),
        "retry_delay_ms": _number(fields, "retry_delay") * _MINUTE_MS,
        "device_timeout_ms": _number(fields, "device_timeout") * _MINUTE_MS,
        "attempt_timeout_ms": _number(fields, "attempt_timeout") * _MINUTE_MS,
        "allow_downgrade": bool(fields["allow_downgrade"]),
        "allow_withdrawn": bool(fields["allow_withdrawn"]),
    }
    if not request["group"]:
        raise OperatorError("Choose the group that the update is for.")
    if not request["updates"]:
        raise OperatorError("Choose the update to deploy.")
    if _one(fields, "policy") == "on":
        request["policy"] = _policy(fields)
    if start := _one(fields, "start"):
        request["start_at_ms"] = _instant_ms(start)
    return DraftRequest.read(request)


def _policy(fields: Fields) -> dict[str, Any]:
    back = [name for name in fields["rollback_to"] if name]
    if not back:
        raise OperatorError("The policy lacks the update to go back to; choose it, or choose no policy.")
    return {
        "failed_percent": _number(fields, "failed_percent"),
        "failed_count": _number(fields, "failed_count"),
        "rollback_to": back,
        "match": _one(fields, "match"),
        "percent_of": _one(fields, "percent_of"),
    }


def _one(fields: Fields, name: str) -> str:
    return fields[name][-1] if fields[name] else ""


def _number(fields: Fields, name: str) -> int:
    text = _one(fields, name)
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        said = f"{text!r} is no whole number" if text else "it is empty"
        raise OperatorError(f"The field {name.replace('_', ' ')} needs a whole number; {said}.")
    return int(text)


def _instant_ms(text: str) -> int:
    """Return the instant of a `datetime-local` field, which the form labels as UTC."""
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError as error:
        raise OperatorError(f"{text!r} is no date and time; write it as 2026-12-01T08:30 in UTC.") from error
