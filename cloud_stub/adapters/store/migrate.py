"""Bringing a database to the schema of this version, when the store is opened.

It holds no migration (`migrations/versions` does). It keeps two rules: a migration is done wholly or not at all, and a
database that a newer lastgood has written is refused, never guessed at.
"""

import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, column, create_engine, inspect, select, table
from sqlalchemy.pool import StaticPool

from cloud_stub.adapters.store.tables import SCHEMA
from protocol.errors import ServiceError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_VERSION: Final = table("alembic_version", column("version_num"))


def migrate(connection: Connection, migrations: Path = MIGRATIONS, schema: str = SCHEMA) -> None:
    """Bring the database to a schema, within the transaction that is open on the connection.

    The connection does not keep references meanwhile (SQLite changes a table by making it anew); they are checked at
    the end.

    Raises:
        ServiceError: it was written by a newer lastgood, is a database of something else, or would lose references.
    """
    found = _schema_of(connection)
    if found is None:
        for statement in _from_nothing(migrations, schema):
            connection.exec_driver_sql(statement)
    elif found != schema:
        _upgrade(connection, found, migrations, schema)


@cache
def _from_nothing(migrations: Path, schema: str) -> Sequence[str]:
    """Return what all migrations make of an empty database: they are run once in a process, whose worlds are many."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        _upgrade(connection, None, migrations, schema)
        made = connection.connection.driver_connection
        assert isinstance(made, sqlite3.Connection)  # the only database that there is yet
        statements = [line for line in made.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
    engine.dispose()
    return statements


def _upgrade(connection: Connection, found: str | None, migrations: Path, schema: str) -> None:
    """Run the migrations that lie between two schemas; None is an empty database."""
    from alembic import command  # alembic takes 0.2 s to import, and most starts have nothing to migrate
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if found is not None and found not in known:
        raise ServiceError(
            f"The database has schema {found}, and this lastgood knows {schema} at most: a newer one has written it. "
            "Install that version again, or bring back a backup of the time before it."
        )
    config.attributes["connection"] = connection
    command.upgrade(config, schema)
    if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
        raise ServiceError(
            f"The migration to schema {schema} would leave rows that refer to nothing; the database is as it was. "
            "Go back to the version before, and report it."
        )


def _schema_of(connection: Connection) -> str | None:
    names = inspect(connection).get_table_names()
    if _VERSION.name in names:
        return connection.execute(select(_VERSION.c.version_num)).scalar()
    if names:
        raise ServiceError("The file is a database of something else. Give lastgood a path of its own.")
    return None
