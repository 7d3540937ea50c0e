"""The slot backend `directory` on real folders."""

import stat
from pathlib import Path

import pytest

from agent.adapters import durable, lock
from agent.adapters.directory_slots import DirectorySlots
from agent.core.model import SLOTS, Holds, SlotName
from protocol.errors import DeviceError
from tests.agent.adapters.updates import Update, an_update


def install(slots: DirectorySlots, update: Update, slot: SlotName = "B") -> None:
    """Write an update into a slot and seal it."""
    folder = slots.begin(slot, update.manifest)
    (folder / "app.txt").write_bytes(b"new")
    (folder / "bin").mkdir()
    (folder / "bin" / "run").symlink_to("../app.txt")
    slots.seal(slot)


@pytest.fixture
def slots(tmp_path: Path) -> DirectorySlots:
    """A new device's slots."""
    slots = DirectorySlots(tmp_path / "slots")
    slots.recover()
    return slots


def test_a_new_device_has_an_empty_booted_slot(slots: DirectorySlots) -> None:
    """Without any application yet A is booted and last known good, and B is where the first update goes."""
    table = slots.probe()
    assert (table.booted, table.last_known_good, table.spare) == ("A", "A", "B")
    assert {slot.holds for slot in table.slots.values()} == {Holds.EMPTY}
    assert slots.recover() == table


def test_an_application_of_another_user_may_pass_to_its_slot(tmp_path: Path) -> None:
    """From the state folder on everybody may go down to a slot, and read there; what the agent keeps is its own."""
    state = tmp_path / "lib" / "lastgood"
    with lock.hold(state):
        slots = DirectorySlots(state / "slots")
        slots.recover()
        install(slots, an_update())
        durable.replace_file(state / "record.json", b"{}")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*")}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (state.parent, state)} == {0o711}
    assert all(
        modes[folder] & 0o001 for folder in (state / "slots", slots.path("B"), slots.path("B") / "bin")
    )
    assert modes[slots.path("B") / "app.txt"] & 0o004
    assert {modes[state / name] for name in ("record.json", lock.NAME)} == {0o600}


def test_an_update_goes_through_the_spare_slot(slots: DirectorySlots) -> None:
    """begin, seal, activate, start, commit: the link and the table agree at every stop."""
    update = an_update("1.2.0", release_counter=7)
    install(slots, update)
    sealed = slots.probe().slots["B"]
    assert (sealed.holds, sealed.sha256, sealed.update) == (Holds.SEALED, update.sha256, "contoso/app:1.2.0")
    assert sealed.release_counter == 7
    slots.activate("B", 2)
    table = slots.probe()
    assert (table.booted, table.last_known_good, table.slots["B"].starts_left) == ("B", "A", 2)
    assert str((slots.path("A").parent / "current").readlink()) == "B"
    assert [slots.count_start("B") for _ in range(3)] == [True, True, False]
    slots.commit("B")
    table = slots.probe()
    assert (table.booted, table.last_known_good, table.running.holds) == ("B", "B", Holds.GOOD)
    assert slots.count_start("B")


def test_a_trial_is_reverted(slots: DirectorySlots) -> None:
    """After a revert the last known good slot boots, and the trial is bad with its reason."""
    install(slots, an_update())
    slots.activate("B", 3)
    slots.revert("health_failed")
    slots.revert("health_failed")
    table = slots.probe()
    assert (table.booted, table.slots["B"].holds, table.slots["B"].reason) == (
        "A",
        Holds.BAD,
        "health_failed",
    )


def test_the_booted_slot_is_never_written(slots: DirectorySlots) -> None:
    """begin and invalidate refuse the booted and last known good slot, and leave what it holds."""
    (slots.path("A") / "precious").write_text("x")
    with pytest.raises(DeviceError, match="booted"):
        slots.begin("A", an_update().manifest)
    with pytest.raises(DeviceError, match="booted"):
        slots.invalidate("A", None)
    assert (slots.path("A") / "precious").exists()


def test_neither_slot_is_written_during_a_trial(slots: DirectorySlots) -> None:
    """With a trial booted the last known good slot is refused, too."""
    install(slots, an_update())
    slots.activate("B", 3)
    for slot in SLOTS:
        with pytest.raises(DeviceError):
            slots.begin(slot, an_update("2.0.0").manifest)


def test_begin_invalidates_before_the_first_byte(slots: DirectorySlots) -> None:
    """A slot that was sealed is not, once it is begun again: neither its state nor its seal stays."""
    install(slots, an_update())
    slots.begin("B", an_update("2.0.0").manifest)
    assert slots.probe().slots["B"].holds is Holds.WRITING
    assert not slots.rehash("B")
    assert list(slots.path("B").iterdir()) == []
    with pytest.raises(DeviceError, match="only a sealed slot"):
        slots.activate("B", 3)


def test_a_sealed_folder_is_read_only(slots: DirectorySlots) -> None:
    """Nothing below a sealed slot can be written by anyone."""
    install(slots, an_update())
    for path in (slots.path("B"), slots.path("B") / "bin", slots.path("B") / "app.txt"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0


@pytest.mark.parametrize("change", ["content", "added", "removed", "mode", "link", "manifest", "seal"])
def test_R25_rehash_sees_every_change(slots: DirectorySlots, change: str) -> None:
    """Contents, the set of members, modes, links, the manifest and the seal itself are all covered."""
    install(slots, an_update())
    assert slots.rehash("B")
    folder = slots.path("B")
    for path in (folder, folder / "bin", folder / "app.txt"):
        path.chmod(path.stat().st_mode | 0o200)
    (folder / "app.txt").chmod(0o444)
    assert slots.rehash("B") is False, "the rights of a folder are part of what was sealed"
    (folder / "bin").chmod(0o555)
    assert slots.rehash("B")
    if change == "content":
        (folder / "app.txt").chmod(0o644)
        (folder / "app.txt").write_bytes(b"neW")
        (folder / "app.txt").chmod(0o444)
    elif change == "added":
        (folder / "more").touch(0o444)
    elif change == "removed":
        (folder / "app.txt").unlink()
    elif change == "mode":
        (folder / "app.txt").chmod(0o555)
    elif change == "link":
        (folder / "bin").chmod(0o755)
        (folder / "bin" / "run").unlink()
        (folder / "bin" / "run").symlink_to("../other")
        (folder / "bin").chmod(0o555)
    elif change == "manifest":
        (folder.parent / "B.manifest").write_bytes(an_update("9.9.9").manifest)
    else:
        (folder.parent / "B.seal").unlink()
    assert slots.rehash("B") is False


def test_a_spoiled_slot_keeps_no_seal(slots: DirectorySlots) -> None:
    """A slot marked bad cannot be taken for whole by a checksum that was left beside it."""
    install(slots, an_update())
    slots.invalidate("B", "verify_failed")
    assert slots.probe().slots["B"].holds is Holds.BAD
    assert not (slots.path("B").parent / "B.seal").exists()
    assert not slots.rehash("B")


def test_what_was_invalidated_is_not_sealed(slots: DirectorySlots) -> None:
    """An installation that was called off cannot seal its slot behind the core's back."""
    slots.begin("B", an_update().manifest)
    slots.invalidate("B", None)
    with pytest.raises(DeviceError, match="cannot be sealed"):
        slots.seal("B")


@pytest.mark.parametrize("target", ["/somewhere", "../A", "C", "A/.."])
def test_a_link_that_leads_elsewhere_is_unknown_not_bad(slots: DirectorySlots, target: str) -> None:
    """Nobody knows what runs then: nothing is called bad, and nothing is written."""
    install(slots, an_update())
    current = slots.path("A").parent / "current"
    current.unlink()
    current.symlink_to(target)
    for table in (slots.probe(), slots.recover()):
        assert {slot.holds for slot in table.slots.values()} == {Holds.UNKNOWN}
        assert table.slots["B"].sha256 == an_update().sha256
    with pytest.raises(DeviceError, match="ln -sfn A"):
        slots.begin("B", an_update().manifest)
    assert str(current.readlink()) == target
    current.unlink()
    current.symlink_to("A")
    assert slots.recover().slots["B"].holds is Holds.SEALED


def test_a_lost_table_is_unknown_and_mended_by_the_next_update(slots: DirectorySlots) -> None:
    """The link still says what runs; the next update writes the spare, and its commit makes everything known again."""
    root = slots.path("A").parent
    (root / "slots.json").write_bytes(b"{ rubbish")
    table = slots.recover()
    assert (table.booted, table.last_known_good, table.running.holds) == ("A", "A", Holds.UNKNOWN)
    assert (root / "slots.json.unreadable").exists()
    install(slots, an_update())
    slots.activate("B", 3)
    slots.commit("B")
    assert slots.probe().running.holds is Holds.GOOD


def test_a_trial_that_was_never_booted_is_sealed_again(slots: DirectorySlots) -> None:
    """A power loss between the table and the rename means that the switch has not happened."""
    install(slots, an_update())
    slots.activate("B", 3)
    current = slots.path("A").parent / "current"
    current.unlink()
    current.symlink_to("A")
    assert slots.recover().slots["B"].holds is Holds.SEALED


def test_a_bad_slot_that_is_booted_is_left(slots: DirectorySlots) -> None:
    """A power loss between the two halves of a revert: recover finishes it."""
    install(slots, an_update())
    slots.activate("B", 3)
    slots.revert("health_failed")
    current = slots.path("A").parent / "current"
    current.unlink()
    current.symlink_to("B")
    table = DirectorySlots(current.parent).recover()
    assert (table.booted, table.slots["B"].holds) == ("A", Holds.BAD)
