"""The handler `archive`: unpacks a tar (plain, gzip, bzip2, xz, zstd where the system can) into the spare slot.

It trusts nothing in the archive, though its bytes were verified: regular files, folders, and links that resolve inside
the slot, no devices, no absolute or parent paths, nothing written through a link, links made last and checked, caps on
members and bytes (DESIGN.md section 7). `tarfile` only parses here; every write goes through `inside.py`.
"""

import contextlib
import importlib
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final, cast

from agent.adapters.durable import disk_failure, write_all
from agent.adapters.inside import Inside, Outside, Parts, parts_of
from agent.ports import CHUNK_BYTES, Stop, Stopped, WorkFailed
from protocol.outcomes import Reason

MEMBERS_MAX: Final = 200_000  # a whole Debian root has about 60,000
BYTES_MAX: Final = 16 * 2**30  # unpacked, 16 GiB: more than the slots of the devices we know
HEADER_BYTES_MAX: Final = 1_048_576  # one extended header; tarfile reads it into memory whole
XZ_MEMORY_BYTES_MAX: Final = 134_217_728  # `xz -9` wants 65 MiB to unpack
MODE_KEPT: Final = 0o777  # set-user-id, set-group-id and sticky bits are stripped
_BLOCK: Final = 512


class ArchiveHandler:
    """The port `Handler` for archives; each file of the step is unpacked in turn."""

    def __init__(self, *, members_max: int = MEMBERS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._members_max = members_max
        self._bytes_max = bytes_max

    def install(
        self, files: Mapping[str, Path], properties: Mapping[str, object], into: Path, *, stop: Stop
    ) -> None:
        """Unpack every archive into the folder.

        Raises:
            WorkFailed: `handler_failed` with what is wrong in the archive, `unsupported`, `no_space` or `disk`.
            Stopped: `stop` said so.
        """
        for name, path in files.items():
            try:
                with open(path, "rb") as packed, Inside(into) as inside:
                    _Unpacking(_plain(packed), inside, self._members_max, self._bytes_max, stop).run()
            except Outside as error:
                raise _refused(name, str(error)) from error
            except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
                raise _refused(name, f"it is damaged or no tar archive ({error})") from error
            except OSError as error:
                if error.errno is None:  # the decompressors' own complaint
                    raise _refused(name, f"it is damaged or no tar archive ({error})") from error
                raise disk_failure(error, f"unpacking {name!r}") from error


class _Unpacking:
    """One archive on its way into the slot."""

    def __init__(
        self, plain: IO[bytes], inside: Inside, members_max: int, bytes_max: int, stop: Stop
    ) -> None:
        self._stream = _Forward(plain, bytes_max, stop)
        self._inside = inside
        self._members_max = members_max
        self._bytes_left = bytes_max
        self._symlinks: dict[Parts, str] = {}
        self._hard_links: list[tuple[Parts, Parts]] = []
        self._folder_modes: dict[Parts, int] = {}

    def run(self) -> None:
        """Files and folders first, links last."""
        stream = cast("IO[bytes]", self._stream)
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            count = 0
            while (member := archive.next()) is not None:
                count += 1
                if count > self._members_max:
                    raise Outside(f"it has more than {self._members_max} members, the most that is unpacked")
                self._take(archive, member)
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all, and we need none
        if not self._stream.ended_well:
            raise Outside("it is cut short: its end mark is missing")
        while self._stream.read(CHUNK_BYTES):  # a compressed stream bears its checksum at the very end
            pass
        for parts, mode in self._folder_modes.items():
            self._inside.make_folder(parts, mode)
        for parts, target in self._hard_links:
            self._inside.hard_link(parts, target)
        self._inside.make_symlinks(self._symlinks)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = parts_of(member.name)
        mode = member.mode & MODE_KEPT
        if member.isdir():
            self._inside.make_folder(parts)
            if parts:
                self._folder_modes[parts] = mode | 0o700
        elif member.issparse():
            raise Outside(f"{member.name!r} is stored sparse; make the archive without --sparse")
        elif member.isreg():
            self._write(archive, member, parts, mode | 0o400)
        elif member.issym():
            self._symlinks[parts] = member.linkname
        elif member.islnk():
            self._hard_links.append((parts, parts_of(member.linkname)))
        else:
            raise Outside(
                f"{member.name!r} is a device, pipe or other special file; only files, folders and links are unpacked"
            )

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: Parts, mode: int) -> None:
        self._bytes_left -= member.size
        if self._bytes_left < 0:
            raise Outside("it unpacks to more bytes than allowed")
        source = archive.extractfile(member)
        if source is None:
            raise Outside(f"{member.name!r} has no content")
        descriptor = self._inside.create(parts, mode)
        with contextlib.closing(source), open(descriptor, "wb", buffering=0) as file:
            left = member.size
            while left:
                piece = source.read(min(left, CHUNK_BYTES))
                if not piece:
                    raise Outside(f"it is cut short within {member.name!r}")
                left -= len(piece)
                write_all(file.fileno(), piece)
            # Byte code beside its source is judged by the source's time, so times are kept.
            with contextlib.suppress(OverflowError, ValueError):
                os.utime(file.fileno(), (member.mtime, member.mtime))


class _Forward:
    """A stream that tarfile can only read onwards, with a cap on all bytes and on what is read at once.

    It hears `stop`, at each read: within a member, and between two, where tarfile may read headers without end.
    """

    def __init__(self, plain: IO[bytes], bytes_max: int, stop: Stop) -> None:
        self._plain = plain
        self._stop = stop
        self._position = 0
        # Headers and padding come on top of the content: a member takes at most three blocks more in practice.
        self._bytes_max = bytes_max + MEMBERS_MAX * 4 * _BLOCK
        self._last = b""

    @property
    def ended_well(self) -> bool:
        """Whether the last thing read was the block of zeros that ends an archive."""
        return self._last == bytes(_BLOCK)

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return exactly `size` bytes, or fewer at the end."""
        if not 0 <= size <= max(HEADER_BYTES_MAX, CHUNK_BYTES):
            raise Outside("it has a header that is too large")
        if self._stop():
            raise Stopped
        pieces = []
        left = size
        while left and (piece := self._plain.read(left)):
            pieces.append(piece)
            left -= len(piece)
        data = b"".join(pieces)
        self._position += len(data)
        if self._position > self._bytes_max:
            raise Outside("it unpacks to more bytes than allowed")
        self._last = data
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        """Skip onwards."""
        if whence != 0 or position < self._position:
            raise Outside("it is damaged: a member begins before the end of the one in front of it")
        while self._position < position:
            if not self.read(min(CHUNK_BYTES, position - self._position)):
                break
        return self._position


class _Xz(io.RawIOBase):
    """xz with a cap on memory, which `lzma.open` does not offer."""

    def __init__(self, packed: IO[bytes]) -> None:
        super().__init__()
        self._packed = packed
        self._xz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._xz.eof:
            raw = self._packed.read(65_536) if self._xz.needs_input else b""
            if not raw and self._xz.needs_input:
                raise EOFError("it is cut short")
            if piece := self._xz.decompress(raw, max_length=size):
                return piece
        return b""


def _plain(packed: IO[bytes]) -> IO[bytes]:
    magic = packed.read(6)
    packed.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return cast("IO[bytes]", gzip.GzipFile(fileobj=packed, mode="rb"))
    if magic.startswith(b"BZh"):
        import bz2

        return cast("IO[bytes]", bz2.BZ2File(packed, "rb"))
    if magic == b"\xfd7zXZ\x00":
        return cast("IO[bytes]", _Xz(packed))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(packed)
    return packed


def _zstd(packed: IO[bytes]) -> IO[bytes]:
    """Open zstd with what the system has: Python 3.14's own module, its backport, or `zstandard`."""
    for module in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return cast("IO[bytes]", importlib.import_module(module).ZstdFile(packed, "rb"))
    with contextlib.suppress(ImportError):
        zstandard = importlib.import_module("zstandard")
        return cast("IO[bytes]", zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packed))
    raise WorkFailed(
        Reason.UNSUPPORTED,
        "The archive is packed with zstd, and this device has no zstd for Python: "
        "install the package backports.zstd, or pack the archive with gzip or xz.",
    )


def _refused(name: str, why: str) -> WorkFailed:
    return WorkFailed(
        Reason.HANDLER_FAILED,
        f"The archive {name!r} was refused: {why}. Mend the archive and import a new version.",
    )
