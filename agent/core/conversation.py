"""When a device speaks: hellos, asks, heartbeats, and a state again and again until the cloud acknowledges it.

It builds no content (`reporting.py`) and changes no record. It keeps the rules of R6: hello on every connection, an
answer is waited for with back-off, a state that is not acknowledged is sent again, and after a refusal the minimal
state once, then hourly. Everything is a time at which something is due; `flush` says what is due now.
"""

from collections.abc import Collection

from agent.core.model import Chance, Publish, Record
from agent.core.reporting import Content, hello_of, payload_of
from agent.core.settings import (
    HEARTBEAT_LEAST_MS,
    HEARTBEAT_MOST_MS,
    NONCES_MAX,
    REFUSED_WAIT_MS,
    RESEND_LEAST_MS,
    RESEND_MOST_MS,
    SECOND_MS,
    STATES_KEPT,
    SYNC_WINDOW_MOST_MS,
    backoff,
)
from protocol.messages import Ack
from protocol.topics import Kind

_RESEND_FIRST_MS = 2 * SECOND_MS
_CONNECT_TRIES = 3  # after a connect the cloud's answer to hello decides; its first resend is spread over 8 s


class Conversation:
    """The talk of one device with the cloud, over one connection after another."""

    __slots__ = (
        "_addresses",
        "_answered",
        "_ask_tries",
        "_asked",
        "_chance",
        "_device",
        "_heartbeat_ms",
        "_hello_due",
        "_minimal_refused",
        "_proof",
        "_said",
        "_sent",
        "_state_due",
        "_state_tries",
        "_told",
        "asking",
        "connection",
        "full_again",
        "held",
        "reconnect_spread_ms",
    )

    def __init__(self, device: str, chance: Chance, heartbeat_ms: int) -> None:
        self._device = device
        self._chance = chance
        self._heartbeat_ms = heartbeat_ms
        self.connection: str | None = None
        self.asking = False  # set by the device: an answer is waited for (R4, R11)
        self.held = False  # the newest state is acknowledged
        self.full_again: int | None = None  # until then minimal states alone (R6)
        self.reconnect_spread_ms: int | None = None
        self._asked: tuple[str, ...] = ()  # nonces whose answer counts at the gate
        self._said: tuple[str, ...] = ()  # nonces of this start (R3)
        self._answered = True
        self._addresses = False
        self._proof: int | None = None  # the epoch that the cloud named, below ours (R2)
        self._minimal_refused = False
        self._sent: int | None = None  # sequence of the state sent last, on this connection
        self._told: tuple[tuple[int, str], ...] = ()  # sequence and digest of the states sent since the start
        self._ask_tries = 0
        self._state_tries = 0
        self._hello_due: int | None = None
        self._state_due: int | None = None

    @property
    def nonces(self) -> Collection[str]:
        """The nonces of the hellos said since the start, the newest `NONCES_MAX` (R3)."""
        return self._said

    @property
    def minimal(self) -> bool:
        """Whether the minimal state is what is to be told (R6)."""
        return self.full_again is not None

    def open(self, connection: str, now_ms: int) -> None:
        """A connection stands, its subscriptions granted: hello now (R6)."""
        self.connection = connection
        self._asked = ()
        self._answered = False
        self._sent = None
        self._proof = None
        self._ask_tries = 0
        self._hello_due = now_ms
        self._state_tries = _CONNECT_TRIES
        self._state_due = None if self.held else now_ms + self._resend_ms()

    def close(self) -> None:
        """The connection ended; nothing is due until the next one."""
        self.connection = None
        self._asked = ()
        self._hello_due = self._state_due = None

    def ask(self, now_ms: int, *, addresses: bool = False) -> None:
        """Say hello with a fresh nonce now; answers to older ones no longer count (R4)."""
        self._addresses = self._addresses or addresses
        self._asked = ()
        self._ask_tries = 0
        if self.connection is not None:
            self._hello_due = now_ms

    def addressed(self) -> None:
        """New addresses came, or are no longer wanted."""
        self._addresses = False

    def changed(self, now_ms: int) -> None:
        """The state has a new sequence number: send it now, or within the hour after a refused minimal state."""
        self.held = False
        self._state_tries = 0
        if self.connection is not None:
            self._state_due = self.full_again if self._minimal_refused and self.full_again else now_ms

    def sync(self, window_ms: int, now_ms: int) -> None:
        """Say hello after a random delay within the window."""
        if self.connection is None:
            return
        due = now_ms + round(self._chance.uniform() * min(window_ms, SYNC_WINDOW_MOST_MS))
        self._hello_due = due if self._hello_due is None else min(due, self._hello_due)

    def hear(self, ack: Ack, record: Record, now_ms: int) -> bool:
        """Take an acknowledgement in, and return whether it answers a hello that waits for an answer (R4, R11)."""
        if ack.heartbeat_ms is not None:
            self._heartbeat_ms = min(max(ack.heartbeat_ms, HEARTBEAT_LEAST_MS), HEARTBEAT_MOST_MS)
        if ack.reconnect_spread_ms is not None:
            self.reconnect_spread_ms = ack.reconnect_spread_ms
        if ack.refused is not None:
            self._refuse(now_ms)
        elif ack.sequence == record.sequence and ack.digest in {None, record.digest}:
            self.held, self._state_due, self._state_tries = True, None, 0
            self._minimal_refused = False  # it was the whole state that was refused twice
        elif self.connection is not None and (self.held or self._sent != record.sequence):
            self.held, self._state_due = False, now_ms
        self._doubt(ack.newest_epoch, record, now_ms)
        answers = ack.nonce is not None and ack.nonce in self._asked
        self._answered = self._answered or answers
        return answers

    def covers(self, ack: Ack, record: Record) -> bool:
        """Return whether the cloud holds a state that this device surely sent, with the outcomes it carried (R7).

        The number alone proves nothing: a disk that refused, or a copy that came back, can make it count twice.
        """
        return (ack.sequence, ack.digest) in (*self._told, (record.sequence, record.digest))

    def look_up(self, now_ms: int) -> None:
        """When the hour after a refusal is over, try the whole state again."""
        if self.full_again is not None and self.full_again <= now_ms:
            self.full_again = None
            self._minimal_refused = False

    def due(self) -> int | None:
        """Return when something is to be said next, on the clock of `now_ms`."""
        times = [time for time in (self._hello_due, self._state_due, self.full_again) if time is not None]
        return min(times) if times else None

    def flush(self, record: Record, content: Content, refused_count: int, now_ms: int) -> list[Publish]:
        """Return what is to be sent now, and set when it is to be sent again."""
        out: list[Publish] = []
        if self.connection is None:
            return out
        self._calm(now_ms)
        if self._hello_due is not None and self._hello_due <= now_ms:
            out.append(self._hello(record, self.connection, refused_count, now_ms))
        if self._state_due is not None and self._state_due <= now_ms:
            out.append(Publish(Kind.STATE, payload_of(content, record)))
            self._sent = record.sequence
            self._told = (*self._told, (record.sequence, record.digest))[-STATES_KEPT:]
            self._state_tries += 1
            self._state_due = now_ms + (REFUSED_WAIT_MS if self._minimal_refused else self._resend_ms())
        return out

    def _waits(self) -> bool:
        return self.asking or self._addresses or not self._answered

    def _calm(self, now_ms: int) -> None:
        """What was asked is answered: back to the heartbeat."""
        if self._ask_tries and not self._waits() and self._hello_due is not None and self._hello_due > now_ms:
            self._ask_tries = 0
            self._hello_due = now_ms + self._heartbeat_ms

    def _hello(self, record: Record, connection: str, refused_count: int, now_ms: int) -> Publish:
        waits = self._waits()
        nonce = self._chance.token() if waits or record.epoch is None else None
        if nonce is not None:
            self._asked = (*self._asked, nonce)[-NONCES_MAX:]
            self._said = (*self._said, nonce)[-NONCES_MAX:]
        delay_ms = self._heartbeat_ms
        if waits:
            self._ask_tries += 1
            delay_ms = min(delay_ms, self._backoff(self._ask_tries))
        self._hello_due = now_ms + delay_ms
        payload = hello_of(
            self._device,
            record,
            connection,
            nonce=nonce,
            wants_addresses=self._addresses,
            proof=self._proof is not None,
            refused_count=refused_count,
        )
        return Publish(Kind.HELLO, payload)

    def _refuse(self, now_ms: int) -> None:
        self._minimal_refused = self.minimal
        self.full_again = now_ms + REFUSED_WAIT_MS
        self._state_due = self.full_again

    def _doubt(self, newest_epoch: int, record: Record, now_ms: int) -> None:
        """A cloud that names a lower epoch has lost data: prove ours, at once and then with every hello (R2)."""
        if record.epoch is None or newest_epoch >= record.epoch:
            self._proof = None
        elif self._proof != newest_epoch:
            self._proof = newest_epoch
            if self.connection is not None:
                self._hello_due = now_ms

    def _resend_ms(self) -> int:
        return self._backoff(self._state_tries)

    def _backoff(self, tries: int) -> int:
        chance = self._chance.uniform()
        return backoff(max(1, tries), _RESEND_FIRST_MS, RESEND_MOST_MS, chance, least_ms=RESEND_LEAST_MS)
