"""The handler `archive`: honest archives come out whole, and wicked ones leave nothing outside the slot."""

import bz2
import gzip
import importlib.util
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.adapters.archive import ArchiveHandler
from agent.adapters.inside import Inside, Outside, parts_of
from agent.ports import Stopped, WorkFailed
from protocol.outcomes import Reason
from tests.agent.adapters.disks import file_size_limit
from tests.agent.adapters.updates import a_member, a_tar

DIR, SYM, LNK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """An empty slot, with a neighbour that nothing may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / "slot").mkdir()
    return tmp_path / "slot"


def unpack(data: bytes, slot: Path, handler: ArchiveHandler | None = None) -> None:
    """Unpack an archive into the slot."""
    packed = slot.parent / "archive"
    packed.write_bytes(data)
    (handler or ArchiveHandler()).install({"app.tar": packed}, {}, slot, stop=lambda: False)


def untouched(slot: Path) -> bool:
    """Whether the neighbour is as it was."""
    outside = slot.parent / "outside"
    return [path.name for path in outside.iterdir()] == ["precious"] and (
        outside / "precious"
    ).read_text() == "precious"


HONEST: Members = [
    (a_member("./", DIR), b""),
    (a_member("./app/", DIR, mode=0o555), b""),
    (a_member("./app/main.py", mode=0o755), b"print(1)\n" * 100_000),
    (a_member("app/data/deep/file"), b"x"),
    (a_member("app/current", SYM, "data/deep"), b""),
    (a_member("app/data/up", SYM, "../../app/main.py"), b""),
    (a_member("dangling", SYM, "app/made/later"), b""),
    (a_member("app/hard", LNK, "app/main.py"), b""),
    (a_member("lib/a/b", SYM, "../../app"), b""),
]


@pytest.mark.parametrize(
    "packer",
    [bytes, gzip.compress, bz2.compress, lzma.compress],
    ids=["tar", "gz", "bz2", "xz"],
)
def test_an_honest_archive_comes_out_whole(slot: Path, packer: Callable[[bytes], bytes]) -> None:
    """Files with their rights, folders, links and hard links, from each kind of compression."""
    unpack(packer(a_tar(HONEST)), slot)
    assert (slot / "app/main.py").read_bytes() == HONEST[2][1]
    assert stat.S_IMODE((slot / "app/main.py").stat().st_mode) == 0o755
    assert (slot / "app/current/file").read_bytes() == b"x"
    assert (slot / "app/hard").stat().st_ino == (slot / "app/main.py").stat().st_ino
    assert str((slot / "app/data/up").readlink()) == "../../app/main.py"
    assert (slot / "lib/a/b/data/deep/file").exists()


def test_zstd_is_unpacked_or_refused_with_what_to_do(slot: Path) -> None:
    """A device without zstd says which package it lacks."""
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed: apt-get install zstd")
    packed = subprocess.run(["zstd", "-q", "-c"], input=a_tar(HONEST), capture_output=True, check=True).stdout
    modules = ("compression.zstd", "backports.zstd", "zstandard")
    if any(_is_there(module) for module in modules):
        unpack(packed, slot)
        assert (slot / "app/data/deep/file").exists()
        return
    with pytest.raises(WorkFailed, match=r"install the package backports\.zstd") as failed:
        unpack(packed, slot)
    assert failed.value.reason is Reason.UNSUPPORTED


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_set_user_id_bits_are_stripped(slot: Path) -> None:
    """No member brings set-user-id, set-group-id or sticky bits."""
    unpack(a_tar([(a_member("su", mode=0o6755), b"x"), (a_member("d", DIR, mode=0o3777), b"")]), slot)
    assert stat.S_IMODE((slot / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((slot / "d").stat().st_mode) & 0o7000 == 0


ATTACKS: dict[str, tuple[Members, str]] = {
    "absolute path": ([(a_member("/outside/new"), b"x")], "absolute path"),
    "parent path": ([(a_member("../outside/new"), b"x")], "climbs out"),
    "parent path inside": ([(a_member("a/../../outside/new"), b"x")], "climbs out"),
    "parent folder": ([(a_member("../outside/sub", DIR), b"")], "climbs out"),
    "absolute link": ([(a_member("l", SYM, "/etc"), b"")], "leads out of the slot"),
    "parent link": ([(a_member("l", SYM, "../outside"), b"")], "leads out of the slot"),
    "deep parent link": ([(a_member("a/b/l", SYM, "../../../outside"), b"")], "leads out of the slot"),
    "link through a link": (
        [
            (a_member("d/e/f", DIR), b""),
            (a_member("l", SYM, "d/e"), b""),
            (a_member("m", SYM, "l/../../.."), b""),
        ],
        "leads out of the slot",
    ),
    "link through a later link": (
        [(a_member("m", SYM, "l/../.."), b""), (a_member("l", SYM, "d"), b""), (a_member("d", DIR), b"")],
        "leads out of the slot",
    ),
    "circle": ([(a_member("a", SYM, "b"), b""), (a_member("b", SYM, "a"), b"")], "round in a circle"),
    "empty link": ([(a_member("a", SYM, ""), b"")], "leads out of the slot"),
    "written through a link": (
        [(a_member("l", SYM, "../outside"), b""), (a_member("l/new"), b"x")],
        "leads out of the slot",
    ),
    "written through an inner link": (
        [(a_member("d", DIR), b""), (a_member("l", SYM, "d"), b""), (a_member("l/new"), b"x")],
        "folder already",
    ),
    "written through a file": ([(a_member("f"), b"x"), (a_member("f/new"), b"x")], "not a folder"),
    "link made through a link": (
        [(a_member("l", SYM, "."), b""), (a_member("l/m", SYM, "x"), b"")],
        "",
    ),
    "hard link outside": ([(a_member("h", LNK, "../outside/precious"), b"")], "climbs out"),
    "absolute hard link": ([(a_member("h", LNK, "/etc/passwd"), b"")], "absolute path"),
    "hard link to nothing": ([(a_member("h", LNK, "none"), b"")], "not there"),
    "hard link to a folder": ([(a_member("d", DIR), b""), (a_member("h", LNK, "d"), b"")], "no regular file"),
    "hard link to itself": ([(a_member("f"), b"x"), (a_member("f", LNK, "f"), b"")], "link to itself"),
    "hard link through a link": (
        [(a_member("l", SYM, "../outside"), b""), (a_member("h", LNK, "l/precious"), b"")],
        "not a folder",
    ),
    "device": ([(a_member("null", tarfile.CHRTYPE), b"")], "device, pipe or other"),
    "block device": ([(a_member("sda", tarfile.BLKTYPE), b"")], "device, pipe or other"),
    "pipe": ([(a_member("fifo", tarfile.FIFOTYPE), b"")], "device, pipe or other"),
    "file over a folder": ([(a_member("d", DIR), b""), (a_member("d"), b"x")], "folder already"),
    "the slot as a file": ([(a_member("."), b"x")], "without a name"),
    "the slot as a link": ([(a_member(".", SYM, "../outside"), b"")], "without a name"),
    "a name too long": ([(a_member("n" * 300), b"x")], "no file can bear"),
    "too deep": ([(a_member("/".join("d" * 70)), b"x")], "no file can bear"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_archive_that_leaves_the_slot_is_refused(slot: Path, name: str) -> None:
    """Paths, links, devices: each is refused with a clear sentence, and nothing outside the slot has changed."""
    members, sentence = ATTACKS[name]
    with pytest.raises(WorkFailed) as failed:
        unpack(a_tar(members), slot)
    assert failed.value.reason is Reason.HANDLER_FAILED
    assert str(failed.value).startswith("The archive 'app.tar' was refused: ")
    assert str(failed.value).endswith("Mend the archive and import a new version.")
    assert sentence in str(failed.value)
    assert untouched(slot)


def test_nothing_is_written_through_a_link_of_an_earlier_step(slot: Path) -> None:
    """A link that another step left is not followed, not even one that leads outside."""
    (slot / "l").symlink_to("../outside")
    for members in (
        [(a_member("l/new"), b"x")],
        [(a_member("l/precious"), b"x")],
        [(a_member("l/d", DIR), b"")],
    ):
        with pytest.raises(WorkFailed, match="nothing is written through links"):
            unpack(a_tar(members), slot)
    assert untouched(slot)
    with pytest.raises(WorkFailed, match="leads out of the slot"):
        unpack(a_tar([(a_member("ok"), b"x")]), slot)


def test_a_later_member_replaces_a_file_and_never_writes_into_it(slot: Path) -> None:
    """The second of two files of one name wins; a hard link to the first keeps the first's bytes."""
    unpack(a_tar([(a_member("f"), b"one"), (a_member("h", LNK, "f"), b"")]), slot)
    unpack(a_tar([(a_member("f"), b"two")]), slot)
    assert ((slot / "f").read_bytes(), (slot / "h").read_bytes()) == (b"two", b"one")


@pytest.mark.parametrize("cut", [100, 700, 5_000, -1_024])
def test_an_archive_cut_short_is_refused(slot: Path, cut: int) -> None:
    """In a header, in a file, or where only the end mark is missing: never taken for whole."""
    plain = a_tar([(a_member("a"), b"x" * 4_000), (a_member("b"), b"y" * 4_000)])
    plain = plain[: 2 * (512 + 4_096) + 1_024]
    with pytest.raises(WorkFailed, match=r"cut short|damaged"):
        unpack(plain[:cut], slot)


@pytest.mark.parametrize("packer", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
def test_a_compressed_archive_cut_short_or_damaged_is_refused(
    slot: Path, packer: Callable[[bytes], bytes]
) -> None:
    """The decompressor's own complaint becomes our sentence."""
    packed = packer(a_tar([(a_member("a"), os.urandom(100_000))]))
    for broken in (packed[:-3_000], packed[:50_000] + b"\0" * 100 + packed[50_100:]):
        with pytest.raises(WorkFailed) as failed:
            unpack(broken, slot)
        assert failed.value.reason is Reason.HANDLER_FAILED


def test_a_damaged_header_in_the_middle_is_no_end(slot: Path) -> None:
    """tarfile alone takes a broken header for the end of the archive."""
    plain = bytearray(a_tar([(a_member("a"), b"x"), (a_member("b"), b"y"), (a_member("c"), b"z")]))
    plain[1_024:1_100] = b"\xff" * 76
    with pytest.raises(WorkFailed, match=r"cut short|damaged"):
        unpack(bytes(plain), slot)


@pytest.mark.parametrize("rubbish", [b"", b"hello", b"PK\x03\x04" * 200, bytes(range(1, 256)) * 10])
def test_what_is_no_archive_is_refused(slot: Path, rubbish: bytes) -> None:
    """An empty file, a text, noise: one sentence."""
    with pytest.raises(WorkFailed, match="was refused"):
        unpack(rubbish, slot)


def test_members_and_bytes_are_capped(slot: Path) -> None:
    """More members or bytes than allowed end the unpacking before the disk is full."""
    many = a_tar([(a_member(f"f{number}"), b"") for number in range(11)])
    with pytest.raises(WorkFailed, match="more than 10 members"):
        unpack(many, slot, ArchiveHandler(members_max=10))
    bomb = gzip.compress(a_tar([(a_member("zeros"), bytes(2_000_000))]))
    with pytest.raises(WorkFailed, match="more bytes than allowed"):
        unpack(bomb, slot, ArchiveHandler(bytes_max=1_000_000))


def test_a_huge_extended_header_is_not_read_into_memory(slot: Path) -> None:
    """tarfile reads such headers whole; ours are capped before."""
    header = a_member("././@PaxHeader", tarfile.XHDTYPE)
    packed = a_tar([(header, b"9" * 2_000_000)])
    with pytest.raises(WorkFailed, match="header that is too large"):
        unpack(packed, slot)


def test_a_sparse_member_is_refused(slot: Path) -> None:
    """A sparse file of a terabyte fits into a kilobyte of archive."""
    with pytest.raises(WorkFailed, match="sparse"):
        unpack(a_tar([(a_member("s", tarfile.GNUTYPE_SPARSE), b"")]), slot)


def test_a_full_disk_is_no_space(slot: Path) -> None:
    """The disk refuses while unpacking: `no_space`, and not the update's fault."""
    data = a_tar([(a_member("f"), bytes(300_000))])
    packed = slot.parent / "archive"
    packed.write_bytes(data)
    with file_size_limit(100_000), pytest.raises(WorkFailed, match="disk is full") as failed:
        ArchiveHandler().install({"app.tar": packed}, {}, slot, stop=lambda: False)
    assert failed.value.reason is Reason.NO_SPACE


def test_unpacking_can_be_stopped(slot: Path) -> None:
    """`stop` is asked at every member."""
    packed = slot.parent / "archive"
    packed.write_bytes(a_tar(HONEST))
    with pytest.raises(Stopped):
        ArchiveHandler().install({"app.tar": packed}, {}, slot, stop=lambda: True)


def test_times_are_kept(slot: Path) -> None:
    """Python judges byte code by its source's time."""
    member = a_member("f")
    member.mtime = 1_000_000
    unpack(a_tar([(member, b"x")]), slot)
    assert (slot / "f").stat().st_mtime == 1_000_000


@pytest.mark.parametrize("name", ["a\0b", "x" * 5_000, "../x", "/x", "a/../../b"])
def test_names_that_no_file_bears_are_refused(name: str) -> None:
    """Whatever the archive format, the names pass here."""
    with pytest.raises(Outside):
        parts_of(name)


def test_a_link_in_the_place_of_the_slot_is_not_followed(tmp_path: Path) -> None:
    """The slot's own folder is opened without following, too."""
    (tmp_path / "real").mkdir()
    (tmp_path / "slot").symlink_to("real")
    with pytest.raises(OSError, match=r"."), Inside(tmp_path / "slot"):
        pass


def test_the_tar_command_makes_archives_that_we_unpack(slot: Path) -> None:
    """What people really pack: GNU tar, a folder with a virtual environment's kind of links."""
    tree = slot.parent / "tree"
    (tree / "lib" / "site").mkdir(parents=True)
    (tree / "lib64").symlink_to("lib")
    (tree / "lib" / "site" / "m.py").write_text("m")
    packed = subprocess.run(
        ["tar", "-C", str(tree), "-czf", "-", "."], capture_output=True, check=True
    ).stdout
    unpack(packed, slot)
    assert (slot / "lib64" / "site" / "m.py").read_text() == "m"
