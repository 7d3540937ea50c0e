"""Statements as the driver takes them: put together and compiled once, for both take longer than SQLite's answer.

It knows no rows and no transactions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Dialect, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import ClauseElement


class Compiled(NamedTuple):
    """A statement in the words of one dialect."""

    sql: str
    order: Sequence[str] | None  # in which the driver wants the values; None: it takes names
    known: Mapping[str, Any]  # values that the statement itself brings


def compiled(statement: ClauseElement, dialect: Dialect) -> Compiled:
    """Compile a statement; one with a list of values (`IN`) is no such statement, for each length is another."""
    found = statement.compile(dialect=dialect)
    known = {name: value for name, value in found.params.items() if value is not None}
    return Compiled(str(found), getattr(found, "positiontup", None), known)


class Query:
    """A question to the database with named values, for all threads and databases of this process.

    It is asked at the driver itself: SQLAlchemy describes every column of every answer anew.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement: Final = statement
        self._compiled: Final[dict[str, Compiled]] = {}  # by dialect

    def rows(self, connection: Connection, values: Mapping[str, object]) -> Sequence[tuple[Any, ...]]:
        """Ask it.

        Raises:
            DBAPIError: the database refused.
        """
        dialect = connection.dialect
        sql, order, known = self._compiled.get(dialect.name) or self._compile(dialect)
        given = {**known, **values}
        parameters = given if order is None else tuple([given[name] for name in order])
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, parameters)
            return cursor.fetchall()
        except dialect.loaded_dbapi.Error as error:
            raise DBAPIError.instance(
                sql, parameters, error, dialect.loaded_dbapi.Error, dialect=dialect
            ) from error
        finally:
            cursor.close()

    def _compile(self, dialect: Dialect) -> Compiled:
        found = self._compiled[dialect.name] = compiled(self._statement, dialect)
        return found
