"""The cloud as a scenario's operator reaches it: its REST API, and a process of its own when one is asked for.

It holds no rules. What the API refuses becomes an `OperatorError` with the cloud's own sentence.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from cloud_stub.cli.client import Address, http_client
from protocol.errors import OperatorError, ServiceError
from simulator.core.payload import MadeUpdate
from simulator.signals import uninterrupted

REQUEST_S: Final = 60.0  # for one answer of the API: registering ten thousand devices takes a while
START_S: Final = 300.0  # for a cloud of its own to answer: broker, migrations, imports on a busy machine
BROKER_S: Final = 30.0  # since its start, for the broker that it was given; its own it starts first
STOP_S: Final = 60.0
DEVICES_AT_ONCE: Final = 5_000  # in one request that adds devices
PAGE: Final = 1_000  # devices in one answer


def without_addresses(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which nothing names a cloud: a rehearsal must never act on the user's real one."""
    return {name: value for name, value in environment.items() if not name.startswith("LASTGOOD_")}


class CloudApi:
    """The operator's side of a running cloud."""

    def __init__(self, url: str, token: str) -> None:
        """Make ready to ask; nothing is asked yet.

        Raises:
            OperatorError: the address is none, or the token cannot be one.
        """
        self.url = url.rstrip("/")
        self._http = http_client(Address(self.url, token), httpx.Timeout(REQUEST_S))

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def health(self) -> str | None:
        """Return what it lacks to work in a few words, "" when it lacks nothing, and None when it does not answer."""
        try:
            answer = self._http.get("/health")
        except httpx.HTTPError:
            return None
        return "" if answer.is_success else "nothing answers at its broker's address"

    def add_devices(self, ids: Sequence[str], *, renew: bool = False) -> dict[str, str]:
        """Register devices, and return their join texts."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), DEVICES_AT_ONCE):
            made = self.ask(
                "POST", "/devices", {"ids": list(ids[start : start + DEVICES_AT_ONCE]), "renew": renew}
            )
            found |= {each["device"]: each["join"].split()[-1] for each in made}
        return found

    def import_update(self, made: MadeUpdate) -> None:
        """Import an update with its file."""
        parts = [
            ("manifest", ("manifest.json", made.manifest, "application/json")),
            ("file", (made.file_name, made.content, "application/octet-stream")),
        ]
        self._answer(lambda: self._http.post("/updates", files=parts))

    def deploy(self, draft: Mapping[str, Any]) -> str:
        """Create a deployment, and return its id."""
        return str(self.ask("POST", "/deployments", {"draft": dict(draft)})["id"])

    def deployment(self, deployment: str) -> Mapping[str, Any]:
        """Return one deployment as the API shows it."""
        found: Mapping[str, Any] = self.ask("GET", f"/deployments/{deployment}")
        return found

    def cancel(self, deployment: str) -> None:
        """End a deployment."""
        self.ask("POST", f"/deployments/{deployment}/cancel")

    def retry(self, deployment: str, devices: Sequence[str]) -> None:
        """Give failed devices a new attempt."""
        self.ask("POST", f"/deployments/{deployment}/retry", {"devices": list(devices)})

    def move(self, device: str, group: str | None) -> None:
        """Put a device into a group, or give it back to its tag."""
        self.ask("PUT", f"/devices/{device}/group", {"group": group})

    def devices(self) -> dict[str, tuple[str, str | None]]:
        """Return what the cloud says of every device: its group, and what it runs."""
        found: dict[str, tuple[str, str | None]] = {}
        after = ""
        while True:
            page = self.ask("GET", f"/devices?after={after}&limit={PAGE}")
            found |= {row["id"]: (row["group"], row["runs"]) for row in page}
            if len(page) < PAGE:
                return found
            after = page[-1]["id"]

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the API's answer, as the views of `/api/v1` describe it.

        Raises:
            OperatorError: it refused; the sentence is the cloud's own.
            ServiceError: it does not answer.
        """
        return self._answer(lambda: self._http.request(method, path, json=body))

    def _answer(self, ask: Any) -> Any:
        try:
            response: httpx.Response = ask()
        except httpx.HTTPError as error:
            raise ServiceError(
                f"The cloud at {self.url} does not answer ({error}). Is `lastgood cloud up` running?"
            ) from error
        try:
            said = response.json()
        except ValueError:
            said = {}
        if response.is_success:
            return said
        sentence = said.get("error") if isinstance(said, dict) else None
        raise OperatorError(sentence or f"The cloud at {self.url} answered {response.status_code}.")


def client_file(data: Path) -> tuple[str, str]:
    """Return address and token from the data folder of a cloud.

    Raises:
        OperatorError: there is no cloud's folder.
    """
    try:
        words = json.loads((data / "client.json").read_bytes())
        return str(words["url"]), str(words["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(
            f"{data / 'client.json'} cannot be read: start a cloud with `lastgood cloud up --data {data}`, "
            "give --url and --token, or use --own-cloud."
        ) from error


class OwnCloud:
    """A cloud in a process of its own, over a folder of its own; it ends with its `with` block."""

    def __init__(self, data: Path, broker: str, heartbeat_s: float) -> None:
        self.data = data
        self._broker = broker
        self._heartbeat_s = heartbeat_s
        self._process: subprocess.Popen[bytes] | None = None

    def greeting(self) -> dict[str, str]:
        """Return what it printed when it came up: pages, API, broker and data."""
        lines = (self.data / "cloud.log").read_text(errors="replace").splitlines()
        return dict(line.split(maxsplit=1) for line in lines if " " in line)

    def __enter__(self) -> "OwnCloud":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> CloudApi:
        """Start it, and return its API when it answers.

        Raises:
            ServiceError: it did not come up; the sentence ends with the last words it said.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        words = [
            "cloud",
            "up",
            "--data",
            str(self.data),
            "--broker",
            self._broker,
            "--heartbeat",
            f"{self._heartbeat_s:g}",
        ]
        if not (self.data / "ports.json").exists():
            words += ["--port", "0"]  # later starts take the ports that the devices know
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        (self.data / "client.json").unlink(missing_ok=True)
        with (self.data / "cloud.log").open("ab") as log, uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lastgood", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**without_addresses(os.environ), "PYTHONPATH": path},
                start_new_session=True,  # a Ctrl-C is for us: we end it in order
            )
        try:
            return self._wait()
        except BaseException:  # Ctrl-C too: nobody has a `with` block yet that would end it
            self.stop()
            raise

    def stop(self) -> None:
        """End it in order, and for certain."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(STOP_S)

    def _wait(self) -> CloudApi:
        began, lacks = time.monotonic(), None
        while time.monotonic() - began < (START_S if lacks is None else BROKER_S):
            if self._process is None or self._process.poll() is not None:
                raise ServiceError(f"The cloud did not start: {self._last_words()}")
            with contextlib.suppress(OperatorError):
                api = CloudApi(*client_file(self.data))
                lacks = api.health()
                if lacks == "":
                    return api
                api.close()
            time.sleep(0.05)  # between two looks at another process
        if lacks is not None:
            raise ServiceError(f"The cloud is up, but {lacks}: {self._broker}.")
        raise ServiceError(f"The cloud did not answer within {START_S:g} s: {self._last_words()}")

    def _last_words(self) -> str:
        try:
            lines = (self.data / "cloud.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " / ".join(lines[-3:]) or "it said nothing."
