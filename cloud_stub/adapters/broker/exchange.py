"""What joins the embedded broker's connections: accounts, who is connected, who hears what.

It is not the network (`connection.py`) and not the rule book (`access.py`). The rules kept: nothing is
attached, delivered or promised before a client is authenticated; a name's new connection replaces its old
one, whose will goes out first; a cloud that is behind makes devices wait, and loses nothing, while anybody
else who does not read is cut off.
"""

import asyncio
import logging
from collections.abc import Mapping

from cloud_stub.adapters.broker import wire
from cloud_stub.adapters.broker.access import CLOUD, is_service, may_publish, may_subscribe
from cloud_stub.adapters.broker.connection import Connection, State
from cloud_stub.adapters.broker.filters import FilterTable, is_filter, is_topic
from cloud_stub.adapters.broker.limits import Limits
from cloud_stub.adapters.broker.passwords import verify
from cloud_stub.adapters.broker.wire import ConnectRequest

_log = logging.getLogger("broker")


class Exchange:
    """The state shared by all connections of one embedded broker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, prefix: str, limits: Limits) -> None:
        self.limits = limits
        self.now = loop.time
        self.connections: set[Connection] = set()
        self._loop = loop
        self._prefix = prefix
        self._accounts: Mapping[str, str] = {}
        self._clients: dict[tuple[str, str], Connection] = {}
        self._filters: FilterTable[Connection] = FilterTable()
        self._unflushed: list[Connection] = []
        self._stalled: set[Connection] = set()  # clouds that are behind
        self._held: list[Connection] = []  # devices that wait for them
        self._lines = 0
        self._lines_since_s = 0.0
        self._lines_dropped = 0

    def judge(self, request: ConnectRequest) -> tuple[int, str]:
        """Whether a client may come in: CONNACK's return code, and why not."""
        name = request.name
        if not name or request.token is None:
            return wire.NOT_AUTHORIZED, "no name or no token"
        stored = self._accounts.get(name)
        if stored is None or not verify(request.token, stored):
            return wire.NOT_AUTHORIZED, f"{name[:64]!r} is unknown, or its token is wrong"
        if not is_service(name) and request.client_id != name:
            return (
                wire.BAD_CLIENT_ID,
                f"{name} used the client id {request.client_id[:64]!r}: it must be its name",
            )
        if request.will is not None and not self._may_publish(name, request.will.topic):
            return (
                wire.NOT_AUTHORIZED,
                f"{name} left a will on {request.will.topic[:100]!r}, which is not its own",
            )
        return wire.ACCEPTED, ""

    def attach(self, connection: Connection) -> None:
        """Make a client known; an older connection under its name is closed, its will sent before anything
        of the new one."""
        key = (connection.name, connection.client_id)
        older = self._clients.get(key)
        if older is not None:
            older.end("its name connected again")
        self._clients[key] = connection

    def detach(self, connection: Connection) -> None:
        """Forget a client that has gone, and publish its will, if it still has one."""
        key = (connection.name, connection.client_id)
        if self._clients.get(key) is connection:
            del self._clients[key]
        for topic_filter in connection.filters:
            self._filters.remove(topic_filter, connection)
        connection.filters.clear()
        if connection in self._stalled:
            self._caught_up(connection)
        will, connection.will = connection.will, None
        if will is not None:
            self._route(will.topic, will.payload, will.qos)

    def set_accounts(self, accounts: Mapping[str, str]) -> None:
        """Replace the whole set of accounts; whoever's account has gone or changed is cut off, nobody else
        notices."""
        before, self._accounts = self._accounts, dict(accounts)
        for connection in list(self._clients.values()):
            if before.get(connection.name) != self._accounts.get(connection.name):
                connection.end("its token was revoked")

    def publish_from(self, sender: Connection, topic: str, payload: bytes, qos: int) -> None:
        """Deliver a client's message if its account allows that; otherwise count it as mosquitto does:
        acknowledged, dropped."""
        if not is_topic(topic):
            raise wire.Malformed("PUBLISH to a topic with wildcards, or to none")
        if not self._may_publish(sender.name, topic):
            self.note(f"{sender.name} may not publish on {topic[:100]!r}: dropped")
            return
        self._route(topic, payload, qos)
        # The cloud itself never waits: it would wait for its own acknowledgements
        if self._stalled and sender.name != CLOUD:
            sender.hold()
            if sender.held:
                self._held.append(sender)

    def subscribe(self, connection: Connection, topic_filter: str, qos: int) -> int:
        """Subscribe a client; the granted QoS, or 0x80 for a filter that is malformed, shared, too wide,
        or one too many."""
        known = topic_filter in connection.filters
        if (
            not is_filter(topic_filter)
            or not may_subscribe(connection.name, topic_filter, self._prefix)
            or (len(connection.filters) >= self.limits.filters_max and not known)
        ):
            self.note(f"{connection.name} may not subscribe to {topic_filter[:100]!r}")
            return wire.NOT_GRANTED
        granted = min(qos, 1)
        connection.filters[topic_filter] = granted
        self._filters.add(topic_filter, connection, granted)
        return granted

    def unsubscribe(self, connection: Connection, topic_filter: str) -> None:
        """End a subscription."""
        if connection.filters.pop(topic_filter, None) is not None:
            self._filters.remove(topic_filter, connection)

    def flush_soon(self, connection: Connection) -> None:
        """Write a connection's output after all that this turn of the loop has in hand: one system call
        for many packets."""
        if not self._unflushed:
            self._loop.call_soon(self._flush)
        self._unflushed.append(connection)

    def watch_backlog(self, connection: Connection) -> None:
        """Cut off who lets too much wait; hold the devices when it is the cloud."""
        waiting = connection.waiting_bytes
        if connection.overloaded:
            if waiting <= self.limits.cloud_bytes_low:
                self._caught_up(connection)
        elif connection.name == CLOUD and waiting > self.limits.cloud_bytes_high:
            connection.overloaded = True
            connection.since_s = self.now()
            self._stalled.add(connection)
            self.note(f"{CLOUD} is {waiting} bytes behind: devices wait")
        if waiting > connection.waiting_bytes_max and connection.state is State.OPEN:
            # Not now: the caller may be in the middle of a delivery to many
            self._loop.call_soon(connection.end, f"{waiting} bytes unread")

    def tick(self) -> None:
        """Look at every connection's time-outs; called every `sweep_s`."""
        now_s = self.now()
        for connection in list(self.connections):
            connection.tick(now_s)

    def close(self) -> None:
        """End all connections without their wills: it is the broker that goes, and it tells nobody
        anything any more."""
        for connection in list(self.connections):
            connection.will = None
            connection.end("")
            connection.abort()

    def note(self, line: str) -> None:
        """Log a short line, at most `log_lines_max` in a second: a client in a loop must not fill the
        disk."""
        now_s = self.now()
        if now_s - self._lines_since_s >= 1.0:
            if self._lines_dropped:
                _log.warning("... and %d lines more", self._lines_dropped)
            self._lines, self._lines_dropped, self._lines_since_s = 0, 0, now_s
        if self._lines < self.limits.log_lines_max:
            self._lines += 1
            _log.warning("%s", line)
        else:
            self._lines_dropped += 1

    def _may_publish(self, name: str, topic: str) -> bool:
        return is_topic(topic) and may_publish(name, topic, self._prefix)

    def _route(self, topic: str, payload: bytes, qos: int) -> None:
        subscribers = self._filters.match(topic)
        if not subscribers:
            return
        head0, head1, named = wire.publish_parts(topic, payload)
        for connection, granted in subscribers.items():
            connection.deliver(head0, head1, named, payload, min(qos, granted))

    def _flush(self) -> None:
        connections, self._unflushed = self._unflushed, []
        for connection in connections:
            connection.flush()

    def _caught_up(self, connection: Connection) -> None:
        connection.overloaded = False
        self._stalled.discard(connection)
        if self._stalled or not self._held:
            return
        held, self._held = self._held, []
        for device in held:
            self._loop.call_soon(device.release)
