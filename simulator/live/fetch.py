"""Real downloads for a simulated fleet: a bounded pool of threads, bytes verified, and a cache that devices share.

Nothing is kept but manifests: a file's bytes are hashed as they stream by, and then dropped. With `fetches` a device
fetches every file for itself; the others take the word of one real, verified fetch for each update and process, and
make it if none was made yet.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Final

import urllib3
from urllib3.exceptions import HTTPError

from protocol.manifest import MANIFEST_BYTES_MAX, Manifest
from protocol.messages import Assignment
from protocol.outcomes import Reason
from simulator.ports import Answer, Got

THREADS: Final = 16  # downloads at once; more only share the same two cores
CHUNK_BYTES: Final = 262_144
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 30.0  # without a byte: the transfer has stalled


class Repository:
    """The port `Content` over HTTP. Its methods are called on the loop, and answer on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        self._http = urllib3.PoolManager(
            maxsize=THREADS,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            retries=False,
        )
        self._shared: dict[
            str, asyncio.Future[Got]
        ] = {}  # by sha256: manifests with their bytes, files without
        self.bytes_fetched = 0
        self.fetches = 0

    def manifest(self, order: Assignment, answer: Answer) -> None:
        """Fetch the manifest of an order, once for each sha256, and answer with its bytes."""
        target = order.target
        if target is None or order.repository is None or target.size_bytes > MANIFEST_BYTES_MAX:
            sentence = "The order names no manifest that a device could read."
            self._loop.call_soon(answer, Got(reason=Reason.SERVER, detail=sentence))
            return
        url = _address(order, f"manifests/{target.path}")
        self._once(target.sha256, lambda: self._get(url, target.size_bytes, target.sha256, keep=True), answer)

    def files(self, order: Assignment, manifest: Manifest, fetches: bool, answer: Answer) -> None:
        """Fetch every file of a manifest."""
        wanted = [
            (_address(order, f"files/{file.sha256}"), file.sizeInBytes, file.sha256)
            for file in manifest.files.values()
        ]

        def get_all() -> Got:
            for url, size_bytes, digest in wanted:
                got = self._get(url, size_bytes, digest, keep=False)
                if got.reason is not None:
                    return got
            return Got()

        if fetches:
            self._answer(self._loop.run_in_executor(self._pool, get_all), answer)
        else:
            self._once(f"files of {manifest.sha256}", get_all, answer)

    def close(self) -> None:
        """Let no more downloads begin, and let go of the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _once(self, key: str, get: Callable[[], Got], answer: Answer) -> None:
        future = self._shared.get(key)
        if future is None:
            future = asyncio.ensure_future(self._loop.run_in_executor(self._pool, get))
            self._shared[key] = future
            future.add_done_callback(lambda done: self._forget_failure(key, done))
        self._answer(future, answer)

    def _forget_failure(self, key: str, done: "asyncio.Future[Got]") -> None:
        """A failure is no news to the next one who asks: it tries for itself."""
        if done.cancelled() or done.exception() is not None or done.result().reason is not None:
            self._shared.pop(key, None)

    def _answer(self, future: "asyncio.Future[Got]", answer: Answer) -> None:
        future.add_done_callback(lambda done: None if done.cancelled() else answer(done.result()))

    def _get(self, url: str, size_bytes: int, digest: str, *, keep: bool) -> Got:
        """Fetch one address in a thread of the pool, and hold it against length and sha256."""
        seen, size, kept = sha256(), 0, bytearray()
        try:
            response = self._http.request("GET", url, preload_content=False)
            try:
                if response.status != 200:
                    return _refused(response.status)
                for chunk in response.stream(CHUNK_BYTES):
                    size += len(chunk)
                    if size > size_bytes:
                        break
                    seen.update(chunk)
                    if keep:
                        kept += chunk
            finally:
                response.release_conn()
        except HTTPError as error:
            return Got(reason=Reason.NETWORK, detail=f"The transfer failed: {error}"[:400], transient=True)
        self.fetches += 1
        self.bytes_fetched += size
        if size != size_bytes or seen.hexdigest() != digest:
            return Got(
                reason=Reason.VERIFY_FAILED, detail="The bytes are not those that the signed order names."
            )
        return Got(manifest=bytes(kept) if keep else None)


def _refused(status: int) -> Got:
    return Got(
        reason=Reason.SERVER,
        detail=f"The server answered {status}.",
        transient=status == 429 or status >= 500,
        refresh=status in {401, 403, 404, 410},
    )


def _address(order: Assignment, path: str) -> str:
    if order.repository is None:
        return ""
    query = f"?{order.repository.query}" if order.repository.query else ""
    return f"{order.repository.url.rstrip('/')}/{path}{query}"
