"""A service without MQTT: the real orchestrator, store and files, fed directly, and a hand-written broker.

It is what the API is tested against. Commands are carried out at once in the caller's thread; devices are rows that a
test puts, or reports that it hands in.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_stub.adapters.files import FolderFiles, open_files
from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import Command, DeploymentDraft
from cloud_stub.core.links import allows, signed_query
from cloud_stub.core.plan import Plan
from cloud_stub.core.why import why as why_of
from cloud_stub.orchestrator import Asked, Now, Orchestrator, Settings
from cloud_stub.orchestrator.deployments import planned
from cloud_stub.orchestrator.outbox import Outbox
from cloud_stub.ports import Reader, Unit
from protocol.envelope import DirectorKey
from protocol.errors import OperatorError
from protocol.messages import Repository
from protocol.topics import Topics

URL_SECRET = b"a secret of this test"


class FakeBroker:
    """A broker that is only said to run."""

    engine = "fake"
    limit = "no device at all"
    host = "127.0.0.1"
    port = 1883
    service_port = 1884
    pid: int | None = None

    def __init__(self) -> None:
        self.runs = True
        self.accounts: Mapping[str, str] = {}

    def set_accounts(self, accounts: Mapping[str, str]) -> None:
        """Remember the accounts."""
        self.accounts = accounts

    def alive(self) -> bool:
        """Return what the test has set."""
        return self.runs

    def stop(self) -> None:
        """Stop to be said to run."""
        self.runs = False


class FakeChance:
    """No randomness: the middle, and a count."""

    def __init__(self) -> None:
        self.drawn = 0

    def uniform(self) -> float:
        """Return the middle."""
        return 0.5

    def token(self) -> str:
        """Return another token each time."""
        self.drawn += 1
        return f"token-{self.drawn}"


class DirectService:
    """The service's port, without threads and without MQTT."""

    def __init__(self, folder: Path) -> None:
        self.files: FolderFiles = open_files(folder / "files")
        self.broker = FakeBroker()
        self.asked: list[tuple[Command, str]] = []
        self.ahead_ms = 0
        self._store = open_store(folder / "cloud.db")
        outbox = Outbox(
            DirectorKey(Ed25519PrivateKey.generate()),
            lambda device, until_ms: Repository(url="http://127.0.0.1:1/repo"),
            Topics(),
        )
        self._chance = FakeChance()
        self._orchestrator = Orchestrator(self._store, outbox, self._chance, Settings())
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._counter = 0
        self._closed = False

    def close(self) -> None:
        """Wake those who wait, and close the database."""
        self._closed = True
        self._change()
        self._store.close()

    def do(self, command: Command, who: str) -> Any:
        """Carry out a command at once."""
        self.asked.append((command, who))
        asked = Asked(command, who)
        with self._lock:
            self._orchestrator.handle([asked], Now(self.now_ms(), time.monotonic_ns() // 1_000_000))
        self._change()
        if asked.reply.error is not None:
            raise asked.reply.error
        return asked.reply.result

    @contextmanager
    def rows(self) -> Iterator[Unit]:
        """Put rows as a device's reports would have."""
        with self._lock, self._store.transaction() as unit:
            yield unit
        self._change()

    def judge(self, deployment: str) -> None:
        """Judge a deployment's policy, as every change of its numbers does."""
        now = Now(self.now_ms(), time.monotonic_ns() // 1_000_000)
        with self._lock, self._store.transaction() as unit:
            row = unit.deployment(deployment)
            assert row is not None
            self._orchestrator._turn(unit, now).judge(row)
        self._change()

    def plan(self, draft: DeploymentDraft) -> Plan:
        """Answer what a deployment would do."""
        with self.read() as reader:
            return planned(reader, draft)

    def why(self, device: str) -> list[str]:
        """Say which rule a device waits on."""
        with self.read() as reader:
            row = reader.device(device)
            if row is None:
                raise OperatorError(f"There is no device {device}.")
            active = reader.active(row.group)
            mine = reader.assignment(active.id, device) if active else None
            return why_of(row, active, mine, self.now_ms())

    def read(self) -> AbstractContextManager[Reader]:
        """Open a look."""
        return self._store.read()

    def wait_change(self, after: int, timeout_s: float) -> int:
        """Wait for a change."""
        with self._changed:
            self._changed.wait_for(lambda: self._counter > after or self._closed, timeout_s)
            return self._counter

    def now_ms(self) -> int:
        """Return the time, with what a test has added to it."""
        return time.time_ns() // 1_000_000 + self.ahead_ms

    def query(self, for_ms: int = 60_000) -> str:
        """Return a signed query of the repository."""
        return signed_query(URL_SECRET, "tester", self.now_ms() + for_ms)

    def repository_allows(self, query: Mapping[str, str]) -> bool:
        """Check a query."""
        return allows(URL_SECRET, query, self.now_ms())

    def join_line(self, device: str, token: str) -> str:
        """Return a line like the real one."""
        return f"lastgood agent run --join {device}.{token}"

    def new_token(self) -> tuple[str, str]:
        """Return a token and what stands for its hash."""
        token = self._chance.token()
        return token, f"hash of {token}"

    def _change(self) -> None:
        with self._changed:
            self._counter += 1
            self._changed.notify_all()
