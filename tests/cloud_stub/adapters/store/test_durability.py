"""What survives: a kill, a full disk, a reader that looks on, another process at the same file."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_stub.adapters.store import SqlStore, open_store
from protocol.errors import ServiceError
from tests.cloud_stub.adapters.store.rows import device

ROOT = Path(__file__).parents[4]  # where the children import from

_COMMITS_AND_SAYS_SO = """
import sys
from cloud_stub.adapters.store import open_store
from tests.cloud_stub.adapters.store.rows import device
store = open_store(sys.argv[1])
number = 0
while True:
    with store.transaction() as unit:
        for _ in range(20):
            unit.put_device(device(f"x{number}"))
            number += 1
    print(number, flush=True)
"""

_FILLS_THE_DISK = """
import resource, signal, sys
from cloud_stub.adapters.store import open_store
from protocol.errors import ServiceError
from tests.cloud_stub.adapters.store.rows import device
store = open_store(sys.argv[1])
with store.transaction() as unit:
    unit.put_device(device("first"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
stored = 0
try:
    while stored < 10_000:
        with store.transaction() as unit:
            for number in range(stored, stored + 50):
                unit.put_device(device(f"x{number}", order_why="w" * 100))
        stored += 50
except ServiceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
with store.transaction() as unit:
    unit.put_device(device("last"))
store.close()
print(stored)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle of a stream of transactions: each that was said to be stored is there, whole."""
    path = tmp_path / "store.db"
    child = subprocess.Popen(
        [sys.executable, "-c", _COMMITS_AND_SAYS_SO, path], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(30)]
    os.kill(child.pid, signal.SIGKILL)
    said += [int(line) for line in child.communicate()[0].splitlines()]
    store = open_store(path)
    with store.read() as reader:
        there = reader.count_devices()["red"][0]
        assert len(reader.devices(f"x{number}" for number in range(said[-1]))) == said[-1]
    assert there % 20 == 0, "a transaction is there in part"
    store.close()


def test_a_full_disk_loses_nothing_and_the_store_goes_on(tmp_path: Path) -> None:
    """No file may grow: the transaction is refused with a sentence, those before it stay, later ones work."""
    path = tmp_path / "store.db"
    done = subprocess.run(
        [sys.executable, "-c", _FILLS_THE_DISK, path],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
        cwd=ROOT,
    )
    sentence, stored = done.stdout.splitlines()
    assert "nothing of this was stored" in sentence
    assert 0 < int(stored) < 10_000
    store = open_store(path)
    with store.read() as reader:
        assert reader.count_devices() == {"red": (int(stored) + 2, 0)}
        assert reader.device("first")
        assert reader.device("last")
    store.close()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _fill_until_refused(store: SqlStore) -> None:
    with store.transaction() as unit:
        for number in range(10_000):
            with unit.savepoint():
                unit.put_device(device(f"x{number}", order_why="w" * 200))
                if number % 100 == 99:
                    unit.list_devices(limit=1)


def test_a_full_database_ends_the_whole_transaction(store: SqlStore) -> None:
    """The same with the database's own limit: the sentence names the disk, and the rows before are untouched."""
    with store.transaction() as unit:
        unit.put_device(device("first"))
        unit._connection.exec_driver_sql("PRAGMA max_page_count = 100")
    with pytest.raises(ServiceError, match="full"):
        _fill_until_refused(store)
    with store.transaction() as unit:
        assert [row.id for row in unit.list_devices()] == ["first"]
        unit._connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        unit.put_device(device("last"))
    with store.read() as reader:
        assert [row.id for row in reader.list_devices()] == ["first", "last"]


def _go_on_when_refused(store: SqlStore, refused: list[ServiceError]) -> None:
    with store.transaction() as unit:
        for number in range(3_000):
            try:
                with unit.savepoint():
                    unit.put_device(device(f"x{number}", order_why="w" * 200))
                    if number % 100 == 99:
                        unit.list_devices(limit=1)
            except ServiceError as error:
                refused.append(error)


def test_after_a_failure_nothing_of_the_transaction_is_stored_even_if_the_caller_goes_on(
    store: SqlStore,
) -> None:
    """SQLite may have ended the transaction by itself: what is put afterwards must not be stored on its own."""
    with store.transaction() as unit:
        unit._connection.exec_driver_sql("PRAGMA max_page_count = 100")
    refused: list[ServiceError] = []
    with pytest.raises(ServiceError, match="full"):
        _go_on_when_refused(store, refused)
    assert len(refused) > 1
    with store.read() as reader:
        assert reader.list_devices() == []


def test_a_reader_neither_waits_for_the_writer_nor_sees_half_of_it(tmp_path: Path) -> None:
    """A look stays as it was when it began, while a transaction is open and after it has ended."""
    store = open_store(tmp_path / "store.db")
    with store.transaction() as unit:
        unit.put_device(device("a", sequence=1))
    with store.read() as before:
        assert before.devices(["a"])["a"].sequence == 1
        with store.transaction() as unit:
            unit.put_device(replace(unit.devices(["a"])["a"], sequence=2))
            assert unit.list_devices()[0].sequence == 2
            with store.read() as during:
                assert during.devices(["a"])["a"].sequence == 1
        assert before.devices(["a"])["a"].sequence == 1
    with store.read() as after:
        assert after.devices(["a"])["a"].sequence == 2
    store.close()


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    """A look's connection refuses changes, whoever asks it."""
    store = open_store(tmp_path / "store.db")
    with store.read() as reader, pytest.raises(Exception, match="readonly"):
        reader._connection.exec_driver_sql("DELETE FROM devices")
    store.close()


def test_a_lock_held_by_another_process_is_named(tmp_path: Path) -> None:
    """The writer waits its time, then says who is in the way, and works when the other is gone."""
    store = open_store(tmp_path / "store.db")
    with store.transaction() as unit:
        unit._connection.exec_driver_sql("PRAGMA busy_timeout = 10")  # ten seconds are long for a test
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServiceError, match="another process"), store.transaction():
        pass
    with store.read() as reader:
        assert reader.list_devices() == []
    other.execute("ROLLBACK")
    other.close()
    with store.transaction() as unit:
        unit.put_device(device("a"))
    store.close()
