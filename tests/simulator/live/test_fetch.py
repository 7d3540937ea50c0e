"""Real downloads for a fleet, from a real HTTP server on loopback."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from protocol.manifest import read_manifest
from protocol.messages import Assignment, Repository, Target
from protocol.outcomes import Reason
from simulator.core.payload import make
from simulator.core.scenario import UpdatePart
from simulator.live.fetch import Repository as LiveRepository
from simulator.ports import Got

MADE = make(UpdatePart(id="acme/app:1.0", size_bytes=300_000, compatibility=[{"model": "one"}]), 1)
MANIFEST = read_manifest(MADE.manifest)
FILE = f"/files/{sha256(MADE.content).hexdigest()}"
MANIFEST_PATH = "/manifests/acme/app/1.0.json"


class Server(ThreadingHTTPServer):
    """Serves what a test puts into `pages`, and counts what is asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes]] = {
            MANIFEST_PATH: (200, MADE.manifest),
            FILE: (200, MADE.content),
        }
        self.cut: set[str] = set()
        self.asked: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """Answers a GET from the server's pages."""

    server: Server

    def do_GET(self) -> None:
        """Answer, or break off half-way."""
        path, _, query = self.path.partition("?")
        self.server.asked[path] += 1
        status, body = self.server.pages.get(path, (404, b""))
        if query != "s=signed":
            status, body = 403, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if path in self.server.cut else body)
        if path in self.server.cut:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port."""
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def order(server: Server, query: str = "s=signed") -> Assignment:
    """Return an order whose repository is the server."""
    return Assignment(
        device="dev-1",
        epoch=1,
        issued_ms=0,
        lifetime_ms=1,
        action="install",
        deployment="d1",
        attempt=1,
        target=Target(
            update="acme/app:1.0",
            path=MANIFEST.update.manifest_path,
            size_bytes=len(MADE.manifest),
            sha256=MANIFEST.sha256,
        ),
        repository=Repository(url=f"http://127.0.0.1:{server.server_address[1]}", query=query),
    )


def manifests(server: Server, times: int = 1, query: str = "s=signed") -> list[Got]:
    """Ask for the manifest so many times at once."""

    async def ask() -> list[Got]:
        loop = asyncio.get_running_loop()
        repository = LiveRepository(loop)
        futures = [loop.create_future() for _ in range(times)]
        for future in futures:
            repository.manifest(order(server, query), future.set_result)
        found = await asyncio.gather(*futures)
        repository.close()
        return list(found)

    return asyncio.run(ask())


def files(server: Server, fetches: list[bool]) -> list[Got]:
    """Ask for the files once for each device, which fetches for itself or not."""

    async def ask() -> list[Got]:
        loop = asyncio.get_running_loop()
        repository = LiveRepository(loop)
        futures = [loop.create_future() for _ in fetches]
        for future, own in zip(futures, fetches, strict=True):
            repository.files(order(server), MANIFEST, own, future.set_result)
        found = await asyncio.gather(*futures)
        repository.close()
        return list(found)

    return asyncio.run(ask())


def test_a_manifest_is_fetched_once_and_given_to_all(server: Server) -> None:
    """Fifty devices that ask at once cause one request, and get the verified bytes."""
    assert {got.manifest for got in manifests(server, 50)} == {MADE.manifest}
    assert server.asked[MANIFEST_PATH] == 1


def test_devices_share_one_real_fetch_and_some_fetch_for_themselves(server: Server) -> None:
    """Three of forty fetch for themselves; the others share one."""
    got = files(server, [True] * 3 + [False] * 37)
    assert {each.reason for each in got} == {None}
    assert server.asked[FILE] == 4


def test_changed_bytes_are_refused(server: Server) -> None:
    """Same length, other bytes: the sha256 of the signed order decides."""
    server.pages[FILE] = (200, bytes(len(MADE.content)))
    server.pages[MANIFEST_PATH] = (200, MADE.manifest[:-1] + b" ")
    assert [got.reason for got in files(server, [True, False])] == [Reason.VERIFY_FAILED] * 2
    assert [got.reason for got in manifests(server)] == [Reason.VERIFY_FAILED]


def test_a_transfer_that_breaks_off_is_the_networks_and_worth_another_try(server: Server) -> None:
    """The server ends the connection half-way; the next one who asks tries for itself."""
    server.cut.add(FILE)
    got = files(server, [False])[0]
    assert (got.reason, got.transient) == (Reason.NETWORK, True)
    server.cut.clear()
    assert files(server, [False])[0].reason is None


@pytest.mark.parametrize(
    ("status", "transient", "refresh"), [(404, False, True), (503, True, False), (400, False, False)]
)
def test_a_refusal_is_the_servers(server: Server, status: int, transient: bool, refresh: bool) -> None:
    """What the core hears of a status is what a real device would tell it."""
    server.pages[FILE] = (status, b"")
    got = files(server, [True])[0]
    assert (got.reason, got.transient, got.refresh) == (Reason.SERVER, transient, refresh)


def test_an_address_that_is_not_signed_asks_for_a_new_one(server: Server) -> None:
    """403 asks for a refresh of the order."""
    got = manifests(server, 1, "s=expired")[0]
    assert (got.reason, got.refresh) == (Reason.SERVER, True)
