"""The port `Fetcher` over HTTP: files named by their sha256, verified while streaming, resumed across restarts.

It does not know which addresses are signed or expire; it asks at the ones the order names. What it keeps of an
unfinished file is `SHA256.part` and beside it `SHA256.json`: how far the part is durable, its digest up to there, and
the ETag it came with. The address is not kept, so that a refreshed order (R1) resumes. Every file ends under its name
only after its bytes agreed with it.
"""

import contextlib
import io
import os
import re
import select
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import (
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as TimeoutEnded

from agent.adapters import durable, tree
from agent.adapters.part import Part
from agent.ports import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    SERVED_UNCHANGED,
    FetchFailed,
    Stop,
    Stopped,
    Tell,
    WorkFailed,
)
from protocol.manifest import Manifest, ManifestFile
from protocol.messages import Assignment
from protocol.outcomes import Reason

SMALL_TIMEOUT_S: Final = 60.0  # for a whole manifest, from a server that sends byte by byte
REDIRECTS_MAX: Final = 3  # to a mirror or CDN
PATIENCE_S: Final = 120.0  # the longest Retry-After that is waited for here; beyond it the core backs off
ASKED_TO_WAIT_MAX: Final = 3  # times that a server may ask us to wait, for one file
RESUMES_WITHOUT_PROGRESS_MAX: Final = (
    1  # a transfer that broke off is resumed at once while it makes progress
)
_POLL_S: Final = 0.25  # how often `stop` is asked while the server is silent
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpFetcher:
    """The port `Fetcher` on urllib3. Use one for each agent; it holds a small pool of connections."""

    def __init__(self, *, rate_bytes_s: int | None = None, ca_file: str | None = None) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._pool = urllib3.PoolManager(
            maxsize=2,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            retries=False,
            ca_certs=ca_file,
        )

    def fetch(self, order: Assignment, manifest: Manifest, folder: Path, *, stop: Stop, tell: Tell) -> None:
        """Put every file of the manifest into the folder, under its sha256; what is there already is not fetched.

        Raises:
            WorkFailed: `network`, `server`, `verify_failed`, `no_space` or `disk`.
            Stopped: `stop` said so; what has arrived is kept.
        """
        files = {file.sha256: file for file in manifest.document.files}
        if order.repository is None:
            raise WorkFailed(Reason.SERVER, "The order names no repository to fetch the update from.")
        try:
            durable.make_folder(folder)
            _remove_others(folder, set(files))
            check_space(manifest, folder)
        except OSError as error:
            raise durable.disk_failure(error, "preparing the download") from error
        done, total = 0, sum(file.sizeInBytes for file in files.values())
        for file in files.values():
            self._one(order, file, folder, stop, _TellPart(tell, done, total))
            done += file.sizeInBytes
            tell(done, total)

    def small(self, order: Assignment, path: str, bytes_max: int) -> bytes:
        """Return a small file of the repository, of at most `bytes_max` bytes.

        Raises:
            FetchFailed: it could not be had, or is larger.
        """
        try:
            with contextlib.closing(self._open(_address(order, path), {})) as response:
                if response.status != 200:
                    raise FetchFailed(
                        f"The server answered {response.status} for {path}.", status=response.status
                    )
                data = _read_small(response, path, bytes_max)
        except HTTPError as error:
            raise FetchFailed(f"{path} could not be fetched: {_plain(error)}.") from error
        return data

    def _one(
        self, order: Assignment, file: ManifestFile, folder: Path, stop: Stop, tell: "_TellPart"
    ) -> None:
        part = Part(folder, file, stop)
        asked_to_wait = idle = 0
        try:
            if part.is_whole():
                return
            part.open()
            while not part.is_full:
                if stop():
                    raise Stopped
                before = part.offset
                try:
                    self._transfer(order, part, stop, tell)
                except _AskedToWait as wait:
                    asked_to_wait += 1
                    if wait.seconds is None or wait.seconds > PATIENCE_S or asked_to_wait > ASKED_TO_WAIT_MAX:
                        raise WorkFailed(Reason.SERVER, str(wait), transient=True) from wait
                    _pause(wait.seconds, stop)
                except HTTPError as error:
                    idle = 0 if part.offset > before else idle + 1
                    if idle > RESUMES_WITHOUT_PROGRESS_MAX or part.offset == before == 0:
                        sentence = f"{file.filename!r} could not be fetched: {_plain(error)}."
                        raise WorkFailed(Reason.NETWORK, sentence, transient=True) from error
            part.finish()
        except OSError as error:
            raise durable.disk_failure(error, f"downloading {file.filename!r}") from error
        finally:
            part.close()

    def _transfer(self, order: Assignment, part: Part, stop: Stop, tell: "_TellPart") -> None:
        """One request; returns or raises with `part.offset` as far as it came."""
        headers = {}
        if part.offset:
            headers["Range"] = f"bytes={part.offset}-"
            if part.etag and not part.etag.startswith(
                "W/"
            ):  # a weak one proves nothing about bytes; the sha256 will
                headers["If-Range"] = part.etag
        response = self._open(_address(order, f"files/{part.file.sha256}"), headers)
        try:
            _check_status(response, part)
            pace = _Pace(self._rate_bytes_s, stop)
            # What came along with the headers is taken at once: `select` sees only what is still in the socket.
            bytes_max = max(pace.bytes_max, io.DEFAULT_BUFFER_SIZE)
            while not part.is_full:
                piece = response.read1(bytes_max, decode_content=False)
                bytes_max = pace.bytes_max
                if not piece:
                    raise HTTPError("the transfer was cut short")
                part.add(piece)
                tell(part.offset)
                pace.took(len(piece))
                _await_bytes(response, part, stop)
        finally:
            if part.is_full:
                response.release_conn()
            response.close()  # what is left of an abandoned answer is not read

    def _open(self, address: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask for a file, wherever the server sends us; every answer but the last is closed."""
        for _ in range(REDIRECTS_MAX + 1):
            response = self._pool.request(
                "GET",
                address,
                headers={"Accept-Encoding": "identity", **headers},
                preload_content=False,
                redirect=False,  # urllib3 leaves the answer open that redirects to no address
            )
            moved = response.get_redirect_location()
            if not moved:
                return response
            response.close()
            try:
                address = urljoin(address, moved)
            except ValueError as error:
                raise HTTPError(f"the server redirects to no address ({error})") from error
        raise HTTPError(f"the server redirects more than {REDIRECTS_MAX} times")


def check_space(manifest: Manifest, folder: Path, *, slot: Path | None = None) -> None:
    """Refuse a download that the disk cannot hold, nor its installation into `slot`, which may be on another disk.

    What the slot still holds counts as free: it is emptied first. What arrives takes at least its own size there.

    Raises:
        WorkFailed: `no_space`.
        OSError: the disk cannot be asked.
    """
    here = sum(
        _size(folder / name)
        for file in manifest.document.files
        for name in (file.sha256, f"{file.sha256}.part")
    )
    arrives = manifest.bytes_total - min(here, manifest.bytes_total)
    if slot is not None and slot.stat().st_dev == folder.stat().st_dev:
        _demand(folder, arrives + manifest.bytes_total, reclaimed_bytes=tree.size_bytes(slot))
        return
    _demand(folder, arrives)
    if slot is not None:
        _demand(slot, manifest.bytes_total, reclaimed_bytes=tree.size_bytes(slot))


def _demand(folder: Path, bytes_needed: int, *, reclaimed_bytes: int = 0) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize + reclaimed_bytes
    need = bytes_needed + durable.RESERVE_BYTES
    if free < need:
        raise WorkFailed(
            Reason.NO_SPACE,
            f"The update needs {need // 1_000_000 + 1} MB on the disk of {folder}, "
            f"and {free // 1_000_000} MB are free. Free some space, then retry the deployment.",
        )


class _AskedToWait(Exception):
    """The server is overloaded or failing; it may have said for how long."""

    def __init__(self, sentence: str, seconds: float | None) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class _TellPart:
    """Tells the progress of one file as progress of the whole download."""

    tell: Tell
    before: int
    total: int

    def __call__(self, bytes_of_part: int) -> None:
        self.tell(self.before + bytes_of_part, self.total)


class _Pace:
    """Keeps a transfer at its rate by pausing after each piece."""

    def __init__(self, rate_bytes_s: int | None, stop: Stop) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._stop = stop
        self._began = time.monotonic()
        self._bytes = 0
        # A quarter of a second's worth at a time keeps a slow rate even.
        self.bytes_max = CHUNK_BYTES if rate_bytes_s is None else max(1, min(CHUNK_BYTES, rate_bytes_s // 4))

    def took(self, size: int) -> None:
        self._bytes += size
        if self._rate_bytes_s is not None:
            _pause(self._bytes / self._rate_bytes_s - (time.monotonic() - self._began), self._stop)


def _check_status(response: urllib3.BaseHTTPResponse, part: Part) -> None:
    status, name = response.status, part.file.filename
    if status == 206 and part.offset:
        fits = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        wanted = (str(part.offset), str(part.file.sizeInBytes - 1), str(part.file.sizeInBytes))
        if fits and fits.groups() == wanted:
            part.etag = response.headers.get("ETag", part.etag)
            return
    if status in {206, 416}:  # an answer to another question: start over, and ask for the whole
        if not part.offset:
            raise WorkFailed(
                Reason.SERVER, f"The server sent a part of {name!r} that nobody asked for.", transient=True
            )
        part.restart(None)
        raise HTTPError("the server's answer did not fit the part that was asked for")
    if status == 200:
        length = response.headers.get("Content-Length")
        if length is not None and length != str(part.file.sizeInBytes):
            part.drop()
            raise WorkFailed(
                Reason.VERIFY_FAILED,
                f"{name!r} is {length} bytes at the server, and {part.file.sizeInBytes} in the update's manifest. "
                + SERVED_UNCHANGED,
            )
        part.restart(response.headers.get("ETag"))
        return
    if status == 429 or status >= 500:
        raise _AskedToWait(f"The server answered {status} for {name!r}.", _retry_after_s(response))
    raise WorkFailed(
        Reason.SERVER, f"The server answered {status} for {name!r}.", refresh=status in {401, 403, 404, 410}
    )


def _retry_after_s(response: urllib3.BaseHTTPResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return (
        float(value) if value.isdecimal() and len(value) < 10 else None
    )  # a date asks for a clock we do not trust


def _await_bytes(response: urllib3.BaseHTTPResponse, part: Part, stop: Stop) -> None:
    """Wait until the server sends on, so that `stop` is heard while it is silent."""
    deadline = time.monotonic() + READ_TIMEOUT_S
    while not part.is_full:
        if stop():
            raise Stopped
        if response.closed:  # the answer ended before the file did
            return
        if _may_hold_bytes(response) or select.select([response.fileno()], [], [], _POLL_S)[0]:
            return
        if time.monotonic() > deadline:
            raise HTTPError(f"no byte came for {READ_TIMEOUT_S:g} s")


def _may_hold_bytes(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether bytes may lie where `select` does not see them: then only the connection's own time-out helps.

    Those are chunks, and what TLS has decrypted already.
    """
    if response.headers.get("Transfer-Encoding"):
        return True
    connection = response.connection
    if not isinstance(connection, urllib3.connection.HTTPSConnection):
        return False
    sock = connection.sock  # None when the server said that it will close
    return not isinstance(sock, ssl.SSLSocket) or sock.pending() > 0


def _read_small(response: urllib3.BaseHTTPResponse, path: str, bytes_max: int) -> bytes:
    deadline = time.monotonic() + SMALL_TIMEOUT_S
    data = b""
    while piece := response.read1(bytes_max + 1, decode_content=False):
        data += piece
        if len(data) > bytes_max:
            raise FetchFailed(
                f"{path} is larger than the {bytes_max} bytes that the order names.", status=200
            )
        if time.monotonic() > deadline:
            raise FetchFailed(f"{path} did not arrive within {SMALL_TIMEOUT_S:g} s.")
    return data


def _pause(seconds: float, stop: Stop) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if stop():
            raise Stopped
        time.sleep(min(left, _POLL_S))


def _address(order: Assignment, path: str) -> str:
    if order.repository is None:
        raise FetchFailed("The order names no repository.", status=400)
    query = f"?{order.repository.query}" if order.repository.query else ""
    return f"{order.repository.url.rstrip('/')}/{path}{query}"


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove what earlier updates left: a disk is not filled by orders that were replaced."""
    for path in folder.iterdir():
        if path.is_file() and path.name.partition(".")[0] not in kept:
            path.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _plain(error: HTTPError) -> str:
    """Say what a urllib3 error means, without its object addresses."""
    if isinstance(error, NameResolutionError):
        return "the name of the server could not be resolved"
    if isinstance(error, NewConnectionError):
        return "the server could not be reached"
    if isinstance(error, SSLError):
        return f"the TLS connection failed ({error})"
    if isinstance(error, TimeoutEnded):
        return "the server did not answer in time"
    return str(error) or type(error).__name__
