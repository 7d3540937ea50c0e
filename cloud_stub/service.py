"""The running service: one thread that feeds the orchestrator, with the broker, the store and the files around it.

It holds no rules. Everything that changes a row goes through its queue, in batches that share one transaction, and a
message is acknowledged to the broker after that transaction is durable. Reads wait for nobody.
"""

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

from cloud_stub.adapters.broker import CLOUD, INSPECT, SALT_BYTES, hash_password, new_token
from cloud_stub.adapters.keys import Secrets
from cloud_stub.adapters.mqtt import Link
from cloud_stub.core.commands import Command, DeploymentDraft
from cloud_stub.core.links import allows
from cloud_stub.core.plan import Plan
from cloud_stub.core.why import why as why_of
from cloud_stub.orchestrator import Asked, Delivered, Input, Linked, Now, Orchestrator, Publish, Sent, Ticked
from cloud_stub.orchestrator.deployments import planned
from cloud_stub.ports import PAGE_ROWS_MAX, Broker, Files, Reader, Store
from protocol.errors import OperatorError, ServiceError
from protocol.join import Join, broker_url, encode_join
from protocol.topics import Kind, Topics

log = logging.getLogger(__name__)

BATCH_MAX: Final = 512  # inputs in one transaction: more only makes the last one wait
COMMAND_TIMEOUT_S: Final = 60.0  # an operator who waits longer is told so
RETRY_AFTER_ERROR_S: Final = 1.0  # after the database refused
STOP_S: Final = 10.0  # for the last batch at the end


@dataclass(slots=True)
class _Item:
    input: Input
    done: Callable[[], None] | None = None  # acknowledges a message to the broker
    event: threading.Event | None = None  # wakes the one who asked


@dataclass(slots=True)
class _Changes:
    """A counter that grows with every transaction that changed something, and those who wait for it."""

    counter: int = 0
    condition: threading.Condition = field(default_factory=threading.Condition)


class RandomChance:
    """The operating system's randomness, for the core."""

    def uniform(self) -> float:
        """Return a number from 0 up to, not including, 1."""
        return secrets.randbits(53) / 2**53

    def token(self) -> str:
        """Return 22 characters that nobody can guess."""
        return secrets.token_urlsafe(16)


class Service:
    """Commands and messages in, durable rows and messages out."""

    def __init__(
        self,
        store: Store,
        orchestrator: Orchestrator,
        link: Link,
        broker: Broker,
        files: Files,
        kept: Secrets,
        topics: Topics,
    ) -> None:
        self.files = files
        self.broker = broker
        self._store = store
        self._orchestrator = orchestrator
        self._link = link
        self._kept = kept
        self._topics = topics
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._changes = _Changes()
        self._thread = threading.Thread(target=self._run, name="orchestrator", daemon=True)
        self._sent: list[Sent] = []
        self._own_accounts: dict[str, str] = {}

    def start(self) -> None:
        """Tell the broker its accounts, connect, and begin."""
        self._own_accounts = {
            name: hash_password(token, secrets.token_bytes(SALT_BYTES))
            for name, token in ((CLOUD, self._kept.cloud_token), (INSPECT, self._kept.inspect_token))
        }
        self._tell_accounts()
        self._thread.start()
        self._link.start(self._arrived, lambda up: self._queue.put(_Item(Linked(up))))

    def stop(self) -> None:
        """Finish what is queued, and let go of the broker and the database."""
        self._link.stop()
        self._queue.put(None)
        self._thread.join(STOP_S)
        with self._changes.condition:
            self._changes.condition.notify_all()
        self._store.close()

    def do(self, command: Command, who: str) -> Any:
        """Carry out a command; return, when it is durable, what it made.

        Raises:
            OperatorError: it cannot be carried out as it was asked for.
            ServiceError: the database refused, or did not answer in time.
        """
        asked = Asked(command, who)
        event = threading.Event()
        self._queue.put(_Item(asked, event=event))
        if not event.wait(COMMAND_TIMEOUT_S):
            raise ServiceError(f"The cloud did not answer within {COMMAND_TIMEOUT_S:.0f} s; look at its log.")
        if asked.reply.error is not None:
            raise asked.reply.error
        return asked.reply.result

    def plan(self, draft: DeploymentDraft) -> Plan:
        """Answer what a deployment would do.

        Raises:
            OperatorError: it could not be created.
        """
        with self._store.read() as reader:
            return planned(reader, draft)

    def why(self, device: str) -> list[str]:
        """Return in sentences which rule a device waits on, the deciding one first.

        Raises:
            OperatorError: the device is unknown.
        """
        with self._store.read() as reader:
            row = reader.device(device)
            if row is None:
                raise OperatorError(f"There is no device {device}; see `lastgood device list`.")
            active = reader.active(row.group)
            mine = reader.assignment(active.id, device) if active else None
            return why_of(row, active, mine, self.now_ms())

    def read(self) -> AbstractContextManager[Reader]:
        """Open one consistent look at the rows."""
        return self._store.read()

    def wait_change(self, after: int, timeout_s: float) -> int:
        """Wait until the change counter exceeds `after` or the time is over; return the counter."""
        with self._changes.condition:
            self._changes.condition.wait_for(lambda: self._changes.counter > after, timeout_s)
            return self._changes.counter

    def now_ms(self) -> int:
        """Return the cloud's time, in UTC milliseconds."""
        return time.time_ns() // 1_000_000

    def repository_allows(self, query: Mapping[str, str]) -> bool:
        """Return whether the query of a repository address is signed and has not expired."""
        return allows(self._kept.url_secret, query, self.now_ms())

    def join_line(self, device: str, token: str) -> str:
        """Return the one line to run on a device."""
        return f"lastgood agent run --join {self.join_text(device, token)}"

    def join_text(self, device: str, token: str) -> str:
        """Return what `--join` takes."""
        return encode_join(
            Join(
                broker=broker_url(self.broker.host, self.broker.port),
                device=device,
                token=token,
                keys_pem=(self._kept.director.public_pem,),
                prefix=self._topics.prefix,
            )
        )

    def new_token(self) -> tuple[str, str]:
        """Return a new device token and its hash."""
        token = new_token(secrets.token_bytes)
        return token, hash_password(token, secrets.token_bytes(SALT_BYTES))

    def _arrived(self, kind: Kind, device: str, payload: bytes, done: Callable[[], None]) -> None:
        self._queue.put(_Item(Delivered(kind, device, payload), done))

    def _run(self) -> None:
        """Feed the orchestrator until told to stop."""
        tick_at_ms = 0
        while True:
            items, stopping = self._next_batch(tick_at_ms)
            now = _now()
            inputs: list[Input] = [*self._sent, *(item.input for item in items)]
            if now.mono_ms >= tick_at_ms:
                inputs.append(Ticked())
                tick_at_ms = self._orchestrator.due_ms(now)
            self._sent = []
            if inputs:
                try:
                    self._turn(inputs, items, now)
                except Exception:  # the outermost loop: without this thread nothing would be heard any more
                    log.exception("a turn of %d inputs failed", len(inputs))
            if stopping:
                return

    def _next_batch(self, tick_at_ms: int) -> tuple[list[_Item], bool]:
        items: list[_Item] = []
        wait_s = 0.0 if self._sent else max(0.0, (tick_at_ms - _now().mono_ms) / 1000)
        try:
            item = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            while item is not None:
                items.append(item)
                if len(items) >= BATCH_MAX:
                    return items, False
                item = self._queue.get_nowait()
            return items, True
        except queue.Empty:
            return items, False

    def _turn(self, inputs: list[Input], items: list[_Item], now: Now) -> None:
        changes = self._store.changes
        try:
            publishes = self._orchestrator.handle(inputs, now)
        except ServiceError as error:
            # its sentence says all; devices say again what was not acknowledged to them (R6)
            log.error("%s", error)
            publishes = []
            time.sleep(RETRY_AFTER_ERROR_S)
        except Exception:  # a fault in one batch must not end the service; who asked was told by `handle`
            log.exception("a batch of %d inputs failed", len(inputs))
            publishes = []
        try:
            if self._orchestrator.accounts_changed:
                self._tell_new_accounts()
            for publish in publishes:
                self._publish(publish)
        finally:
            self._answer(items)
        alone = len(inputs) == 1 and isinstance(inputs[0], Ticked)
        if not alone or publishes or self._store.changes != changes:
            with self._changes.condition:
                self._changes.counter += 1
                self._changes.condition.notify_all()

    def _answer(self, items: list[_Item]) -> None:
        """Wake who asked, and take the messages from the broker, also after a turn that failed.

        A broker sends again what is left unacknowledged only on a new connection, and meanwhile its window would
        fill: what is sent again in time is what a device has no acknowledgement of the cloud for (R6).
        """
        for item in items:
            if item.event:
                item.event.set()
        for item in items:
            if item.done:
                item.done()

    def _publish(self, message: Publish) -> None:
        self._link.publish(message.topic, message.payload, message.qos)
        if message.order is not None:
            self._sent.append(Sent(*message.order))

    def _tell_new_accounts(self) -> None:
        try:
            self._tell_accounts()
            self._orchestrator.accounts_changed = False
        except ServiceError as error:
            log.error("%s", error)  # told again in the next turn: a broker that has ended comes back

    def _tell_accounts(self) -> None:
        """Give the broker the whole set of accounts, the same for services: a new hash would cut them off."""
        self.broker.set_accounts({**self._own_accounts, **accounts_of_devices(self._store)})


def accounts_of_devices(store: Store) -> dict[str, str]:
    """Return what a broker lets devices in by: their names, and the hashes of their tokens.

    Raises:
        ServiceError: the database refused.
    """
    found: dict[str, str] = {}
    with store.read() as reader:
        after = ""
        while page := reader.list_devices(after=after, limit=PAGE_ROWS_MAX):
            found.update({row.id: row.password_hash for row in page if row.password_hash})
            after = page[-1].id
    return found


def _now() -> Now:
    return Now(time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000)
