"""What a power cut would cost: the calls of a program are watched, and what is not yet on the disk is kept account of.

Killing a process loses nothing that it has written, so it cannot show a missing flush. Here strace tells every call
that changes the disk, and `Disk` knows at each moment which bytes and which names only the system's memory holds.
"""

import base64
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

from agent.adapters.part import PIECE_BYTES, Part
from protocol.manifest import ManifestFile

ROOT: Final = Path(__file__).resolve().parents[3]
CALLS: Final = (
    "?open,openat,write,pwrite64,writev,ftruncate,fsync,fdatasync,syncfs,?rename,?renameat,?renameat2,?unlink,unlinkat,"
    "?rmdir,?symlink,symlinkat,?link,linkat,?mkdir,mkdirat,?chmod,fchmod,fchmodat,utimensat"
)
_CONTENT: Final = {"write", "pwrite64", "writev", "ftruncate", "chmod", "fchmod", "fchmodat", "utimensat"}
_CALL: Final = re.compile(r"\d+ +(\w+)\((.*)\)\s+= (-?\d+)")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NAMED: Final = re.compile(
    r"(?:AT_FDCWD|\d+)<[^>]*>, \"(?!\"\.\.\.)"
)  # a name follows, and no bytes (-s 0 leaves them out)
_PLACE: Final = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")


class Disk:
    """What of the tree below `root` is not durable, and the promises that were made too early."""

    def __init__(self, root: Path) -> None:
        self.content: set[Path] = set()  # files whose bytes or mode may be lost
        self.names: set[Path] = set()  # folders that may lose what was made, renamed or removed in them
        self.too_early: list[str] = []
        self.promises = 0
        self._root = root

    @property
    def faults(self) -> list[str]:
        """What was promised too early, and what nothing has made durable in the end."""
        content = [f"{path} is not durable in the end" for path in sorted(self.content)]
        return (
            self.too_early
            + content
            + [f"names in {path} are not durable in the end" for path in sorted(self.names)]
        )

    def see(self, line: str) -> None:
        """Take one line of strace."""
        call = _CALL.match(line)
        if call is None or int(call[3]) < 0:
            return
        name, arguments = call[1].removesuffix("2").removesuffix("at"), call[2]
        paths = self._paths(arguments)
        if name in {"fsync", "fdatasync"}:
            self.content -= set(paths)
            self.names -= set(paths)
        elif name == "syncfs":
            self.content.clear()
            self.names.clear()
        elif name == "rename":
            self._rename(*paths)
        elif call[1] in _CONTENT:
            self.content |= {path for path in paths[:1] if self._is_ours(path)}
        elif name != "open" or "O_CREAT" in arguments:
            self._changed(paths[-1])
            if name in {"unlink", "rmdir"}:
                self.content.discard(paths[-1])
                self.names.discard(paths[-1])

    def _rename(self, source: Path, target: Path) -> None:
        """A rename is a promise: whoever reads the new name trusts all that lies there by then."""
        if not self._is_ours(target):
            return
        self.promises += 1
        content, names = self.content, self.names - {target.parent}
        if target.suffix == ".manifest":  # it stands for itself: of the slot it says what is meant to come
            content, names = content & {source}, set()
        self.too_early += [f"{target.name} while {path} is not durable" for path in sorted(content)]
        self.too_early += [f"{target.name} while names in {path} are not durable" for path in sorted(names)]
        self._changed(source)
        self._changed(target)

    def _changed(self, path: Path) -> None:
        if self._is_ours(path):
            self.names.add(path.parent)

    def _is_ours(self, path: Path) -> bool:
        return path.is_relative_to(self._root)

    @staticmethod
    def _paths(arguments: str) -> list[Path]:
        """Return the names in a call, each joined to the open folder in front of it; without names, the open file."""
        own = _PLACE.match(arguments)
        if own and not _NAMED.match(arguments):
            return [Path(own[1])]
        rest, found = arguments, []
        while quoted := _QUOTED.search(rest):
            places = _PLACE.findall(rest[: quoted.start()])
            found.append(Path(places[-1] if places else "/", quoted[1]))
            rest = rest[quoted.end() :]
        return found


def traced(script: str, folder: Path, calls: str) -> list[str]:
    """Run a script on a folder (its only argument), and return these calls of its, a line each."""
    trace = folder.with_name(f"{folder.name}.trace")
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={calls}"]
    try:
        ran = subprocess.run(
            [*command, sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("strace is not installed, so no call is looked at: apt-get install strace")
    if "ptrace" in ran.stderr:
        pytest.skip(f"strace may not trace here, so no call is looked at: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return trace.read_text(errors="replace").splitlines()


def watched(script: str, root: Path) -> Disk:
    """Run a script on a folder, and return what it has left to luck."""
    disk = Disk(root)
    for line in traced(script, root, CALLS):
        disk.see(line)
    return disk


def downloads(root: Path) -> None:
    """Fetch a file in two pieces, the first of them kept for the next start, as a download does."""
    content = bytes(PIECE_BYTES + 5)
    file = ManifestFile(
        filename="app.tar",
        sizeInBytes=len(content),
        hashes={"sha256": base64.b64encode(sha256(content).digest()).decode()},
    )
    first = Part(root, file, lambda: False)
    first.open()
    first.add(content[:PIECE_BYTES])
    first.add(content[PIECE_BYTES:][:2])
    first.close()
    second = Part(root, file, lambda: False)
    second.open()
    second.add(content[second.offset :])
    second.finish()
    second.close()
