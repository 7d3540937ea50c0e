"""The import of an update: a multipart body, read part by part while it arrives, straight into the file store.

Nothing is held in memory beyond one chunk, and nothing is written twice. It keeps the rule that an update is made
known only when every file of its manifest is stored with the right size and sha256. The manifest comes first, since
it says what each file must be; files that are stored already may be left out.
"""

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cloud_stub.ports import Files
from protocol.errors import OperatorError
from protocol.manifest import MANIFEST_BYTES_MAX, Manifest, read_manifest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

DRAIN_BYTES_MAX: Final = (
    64 * 2**20
)  # read and thrown away after a refusal, so that the client hears the reason
MANIFEST_PART: Final = "manifest"
FILE_PART: Final = "file"


class Part(io.RawIOBase):
    """One part of the body: its headers' names, and a stream that ends where the part ends."""

    def __init__(self, body: "Body", name: str, filename: str) -> None:
        super().__init__()
        self.part_name = name
        self.filename = filename
        self._body = body

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end of the part.

        Raises:
            OperatorError: the body was cut short or is not multipart.
        """
        return self._body.read_part(size if size >= 0 else None)

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer; return how many bytes it got."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Body:
    """A multipart body, pulled: chunks are asked for only when somebody reads."""

    def __init__(self, chunks: Iterator[bytes], content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise OperatorError(
                "The import is not multipart/form-data; send it with `lastgood update import`."
            )
        self._chunks = chunks
        self._events: list[tuple[str, bytes]] = []
        self._at = 0
        self._ended = False
        try:
            self._parser = MultipartParser(options[b"boundary"], self._callbacks())
        except FormParserError as error:
            raise _broken(error) from error

    def parts(self) -> Iterator[Part]:
        """Yield the parts in their order; what is left unread of one is skipped."""
        headers: dict[bytes, bytes] = {}
        field = value = b""
        while (event := self._next()) is not None:
            match event:
                case ("begin", _):
                    headers, field, value = {}, b"", b""
                case ("field", data):
                    field += data
                case ("value", data):
                    value += data
                case ("header", _):
                    headers[field.lower()] = value
                    field = value = b""
                case ("headers", _):
                    _, options = parse_options_header(headers.get(b"content-disposition", b""))
                    yield Part(
                        self,
                        *(options.get(key, b"").decode("utf-8", "replace") for key in (b"name", b"filename")),
                    )

    def read_part(self, size: int | None) -> bytes:
        """Return up to `size` bytes of the part in turn; all of it when None."""
        found = bytearray()
        while size is None or not found:
            event = self._peek()
            if event is None or event[0] != "data":
                break
            data = event[1]
            take = len(data) if size is None else min(size, len(data))
            found += data[:take]
            if take == len(data):
                self._at += 1
            else:
                self._events[self._at] = ("data", data[take:])
        return bytes(found)

    def drain(self) -> None:
        """Throw away what is still to come, up to a limit."""
        left = DRAIN_BYTES_MAX
        for chunk in self._chunks:
            left -= len(chunk)
            if left < 0:
                return

    def _next(self) -> tuple[str, bytes] | None:
        event = self._peek()
        self._at += 1
        return event

    def _peek(self) -> tuple[str, bytes] | None:
        while self._at >= len(self._events):
            if self._ended:
                return None
            self._events.clear()
            self._at = 0
            self._pull()
        return self._events[self._at]

    def _pull(self) -> None:
        chunk = next(self._chunks, None)
        if not chunk:
            raise OperatorError("The import was cut short on the way; send it again.")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken(error) from error

    def _callbacks(self) -> "MultipartCallbacks":
        def note(kind: str) -> Callable[[], None]:
            return lambda: self._events.append((kind, b""))

        def data(kind: str) -> Callable[[bytes, int, int], None]:
            return lambda data, start, end: self._events.append((kind, bytes(data[start:end])))

        def end() -> None:
            self._ended = True

        return {
            "on_part_begin": note("begin"),
            "on_header_field": data("field"),
            "on_header_value": data("value"),
            "on_header_end": note("header"),
            "on_headers_finished": note("headers"),
            "on_part_data": data("data"),
            "on_end": end,
        }


def receive(body: Body, files: Files, check: Callable[[Manifest], None]) -> bytes:
    """Store the files of an import and return its manifest's bytes, when all of them are there.

    `check` may refuse the manifest before any file is read.

    Raises:
        OperatorError: one sentence that names the file that is missing, wrong or not the manifest's.
    """
    parts = body.parts()
    data, manifest = _manifest_of(next(parts, None))
    check(manifest)
    for part in parts:
        if part.part_name != FILE_PART:
            raise OperatorError(f"The import has a part {part.part_name!r}; only manifest and file are read.")
        _store(part, manifest, files)
    for name, file in manifest.files.items():
        stored = files.path(file.sha256)
        if stored is None:
            raise OperatorError(
                f"The file {name!r} of the manifest is missing; put it beside the manifest and import again."
            )
        if (size_bytes := stored.stat().st_size) != file.sizeInBytes:
            raise OperatorError(
                f"The manifest says {file.sizeInBytes} bytes of the file {name!r}, and the file with its sha256 has "
                f"{size_bytes}; mend the manifest."
            )
    return data


def _manifest_of(part: Part | None) -> tuple[bytes, Manifest]:
    if part is None or part.part_name != MANIFEST_PART:
        raise OperatorError("The manifest has to be the first part of an import.")
    data = b""
    while len(data) <= MANIFEST_BYTES_MAX and (chunk := part.read(65_536)):
        data += chunk
    return data, read_manifest(data)


def _store(part: Part, manifest: Manifest, files: Files) -> None:
    wanted = manifest.files.get(part.filename)
    if wanted is None:
        raise OperatorError(
            f"The file {part.filename!r} is not in the manifest; send only files that it names."
        )
    if files.path(wanted.sha256) is not None:
        return  # stored already: nothing to do, and the part is skipped
    try:
        files.put(part, wanted.sha256, wanted.sizeInBytes)  # type: ignore[arg-type]  # a raw reader is all it needs
    except OperatorError as error:
        raise OperatorError(f"The file {part.filename!r} is not what the manifest says: {error}") from error


def _broken(error: Exception) -> OperatorError:
    return OperatorError(
        f"The import is not well-formed multipart ({error}); send it with `lastgood update import`."
    )
