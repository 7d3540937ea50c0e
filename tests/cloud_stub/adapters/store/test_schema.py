"""Tables, migrations, indexes, settings of the connection."""

import shutil
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from cloud_stub.adapters.store import open_store
from cloud_stub.adapters.store.migrate import MIGRATIONS
from cloud_stub.adapters.store.tables import SCHEMA, metadata
from cloud_stub.core.rows import AssignmentState
from protocol.errors import OperatorError, ServiceError
from protocol.lifecycle import DeploymentState
from tests.cloud_stub.adapters.store.rows import assignment, deployment, device


def test_the_migrations_make_the_tables(tmp_path: Path) -> None:
    """A migrated database has the tables, columns, keys and indexes that the code works with, to the letter."""
    migrated, made = tmp_path / "migrated.db", tmp_path / "made.db"
    open_store(migrated).close()
    engine = create_engine(f"sqlite:///{made}")
    metadata.create_all(engine)
    engine.dispose()
    assert _words(migrated) == _words(made)
    with create_engine(f"sqlite:///{migrated}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def _words(path: Path) -> list[tuple[str, frozenset[str]]]:
    """Return each table and index with the lines that make it, in no order (SQLAlchemy sorts constraints)."""
    connection = sqlite3.connect(path)
    made = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'"
    )
    words = sorted((name, frozenset(line.strip(" ,\t") for line in sql.splitlines())) for name, sql in made)
    connection.close()
    return words


def test_the_newest_migration_is_the_schema_of_the_code() -> None:
    """There is one head, and the code names it."""
    script = ScriptDirectory(str(MIGRATIONS))
    assert script.get_heads() == [SCHEMA]


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    """A second start finds the rows of the first."""
    path = tmp_path / "folder" / "store.db"
    store = open_store(path)
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1"))
    store.close()
    store = open_store(f"sqlite:///{path}")
    with store.read() as reader:
        assert reader.deployment("d1") == deployment("d1")
    store.close()


_ANEW = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None


def upgrade():
    with op.batch_alter_table("devices") as batch:
        batch.alter_column("agent_version", existing_type=sa.String(), nullable=True)
    {more}
"""


@pytest.mark.parametrize("more", ["pass", "op.execute('DELETE FROM devices')"])
def test_a_migration_may_make_a_table_anew_that_others_refer_to(tmp_path: Path, more: str) -> None:
    """The rows and their references stay; a migration that would lose them is not done at all."""
    path, migrations = tmp_path / "store.db", tmp_path / "migrations"
    store = open_store(path)
    with store.transaction() as unit:
        unit.put_device(device("a"))
        unit.put_deployment(deployment("d1"))
        unit.put_assignment(assignment("d1", "a"))
    shutil.copytree(MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__"))
    (migrations / "versions" / "v0002_anew.py").write_text(_ANEW.format(more=more))
    if more == "pass":
        store.prepare(migrations, "0002")
    else:
        with pytest.raises(ServiceError, match="refer to nothing"):
            store.prepare(migrations, "0002")
        store = open_store(path)  # as it was
    with store.transaction() as unit:
        assert unit._connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert unit.assignment("d1", "a") == assignment("d1", "a")
        assert unit.device("a") == device("a")
    store.close()


def test_a_database_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """An older lastgood does not touch what it does not know, and says what to do."""
    path = tmp_path / "store.db"
    open_store(path).close()
    _run(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(ServiceError, match=r"schema 9999.*newer.*backup"):
        open_store(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    """Tables are not made beside a stranger's."""
    path = tmp_path / "store.db"
    _run(path, "CREATE TABLE theirs (x)")
    with pytest.raises(ServiceError, match="something else"):
        open_store(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A text file is not taken for a damaged database, nor overwritten."""
    path = tmp_path / "store.db"
    path.write_text("shopping list\n" * 100)
    with pytest.raises(ServiceError, match="not a database"):
        open_store(path)
    assert path.read_text().startswith("shopping list")


def test_a_damaged_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """Damage is named as such when it is met, not passed on as rows."""
    path = tmp_path / "store.db"
    store = open_store(path)
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1"))
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(ServiceError, match="damaged"):
        open_store(path)


def test_a_folder_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot be opened"):
        open_store(tmp_path / "file" / "store.db")


def test_another_database_is_refused_as_not_there_yet() -> None:
    """The address decides nothing silently."""
    with pytest.raises(OperatorError, match="SQLite"):
        open_store("postgresql://localhost/lastgood")
    with pytest.raises(OperatorError, match="not the address"):
        open_store("://")


def test_every_connection_is_durable_and_keeps_references(tmp_path: Path) -> None:
    """WAL alone lost acknowledged rows in power cuts with synchronous=NORMAL: FULL (2) is what makes it honest."""
    store = open_store(tmp_path / "store.db")
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    with store.transaction() as unit, store.read() as reader:
        for looker in (unit, reader):
            run = looker._connection.exec_driver_sql
            assert {name: run(f"PRAGMA {name}").scalar() for name in wanted} == wanted
    store.close()


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It holds what devices' passwords are checked against."""
    path = tmp_path / "store.db"
    store = open_store(path)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    store.close()


def test_every_query_of_the_hot_path_has_an_index(tmp_path: Path) -> None:
    """The database's own plans: no query but those that show everything goes through a whole table."""
    store = open_store(tmp_path / "store.db")
    said: list[str] = []
    pooled = store._writing.raw_connection()  # the only one: it is the transaction's, too
    pooled.driver_connection.set_trace_callback(said.append)  # type: ignore[union-attr]
    pooled.close()
    with store.transaction() as unit:
        unit.devices(["a", "b"])
        unit.device("c")
        unit.deployment("d3")
        unit.list_deployments(limit=None)
        unit.assignment("d3", "c")
        unit.note("n")
        unit.unheard(5, 10)
        unit.list_devices(group="red", after="a")
        unit.classes("red")
        unit.runs("red")
        unit.count_devices()
        unit.active("red")
        unit.list_deployments(group="red")
        unit.assignments([("d1", "a"), ("d2", "b")])
        unit.list_assignments(deployment="d1", states=[AssignmentState.FAILED])
        unit.list_assignments(device="a")
        unit.count_assignments("d1")
        unit.update_by_sha256("ab")
        unit.audit(about="a")
        unit.raise_epochs("red", 5)
        unit.stale(10)
        unit.unpublished(10)
        unit.due_schedules(5)
        unit.due_retries(5, 10)
        unit.overdue(5, 10)
        unit.rollbacks_at_rest()
        unit.ended_with_pending("d1", 10)
        unit.list_deployments(states=[DeploymentState.ACTIVE])
        explain = unit._connection.exec_driver_sql
        for statement in [each for each in said if each.startswith(("SELECT", "UPDATE"))]:
            plan = [row[3] for row in explain(f"EXPLAIN QUERY PLAN {statement}")]
            whole = [step for step in plan if step.startswith("SCAN") and "INDEX" not in step]
            known = ("SCAN counted", "SCAN CONSTANT ROW")  # the few classes of a group; a list of constants
            assert [step for step in whole if not step.startswith(known)] == [], (statement, plan)
    assert len(said) >= 25
    store.close()


def _run(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()
