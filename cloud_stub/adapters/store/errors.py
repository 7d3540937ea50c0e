"""The database's exceptions in our words; translated here, once.

It decides nothing. It keeps the rule that a sentence says what is wrong and what to do next.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from protocol.errors import ServiceError

_SENTENCES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_FULL: "The disk with the database is full; nothing of this was stored. Make room, and it goes on.",
    sqlite3.SQLITE_BUSY: "The database is in use by another process for too long; nothing of this was stored. "
    "See that only one cloud runs on this folder, and try again.",
    sqlite3.SQLITE_LOCKED: "The database is locked; nothing of this was stored. Try again.",
    sqlite3.SQLITE_CORRUPT: "The database is damaged. Stop the cloud, and bring back a backup of the database.",
    sqlite3.SQLITE_NOTADB: "The file is not a database of lastgood. Give another path, or bring back a backup.",
    sqlite3.SQLITE_IOERR: "The disk with the database refused to read or write; nothing of this was stored. "
    "Look at the disk and at the space on it.",
    sqlite3.SQLITE_READONLY: "The database cannot be written. Give this user the right to write it and its folder.",
    sqlite3.SQLITE_PERM: "The database cannot be opened. Give this user the right to read and write it.",
    sqlite3.SQLITE_CANTOPEN: "The database cannot be opened. See that its folder is there and may be written.",
    sqlite3.SQLITE_CONSTRAINT: "The rows contradict what the database holds; nothing of this was stored.",
    sqlite3.SQLITE_TOOBIG: "A value is too large for the database; nothing of this was stored.",
}
_PRIMARY: Final = 0xFF  # the low byte of an extended result code is the plain one


def service_error(error: Exception) -> ServiceError:
    """Return our error for one of the database's; raise it `from` the original."""
    original = error.orig if isinstance(error, DBAPIError) else error
    sentence = _SENTENCES.get(_code(error))
    if sentence is None:
        return ServiceError(f"The database refused: {original}. Nothing of this was stored.")
    return ServiceError(f"{sentence} (It said: {original}.)")


def is_contradiction(error: Exception) -> bool:
    """Return whether the rows were at fault, so that the transaction can go on without them."""
    return _code(error) == sqlite3.SQLITE_CONSTRAINT


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the database raises in the block into ServiceError."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise service_error(error) from error


def _code(error: Exception) -> int:
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    return code & _PRIMARY if isinstance(code, int) else -1
