"""Health checks, and the watch that holds them over the soak.

They do not know what a trial is: the core decides what a failure means. A check may fail until it has held for the
first time, within the start-up limit, since an application needs a while to come up; after that, any failure counts.
A soak is not held by time that merely passed (a machine that was suspended): it ends with one more look at every check.
"""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from agent.adapters import commands
from agent.ports import Check, Stop, Stopped

TIMEOUT_S: Final = 5.0  # of one check, when nothing else is set
INTERVAL_S: Final = 2.0  # between two runs of one check, when nothing else is set
STARTUP_S: Final = 60.0  # until every check has to hold for the first time
SOAK_S: Final = 60.0  # for which they have to hold on end
BODY_BYTES_MAX: Final = 65_536  # of an answer that is read
_POLL_S: Final = 0.1


@dataclass(slots=True)
class CommandCheck:
    """Holds when a command ends with exit code 0 in time."""

    name: str
    command: tuple[str, ...]
    timeout_s: float = TIMEOUT_S

    def run(self) -> str | None:
        """Run the command once."""
        try:
            return commands.run(self.command, timeout_s=self.timeout_s).sentence(
                f"The command {self.command[0]!r}", self.timeout_s
            )
        except OSError as error:
            return f"The command {self.command[0]!r} cannot be run: {error.strerror}."


@dataclass(slots=True)
class HttpCheck:
    """Holds when a plain GET is answered with the wanted status in time."""

    name: str
    url: str
    status: int = 200
    timeout_s: float = TIMEOUT_S

    def run(self) -> str | None:
        """Ask once. Redirects are not followed: a check is of what runs here."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # The socket's time-out is for each read; the timer ends an answer that comes byte by byte.
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout_s)
        began = time.monotonic()
        alarm = threading.Timer(self.timeout_s, _shut, [connection])
        alarm.daemon = True
        alarm.start()
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            # An answer without a length is not ended by reading it.
            with connection.getresponse() as response:
                response.read(BODY_BYTES_MAX)
        except (OSError, http.client.HTTPException, AttributeError) as error:
            late = time.monotonic() - began >= self.timeout_s
            return f"{self.url} did not answer: {'the time was up' if late else _why(error)}."
        finally:
            alarm.cancel()
            connection.close()
        if time.monotonic() - began >= self.timeout_s:  # what the alarm cut off looks like an end
            return f"{self.url} did not answer: the time was up."
        if response.status != self.status:
            return f"{self.url} answered {response.status}, not {self.status}."
        return None


@dataclass(slots=True)
class TcpCheck:
    """Holds when a TCP port takes a connection in time."""

    name: str
    host: str
    port: int
    timeout_s: float = TIMEOUT_S

    def run(self) -> str | None:
        """Connect once."""
        try:
            with socket.create_connection((self.host, self.port), timeout=self.timeout_s):
                return None
        except OSError as error:
            return f"{self.host}:{self.port} takes no connection: {_why(error)}."


@dataclass(slots=True)
class SystemdCheck:
    """Holds when a systemd unit is active."""

    name: str
    unit: str
    timeout_s: float = TIMEOUT_S

    def run(self) -> str | None:
        """Ask systemd once."""
        try:
            ended = commands.run(["systemctl", "is-active", "--", self.unit], timeout_s=self.timeout_s)
        except OSError as error:
            return f"systemctl cannot be run: {error.strerror}."
        return None if ended.code == 0 else f"The unit {self.unit} is {ended.last_line or 'not active'}."


@dataclass(frozen=True, slots=True)
class Watch:
    """All checks over one soak, each with its own interval in seconds."""

    checks: Sequence[tuple[Check, float]]
    soak_s: float = SOAK_S
    startup_s: float = STARTUP_S

    def run(self, *, stop: Stop, held: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Run until stopped: `held` is called once, when all held for the whole soak; `failed` whenever one does not.

        Raises:
            Stopped: `stop` said so; there is no other end.
        """
        began = time.monotonic()
        due = [began] * len(self.checks)
        missing = set(range(len(self.checks)))  # those that have not held yet
        seen = [began] * len(self.checks)  # when each was last looked at
        soaking_since = began
        told = False
        while True:
            for index, (check, interval_s) in enumerate(self.checks):
                if stop():
                    raise Stopped
                if time.monotonic() < due[index]:
                    continue
                seen[index] = time.monotonic()
                sentence = check.run()
                now = time.monotonic()
                # While the application comes up it is asked more often, so that the soak begins when it is there.
                due[index] = now + (min(interval_s, 0.5) if sentence and index in missing else interval_s)
                if sentence is None:
                    missing.discard(index)
                elif index not in missing or now - began > self.startup_s:
                    failed(f"Check {check.name}: {sentence}")
                if missing or sentence is not None:
                    soaking_since = now
            soaked_at = soaking_since + self.soak_s
            if not told and not missing and time.monotonic() >= soaked_at:
                early = [index for index, at in enumerate(seen) if at < soaked_at]
                for index in early:
                    due[index] = soaked_at  # the closing look, now
                if early:
                    continue
                told = True
                held()
            if stop():
                raise Stopped
            time.sleep(_POLL_S)


def _shut(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the time was up"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__
