"""The API's client behind the commands: where the cloud is, one request, one stream, one upload.

It holds no rules: what the cloud refuses, it refuses with the cloud's own sentence. Foreign errors are translated here.
"""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote, urlsplit

import httpx

from protocol.errors import OperatorError, ServiceError

CLIENT_FILE: Final = "client.json"  # written by `lastgood cloud up` into its data folder
CONNECT_S: Final = 5.0
ANSWER_S: Final = 90.0  # longer than the cloud lets a command wait
SILENT_S: Final = 45.0  # of an event stream, which says at least every 15 s that it is there
AWAY_S: Final = 60.0  # a cloud that restarts is waited for this long
_AGAIN_S: Final = 1.0
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

UploadFiles = list[tuple[str, tuple[str, IO[bytes]]]]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the cloud is, and the API token to speak to it with."""

    url: str
    token: str


def find_address(url: str | None, token: str | None, data: Path) -> Address:
    """Return the cloud's address: as given, else as `lastgood cloud up` wrote it into its data folder.

    A token from the folder is sent only to the address from the folder.

    Raises:
        OperatorError: neither is there.
    """
    file = data / CLIENT_FILE
    if url is None or token is None:
        try:
            words = json.loads(file.read_bytes())
            kept = Address(str(words["url"]), str(words["token"]))
        except FileNotFoundError:
            kept = None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OperatorError(
                f"{file} cannot be read ({error}); give --url and --token instead."
            ) from error
        if kept is not None and (url is None or url.rstrip("/") == kept.url.rstrip("/")):
            url, token = url or kept.url, token or kept.token
    if url is None:
        raise OperatorError(
            f"No cloud is known here ({file} is missing): start one with `lastgood cloud up`, "
            "name its folder with --data, or give --url and --token."
        )
    if token is None:
        raise OperatorError(f"The API token for {url} is missing; give --token, or set LASTGOOD_TOKEN.")
    return Address(url.rstrip("/"), token)


class Cloud:
    """A connection to the API; `connected` opens it."""

    def __init__(self, address: Address, client: httpx.Client) -> None:
        self._address = address
        self._client = client

    def get(self, path: str, **query: Any) -> Any:
        """Ask for something."""
        return self._asked("GET", path, params=_without_none(query))

    def get_all(self, path: str, key: str, **query: Any) -> list[Any]:
        """Ask for a list page by page; `key` names the field that the next page begins behind."""
        found: list[Any] = []
        while page := self.get(path, after=found[-1][key] if found else None, **query):
            found += page
        return found

    def post(self, path: str, body: Any = None, *, content: bytes | None = None) -> Any:
        """Ask for a change."""
        return self._asked("POST", path, json=body, content=content)

    def put(self, path: str, body: Any) -> Any:
        """Ask for a change of one thing."""
        return self._asked("PUT", path, json=body)

    def upload(self, path: str, files: UploadFiles) -> Any:
        """Send files, which are read while they are sent."""
        return self._asked("POST", path, files=files, timeout=httpx.Timeout(None, connect=CONNECT_S))

    def follow(self, path: str) -> Iterator[Any]:
        """Yield the data of each event of a stream; a stream that breaks off is opened again.

        Raises:
            ServiceError: the cloud stays away.
        """
        away_since_s: float | None = None
        while True:
            try:
                for data in self._events(path):
                    away_since_s = None
                    yield data
            except httpx.TransportError as error:
                # Since the stream broke, and not since the last news: a deployment may be quiet for days.
                away_since_s = away_since_s or time.monotonic()
                if time.monotonic() - away_since_s > AWAY_S:
                    raise self._away(error) from error
            time.sleep(_AGAIN_S)

    def _events(self, path: str) -> Iterator[Any]:
        timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
        with self._client.stream("GET", path, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def _asked(self, method: str, path: str, **request: Any) -> Any:
        try:
            answer = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._away(error) from error
        if answer.is_error:
            raise _refusal(answer)
        try:
            return answer.json()
        except ValueError as error:
            raise ServiceError(
                f"{self._address.url} answers, but is no lastgood cloud; look at --url."
            ) from error

    def _away(self, error: httpx.TransportError) -> ServiceError:
        if isinstance(error, httpx.TimeoutException):
            return ServiceError(f"The cloud at {self._address.url} did not answer in time; try again.")
        return ServiceError(
            f"No cloud answers at {self._address.url} ({error}); start one with `lastgood cloud up`, or give --url."
        )


@contextmanager
def connected(address: Address) -> Iterator[Cloud]:
    """Open a connection for the length of a command.

    Raises:
        OperatorError: the address is none, or the token cannot be one.
    """
    with http_client(address, httpx.Timeout(ANSWER_S, connect=CONNECT_S)) as client:
        yield Cloud(address, client)


def http_client(address: Address, timeout: httpx.Timeout) -> httpx.Client:
    """Return an HTTP client whose addresses are relative to the API.

    Raises:
        OperatorError: the address is none, or the token cannot be one.
    """
    host = host_of(address.url)
    if not host:
        raise OperatorError(f"{address.url!r} is not the address of a cloud; write it as http://host:port.")
    if not (address.token.isascii() and address.token.isprintable()):
        raise OperatorError(
            f"The API token for {address.url} has characters that no token has; look at --token."
        )
    return httpx.Client(
        base_url=f"{address.url}/api/v1/",
        headers={"Authorization": f"Bearer {address.token}"},
        timeout=timeout,
        trust_env=host not in LOOPBACK,  # a proxy of the environment has no business on this machine
        verify=True if urlsplit(address.url).scheme == "https" else no_authorities(),
    )


def get_here(address: str, timeout_s: float) -> httpx.Response:
    """Ask something that listens on this machine: no proxy has business there.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    return httpx.get(address, timeout=timeout_s, trust_env=False, verify=no_authorities())


@cache
def no_authorities() -> ssl.SSLContext:
    """Return what a client of plain HTTP needs of TLS: to read all authorities takes longer than most answers.

    It trusts nobody, so a redirect to https would be refused.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def segment(text: str) -> str:
    """Return a text as one part of a path."""
    return quote(text, safe="")


def host_of(url: str) -> str | None:
    """Return the host that an address of HTTP names; None when it is no such address."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is no number
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _refusal(answer: httpx.Response) -> OperatorError | ServiceError:
    try:
        said = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        said = (
            f"The cloud answered {answer.status_code} {answer.reason_phrase}; look at its log, and at --url."
        )
    return ServiceError(said) if answer.status_code >= 500 else OperatorError(said)


def _without_none(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
