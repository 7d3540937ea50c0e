"""`lastgood update pack`: the same bytes for the same folder, and nothing in it that a slot must not hold."""

import os
import socket
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from cloud_stub.cli.packing import pack
from cloud_stub.core.packing import archive_manifest, compatibility_of
from protocol.errors import OperatorError
from protocol.identity import UpdateId
from protocol.manifest import read_manifest
from tests.cloud_stub.cli.conftest import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an application of three files, one of which can be run, and a link."""
    made = tmp_path / "application"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "run").write_text("#!/bin/sh\n")
    (made / "bin" / "run").chmod(0o700)
    (made / "bin-extra").write_text("sorted behind bin, before bin/run or not: always alike")
    (made / "data.txt").write_text("x" * 100_000)
    (made / "bin" / "data").symlink_to("../data.txt")
    return made


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Whoever owns it, whenever it was touched, and in whatever order the file system lists it."""
    first = pack(folder, tmp_path / "1.tar")
    again = tmp_path / "copied"
    again.mkdir()
    for path in sorted(folder.rglob("*"), reverse=True, key=lambda found: (-len(found.parts), found)):
        target = again / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True, parents=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_file():
            target.write_bytes(path.read_bytes())
            target.chmod(0o755 if os.access(path, os.X_OK) and path.name == "run" else 0o600)
            os.utime(target, (1, 1))
    assert pack(again, tmp_path / "2.tar") == first
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert first == (
        (tmp_path / "1.tar").stat().st_size,
        sha256((tmp_path / "1.tar").read_bytes()).hexdigest(),
    )


def test_the_archive_holds_what_the_folder_holds(folder: Path, tmp_path: Path) -> None:
    """Folders before what is in them, links as links, modes as far as they are content, and nobody's name."""
    pack(folder, tmp_path / "1.tar")
    with tarfile.open(tmp_path / "1.tar") as tar:
        members = {member.name: member for member in tar}
    assert list(members) == ["bin", "bin-extra", "bin/data", "bin/run", "data.txt"]
    assert members["bin/data"].linkname == "../data.txt"
    assert [oct(members[name].mode) for name in ("bin", "bin/run", "data.txt")] == ["0o755", "0o755", "0o644"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members.values()} == {
        (0, 0, 0, "")
    }


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "bin/../../outside", ".."])
def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path, target: str) -> None:
    """It would be refused on the device; here it is said at once, and no archive is left."""
    (folder / "link").symlink_to(target)
    with pytest.raises(OperatorError, match="outside the folder"):
        pack(folder, tmp_path / "out" / "1.tar")
    assert not list(tmp_path.glob("out/*"))


def test_what_is_no_content_is_refused(folder: Path, tmp_path: Path) -> None:
    """Pipes and sockets have no bytes; an empty or missing folder installs nothing."""
    os.mkfifo(folder / "pipe")
    with pytest.raises(OperatorError, match="no file, folder or link"):
        pack(folder, tmp_path / "1.tar")
    (folder / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "s"))
        with pytest.raises(OperatorError, match="no file, folder or link"):
            pack(folder, tmp_path / "1.tar")
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "missing", folder / "data.txt"):
        with pytest.raises(OperatorError, match=r"empty|not a folder"):
            pack(wrong, tmp_path / "1.tar")


def test_an_archive_never_lands_in_the_folder_it_is_made_of(folder: Path) -> None:
    """The next packing of the folder would hold it, and be another update."""
    with pytest.raises(OperatorError, match="name a folder beside it"):
        pack(folder, folder / "out" / "1.tar")
    assert not (folder / "out").exists()


def test_a_place_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    """One sentence, also when the folder for the archive cannot be made."""
    (tmp_path / "a-file").write_text("")
    with pytest.raises(OperatorError, match="cannot be packed into"):
        pack(folder, tmp_path / "a-file" / "out" / "1.tar")


def test_the_manifest_is_one_that_imports() -> None:
    """It reads back with what went in."""
    data = archive_manifest(
        UpdateId.parse("acme/pump:1.2"),
        filename="acme.pump.1.2.tar",
        size_bytes=12,
        sha256="ab" * 32,
        compatibility=compatibility_of(["manufacturer=acme, model=pump", "model=valve"]),
        release_counter=7,
    )
    manifest = read_manifest(data)
    assert (str(manifest.update), manifest.release_counter) == ("acme/pump:1.2", 7)
    assert manifest.files["acme.pump.1.2.tar"].sha256 == "ab" * 32
    assert manifest.document.compatibility == [{"manufacturer": "acme", "model": "pump"}, {"model": "valve"}]
    assert [step.handler_name for step in manifest.steps] == ["archive"]


@pytest.mark.parametrize("text", ["", "model", "model=", "=pump", "model=pump,", "a=b,,c=d"])
def test_a_device_class_is_written_one_way(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(OperatorError, match="manufacturer=acme,model=pump"):
        compatibility_of([text])


def test_pack_then_import(folder: Path, tmp_path: Path, ask: Run, run: Run) -> None:
    """What `pack` made is imported by the command that it printed."""
    packed = run(
        "update", "pack", folder, "--id", "acme/pump:1.2", "--compat", "model=pump", "-o", tmp_path / "out"
    )
    assert packed.code == 0
    manifest = packed.out.strip().rpartition(" ")[2]
    imported = ask("update", "import", manifest, "--json")
    assert imported.code == 0, imported.err
    assert imported.json["files"][0]["filename"] == "acme.pump.1.2.tar"
