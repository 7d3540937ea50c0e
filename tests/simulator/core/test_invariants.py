"""What must hold of a virtual device's slots: a breach is told with the device and the rule."""

from dataclasses import replace

import pytest

from agent.core import slots as moves
from agent.core.model import Holds, Slot
from simulator.core.invariants import InvariantBroken, check_slots

RUNS = moves.factory("acme/app:1.0", "1" * 64)


def test_a_legal_move_is_left_alone() -> None:
    """The spare may be written at any time."""
    check_slots("v-1", RUNS, moves.begin(RUNS, "B", "acme/app:2.0", "2" * 64, 0))


@pytest.mark.parametrize(
    ("slot", "said"),
    [
        (Slot(Holds.WRITING, "acme/app:2.0", "2" * 64), "Slot A was written while it was booted"),
        (Slot(Holds.SEALED, "acme/app:2.0", "2" * 64), "Slot A was written while it was booted"),
        (Slot(Holds.TRIAL, "acme/app:2.0", "2" * 64, starts_left=1), "in trial and last known good at once"),
        (Slot(Holds.BAD, "acme/app:2.0", "2" * 64), "The booted slot A is bad"),
    ],
)
def test_a_breach_names_the_device_and_the_rule(slot: Slot, said: str) -> None:
    """Whatever happens to the booted slot, which is last known good."""
    with pytest.raises(InvariantBroken, match=f"v-1: .*{said}"):
        check_slots("v-1", RUNS, replace(RUNS, slots={**RUNS.slots, "A": slot}))
