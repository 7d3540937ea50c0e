"""Writing inside one folder and nowhere else, whatever names an archive brings.

It knows no archive formats. It keeps the rule of DESIGN.md section 7: every step is made relative to an open folder
and without following a link (openat, O_NOFOLLOW), so that nothing is ever written through one; links that would lead
out of the folder are refused before they are made.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

PATH_BYTES_MAX: Final = 4_096  # PATH_MAX of Linux
NAME_BYTES_MAX: Final = 255  # NAME_MAX of Linux
DEPTH_MAX: Final = 64  # folders in folders; each one is opened on the way
LINKS_FOLLOWED_MAX: Final = 40  # as the kernel: more is a loop
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Parts = tuple[str, ...]


class Outside(ValueError):
    """A name or link that leaves the folder, or cannot be made in it; the sentence says which and why."""


def parts_of(name: str) -> Parts:
    """Return the components of a relative path, without `.`; empty for the folder itself.

    Raises:
        Outside: the path is absolute, climbs up, or has a component that no file can bear.
    """
    if name.startswith("/"):
        raise Outside(f"it holds the absolute path {name!r}")
    if len(os.fsencode(name)) > PATH_BYTES_MAX:
        raise Outside(f"it holds a path of more than {PATH_BYTES_MAX} bytes")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts:
        raise Outside(f"it holds the path {name!r}, which climbs out of the slot")
    if (
        "\0" in name
        or any(len(os.fsencode(part)) > NAME_BYTES_MAX for part in parts)
        or len(parts) > DEPTH_MAX
    ):
        raise Outside(f"it holds the path {name[:80]!r}, which no file can bear")
    return parts


class Inside:
    """An open folder that everything is written relative to. Use it as a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._root, _FOLDER)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def make_folder(self, parts: Parts, mode: int = 0o755) -> None:
        """Make the folder and its missing parents; `mode` is the last one's.

        Raises:
            Outside: a link or file stands in the way.
            OSError: the disk refused.
        """
        with self._open(parts) as folder:
            if parts:
                os.fchmod(folder, mode)

    def create(self, parts: Parts, mode: int) -> int:
        """Create a regular file, in the place of one that was there, and return its descriptor, open for writing.

        Raises:
            Outside: a folder bears the name, or a link or file stands in the way.
            OSError: the disk refused.
        """
        with self._parent(parts) as (folder, name):
            self._clear(folder, parts)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
            os.fchmod(descriptor, mode)
            return descriptor

    def hard_link(self, parts: Parts, target: Parts) -> None:
        """Give a regular file of the folder a second name.

        Raises:
            Outside: the target is no regular file of the folder.
            OSError: the disk refused.
        """
        if parts == target:
            raise Outside(f"{'/'.join(parts)!r} is a link to itself")
        with self._parent(target, make=False) as (source, source_name), self._parent(parts) as (folder, name):
            try:
                found = os.stat(source_name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                raise Outside(
                    f"the link {'/'.join(parts)!r} leads to {'/'.join(target)!r}, which is not there"
                ) from None
            if not stat.S_ISREG(found.st_mode):
                raise Outside(
                    f"the link {'/'.join(parts)!r} leads to {'/'.join(target)!r}, which is no regular file"
                )
            self._clear(folder, parts)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)

    def make_symlinks(self, links: Mapping[Parts, str]) -> None:
        """Make all these links, after a look at where each of them, and each that is there, will lead.

        Raises:
            Outside: one of them would leave the folder; none was made then.
            OSError: the disk refused.
        """
        planned = {**self._existing_links(), **links}
        for parts in planned:
            self._resolve(parts, planned)
        for parts, target in links.items():
            with self._parent(parts) as (folder, name):
                self._clear(folder, parts)
                os.symlink(target, name, dir_fd=folder)

    @contextlib.contextmanager
    def _parent(self, parts: Parts, *, make: bool = True) -> Iterator[tuple[int, str]]:
        if not parts:
            raise Outside("it holds an entry without a name")
        with self._open(parts[:-1], make=make) as folder:
            yield folder, parts[-1]

    @contextlib.contextmanager
    def _open(self, parts: Parts, *, make: bool = True) -> Iterator[int]:
        here = os.dup(self._descriptor)
        try:
            for depth, part in enumerate(parts):
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=here)
                try:
                    below = os.open(part, _FOLDER, dir_fd=here)
                except OSError as error:
                    if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENOENT}:
                        way = "/".join(parts[: depth + 1])
                        raise Outside(
                            f"{way!r} is not a folder, and nothing is written through links or files"
                        ) from error
                    raise
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _clear(self, folder: int, parts: Parts) -> None:
        try:
            os.unlink(parts[-1], dir_fd=folder)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError) as error:
            raise Outside(f"{'/'.join(parts)!r} is a folder already") from error

    def _existing_links(self) -> dict[Parts, str]:
        found: dict[Parts, str] = {}
        for top, folders, files in os.walk(self._root, followlinks=False):
            above = parts_of(os.path.relpath(top, self._root))
            for name in folders + files:
                path = os.path.join(top, name)
                if os.path.islink(path):
                    found[(*above, name)] = os.readlink(path)
        return found

    def _resolve(self, link: Parts, planned: Mapping[Parts, str]) -> None:
        """Walk as the kernel would, through planned and existing links, and refuse a step out of the folder."""
        name = "/".join(link)
        here: list[str] = []
        todo = list(reversed(link))
        followed = 0
        while todo:
            part = todo.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                if not here:
                    raise Outside(f"the link {name!r} leads out of the slot, to {planned[link]!r}")
                here.pop()
                continue
            here.append(part)
            target = planned.get(tuple(here))
            if target is None:
                continue
            followed += 1
            if followed > LINKS_FOLLOWED_MAX:
                raise Outside(f"the link {name!r} leads round in a circle")
            if (
                target.startswith("/")
                or not target
                or "\0" in target
                or len(os.fsencode(target)) >= PATH_BYTES_MAX
            ):
                raise Outside(f"the link {name!r} leads out of the slot, to {target[:80]!r}")
            here.pop()
            todo.extend(reversed(target.split("/")))
