"""Transactions: what is read, what is written, what is lost."""

import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from cloud_stub.adapters.store import SqlStore
from cloud_stub.core.counting import contribution
from cloud_stub.core.rows import (
    AssignmentState,
    DeviceRow,
    GroupCount,
    Policy,
    Tally,
    Trip,
    UpdateRef,
)
from protocol.errors import ServiceError
from protocol.lifecycle import DeploymentState
from tests.cloud_stub.adapters.store.rows import assignment, deployment, device, update_row


def test_what_is_put_is_read_before_and_after_the_end(store: SqlStore) -> None:
    """Rows of every kind come back whole, from memory within the transaction and from the database after it."""
    policy = Policy(10, 5, (UpdateRef("acme/app:1.0", "cd" * 32),), match="any")
    trip = Trip(5, 5, 50, 5, 10, "any", "group")
    rows = {
        "device": device("a", online=True, slots={"A": {"holds": "good"}}),
        "deployment": deployment("d1", policy=policy, trip=trip, tally=Tally(working=1)),
        "assignment": assignment("d1", "a", retry_at_ms=7),
        "update": update_row("acme/app:2.0", "ab" * 32),
    }
    with store.transaction() as unit:
        unit.put_device(rows["device"])  # type: ignore[arg-type]
        unit.put_deployment(rows["deployment"])  # type: ignore[arg-type]
        unit.put_assignment(rows["assignment"])  # type: ignore[arg-type]
        unit.put_update(rows["update"])  # type: ignore[arg-type]
        unit.put_note("restored", "yes")
        within = _all(unit)
    with store.read() as reader:
        after = _all(reader)
    assert within == after == [*rows.values(), rows["update"], "yes"]


def _all(reader: Any) -> list[object]:
    return [
        reader.device("a"),
        reader.deployment("d1"),
        reader.assignment("d1", "a"),
        reader.update("acme/app:2.0"),
        reader.update_by_sha256("ab" * 32),
        reader.note("restored"),
    ]


def test_what_is_not_there_is_none(store: SqlStore) -> None:
    """Nothing is invented for a missing key, within a transaction or outside."""
    with store.transaction() as unit:
        assert [*_all(unit), unit.active("red")] == [None] * 7
        assert not unit.devices(["a"])
        assert not unit.assignments([("d1", "a")])
    with store.read() as reader:
        assert [*_all(reader), reader.active("red")] == [None] * 7


def test_a_transaction_that_raises_leaves_nothing(store: SqlStore) -> None:
    """Neither what was only staged nor what a query had written."""
    with suppress(ZeroDivisionError), store.transaction() as unit:
        unit.put_device(device("a"))
        assert [row.id for row in unit.list_devices()] == ["a"]
        unit.put_device(device("b"))
        raise ZeroDivisionError
    with store.read() as reader:
        assert reader.list_devices() == []


def test_queries_see_what_is_staged(store: SqlStore) -> None:
    """Lists and counts answer as if what was put were in the database."""
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1", policy=None))
        unit.put_deployment(deployment("d2", DeploymentState.SCHEDULED, start_at_ms=50))
        seen = {"online": True, "epoch": 5, "reported_epoch": 4, "last_seen_ms": 7}
        unit.put_device(device("a", **seen, running_update="u", running_sha256="s", floor=3))
        unit.put_device(device("b", order_stale=True))
        unit.put_device(device("c", group="blue", class_key=None))
        unit.put_assignment(assignment("d1", "a", AssignmentState.FAILED, retry_at_ms=40))
        unit.put_assignment(assignment("d1", "b"))
        assert unit.count_devices() == {"red": (2, 1), "blue": (1, 0)}
        assert unit.classes("red") == [GroupCount("model=x", {"model": "x"}, 2, 3)]
        assert unit.classes("blue") == []
        assert unit.runs("red") == {("u", "s"): 1, ("", ""): 1}
        assert [row.id for row in unit.unpublished(10)] == ["a"]
        assert [row.id for row in unit.unheard(8, 10)] == ["a"]
        assert unit.unheard(7, 10) == []
        assert [row.id for row in unit.stale(10)] == ["b"]
        assert [row.id for row in unit.due_schedules(50)] == ["d2"]
        assert [row.device for row in unit.due_retries(40, 10)] == ["a"]
        assert not unit.due_retries(39, 10)
        assert unit.waits_for_retry("d1")
        assert not unit.waits_for_retry("d2")
        assert not unit.due_schedules(49)
        assert [row.id for row in unit.list_deployments()] == ["d2", "d1"]
        assert [row.id for row in unit.list_deployments(states=[DeploymentState.ACTIVE])] == ["d1"]
        assert [row.device for row in unit.list_assignments(deployment="d1", after="a")] == ["b"]
        assert [row.device for row in unit.list_assignments(states=[AssignmentState.FAILED])] == ["a"]


def test_pages_of_devices_and_of_a_deployment_fit_together(store: SqlStore) -> None:
    """Each page begins behind the last id of the one before; none is missing or twice."""
    names = [f"x{number:02d}" for number in range(25)]
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1"))
        for name in reversed(names):
            unit.put_device(device(name))
            unit.put_assignment(assignment("d1", name))
    with store.read() as reader:
        seen: list[str] = []
        while page := reader.list_devices(group="red", after=seen[-1] if seen else "", limit=10):
            seen += [row.id for row in page]
        assert seen == names
        told: list[str] = []
        while rows := reader.list_assignments(deployment="d1", after=told[-1] if told else "", limit=10):
            told += [row.device for row in rows]
        assert told == names


def test_the_newest_deployment_is_first_also_in_one_millisecond(store: SqlStore) -> None:
    """d10 was made after d9, whatever the order of their letters."""
    with store.transaction() as unit:
        made = [unit.next_deployment_id() for _ in range(11)]
        for name in made:
            unit.put_deployment(deployment(name, DeploymentState.CANCELED))
    with store.read() as reader:
        assert [row.id for row in reader.list_deployments()] == made[::-1]
    with store.transaction() as unit:
        assert unit.next_deployment_id() not in made


def test_R21_due_schedules_come_in_start_then_creation_order(store: SqlStore) -> None:
    """The last of them is the one that stays."""
    with store.transaction() as unit:
        for name, start, created in (("d1", 9, 1), ("d2", 5, 3), ("d3", 5, 2), ("d10", 5, 3), ("d4", 99, 1)):
            unit.put_deployment(
                deployment(name, DeploymentState.SCHEDULED, start_at_ms=start, created_ms=created)
            )
        assert [row.id for row in unit.due_schedules(10)] == ["d3", "d2", "d10", "d1"]


def test_R12_overdue_is_silent_or_stuck_on_the_observed_clock(store: SqlStore) -> None:
    """Each limit by itself, to the millisecond, and only for work of active deployments."""
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1", device_timeout_ms=100, attempt_timeout_ms=1_000))
        unit.put_deployment(
            deployment("d2", DeploymentState.CANCELED, device_timeout_ms=1, attempt_timeout_ms=1)
        )
        for name, heard, moved in (
            ("silent", 0, 900),
            ("stuck", 950, 0),
            ("well", 950, 900),
            ("edge", 901, 1),
        ):
            unit.put_device(device(name, heard_ms=heard))
            unit.put_assignment(assignment("d1", name, moved_ms=moved))
            unit.put_assignment(assignment("d2", name))
        unit.put_device(device("pending"))
        unit.put_assignment(assignment("d1", "pending", AssignmentState.PENDING))
        assert [row.device for row in unit.overdue(1_001, 10)] == ["silent", "stuck"]
        assert len(unit.overdue(1_002, 10)) == 3
        assert len(unit.overdue(1_002, 1)) == 1


def test_R8_R12_clones_do_not_fill_the_list_of_the_overdue(store: SqlStore) -> None:
    """It is bounded, and nobody knows which of two is silent: others behind them would never time out."""
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1", device_timeout_ms=100))
        for name in ("a", "b", "c"):
            unit.put_device(device(name, heard_ms=0, cloned=name != "c"))
            unit.put_assignment(assignment("d1", name))
        assert [row.device for row in unit.overdue(1_000, 2)] == ["c"]


def test_retries_of_ended_deployments_are_never_due(store: SqlStore) -> None:
    """A retry acts on active deployments only, and does not wake the sweep either."""
    with store.transaction() as unit:
        unit.put_device(device("a"))
        unit.put_deployment(deployment("d1", DeploymentState.CANCELED))
        unit.put_assignment(assignment("d1", "a", AssignmentState.FAILED, retry_at_ms=5))
        assert unit.due_retries(10, 10) == []


def test_R2_raising_epochs_is_one_statement_above_everything_known(store: SqlStore) -> None:
    """epoch := max(epoch + 1, now, reported + 1) for the whole group, staged rows included, others untouched."""
    with store.transaction() as unit:
        unit.put_device(device("behind", epoch=5))
        unit.put_device(device("ahead", epoch=2_000))
        unit.put_device(device("claims", epoch=7, reported_epoch=3_000))
        unit.put_device(device("other", epoch=5, group="blue"))
    with store.transaction() as unit:
        staged = replace(unit.devices(["behind"])["behind"], sequence=9)
        unit.put_device(staged)
        assert unit.raise_epochs("red", 1_000) == 3
        got = {row.id: (row.epoch, row.order_stale) for row in unit.list_devices()}
        assert unit.device("behind") == replace(staged, epoch=1_000, order_stale=True)
    assert got == {
        "behind": (1_000, True),
        "ahead": (2_001, True),
        "claims": (3_001, True),
        "other": (5, False),
    }


def test_R14_one_active_deployment_in_a_group_is_held_by_the_database(store: SqlStore) -> None:
    """Whatever the core believes, a second one cannot be stored; in another group it can."""
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1"))
        unit.put_deployment(deployment("d2", group="blue"))
    with pytest.raises(ServiceError, match="contradict"), store.transaction() as unit:
        unit.put_deployment(deployment("d3"))
    with store.read() as reader:
        assert [row.id for row in reader.list_deployments()] == ["d2", "d1"]


def test_R14_a_successor_and_the_step_down_are_one_write_in_any_order(store: SqlStore) -> None:
    """The new active one may be put first: the database never sees two."""
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1"))
    with store.transaction() as unit:
        old = unit.active("red")
        assert old is not None
        unit.put_deployment(deployment("d2", supersedes="d1"))
        unit.put_deployment(replace(old, state=DeploymentState.SUPERSEDED, superseded_by="d2"))
        assert unit.active("red") == deployment("d2", supersedes="d1")
    with store.read() as reader:
        assert reader.active("red") == deployment("d2", supersedes="d1")


def test_R14_schedules_that_start_in_two_groups_follow_what_stepped_down(store: SqlStore) -> None:
    """Rows that change alike are written together; that must not bring a successor before its predecessor's end."""
    groups = ("red", "blue")
    with store.transaction() as unit:
        for group in groups:
            unit.put_deployment(deployment(f"old-{group}", group=group))
            unit.put_deployment(deployment(f"new-{group}", DeploymentState.SCHEDULED, group=group))
    with store.transaction() as unit:
        rows = {row.id: row for row in unit.list_deployments()}
        for group in groups:
            unit.put_deployment(replace(rows[f"new-{group}"], state=DeploymentState.ACTIVE))
        unit.put_deployment(replace(rows["old-red"], state=DeploymentState.SUPERSEDED))
        unit.put_deployment(replace(rows["old-blue"], state=DeploymentState.SUPERSEDED, ended_ms=5))
    with store.read() as reader:
        active = [reader.active(group) for group in groups]
        assert [row.id for row in active if row is not None] == ["new-red", "new-blue"]


def test_R14_a_deployment_has_one_rollback(store: SqlStore) -> None:
    """A unique cause: the second trip of the same deployment cannot be stored."""
    with store.transaction() as unit:
        unit.put_deployment(deployment("d2", cause="d1"))
    with pytest.raises(ServiceError, match="contradict"), store.transaction() as unit:
        unit.put_deployment(deployment("d3", group="blue", cause="d1"))


def test_an_assignment_of_nothing_cannot_be_stored(store: SqlStore) -> None:
    """References hold: a row cannot speak of a deployment or device that is not there."""
    with pytest.raises(ServiceError, match="contradict"), store.transaction() as unit:
        unit.put_assignment(assignment("d1", "nobody"))


@pytest.mark.parametrize("query_within", [False, True], ids=["staged", "written"])
def test_a_part_that_raises_loses_only_its_own(store: SqlStore, query_within: bool) -> None:
    """What came before and after the failed savepoint stays, also when the part's rows were written already."""
    with store.transaction() as unit:
        unit.put_device(device("kept", sequence=1))
        unit.put_device(device("shared", sequence=1))
        unit.add_audit(1, "ann", "before", "x", {})
        with suppress(ZeroDivisionError), unit.savepoint():
            unit.put_device(device("lost"))
            unit.put_device(device("shared", sequence=2))
            unit.put_note("lost", "1")
            unit.add_audit(2, "ann", "lost", "x", {})
            if query_within:
                assert len(unit.list_devices()) == 3
                assert len(unit.audit()) == 2
                assert unit.raise_epochs("red", 77) == 3
                assert unit.devices(["kept"])["kept"].epoch == 77
            raise ZeroDivisionError
        assert unit.device("lost") is None
        assert unit.note("lost") is None
        with unit.savepoint():
            unit.put_device(device("after"))
            unit.add_audit(3, "ann", "after", "x", {})
        assert unit.devices(["shared", "kept"]) == {
            "shared": device("shared", sequence=1),
            "kept": device("kept", sequence=1),
        }
    with store.read() as reader:
        assert [(row.id, row.sequence, row.epoch) for row in reader.list_devices()] == [
            ("after", 0, 0),
            ("kept", 1, 0),
            ("shared", 1, 0),
        ]
        assert [(row.number, row.what) for row in reader.audit()] == [(2, "after"), (1, "before")]


def test_a_part_that_breaks_a_unique_rule_is_told_so_itself(store: SqlStore) -> None:
    """The parts before and after it are stored; it is not found out only at the end, when all would be lost."""
    with store.transaction() as unit:
        with unit.savepoint():
            unit.put_deployment(deployment("d1"))
        with pytest.raises(ServiceError, match="contradict"), unit.savepoint():
            unit.put_deployment(deployment("d2"))
        assert unit.active("red") == deployment("d1")
        with unit.savepoint():
            unit.put_device(device("a"))
    with store.read() as reader:
        assert [row.id for row in reader.list_deployments()] == ["d1"]
        assert reader.device("a") is not None


def test_parts_within_parts(store: SqlStore) -> None:
    """An outer part that raises takes with it what an inner one kept."""
    with store.transaction() as unit:
        unit.put_device(device("a"))
        with suppress(ZeroDivisionError), unit.savepoint():
            with unit.savepoint():
                unit.put_device(device("b"))
                assert len(unit.list_devices()) == 2
            with suppress(ZeroDivisionError), unit.savepoint():
                unit.put_device(device("c"))
                raise ZeroDivisionError
            assert [row.id for row in unit.list_devices()] == ["a", "b"]
            raise ZeroDivisionError
        assert [row.id for row in unit.list_devices()] == ["a"]


def test_only_what_changed_is_written(store: SqlStore) -> None:
    """An equal row costs no statement, and a changed one writes its changed columns alone."""
    with store.transaction() as unit:
        unit.put_device(device("a"))
    said: list[str] = []
    pooled = store._writing.raw_connection()  # the only one: it is the transactions', too
    pooled.driver_connection.set_trace_callback(said.append)  # type: ignore[union-attr]
    pooled.close()

    def changes() -> list[str]:
        return [statement for statement in said if not statement.startswith(("SELECT", "BEGIN", "COMMIT"))]

    with store.transaction() as unit:
        row = unit.devices(["a"])["a"]
        unit.put_device(replace(row, sequence=row.sequence))
    assert "BEGIN IMMEDIATE" in said
    assert changes() == []
    with store.transaction() as unit:
        unit.put_device(replace(unit.devices(["a"])["a"], sequence=5, online=True))
    assert changes() == ["UPDATE devices SET sequence=5, online=1 WHERE devices.id = 'a'"]


def test_many_keys_are_read_in_few_statements(store: SqlStore) -> None:
    """More keys than SQLite takes variables, some of them of many deployments, some unknown."""
    names = [f"x{number}" for number in range(400)]
    with store.transaction() as unit:
        for number in range(130):
            unit.put_deployment(deployment(f"d{number}", DeploymentState.CANCELED))
        for name in names:
            unit.put_device(device(name))
            unit.put_assignment(assignment(f"d{len(name) % 3}", name))
    with store.read() as reader:
        assert set(reader.devices([*names, *(f"no{number}" for number in range(40_000))])) == set(names)
        keys = [(f"d{number}", name) for number in range(130) for name in names]
        assert len(reader.assignments(keys)) == len(names)


def test_R14_the_recount_agrees_with_the_core(store: SqlStore) -> None:
    """Every combination of state and flags, counted by the database and by the core's own function."""
    total = Tally()
    with store.transaction() as unit:
        unit.put_deployment(deployment("d1"))
        number = 0
        for state in AssignmentState:
            for bits in range(16):
                flags = {
                    name: bool(bits >> place & 1)
                    for place, name in enumerate(("already_there", "counted", "suspended", "moved_on"))
                }
                row = assignment("d1", f"x{number}", state, **flags)
                unit.put_device(device(row.device))
                unit.put_assignment(row)
                total = _sum(total, contribution(row))
                number += 1
        assert unit.count_assignments("d1") == total
        assert unit.count_assignments("none") == Tally()


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(**{name: getattr(one, name) + getattr(other, name) for name in Tally.__slots__})


def test_classes_follow_what_is_put_without_counting_again(store: SqlStore) -> None:
    """Joining, leaving, moving, rising floors: the kept counts equal those of a fresh look at every step."""
    a, b, c = (
        device("a", floor=1),
        device("b", floor=4),
        device("c", class_key="model=y", properties={"model": "y"}),
    )
    steps: list[DeviceRow] = [
        a,
        b,
        c,
        replace(a, floor=6),
        replace(b, group="blue"),
        replace(a, floor=6, class_key="model=y", properties={"model": "y"}),
        replace(b, floor=9),
        replace(a, group="blue"),
        replace(c, class_key=None),
        replace(c, online=True),
    ]
    with store.transaction() as unit:
        unit.classes("red")
        unit.classes("blue")
        for step in steps:
            unit.device(step.id)
            unit.put_device(step)
            kept = [unit.classes(group) for group in ("red", "blue")]
            unit._staging.classes.clear()
            assert kept == [unit.classes(group) for group in ("red", "blue")]


def test_one_thread_cannot_wait_for_itself(store: SqlStore) -> None:
    """A transaction within a transaction is a mistake of ours, said at once instead of after a time-out."""
    with store.transaction(), pytest.raises(RuntimeError, match="wait for itself"), store.transaction():
        pass


def test_transactions_of_many_threads_lose_no_update(store: SqlStore) -> None:
    """Read, add one, write, from four threads: the sum is right, since a transaction begins with the write lock."""
    with store.transaction() as unit:
        unit.put_device(device("a"))

    def add() -> None:
        for _ in range(25):
            with store.transaction() as unit:
                row = unit.devices(["a"])["a"]
                unit.put_device(replace(row, sequence=row.sequence + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as reader:
        assert reader.devices(["a"])["a"].sequence == 100


def test_the_store_counts_the_transactions_that_changed_what_people_see(store: SqlStore) -> None:
    """A note of the store about itself wakes no page; a device that went offline by a tick alone does."""
    before = store.changes
    with store.transaction() as unit:
        unit.put_note("observed_ms", "5")
    assert store.changes == before
    with store.transaction() as unit:
        unit.put_device(device("a"))
    assert store.changes == before + 1
    with store.transaction() as unit:
        unit.put_device(device("a"))  # the same again
        assert unit.device("a") == device("a")
    with store.transaction() as unit:
        unit.raise_epochs("red", 5)
    assert store.changes >= before + 2
