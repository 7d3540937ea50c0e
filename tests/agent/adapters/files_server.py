"""A real HTTP server of a repository, with faults to order: cut short, changed, refused, silent, wrong ranges."""

import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.agent.adapters.updates import Update


@dataclass
class Files:
    """What the server holds, what it does wrong next, and what it was asked."""

    held: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range)
    if_ranges: list[str | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # one for each request, then none
    etag: str = '"one"'
    cut_at: int = 0  # bytes, with the fault `cut`
    connected: set[tuple[str, int]] = field(default_factory=set)  # whoever has a connection open
    silent: threading.Event = field(default_factory=threading.Event)  # ends the fault `silent`
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # more of them, with each file

    def add(self, update: Update) -> None:
        """Serve an update."""
        self.held[f"/manifests/{update.read.update.manifest_path}"] = update.manifest
        for data in update.files.values():
            self.held[f"/files/{sha256(data).hexdigest()}"] = data

    @property
    def fetched(self) -> list[str | None]:
        """The ranges asked for of files, in order."""
        return [asked for path, asked in self.asked if path.startswith("/files/")]


REFUSALS: Mapping[str, tuple[int, dict[str, str]]] = {
    "403": (403, {}),
    "404": (404, {}),
    "400": (400, {}),
    "500": (500, {}),
    "503": (503, {"Retry-After": "0"}),
    "429": (429, {"Retry-After": "9999"}),
    "416": (416, {}),
    "lost": (302, {"Location": "http://[::1"}),
    "moved": (302, {"Location": "?from=mirror"}),
}


def _spoilt(body: bytes, fault: str) -> bytes:
    match fault:
        case "changed":
            return bytes([body[0] ^ 1]) + body[1:]
        case "longer":
            return body + b"!"
        case "short_range":
            return body[:1_000]
    return body


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left is no news."""


def _address(server: _Server, certificate: Path | None) -> str:
    """Return where it serves; with a certificate it speaks TLS from now on."""
    if certificate is None:
        return f"http://127.0.0.1:{server.server_address[1]}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return f"https://127.0.0.1:{server.server_address[1]}"


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Files]:
    """Serve on a free loopback port; over TLS with a certificate whose key lies beside it."""
    files = Files()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and a small body leave in one segment, as a real server's do

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

        def setup(self) -> None:
            super().setup()
            files.connected.add(self.client_address)

        def finish(self) -> None:
            super().finish()
            files.connected.discard(self.client_address)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            files.asked.append((path, self.headers.get("Range")))
            files.if_ranges.append(self.headers.get("If-Range"))
            fault = files.faults.pop(0) if files.faults else ""
            if fault in REFUSALS or path not in files.held:
                status, headers = REFUSALS.get(fault, (404, {}))
                self.answer(status, b"no", headers)
                return
            self.send(files.held[path], fault)

        def send(self, data: bytes, fault: str) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            fits = self.headers.get("If-Range") in {None, files.etag}
            start = int(wanted[1]) if wanted and fits and fault != "no_range" else 0
            status, headers = (206 if start else 200), {"ETag": files.etag, **files.headers}
            body = _spoilt(data[start:], fault)
            if start or fault == "part_unasked":
                told = start + 1 if fault == "wrong_range" else start
                headers["Content-Range"] = f"bytes {told}-{len(data) - 1}/{len(data)}"
                status = 206
            cut = files.cut_at if fault in {"cut", "silent"} else None
            self.answer(status, body, headers, cut)
            if fault == "silent":
                files.silent.wait(90)

        def answer(
            self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])
            self.wfile.flush()
            if cut is not None:
                self.close_connection = True

    server = _Server(("127.0.0.1", 0), Handler)
    files.url = _address(server, certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield files
    finally:
        files.silent.set()
        server.shutdown()
        thread.join()
        server.server_close()
