"""What must hold of every virtual device at every moment, in both worlds (DESIGN.md section 6).

It changes nothing. It keeps the rule that a breach is told where it happens, and never waited out.
"""

from agent.core import slots as moves
from agent.core.model import Holds, SlotTable
from protocol.errors import LastgoodError


class InvariantBroken(LastgoodError):
    """A rule did not hold, which is a defect of ours; the sentence names the rule."""


def check_slots(device: str, before: SlotTable, after: SlotTable) -> None:
    """Hold a device's new slot table to the slots' invariants, and to what it was.

    Raises:
        InvariantBroken: it is not legal, or a slot was written that was booted or last known good.
    """
    found = moves.faults(after)
    for name in (before.booted, before.last_known_good):
        if before.slots[name].holds is Holds.GOOD and after.slots[name].holds in {
            Holds.WRITING,
            Holds.SEALED,
        }:
            found.append(f"Slot {name} was written while it was booted or last known good.")
    if found:
        raise InvariantBroken(f"{device}: {' '.join(found)}")
