"""A broker that runs in a process of ours: started, told of accounts, watched, stopped. Both engines alike.

It knows nothing of MQTT but one question (`probe.py`). The rules kept: it runs only as long as whoever
started it; when `set_accounts` returns, the new tokens are on disk and the broker has read them; nobody is
disconnected by that but those whose account has gone or changed.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cloud_stub.adapters.broker.access import PROBE, check_names
from cloud_stub.adapters.broker.accounts import write_accounts
from cloud_stub.adapters.broker.errors import BrokerError
from cloud_stub.adapters.broker.passwords import SALT_BYTES, hash_password, new_token
from cloud_stub.adapters.broker.probe import is_let_in
from cloud_stub.adapters.broker.stale import end_stale, forget_record, write_record

_RELOAD_S = 5.0  # mosquitto hashes every connected client's token again when it reads its accounts
_STOP_S = 5.0  # above the leash's own grace
_POLL_FIRST_S = 0.01  # to the second question to a broker that is starting or reloading; each pause is longer
_POLL_LAST_S = 0.2
LOG_BYTES_MAX = 4_194_304
_LOG_TAIL_BYTES = 2_000
_LOG_TAIL_LINES = 3


@dataclass(frozen=True)
class Plan:
    """How one engine is to be run in one folder."""

    engine: str
    limit: str
    command: Sequence[str]
    leashed: bool  # the command is `leash.py`, and says the broker's own process id
    folder: Path
    config: Path
    host: str
    port: int
    service_port: int
    files: Mapping[Path, bool]  # each password file, and whether it holds services
    shared_file: bool  # one file holds both
    start_s: float
    survive: bool
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where the broker's own lines go; begun anew at every start."""
        return self.folder / "broker.log"


class BrokerProcess:
    """A running broker of ours; satisfies the port Broker."""

    def __init__(self, plan: Plan) -> None:
        self.engine = plan.engine
        self.limit = plan.limit
        self.host = plan.host
        self.port = plan.port
        self.service_port = plan.service_port
        self.pid: int | None = None
        self._plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._accounts: Mapping[str, str] = {}  # the newest set, for a start that nobody asked for
        self._lock = threading.Lock()

    def start(self, accounts: Mapping[str, str]) -> None:
        """Start the process and wait until it lets our probe in. Raises BrokerError with the last lines of
        its log."""
        plan = self._plan
        token = self._write(accounts)
        self._process = _spawn(plan)
        leash_said = self._process.stdout
        self.pid = self._read_pid(leash_said) if leash_said is not None else self._process.pid
        write_record(plan.folder, sorted({self._process.pid, self.pid}), plan.config, plan.service_port)
        if not self._await_probe(token, plan.start_s):
            state = "did not come up" if self.alive() else "ended at once"
            why = self._last_lines()
            self.stop()
            raise BrokerError(
                f"{plan.engine} {state}{f' within {plan.start_s:g} s' if state[0] == 'd' else ''}: {why}"
            )

    def start_again(self) -> None:
        """Start a broker that has ended by itself, on the same ports and with its newest accounts. Raises
        BrokerError; it can then be tried again."""
        with self._lock:
            self.stop()  # of what is left: pipes, and a leash without its broker
            end_stale(self._plan.folder)
            self.start(self._accounts)

    def set_accounts(self, accounts: Mapping[str, str]) -> None:
        """Replace the whole set of accounts (name to hash), and return when the broker has read it.

        Raises BrokerError for a name or hash it cannot hold, or when the broker does not answer.
        """
        with self._lock:
            token = self._write(accounts)
            if self.pid is None or not self.alive():
                raise BrokerError(
                    f"{self.engine} is not running; the accounts are on disk for its next start"
                )
            try:
                os.kill(self.pid, signal.SIGHUP)
            except ProcessLookupError as error:  # it ends at this moment
                raise BrokerError(f"{self.engine} has ended; the accounts are on disk") from error
            if not self._await_probe(token, _RELOAD_S):
                raise BrokerError(
                    f"{self.engine} has not read its accounts within {_RELOAD_S:g} s: {self._last_lines()}"
                )

    def alive(self) -> bool:
        """Whether the process runs."""
        process = self._process  # another thread may be starting it again
        return process is not None and process.poll() is None

    def bound_log(self) -> None:
        """Empty the broker's log when it has grown too long: who knocks all day must not fill the cloud's disk."""
        with contextlib.suppress(OSError):
            if self._plan.log.stat().st_size > LOG_BYTES_MAX:
                os.truncate(self._plan.log, 0)

    def last_words(self) -> str:
        """The end of the broker's own log, in one line."""
        return self._last_lines()

    def stop(self) -> None:
        """End the process, and return when it has ended. Can be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        forget_record(self._plan.folder)

    def _write(self, accounts: Mapping[str, str]) -> str:
        """Write the password files with a new probe in them, and return the probe's token."""
        check_names(accounts)
        self._accounts = dict(accounts)
        token = new_token(secrets.token_bytes)
        everyone = {**accounts, PROBE: hash_password(token, secrets.token_bytes(SALT_BYTES))}
        for path, services in self._plan.files.items():
            write_accounts(
                path,
                {
                    n: h
                    for n, h in everyone.items()
                    if self._plan.shared_file or n.startswith("_") == services
                },
            )
        return token

    def _await_probe(self, token: str, wait_s: float) -> bool:
        deadline_s, pause_s = time.monotonic() + wait_s, _POLL_FIRST_S
        while self.alive() and time.monotonic() < deadline_s:
            if is_let_in(self.host, self.service_port, PROBE, token):
                return True
            time.sleep(pause_s)
            pause_s = min(_POLL_LAST_S, pause_s * 1.2)
        return False

    def _read_pid(self, leash_said: IO[bytes]) -> int:
        line = leash_said.readline()
        if not line.strip().isdigit():
            why = self._last_lines()
            self.stop()
            raise BrokerError(f"{self.engine} could not be run: {why}")
        return int(line)

    def _last_lines(self) -> str:
        try:
            tail = self._plan.log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")
        except OSError:
            tail = ""
        # mosquitto warns and advises at every start, of running as root among others: never what ended it.
        told = (line.strip() for line in tail.splitlines())
        lines = [line for line in told if line and ": Warning: " not in line and ": Note: " not in line]
        return " / ".join(lines[-_LOG_TAIL_LINES:]) or f"it said nothing in {self._plan.log}"


def _spawn(plan: Plan) -> subprocess.Popen[bytes]:
    try:
        plan.log.unlink(missing_ok=True)
        with plan.log.open("ab") as log:  # at its end, wherever that is: it may be emptied meanwhile
            return subprocess.Popen(
                plan.command,
                stdin=subprocess.DEVNULL if plan.survive else subprocess.PIPE,
                stdout=subprocess.PIPE if plan.leashed else log,
                stderr=log,
                env={**os.environ, **plan.environment},
                start_new_session=True,  # Ctrl-C is for the cloud, which then stops its broker itself
            )
    except OSError as error:
        raise BrokerError(f"{plan.engine} could not be run in {plan.folder}: {error}") from error
