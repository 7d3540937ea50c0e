"""The slot moves: what they allow, what they refuse, and what a power loss between their halves leaves."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import slots as rules
from agent.core.model import SLOTS, Holds, Slot, SlotName, SlotTable, other
from protocol.errors import DeviceError
from tests.agent.builders import a_manifest, a_slot, slots_in_trial, slots_running

OLD, NEW = a_manifest("1.0"), a_manifest("2.0")
SHA = "a" * 64


def test_a_whole_update_moves_through_the_table_without_a_fault() -> None:
    """begin, seal, activate, start, commit: legal at every step."""
    table = rules.begin(slots_running(OLD), "B", "contoso/app:2.0", SHA, 3)
    steps = [
        table,
        sealed := rules.seal(table, "B"),
        rules.mark_trial(sealed, "B", 3),
        trial := rules.activate(sealed, "B", 3),
    ]
    counted, may_start = rules.count_start(trial, "B")
    assert may_start
    assert counted.slots["B"].starts_left == 2
    done = rules.commit(counted, "B")
    assert (done.booted, done.last_known_good, done.slots["B"].holds, done.slots["A"].holds) == (
        "B",
        "B",
        "good",
        "good",
    )
    assert [rules.faults(step) for step in [*steps, counted, done]] == [[]] * 6


@pytest.mark.parametrize("slot", SLOTS)
def test_the_booted_and_the_last_good_slot_are_never_written(slot: SlotName) -> None:
    """begin and invalidate refuse both, in a trial too."""
    table = slots_in_trial(OLD, NEW)
    with pytest.raises(DeviceError, match="slot"):
        rules.begin(table, slot, "contoso/app:3.0", SHA, 0)
    with pytest.raises(DeviceError, match="slot"):
        rules.invalidate(table, slot, "bad")


@pytest.mark.parametrize("holds", sorted(set(Holds) - {Holds.SEALED, Holds.GOOD}))
def test_only_what_was_sealed_is_put_in_trial(holds: Holds) -> None:
    """Empty, invalid, half-written, bad and unknown slots are never tried, nor one whose starts are used up."""
    starts = 0 if holds is Holds.TRIAL else None
    with pytest.raises(DeviceError):
        rules.activate(slots_running(OLD, a_slot(NEW, holds, starts_left=starts)), "B", 3)


def test_starts_are_bounded_and_counted_only_in_a_trial() -> None:
    """Three are taken, the fourth is refused; a good slot's starts are free."""
    table = slots_in_trial(OLD, NEW, starts_left=3)
    for _ in range(3):
        table, may_start = rules.count_start(table, "B")
        assert may_start
    assert rules.count_start(table, "B") == (table, False)
    assert rules.count_start(table, "A") == (table, True)


def test_every_move_can_be_run_again() -> None:
    """An effect repeated after a power loss leaves the same table, and gives no start back."""
    sealed = slots_running(OLD, a_slot(NEW, Holds.SEALED))
    trial, _ = rules.count_start(rules.activate(sealed, "B", 3), "B")
    assert rules.activate(trial, "B", 3) == trial
    assert rules.seal(sealed, "B") == sealed
    back = rules.revert(trial, "health_failed")
    assert rules.revert(back, "another word") == back
    done = rules.commit(trial, "B")
    assert rules.commit(done, "B") == done
    assert rules.revert(done, "too late") == done
    assert rules.recover(rules.recover(trial)) == rules.recover(trial)


def test_between_the_halves_of_activate_the_switch_has_not_happened() -> None:
    """Marked but not booted: sealed again, without starts."""
    half = rules.mark_trial(slots_running(OLD, a_slot(NEW, Holds.SEALED)), "B", 3)
    assert rules.recover(half) == slots_running(OLD, a_slot(NEW, Holds.SEALED))


def test_between_the_halves_of_revert_the_way_back_is_finished() -> None:
    """Bad and still booted: the last known good slot boots."""
    half = rules.mark_bad(slots_in_trial(OLD, NEW), "health_failed")
    assert half.booted == "B"
    assert rules.recover(half) == rules.revert(slots_in_trial(OLD, NEW), "health_failed")


def test_a_trial_that_a_bootloader_gave_up_is_bad() -> None:
    """Not booted, with no start left: it was started to the last."""
    table = slots_in_trial(OLD, NEW, starts_left=0)
    given_up = SlotTable(table.slots, "A", "A")
    assert rules.recover(given_up).slots["B"].holds is Holds.BAD


def test_a_late_fall_back_is_left_for_the_core_to_report() -> None:
    """recover does not hide it; commit and invalidate settle it."""
    table = SlotTable({"A": a_slot(OLD), "B": a_slot(NEW)}, "A", "B")
    assert rules.recover(table) is table
    settled = rules.invalidate(rules.commit(table, "A"), "B", rules.FELL_BACK)
    assert (settled.last_known_good, settled.slots["B"].holds, rules.faults(settled)) == ("A", Holds.BAD, [])


def test_a_slot_that_is_invalid_or_bad_is_trusted_by_no_checksum() -> None:
    """What failed is never tried, whatever sha256 the report still names (elsewhere a failed slot "succeeded" so)."""
    table = slots_running(OLD, a_slot(NEW, Holds.SEALED))
    for marked in (rules.invalidate(table, "B"), rules.invalidate(table, "B", "verify_failed")):
        with pytest.raises(DeviceError):
            rules.activate(marked, "B", 3)


@pytest.mark.parametrize(
    "table",
    [
        SlotTable({"A": a_slot(OLD, Holds.BAD), "B": Slot()}, "A", "A"),
        SlotTable({"A": a_slot(OLD), "B": a_slot(NEW, Holds.WRITING)}, "B", "A"),
        SlotTable({"A": a_slot(OLD, Holds.TRIAL, starts_left=1), "B": Slot()}, "A", "A"),
        SlotTable({"A": a_slot(OLD), "B": a_slot(NEW, Holds.TRIAL)}, "B", "A"),
        SlotTable({"A": a_slot(OLD), "B": a_slot(NEW, Holds.GOOD, starts_left=2)}, "A", "A"),
        SlotTable({"A": a_slot(OLD), "B": Slot(Holds.SEALED)}, "A", "A"),
    ],
)
def test_faults_names_what_is_broken(table: SlotTable) -> None:
    """Each broken invariant is found."""
    assert len(rules.faults(table)) >= 1


MOVES = [
    "begin",
    "seal",
    "mark_trial",
    "boot",
    "count_start",
    "commit",
    "mark_bad",
    "revert",
    "invalidate",
    "recover",
]


@given(st.lists(st.tuples(st.sampled_from(MOVES), st.sampled_from(SLOTS)), max_size=40))
def test_no_order_of_moves_breaks_an_invariant(moves: list[tuple[str, SlotName]]) -> None:
    """Whatever is called is refused or leaves a legal table, in which the last good slot is untouched."""
    table = rules.factory("contoso/app:1.0", SHA)
    for move, slot in moves:
        good = table.slots[table.last_known_good]
        try:
            after = _apply(table, move, slot)
        except DeviceError:
            continue
        assert rules.faults(after) == [], (move, slot, table, after)
        if after.last_known_good == table.last_known_good:
            assert after.slots[table.last_known_good] == good
        table = after


def _apply(table: SlotTable, move: str, slot: SlotName) -> SlotTable:
    match move:
        case "begin":
            return rules.begin(table, slot, "contoso/app:2.0", "b" * 64, 1)
        case "mark_trial":
            return rules.mark_trial(table, slot, 2)
        case "count_start":
            return rules.count_start(table, slot)[0]
        case "mark_bad" | "revert":
            return getattr(rules, move)(table, "why")  # type: ignore[no-any-return]
        case "recover":
            return rules.recover(table)
        case _:
            return getattr(rules, move)(table, slot)  # type: ignore[no-any-return]


def test_every_move_of_holds_is_one_of_the_table() -> None:
    """A slot that is empty cannot become good, one that is bad cannot become sealed, and so on."""
    for before, after in product(Holds, Holds):
        if after not in rules.HOLDS[before] and after is not before:
            assert (before, after) not in {(Holds.WRITING, Holds.SEALED), (Holds.TRIAL, Holds.GOOD)}
    assert set(rules.HOLDS) == set(Holds)
    assert Holds.TRIAL not in rules.HOLDS[Holds.BAD] | rules.HOLDS[Holds.WRITING] | rules.HOLDS[Holds.INVALID]
    assert other("A") == "B"
