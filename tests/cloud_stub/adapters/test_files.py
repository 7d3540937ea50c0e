"""The folder of files by their sha256."""

import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256, shake_128
from io import BytesIO
from pathlib import Path

import pytest

from cloud_stub.adapters.files import PIECE_BYTES, FolderFiles, open_files
from protocol.errors import OperatorError, ServiceError

ROOT = Path(__file__).parents[3]  # where the children import from
CONTENT = shake_128(b"content").digest(PIECE_BYTES + 17)  # more than one piece
NAME = sha256(CONTENT).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FolderFiles]:
    """An empty folder of files; after the test nothing half-way is left in it."""
    yield open_files(tmp_path / "files")
    assert list((tmp_path / "files" / "incoming").iterdir()) == []


def test_a_file_is_stored_under_its_sha256(files: FolderFiles) -> None:
    """Its bytes are the same, and it can be stored again."""
    for _ in range(2):
        files.put(BytesIO(CONTENT), NAME, len(CONTENT))
        path = files.path(NAME)
        assert path is not None
        assert path.name == NAME
        assert path.read_bytes() == CONTENT


def test_an_empty_file_can_be_stored(files: FolderFiles) -> None:
    """A manifest may name one."""
    empty = sha256(b"").hexdigest()
    files.put(BytesIO(), empty, 0)
    path = files.path(empty)
    assert path is not None
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("content", "size", "sentence"),
    [
        (CONTENT[:-1], len(CONTENT), "cut short"),
        (CONTENT + b"x", len(CONTENT), "more than"),
        (CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), len(CONTENT), "another file"),
        (CONTENT, len(CONTENT) - 1, "more than"),
        (b"", len(CONTENT), "cut short"),
    ],
)
def test_bytes_that_differ_are_refused(files: FolderFiles, content: bytes, size: int, sentence: str) -> None:
    """Cut short, too long, changed on the way: nothing appears under the name."""
    with pytest.raises(OperatorError, match=sentence):
        files.put(BytesIO(content), NAME, size)
    assert files.path(NAME) is None


def test_a_refused_file_leaves_the_stored_one(files: FolderFiles) -> None:
    """A second, damaged import does not harm the first."""
    files.put(BytesIO(CONTENT), NAME, len(CONTENT))
    with pytest.raises(OperatorError):
        files.put(BytesIO(b"other"), NAME, len(CONTENT))
    path = files.path(NAME)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_a_decayed_file_is_mended_by_storing_it_again(files: FolderFiles) -> None:
    """What is there is not trusted because of its name."""
    files.put(BytesIO(CONTENT), NAME, len(CONTENT))
    path = files.path(NAME)
    assert path is not None
    path.write_bytes(b"decayed")
    files.put(BytesIO(CONTENT), NAME, len(CONTENT))
    assert path.read_bytes() == CONTENT


def test_too_long_a_file_is_not_read_to_its_end(files: FolderFiles) -> None:
    """An upload without end does not fill the disk."""

    class Endless(BytesIO):
        """More bytes, always."""

        asked = 0

        def read(self, size: int | None = -1, /) -> bytes:
            """Give a piece of zeros."""
            self.asked += 1
            return bytes(PIECE_BYTES)

    endless = Endless()
    with pytest.raises(OperatorError, match="more than"):
        files.put(endless, NAME, len(CONTENT))
    assert endless.asked == 2


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, NAME[:-1], NAME + "\n", f"../{NAME}"])
def test_a_name_that_is_no_sha256_never_becomes_a_path(files: FolderFiles, name: str) -> None:
    """It is not there, and cannot be stored."""
    assert files.path(name) is None
    with pytest.raises(OperatorError, match="not a sha256"):
        files.put(BytesIO(CONTENT), name, len(CONTENT))


def test_what_a_power_cut_left_is_cleared_at_the_next_start(tmp_path: Path) -> None:
    """A file that nobody writes any more goes; one that is being written at this moment stays."""
    files = open_files(tmp_path)
    left = tmp_path / "incoming" / "tmp-left"
    left.write_bytes(b"half")

    class OpensAgain(BytesIO):
        """A source in whose middle another process starts."""

        def read(self, size: int | None = -1, /) -> bytes:
            """Start another one over the same folder, then read."""
            open_files(tmp_path)
            return super().read(size)

    files.put(OpensAgain(CONTENT), NAME, len(CONTENT))
    assert not left.exists()
    assert files.path(NAME) is not None


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system calls, in order: sync the file, sync the new folder's parent, rename, sync the folder."""
    files = open_files(tmp_path)
    calls: list[str] = []
    really_sync, really_replace = os.fsync, os.replace

    def sync(number: int) -> None:
        calls.append(f"sync {_kind(number)}")
        really_sync(number)

    def replace(source: Path, target: Path) -> None:
        calls.append(f"rename to {target.name}")
        really_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    files.put(BytesIO(CONTENT), NAME, len(CONTENT))
    assert calls == ["sync file", "sync folder", f"rename to {NAME}", "sync folder"]


def _kind(number: int) -> str:
    return "folder" if Path(f"/proc/self/fd/{number}").resolve().is_dir() else "file"


_FILLS_THE_DISK = """
import resource, signal, sys
from io import BytesIO
from pathlib import Path
from cloud_stub.adapters.files import open_files
from protocol.errors import ServiceError
from hashlib import sha256, shake_128
files = open_files(Path(sys.argv[1]))
content = bytes(300_000)
name = sha256(content).hexdigest()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
try:
    files.put(BytesIO(content), name, len(content))
except ServiceError as error:
    print(error)
print(files.path(name), list((Path(sys.argv[1]) / "incoming").iterdir()))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
files.put(BytesIO(content), name, len(content))
print(files.path(name) is not None)
"""


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """The sentence names the disk; no half of a file stays; with room again the same file is stored."""
    done = subprocess.run(
        [sys.executable, "-c", _FILLS_THE_DISK, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    sentence, left, stored = done.stdout.splitlines()
    assert "is full" in sentence
    assert (left, stored) == ("None []", "True")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file stands in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="refused"):
        open_files(tmp_path / "file" / "files")
