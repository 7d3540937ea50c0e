"""The processes behind the demo: one cloud, some real agents, and the commands that a user types.

It tells no story (`story.py` does). Everything lies in one temporary folder and listens on loopback; whatever was
started is ended, in the reverse order, however the story ends.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import click

from protocol.errors import LastgoodError, ServiceError
from simulator.demo.typist import type_command
from simulator.live.cloud import CloudApi, OwnCloud, without_addresses
from simulator.signals import uninterrupted

POLL_FIRST_S: Final = 0.1  # to the second look at a fact; every pause is longer than the one before it
POLL_LAST_S: Final = 1.0  # a look costs the cloud as much as the work that is waited for
START_S: Final = 120.0  # for the cloud to greet on a busy machine
HEARTBEAT_S: Final = 10.0  # short, so that a demo that lost a message mends it soon
STOP_S: Final = 60.0  # for a process to end by itself
LEAVE_S: Final = 20.0  # for those whose parent was killed: they see it, and end by themselves
COMMAND_S: Final = 240.0  # for one command of the operator
T = TypeVar("T")
_CHECKOUT: Final = Path(__file__).resolve().parents[2]  # or where the distribution is installed


class DemoFailed(LastgoodError):
    """A fact of the story did not come true in time, or another one did."""


@dataclass(slots=True)
class Agent:
    """One real agent process."""

    id: str
    folder: Path
    port: int  # of the application it starts from its slot
    process: subprocess.Popen[bytes]


class Backstage:
    """Starts and ends processes; use it in a `with`."""

    def __init__(self, folder: Path, broker: str, show: Callable[[str], None]) -> None:
        self.folder = folder
        self.data = folder / "cloud"
        self.broker = broker
        self._show = show
        self._stack = contextlib.ExitStack()
        self._api: CloudApi | None = None

    def __enter__(self) -> "Backstage":
        (self.folder / "configs").symlink_to(_CHECKOUT / "configs")
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End everything, however the story ended.

        Raises:
            DemoFailed: the story ended well, and a process is left behind.
        """
        self._stack.close()
        deadline = time.monotonic() + LEAVE_S
        while (left := self.left_over()) and time.monotonic() < deadline:
            time.sleep(POLL_FIRST_S)
        if not left:
            return
        told = f"Processes were left behind: {left}."
        if error is None:
            raise DemoFailed(told)
        click.echo(told, err=True)  # beside what ended the story

    def start_cloud(self) -> dict[str, str]:
        """Start a cloud, and return what it printed: pages, API, broker, data.

        Raises:
            ServiceError: it did not come up.
        """
        own = OwnCloud(self.data, self.broker, HEARTBEAT_S)
        self._stack.callback(own.stop)
        self._api = own.start()
        self._stack.callback(self._api.close)
        return self.until(
            "the cloud greets", lambda: own.greeting() if "data" in own.greeting() else None, START_S
        )

    def start_agent(self, device: str, join: str, properties: dict[str, str], group: str) -> Agent:
        """Start `lastgood agent run` with slots of its own, and an application on a port of its own."""
        folder = self.folder / "agents" / device
        folder.mkdir(parents=True)
        port = free_port()
        config = folder / "agent.toml"
        config.write_text(_agent_toml(port, properties, group))
        words = ("agent", "run", "--config", str(config), "--join", join)
        self.show(*words, secret=join)
        process = self._spawn(device, words)
        return Agent(device, folder, port, process)

    def command(self, *words: str, secret: str = "") -> str:
        """Show a command as a user types it, run it, and return what it printed.

        Raises:
            DemoFailed: it failed.
        """
        self.show(*words, secret=secret)
        return self.quietly(*words)

    def show(self, *words: str, secret: str = "") -> None:
        """Show a command as a user types it."""
        shown = shlex.join(["lastgood", *words])
        self._show(shown.replace(secret, secret[:12] + "…") if secret else shown)

    def slots(self, agent: Agent) -> dict[str, dict[str, Any]]:
        """Return the slots of a real agent, as `lastgood agent slots` tells them from its disk."""
        found: dict[str, dict[str, Any]] = json.loads(
            self.quietly("agent", "slots", "--state", str(agent.folder / "state"), "--json")
        )
        return found

    def quietly(self, *words: str) -> str:
        """Run a command without showing it.

        Raises:
            DemoFailed: it failed.
        """
        done = type_command(words, self.folder, self._environment(), COMMAND_S)
        if done.code:
            said = done.complained or done.printed
            raise DemoFailed(f"`lastgood {shlex.join(words)}` ended with {done.code}: {said}")
        return done.printed

    @property
    def api(self) -> CloudApi:
        """The cloud's API.

        Raises:
            DemoFailed: it has not been started.
        """
        if self._api is None:
            raise DemoFailed("The cloud has not been started.")
        return self._api

    def until(self, what: str, look: Callable[[], T | None], deadline_s: float) -> T:
        """Look until there is something to see, and return it; a cloud that is away may come back.

        Raises:
            DemoFailed: there was nothing within the deadline, in seconds.
        """
        end, pause_s = time.monotonic() + deadline_s, POLL_FIRST_S
        while True:
            away = ""
            try:
                found = look()
                if found:
                    return found
            except ServiceError as error:
                away = f" {error}"
            if time.monotonic() > end:
                raise DemoFailed(f"It did not come true within {deadline_s:.0f} s: {what}.{away}")
            time.sleep(pause_s)
            pause_s = min(POLL_LAST_S, pause_s * 1.3)

    def enter(self, context: contextlib.AbstractContextManager[T]) -> T:
        """Keep something until the end; it is ended before what was started earlier."""
        return self._stack.enter_context(context)

    def left_over(self) -> list[int]:
        """Return the processes that still work in the demo's folder: applications that agents started included."""
        mark = os.fsencode(self.folder)
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and mark in _command_of(entry)
        ]

    def _spawn(self, name: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        log: IO[bytes] = self._stack.enter_context((self.folder / f"{name}.log").open("wb"))
        with uninterrupted():
            process = subprocess.Popen(
                [sys.executable, "-m", "lastgood", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for the demo, which ends its processes in order
            )
            self._stack.callback(_end, process)
        return process

    def _environment(self) -> dict[str, str]:
        return {
            **without_addresses(os.environ),
            "LASTGOOD_DATA": str(self.data),
            "PYTHONPATH": str(_CHECKOUT),
            "PYTHONUNBUFFERED": "1",
        }


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""  # it ended while we looked


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely, and its whole session if it does not listen."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _agent_toml(port: int, properties: dict[str, str], group: str) -> str:
    named = "\n".join(f"{key} = {json.dumps(value)}" for key, value in properties.items())
    command = json.dumps([sys.executable, "{slot}/beacon.py", "--port", str(port)])
    return f"""state = "state"
soak_s = 2
startup_s = 120

[properties]
{named}

[tags]
group = {json.dumps(group)}

[application]
kind = "process"
command = {command}

[[checks]]
kind = "http"
name = "beacon"
url = "http://127.0.0.1:{port}/health"
interval_s = 0.5
timeout_s = 30
"""
