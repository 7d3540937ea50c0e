"""The application served for real on a free loopback port, for tests of streams, commands and pages."""

import asyncio
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import uvicorn

from cloud_stub.api.access import Role
from cloud_stub.api.app import create_app
from cloud_stub.api.service_port import Service
from tests.waiting import until

TOKENS = {role: f"token-of-a-{role.name.lower()}-of-the-test" for role in Role}
SETUP_CODE = "set-up-code-of-the-test"


@dataclass(frozen=True, slots=True)
class Served:
    """Where the application listens."""

    url: str

    def login(self) -> str:
        """Return the address that signs in once."""
        return f"{self.url}/login?code={SETUP_CODE}"


def token_hashes() -> dict[str, Role]:
    """Return the tokens as the application wants them."""
    return {sha256(token.encode()).hexdigest(): role for role, token in TOKENS.items()}


@contextmanager
def served(service: Service) -> Iterator[Served]:
    """Serve the application until the block ends; its streams end with it."""
    app = create_app(
        service, tokens=token_hashes(), setup_code=SETUP_CODE, random_token=lambda: secrets.token_urlsafe(24)
    )
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=60)
    config.timeout_keep_alive = 75
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="served")
    thread.start()
    try:
        until(lambda: server.started, "the server to start")
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        loops[0].call_soon_threadsafe(app.state.changes.stop)
        server.should_exit = True
        thread.join(90)
        assert not thread.is_alive()
