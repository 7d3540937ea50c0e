"""A service in a temporary folder, and the application around it, called without a socket."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cloud_stub.api.access import Role
from cloud_stub.api.app import create_app
from tests.cloud_stub.api.fakes import DirectService
from tests.cloud_stub.api.server import SETUP_CODE, TOKENS, token_hashes


class Caller:
    """Calls the application in its own loop, one request after another, with cookies like a browser's."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner, role: Role | None) -> None:
        headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
        self._runner = runner
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://cloud:8080", headers=headers
        )
        self.cookies = self._client.cookies

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call a route."""
        return self._runner.run(self._client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Call a route with GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Call a route with POST."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> httpx.Response:
        """Call a route with PUT."""
        return self.request("PUT", path, **options)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[DirectService]:
    """Open a service."""
    made = DirectService(tmp_path)
    yield made
    made.close()


@pytest.fixture
def app(service: DirectService) -> Iterator[FastAPI]:
    """Make the application."""
    numbers = iter(range(1_000_000))
    made = create_app(
        service,
        tokens=token_hashes(),
        setup_code=SETUP_CODE,
        random_token=lambda: f"random-{next(numbers)}",
    )
    with asyncio.Runner() as runner:
        made.state.runner_of_the_test = runner
        yield made


@pytest.fixture
def admin(app: FastAPI) -> Caller:
    """Call the application as an admin."""
    return client_of(app, Role.ADMIN)


def client_of(app: FastAPI, role: Role | None) -> Caller:
    """Return a caller with the token of a role, or with none."""
    return Caller(app, app.state.runner_of_the_test, role)
