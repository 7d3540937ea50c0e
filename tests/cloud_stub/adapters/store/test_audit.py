"""The audit log and its chain."""

import sqlite3
from pathlib import Path

import pytest

from cloud_stub.adapters.store import SqlStore, open_store, verify_audit
from cloud_stub.ports import PAGE_ROWS_MAX


def _say(store: SqlStore, count: int) -> None:
    with store.transaction() as unit:
        for number in range(count):
            unit.add_audit(
                1_000 + number,
                "ann",
                "moved",
                f"device-{number % 2}",
                {"to": "grün", "ratio": 0.5, "n": number},
            )


def test_a_log_that_nobody_touched_is_good(store: SqlStore) -> None:
    """Over several transactions and more than one page, and when it is empty."""
    with store.read() as reader:
        assert verify_audit(reader) is None
    _say(store, 3)
    _say(store, PAGE_ROWS_MAX)
    with store.read() as reader:
        assert verify_audit(reader) is None
        newest = reader.audit(limit=2)
        assert [row.number for row in newest] == [PAGE_ROWS_MAX + 3, PAGE_ROWS_MAX + 2]
        assert newest[0].facts == {"to": "grün", "ratio": 0.5, "n": PAGE_ROWS_MAX - 1}
        assert {row.about for row in reader.audit(about="device-1")} == {"device-1"}


def test_entries_are_read_in_the_transaction_that_adds_them(store: SqlStore) -> None:
    """The chain goes on within it."""
    with store.transaction() as unit:
        unit.add_audit(1, "ann", "a", "x", {})
        unit.add_audit(2, "ann", "b", "x", {})
        assert [row.what for row in unit.audit()] == ["b", "a"]
        unit.add_audit(3, "ann", "c", "x", {})
        assert verify_audit(unit) is None


@pytest.mark.parametrize(
    ("tampering", "first_bad"),
    [
        ("UPDATE audit SET who = 'eve' WHERE number = 4", 4),
        ("UPDATE audit SET facts = '{}' WHERE number = 1", 1),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE number = 10", 10),
        ("UPDATE audit SET chain = replace(chain, 'a', 'b') WHERE number = 6", 6),
        ("DELETE FROM audit WHERE number = 5", 6),
        ("DELETE FROM audit WHERE number = 1", 2),
        ("UPDATE audit SET what = 'x' WHERE number IN (3, 8)", 3),
        ("UPDATE audit SET number = 11 WHERE number = 7", 8),
    ],
)
def test_tampering_shows_at_the_first_bad_entry(tmp_path: Path, tampering: str, first_bad: int) -> None:
    """Changed, removed, moved: the number of the first entry that does not follow is named."""
    store = open_store(tmp_path / "store.db")
    _say(store, 10)
    connection = sqlite3.connect(tmp_path / "store.db")
    with connection:
        connection.execute(tampering)
    connection.close()
    with store.read() as reader:
        assert verify_audit(reader) == first_bad
    store.close()
