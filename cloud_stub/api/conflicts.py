"""Refusals that stem from how things stand now, not from how a request was made: they are answered with 409."""

from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import OperatorError


class Conflict(OperatorError):
    """The request is well made, and what it asks for cannot be done as things stand."""


@contextmanager
def conflicting() -> Iterator[None]:
    """Turn a refusal within the block into a conflict: what it names is known to exist and to be well written."""
    try:
        yield
    except Conflict:
        raise
    except OperatorError as error:
        raise Conflict(str(error)) from error
