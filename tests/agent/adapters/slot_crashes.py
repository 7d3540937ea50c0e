"""A driver that runs the life of two slots again and again, to be killed by strace at one system call after the other.

It is started by `test_directory_slots_crash.py` under `strace -f`, which kills every process at its call number
`KILLED_AT` of a name. Each life is a fork that first makes so many idle calls of one name that the wanted one has that
number. So one strace and one Python serve all crash points, and each point is addressed as (name, ordinal).
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from agent.adapters.directory_slots import DirectorySlots
from agent.core import slots as rules
from agent.core.model import Holds, SlotName
from tests.agent.adapters.updates import an_update

NOWHERE: Final = Path("/nonexistent/a")
KILLED_AT: Final = 150  # above the calls of one name in one life
FIRST: Final = an_update("1.0.0").manifest
SECOND: Final = an_update("2.0.0").manifest


def _idle(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with contextlib.suppress(OSError):
            call()

    return run


IDLE_CALLS: Final[Mapping[str, Callable[[], None]]] = {
    "rename": _idle(lambda: NOWHERE.rename(NOWHERE / "b")),
    "unlink": _idle(lambda: NOWHERE.unlink()),
    "symlink": _idle(lambda: NOWHERE.symlink_to("a")),
    "chmod": _idle(lambda: NOWHERE.chmod(0o600)),
    "rmdir": _idle(lambda: NOWHERE.rmdir()),
    "fsync": _idle(lambda: os.fsync(0)),
}


def live(root: Path) -> None:
    """A whole life: install, commit, install the other way, revert. Milestones are folders: mkdir is not killed."""
    slots = DirectorySlots(root / "slots")
    slots.recover()
    _install(slots, "B", SECOND)
    _install(slots, "B", FIRST)  # over one that was sealed: it must be distrusted before it is emptied
    slots.activate("B", 2)
    slots.count_start("B")
    slots.commit("B")
    (root / "committed").mkdir()
    _install(slots, "A", SECOND)
    (root / "sealed").mkdir()
    slots.activate("A", 2)
    (root / "activated").mkdir()
    slots.revert("health_failed")
    (root / "reverted").mkdir()
    slots.invalidate("A", None)


def faults_after(root: Path) -> list[str]:
    """What is wrong after a power loss and a recovery; nothing, if the slots keep their promises."""
    slots = DirectorySlots(root / "slots")
    table = slots.recover()
    found = rules.faults(table)
    if slots.recover() != table:
        found.append("A second recovery changed something.")
    for name, slot in table.slots.items():
        if slot.holds in {Holds.SEALED, Holds.TRIAL, Holds.GOOD} and not slots.rehash(name):
            found.append(f"Slot {name} is {slot.holds}, and does not hold what was sealed.")
        if slot.holds is Holds.UNKNOWN:
            found.append(f"Slot {name} is unknown after a mere power loss.")
    if table.booted != table.last_known_good and table.running.holds is not Holds.TRIAL:
        found.append(f"What is booted is {table.running.holds}, neither last known good nor in trial.")
    if (root / "committed").exists() and table.last_known_good != "B":
        found.append("What was committed is no longer the last known good.")
    in_trial = (root / "activated").exists() and not (root / "reverted").exists()
    if in_trial and (table.booted, table.slots["A"].holds) == ("A", Holds.SEALED):
        found.append("A booted trial has lost its count of starts.")
    if (root / "reverted").exists() and table.booted != "B":
        found.append("What was reverted boots again.")
    if not found and not (root / "reverted").exists():
        found += _goes_on(slots)
    return found


def _goes_on(slots: DirectorySlots) -> list[str]:
    """After any loss the next update can be installed: nothing is wedged."""
    table = slots.probe()
    if table.booted != table.last_known_good:
        slots.revert("lost")
        table = slots.probe()
    _install(slots, table.spare, SECOND)
    return [] if slots.rehash(table.spare) else ["The next installation does not hold."]


def _install(slots: DirectorySlots, slot: SlotName, manifest: bytes) -> None:
    folder = slots.begin(slot, manifest)
    (folder / "app").mkdir()
    (folder / "app" / "main").write_bytes(manifest)
    slots.seal(slot)


def _forked(act: Callable[[], int]) -> int:
    """Run in a fork, and return its exit code (negative: the signal that ended it)."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _one(name: str, ordinal: int, root: Path) -> tuple[bool, list[str]]:
    def life() -> int:
        for _ in range(KILLED_AT - ordinal):
            IDLE_CALLS[name]()
        live(root)
        return 0

    def look() -> int:
        (root / "faults").write_text(json.dumps(faults_after(root)))
        return 0

    root.mkdir(parents=True)
    ended = _forked(life)
    if ended not in {0, -9}:
        return False, [f"The life ended with {ended}."]
    looked = _forked(look)
    if looked != 0:
        return ended == -9, [f"The recovery ended with {looked}."]
    return ended == -9, json.loads((root / "faults").read_text())


def main(folder: Path) -> None:
    """Kill at every call of every name, and write what came of it to `report.json`."""
    points: dict[str, int] = {}
    faults: list[str] = []
    for name in IDLE_CALLS:
        killed, ordinal = True, 0
        while killed and ordinal < KILLED_AT - 1:
            ordinal += 1
            killed, found = _one(name, ordinal, folder / f"{name}-{ordinal}")
            faults += [f"{name} {ordinal}: {sentence}" for sentence in found]
        points[name] = ordinal - 1  # the last life was not killed: it had no such call
    (folder / "report.json").write_text(json.dumps({"points": points, "faults": faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
