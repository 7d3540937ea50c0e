"""How changed rows become statements: prepared once for each shape of change, then run with many rows at a time.

It knows neither transactions nor rules. A row that the database does not have is upserted whole; of a row that it has,
only the columns that changed are written, so that indexes on the others stay untouched. All that differs between
dialects in writing is `_upsert`.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Dialect, Table, bindparam, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.expression import ClauseElement

from cloud_stub.adapters.store.codec import Codec
from cloud_stub.adapters.store.prepared import compiled, run_many
from protocol.errors import ServiceError

R = TypeVar("R")

SHAPES_KEPT: Final = (
    512  # prepared statements of one table; a fleet's reports change columns in a few dozen ways
)


class Prepared:
    """A statement as the driver takes it, with the order in which it wants its values."""

    def __init__(self, statement: ClauseElement, names: Sequence[str], dialect: Dialect) -> None:
        self._sql, wanted, _ = compiled(statement, dialect)
        if wanted is None:  # a driver that takes names
            self._shape: Callable[[tuple[Any, ...]], Any] | None = lambda values: dict(
                zip(names, values, strict=True)
            )
        elif list(wanted) == list(names):
            self._shape = None
        else:
            self._shape = itemgetter(*(list(names).index(name) for name in wanted))

    def run(self, connection: Connection, rows: list[tuple[Any, ...]]) -> None:
        """Run it once for each tuple of values.

        Raises:
            DBAPIError: the database refused.
        """
        run_many(connection, self._sql, rows if self._shape is None else [self._shape(row) for row in rows])


class TableWriter(Generic[R]):
    """Writes the rows of one table; shared by all transactions."""

    def __init__(self, table: Table, codec: Codec[R], dialect: Dialect) -> None:
        self._table = table
        self._codec = codec
        self._dialect = dialect
        self._key = tuple(codec.columns.index(column.name) for column in table.primary_key)
        self._whole = Prepared(_upsert(table, codec.columns, dialect), codec.columns, dialect)
        self._parts: dict[tuple[int, ...], Prepared] = {}

    def write(self, connection: Connection, changes: Sequence[tuple[R | None, R]]) -> None:
        """Write (row as the database has it or None, row as it shall be) pairs; equal ones cost nothing."""
        codec = self._codec
        get = codec.get
        whole: list[tuple[Any, ...]] = []
        parts: dict[tuple[int, ...], list[tuple[Any, ...]]] = {}
        for old, new in changes:
            if old is None:
                whole.append(codec.encode(new))
                continue
            before, after = get(old), get(new)
            shape = tuple([i for i, (a, b) in enumerate(zip(before, after)) if a is not b and a != b])  # noqa: B905
            if shape:
                parts.setdefault(shape, []).append(codec.encode_part(after, shape, self._key))
        for shape, rows in parts.items():  # before the new rows, which may take what a changed one gives up
            self._part(shape).run(connection, rows)
        if whole:
            self._whole.run(connection, whole)

    def _part(self, shape: tuple[int, ...]) -> Prepared:
        prepared = self._parts.get(shape)
        if prepared is None:
            if len(self._parts) >= SHAPES_KEPT:
                self._parts.clear()
            prepared = self._parts[shape] = self._prepare_part(shape)
        return prepared

    def _prepare_part(self, shape: tuple[int, ...]) -> Prepared:
        columns = self._codec.columns
        names = [columns[index] for index in shape]
        keys = [columns[index] for index in self._key]
        statement = update(self._table).values({name: bindparam(f"new_{name}") for name in names})
        for key in keys:
            statement = statement.where(self._table.c[key] == bindparam(f"key_{key}"))
        order = [*(f"new_{name}" for name in names), *(f"key_{key}" for key in keys)]
        return Prepared(statement, order, self._dialect)


_INSERT: Final[Mapping[str, Callable[[Table], Any]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def _upsert(table: Table, columns: Sequence[str], dialect: Dialect) -> ClauseElement:
    """Return "insert, or replace what the key has": the one statement that each dialect writes in its own way."""
    if dialect.name not in _INSERT:
        raise ServiceError(f"lastgood cannot store in {dialect.name}; give the address of a SQLite database.")
    insert = _INSERT[dialect.name](table).values({name: bindparam(name) for name in columns})
    keys = [column.name for column in table.primary_key]
    others = {name: insert.excluded[name] for name in columns if name not in keys}
    upsert: ClauseElement = insert.on_conflict_do_update(index_elements=keys, set_=others)
    return upsert
