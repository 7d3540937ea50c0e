"""Statements as the driver takes them: put together and compiled once, for both take longer than SQLite's answer.

It knows no rows and no transactions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Dialect, Select, Update
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
    """A statement with named values, for all threads and databases of this process.

    It is given to the driver itself: SQLAlchemy describes every column of every answer anew.
    """

    def __init__(self, statement: Select[Any] | Update) -> None:
        self._statement: Final = statement
        # by dialect, and how its driver takes values
        self._compiled: Final[dict[tuple[str, str], Compiled]] = {}

    def rows(self, connection: Connection, values: Mapping[str, object]) -> Sequence[tuple[Any, ...]]:
        """Ask it.

        Raises:
            DBAPIError: the database refused.
        """
        with self._run(connection, values) as cursor:
            found: Sequence[tuple[Any, ...]] = cursor.fetchall()
            return found

    def change(self, connection: Connection, values: Mapping[str, object]) -> int:
        """Do it, and return how many rows it has changed.

        Raises:
            DBAPIError: the database refused.
        """
        with self._run(connection, values) as cursor:
            return int(cursor.rowcount)

    @contextmanager
    def _run(self, connection: Connection, values: Mapping[str, object]) -> Iterator[Any]:
        sql, order, known = self._in(connection.dialect)
        given = {**known, **values}
        with _cursor(connection, sql) as cursor:
            cursor.execute(sql, given if order is None else tuple([given[name] for name in order]))
            yield cursor

    def _in(self, dialect: Dialect) -> Compiled:
        key = (dialect.name, dialect.paramstyle)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = compiled(self._statement, dialect)
        return found


def run_many(connection: Connection, sql: str, rows: Sequence[Any]) -> None:
    """Run one statement in the driver's words for each row of values.

    Raises:
        DBAPIError: the database refused.
    """
    with _cursor(connection, sql) as cursor:
        cursor.executemany(sql, rows)


def begin(connection: Connection, sql: str) -> None:
    """Begin the transaction of a connection.

    Raises:
        DBAPIError: the database refused.
    """
    with _cursor(connection, sql) as cursor:
        cursor.execute(sql)


@contextmanager
def _cursor(connection: Connection, sql: str) -> Iterator[Any]:
    """Yield a cursor of the driver; what it raises is raised as SQLAlchemy would."""
    dialect = connection.dialect
    cursor = connection.connection.cursor()
    try:
        yield cursor
    except dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(sql, (), error, dialect.loaded_dbapi.Error, dialect=dialect) from error
    finally:
        cursor.close()
