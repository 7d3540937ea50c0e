"""Server-sent events: a stream that says when something changed, and one that shows a deployment.

They carry no history: a client that was away looks again. One task waits on the service's change counter for all
streams together, so that a thousand open pages cost one waiting thread.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.responses import StreamingResponse

from cloud_stub.api.service_port import Service
from protocol.errors import LastgoodError, ServiceError

STREAMS_MAX: Final = 500  # open at once; each is a socket and some kilobytes
INTERVAL_S: Final = 0.25  # the least time between two events of a stream: at most 4 a second
KEEPALIVE_S: Final = 15.0  # a comment after this silence, so that proxies keep the connection
_WAIT_S: Final = 1.0  # one wait for the counter; also how long a shutdown may have to wait for it


class Changes:
    """Tells every open stream when the service's change counter has grown."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._counter = 0
        self._changed = asyncio.Event()
        self._stopping = False
        self._streams = 0

    async def run(self) -> None:
        """Wait for changes until stopped or canceled; the application's lifespan runs it."""
        limiter = CapacityLimiter(1)  # its own thread: requests do not queue behind it
        while not self._stopping:
            counter = await to_thread.run_sync(
                self._service.wait_change, self._counter, _WAIT_S, limiter=limiter
            )
            if counter != self._counter:
                self._counter = counter
                self._wake()

    def stop(self) -> None:
        """End all streams; call it in the loop's thread before the server waits for its connections."""
        self._stopping = True
        self._wake()

    def stream(self, show: Callable[[int], tuple[str, Any] | None]) -> StreamingResponse:
        """Return a stream of events: at each change `show(counter)`, run in a thread, gives (event, data) or none.

        Raises:
            ServiceError: too many streams are open.
        """
        if self._streams >= STREAMS_MAX:
            raise ServiceError(f"{STREAMS_MAX} event streams are open, which is the most; close some pages.")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(show), media_type="text/event-stream", headers=headers)

    async def _events(self, show: Callable[[int], tuple[str, Any] | None]) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            yield b"retry: 2000\n\n"
            seen = -1
            while not self._stopping:
                if self._counter == seen:
                    if not await self._wait():
                        yield b": still here\n\n"
                    continue
                seen = self._counter
                try:
                    event = await to_thread.run_sync(show, seen)
                except LastgoodError:
                    return  # the client comes back by itself, and hears the reason as an answer
                if event:
                    yield f"id: {seen}\nevent: {event[0]}\ndata: {json.dumps(event[1])}\n\n".encode()
                await anyio.sleep(INTERVAL_S)
        finally:
            self._streams -= 1

    async def _wait(self) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), KEEPALIVE_S)
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        before, self._changed = self._changed, asyncio.Event()
        before.set()
