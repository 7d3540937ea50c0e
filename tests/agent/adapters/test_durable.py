"""The one helper that replaces files, the record on it, and the lock on the state folder."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.adapters import durable, lock, tree
from agent.adapters.records import RecordFile
from agent.core.model import Record
from agent.ports import Stopped, WorkFailed
from protocol.errors import DeviceError, OperatorError
from protocol.outcomes import Reason
from tests.agent.adapters.disks import file_size_limit
from tests.agent.adapters.flushes import traced, watched

ROOT = Path(__file__).resolve().parents[3]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """New bytes, private by default, and no leftover beside them."""
    path = tmp_path / "state"
    durable.replace_file(path, b"one")
    durable.replace_file(path, b"two")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_leftover_is_overwritten_and_a_link_is_not_followed(tmp_path: Path) -> None:
    """What a power loss left is no obstacle; a link in its place is refused, not written through."""
    (tmp_path / ".state.new").write_bytes(b"half")
    durable.replace_file(tmp_path / "state", b"whole")
    assert (tmp_path / "state").read_bytes() == b"whole"
    (tmp_path / ".state.new").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        durable.replace_file(tmp_path / "state", b"never")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """What could not be written whole is not there at all."""
    path = tmp_path / "state"
    durable.replace_file(path, b"old")
    with file_size_limit(1_000), pytest.raises(OSError, match="File too large") as refused:
        durable.replace_file(path, b"x" * 5_000)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    assert durable.disk_failure(refused.value, "saving").reason is Reason.NO_SPACE
    assert durable.disk_failure(OSError(5, "Input/output error"), "saving").reason is Reason.DISK


def test_the_order_is_write_sync_rename_sync(tmp_path: Path) -> None:
    """A power cut shows what killing a process never does: the calls themselves are looked at, by strace."""
    script = (
        "import sys; from pathlib import Path; from agent.adapters import durable;"
        "durable.replace_file(Path(sys.argv[1]) / 'state', b'x'); durable.replace_symlink(Path(sys.argv[1]) / 'l', 'A')"
    )
    calls = "?rename,?renameat,?renameat2,fsync,?symlink,?symlinkat"
    lines = [
        line.split(None, 1)[1]
        for line in traced(script, tmp_path, calls)
        if "(" in line and "+++" not in line
    ]
    names = [line.partition("(")[0].removesuffix("2").removesuffix("at") for line in lines]
    assert names == ["fsync", "rename", "fsync", "symlink", "rename", "fsync"]
    assert ".state.new" in lines[0]
    assert lines[2].rstrip().endswith(f"<{tmp_path}>) = 0")
    assert lines[5].rstrip().endswith(f"<{tmp_path}>) = 0")


@pytest.mark.parametrize(
    ("script", "promises"),
    [
        ("from tests.agent.adapters.slot_crashes import live; live(root.parent)", 15),
        ("from tests.agent.adapters.flushes import downloads; downloads(root)", 3),
    ],
)
def test_nothing_is_promised_before_it_is_on_the_disk(tmp_path: Path, script: str, promises: int) -> None:
    """Whenever a table, link, note or finished file gets its name, what it stands for survives a power cut."""
    root = tmp_path / "slots"
    root.mkdir()
    disk = watched(f"import sys; from pathlib import Path; root = Path(sys.argv[1]); {script}", root)
    assert disk.faults == []
    assert disk.promises >= promises


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ("durable.sync_file_system = lambda path: None", "slots.json while"),
        ("durable.sync_folder = lambda path: None", "slots are not durable in the end"),
        ("os.fsync = lambda number: None", "is not durable"),
        ("os.fdatasync = lambda number: None", ".json while"),
    ],
)
def test_a_flush_left_out_is_seen(tmp_path: Path, broken: str, lost: str) -> None:
    """The look itself: each flush matters, and without it something would be promised too early."""
    root = tmp_path / "slots"
    root.mkdir()
    script = (
        "import os, sys; from pathlib import Path; from agent.adapters import durable;"
        f"from tests.agent.adapters import flushes, slot_crashes; {broken}; root = Path(sys.argv[1]);"
        "slot_crashes.live(root.parent); flushes.downloads(root)"
    )
    assert any(lost in sentence for sentence in watched(script, root).faults)


def test_folders_are_made_and_told_apart_from_files(tmp_path: Path) -> None:
    """Missing parents are made; a file in the way is an error."""
    durable.make_folder(tmp_path / "a" / "b")
    durable.make_folder(tmp_path / "a" / "b")
    (tmp_path / "f").touch()
    with pytest.raises(OSError, match="Not a directory"):
        durable.make_folder(tmp_path / "f")


def test_a_record_is_kept(tmp_path: Path) -> None:
    """None on a new device; then what was saved; a disk that refuses keeps the old one."""
    records = RecordFile(tmp_path / "record.json")
    assert records.load() is None
    record = Record(instance="i-1", start=3, epoch=7)
    records.save(record)
    assert records.load() == record
    with file_size_limit(10), pytest.raises(DeviceError, match="disk refused"):
        records.save(Record(instance="i-2"))
    assert records.load() == record


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 1}', b"x" * 2_000_000])
def test_an_unreadable_record_is_not_a_missing_one(tmp_path: Path, damage: bytes) -> None:
    """The core must know the difference."""
    (tmp_path / "record.json").write_bytes(damage)
    with pytest.raises(DeviceError, match="record"):
        RecordFile(tmp_path / "record.json").load()


def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    """The sentence names the process and what to do; the lock ends with the process, however it ends."""
    assert not lock.is_held(tmp_path)
    with lock.hold(tmp_path):
        assert lock.is_held(tmp_path)
        script = "import sys, pathlib; from agent.adapters import lock\nwith lock.hold(pathlib.Path(sys.argv[1])): pass"
        ran = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )
        assert f"Another agent (process {os.getpid()}) works on {tmp_path}; stop it first" in ran.stderr
    assert not lock.is_held(tmp_path)
    with lock.hold(tmp_path / "new"):
        pass


def test_a_state_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file in its place, for one."""
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="--state"), lock.hold(tmp_path / "file" / "state"):
        pass


def test_a_tree_knows_its_size_and_can_be_stopped(tmp_path: Path) -> None:
    """A missing folder takes nothing; a long digest can be ended."""
    (tmp_path / "f").write_bytes(b"x" * 10_000)
    assert tree.size_bytes(tmp_path / "none") == 0
    assert tree.size_bytes(tmp_path) >= 10_000
    with pytest.raises(Stopped):
        tree.digest(tmp_path, stop=lambda: True)


def test_a_full_disk_while_sealing_is_no_space() -> None:
    """Both kinds of refusal are told as one sentence."""
    assert "Free some space" in str(
        durable.disk_failure(OSError(28, "No space left on device"), "sealing slot B")
    )
    assert isinstance(durable.disk_failure(OSError(28, ""), "x"), WorkFailed)
