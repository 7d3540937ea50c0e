"""The port Store on SQLite: one writer at a time, readers that wait for nobody.

It knows no rows. It keeps two rules: what a transaction has put is on the disk when its block has ended (WAL with
synchronous=FULL; NORMAL lost acknowledged rows in power cuts), and a transaction takes the write lock when it begins
(BEGIN IMMEDIATE), so that what it has read cannot change under it (R14).
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool, StaticPool

from cloud_stub.adapters.store.errors import translated
from cloud_stub.adapters.store.migrate import MIGRATIONS, migrate
from cloud_stub.adapters.store.prepared import begin
from cloud_stub.adapters.store.reader import SqlReader
from cloud_stub.adapters.store.staging import writers_for
from cloud_stub.adapters.store.tables import SCHEMA
from cloud_stub.adapters.store.unit import SqlUnit
from protocol.errors import OperatorError, ServiceError

BUSY_TIMEOUT_MS: Final = 10_000  # how long a writer waits for another; a batch takes far less than a second
READERS_MAX: Final = 32  # looks open at the same time; more wait their turn
CHECKPOINT_PAGES: Final = (
    4_000  # 16 MB of log before it is moved into the database: fewer syncs, a quick start
)
CACHE_KIB: Final = 65_536  # of the writer: the hot rows and indexes of a hundred thousand devices


def open_store(url_or_path: str | Path) -> "SqlStore":
    """Open the database at a path or SQLAlchemy URL, make it when it is missing, and bring it to this schema.

    `sqlite://` is a database in memory, for worlds in virtual time.

    Raises:
        OperatorError: the address is not one of a SQLite database.
        ServiceError: the database cannot be opened, is damaged, or was written by a newer lastgood.
    """
    url = _url(url_or_path)
    if url.database in (None, "", ":memory:"):
        engine = _engine(url, StaticPool)
        store = SqlStore(engine, engine)
    else:
        _make_file(Path(str(url.database)))
        store = SqlStore(_engine(url, QueuePool, 1), _engine(url, QueuePool, READERS_MAX, read_only=True))
    store.prepare()
    return store


class SqlStore:
    """A database that is open; `open_store` makes it."""

    def __init__(self, writing: Engine, reading: Engine) -> None:
        self._writing = writing
        self._reading = reading
        self._shares_one = writing is reading  # in memory: a look takes its turn with the transactions
        self._turn = threading.Lock()
        self._holder: int | None = None
        self._writers = writers_for(writing.dialect)
        self.changes = 0  # transactions that changed a row which people see

    @contextmanager
    def transaction(self) -> Iterator[SqlUnit]:
        """Open a transaction that is durable when the block ends, and undone when it raises.

        Raises:
            ServiceError: the database refused (disk full, locked, damaged); nothing was written.
        """
        with self._own_turn(), self._begun(self._writing) as connection:
            unit = SqlUnit(connection, self._writers)
            yield unit
            unit.finish()
        self.changes += unit.changed

    @contextmanager
    def read(self) -> Iterator[SqlReader]:
        """Open a consistent look that waits for nobody (in memory: for its turn)."""
        if self._shares_one:
            with self._own_turn(), self._begun(self._writing) as connection:
                yield SqlReader(connection)
        else:
            with self._begun(self._reading) as connection:
                yield SqlReader(connection)

    def prepare(self, migrations: Path = MIGRATIONS, schema: str = SCHEMA) -> None:
        """Bring the database to this schema.

        Raises:
            ServiceError: it was written by a newer lastgood, or is a database of something else.
        """
        try:
            with (
                self._own_turn(),
                self._references_open(),
                self._begun(self._writing) as connection,
                translated(),
            ):
                migrate(connection, migrations, schema)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the database."""
        with translated():
            self._reading.dispose()
            self._writing.dispose()

    @contextmanager
    def _references_open(self) -> Iterator[None]:
        """Let a migration make a table anew that others refer to: SQLite hears of it outside a transaction alone."""
        self._keep_references("OFF")
        try:
            yield
        finally:
            self._keep_references("ON")

    def _keep_references(self, state: str) -> None:
        with translated():
            connection = self._writing.raw_connection()  # the writer's own: there is one
            try:
                connection.cursor().execute(f"PRAGMA foreign_keys = {state}")
            finally:
                connection.close()

    @contextmanager
    def _begun(self, engine: Engine) -> Iterator[Connection]:
        with translated():
            connection = engine.connect()
        try:
            with translated():
                transaction = connection.begin()
            try:
                yield connection
                with translated():
                    transaction.commit()
            except BaseException:
                with translated():
                    transaction.rollback()
                raise
        finally:
            connection.close()

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        if self._holder == threading.get_ident():
            raise RuntimeError("this thread has a transaction open already, and would wait for itself")
        if not self._turn.acquire(timeout=BUSY_TIMEOUT_MS / 1_000):
            raise ServiceError("The database is busy for too long; nothing of this was stored. Try again.")
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            self._turn.release()


def _url(url_or_path: str | Path) -> URL:
    text = str(url_or_path)
    try:
        url = make_url(text) if "://" in text else URL.create("sqlite", database=text)
    except ArgumentError as error:
        raise OperatorError(
            f"{text!r} is not the address of a database: give a path, or sqlite:///PATH."
        ) from error
    if url.get_backend_name() != "sqlite":
        raise OperatorError(
            f"lastgood stores in SQLite; {url.get_backend_name()} is not there yet. Give a path."
        )
    return url


def _make_file(path: Path) -> None:
    """Make the database's file, for this user alone, since it holds what devices' passwords are checked against."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ServiceError(
            f"The database {path} cannot be opened: {error.strerror}. Give a path that can be written."
        ) from error


def _engine(url: URL, pool: type[Any], size: int | None = None, *, read_only: bool = False) -> Engine:
    sizes = (
        {}
        if size is None
        else {"pool_size": size, "max_overflow": 0, "pool_timeout": BUSY_TIMEOUT_MS / 1_000}
    )
    engine = create_engine(
        url,
        poolclass=pool,
        pool_reset_on_return=None,  # every transaction is committed or rolled back where it was begun
        connect_args={"check_same_thread": False},
        **sizes,
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours to say: the driver's own begins too late
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode not in ("wal", "memory"):
            raise ServiceError(
                f"The database cannot keep its log here (mode {mode}). Give a path on a local disk."
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        begin(connection, "BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
