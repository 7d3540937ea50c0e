"""The deployment form: what its fields become, and what it refuses."""

import pytest

from cloud_stub.api.forms import draft_of, fields_of
from protocol.errors import OperatorError

GOOD = [("group", "north"), ("update", "acme/pump:2.0"), ("rollback_to", "acme/pump:1.0")]


def test_the_form_makes_the_same_request_as_the_api() -> None:
    """Numbers are numbers, times are milliseconds, the start is UTC."""
    pairs = [
        *GOOD,
        ("start", "2026-12-01T08:30"),
        ("retries", "2"),
        ("device_timeout", "5"),
        ("allow_downgrade", "yes"),
    ]
    request = draft_of(fields_of(pairs))
    assert request.policy is not None
    assert (request.policy.failed_percent, request.policy.failed_count) == (10, 5)
    assert (request.start_at_ms, request.retries, request.device_timeout_ms) == (
        1_796_113_800_000,
        2,
        300_000,
    )
    assert (request.allow_downgrade, request.allow_withdrawn) == (True, False)


def test_no_policy_is_an_explicit_choice() -> None:
    """It is there by default, and gone only when the form says so."""
    assert draft_of(fields_of([*GOOD, ("policy", "off")])).policy is None


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "Choose the group"),
        ([("group", "north")], "Choose the update"),
        (GOOD[:2], "lacks the update to go back to"),
        ([*GOOD, ("failed_count", "")], "The field failed count needs a whole number; it is empty"),
        ([*GOOD, ("failed_percent", "ten")], "'ten' is no whole number"),
        ([*GOOD, ("failed_count", "٣")], "is no whole number"),
        ([*GOOD, ("match", "some")], "policy.match is not valid"),
        ([*GOOD, ("start", "tomorrow")], "is no date and time"),
    ],
)
def test_a_form_that_lacks_something_is_refused(pairs: list[tuple[str, str]], said: str) -> None:
    """In one sentence, which names the field."""
    with pytest.raises(OperatorError, match=said):
        draft_of(fields_of(pairs))
