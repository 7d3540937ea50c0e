"""Durable reports a second in one process: from a message's bytes to its rows committed.

It measures no network: messages are handed to the orchestrator in batches, as the service's thread does. The floor is
sqlite3 by itself with the very rows that the orchestrator has committed, read back, in the same batches, into the same
schema (WAL, FULL, the store's own settings). Between the two stands the store given these rows, so that a slow store
and slow rules are told apart.
"""

import cProfile
import pstats
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from cloud_stub.adapters.store import open_store
from cloud_stub.core.commands import AddDevices
from cloud_stub.orchestrator import Delivered, Now
from protocol import messages
from protocol.messages import Assignment
from protocol.topics import Kind
from tests.bench.reporting import MODEL, Reporter, in_batches
from tests.bench.table import Row, Section
from tests.cloud_stub.orchestrator.cloud_bench import Cloud

GROUP: Final = "bench"
SETTINGS: Final = (
    "synchronous = FULL",
    "foreign_keys = ON",
    "wal_autocheckpoint = 4000",
    "cache_size = -65536",
)
KEYS: Final = {"devices": ("id",), "assignments": ("deployment", "device")}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    devices: int = 5_000
    rounds: int = 5
    reports: int = 4_096  # in one round of large batches
    batches: tuple[int, ...] = (1, 32, 256)


def measure(plan: Plan, folder: Path) -> Section:
    """Measure, and return the table's section."""
    bench = Bench(plan, folder)
    rows = []
    for size in plan.batches:
        took = [bench.round(size, bench.count(size)) for _ in range(plan.rounds)]
        rate, bare, store = (median(bench.count(size) / each[n] for each in took) for n in range(3))
        name = "one report a transaction" if size == 1 else f"batches of {size}"
        rows.append(Row(f"reports a second, {name}", rate, "/s", bare, less_is_better=False))
        rows.append(Row(f"of it the store, {name}", store, "/s", bare, less_is_better=False))
    bench.close()
    return Section(
        f"durable reports: message bytes → orchestrator → committed, {plan.devices} devices, one process",
        "sqlite3 by itself commits the very same device and assignment rows in the same batches (WAL, FULL)",
        tuple(rows),
    )


class Bench:
    """A cloud over a file, whose fleet works on a deployment, and the same file once more for each floor."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self.cloud = Cloud(store=open_store(folder / "cloud.db"))
        self.fleet = _fleet_at_work(self.cloud, plan.devices)
        self._look = sqlite3.connect(folder / "cloud.db")
        with sqlite3.connect(folder / "floor.db") as copy:
            self._look.backup(copy)
        copy.close()
        with sqlite3.connect(folder / "store.db") as copy:
            self._look.backup(copy)
        copy.close()
        self._floor = sqlite3.connect(folder / "floor.db", isolation_level=None)
        for setting in ("journal_mode = WAL", *SETTINGS):
            self._floor.execute(f"PRAGMA {setting}")
        self._store = open_store(folder / "store.db")

    def close(self) -> None:
        """Let go of the databases."""
        self._look.close()
        self._floor.close()
        self._store.close()
        self.cloud.store.close()

    def contents(self, name: str, table: str) -> list[tuple[Any, ...]]:
        """Return all rows of a table in the database `cloud`, `floor` or `store`."""
        connection = {"cloud": self._look, "floor": self._floor}.get(name) or sqlite3.connect(
            self._folder / "store.db"
        )
        try:
            return connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - our own names
        finally:
            if name == "store":
                connection.close()

    def count(self, size: int) -> int:
        """Return how many reports a round of these batches has, in whole batches."""
        wanted = self._plan.reports if size > 1 else self._plan.reports // 8
        return max(1, wanted // size) * size

    def round(self, size: int, count: int) -> tuple[float, float, float]:
        """Return the seconds of the cloud, the floor and the store alone for one round."""
        cloud_s = floor_s = store_s = 0.0
        for batch in in_batches(self.fleet, size, count):
            cloud_s += self.handle(batch)
            names = [name for name, _ in batch]
            rows = {table: self._rows(table, names) for table in KEYS}
            assert all(len(each) == size for each in rows.values()), "every report is in two rows"
            floor_s += _commit_bare(self._floor, rows)
            store_s += self._commit_stored(names)
        return cloud_s, floor_s, store_s

    def handle(self, batch: Sequence[tuple[str, bytes]]) -> float:
        """Return the seconds in which a batch of messages became durable; the database must have each of them."""
        self.cloud.now = Now(self.cloud.now.wall_ms + 50, self.cloud.now.mono_ms + 50)
        inputs = [Delivered(Kind.STATE, name, payload) for name, payload in batch]
        begin = perf_counter()
        publishes = self.cloud.orchestrator.handle(inputs, self.cloud.now)
        seconds = perf_counter() - begin
        assert len(publishes) == len(batch), "every report is acknowledged"
        return seconds

    def _rows(self, table: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        key = "id" if table == "devices" else "device"
        marks = ", ".join("?" * len(names))
        return self._look.execute(f"SELECT * FROM {table} WHERE {key} IN ({marks})", names).fetchall()  # noqa: S608 - our own names

    def _commit_stored(self, names: Sequence[str]) -> float:
        with self.cloud.store.read() as reader:
            devices = reader.devices(names).values()
            work = reader.assignments(
                [(device.order_deployment or "", device.id) for device in devices]
            ).values()
        begin = perf_counter()
        with self._store.transaction() as unit:
            for device, row in zip(devices, work, strict=True):
                unit.put_device(device)
                unit.put_assignment(row)
        return perf_counter() - begin


def _commit_bare(connection: sqlite3.Connection, rows: dict[str, list[tuple[Any, ...]]]) -> float:
    statements = {table: _upsert(connection, table) for table in rows}
    begin = perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    for table, each in rows.items():
        connection.executemany(statements[table], each)
    connection.execute("COMMIT")
    return perf_counter() - begin


def _upsert(connection: sqlite3.Connection, table: str) -> str:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    changes = ", ".join(f'"{each}" = excluded."{each}"' for each in columns if each not in KEYS[table])
    marks = ", ".join("?" * len(columns))
    return (
        f"INSERT INTO {table} VALUES ({marks}) ON CONFLICT ({', '.join(KEYS[table])}) DO UPDATE SET {changes}"  # noqa: S608 - our own names
    )


def _fleet_at_work(cloud: Cloud, count: int) -> list[Reporter]:
    """Add devices, deploy to them, and let each report itself once on its order."""
    fleet = [Reporter(f"bench-{number:06}", GROUP) for number in range(count)]
    cloud.do(AddDevices({reporter.id: "hash" for reporter in fleet}))
    _say(cloud, fleet, Kind.STATE)
    cloud.update("bench/payload:1.0", model=MODEL)
    cloud.deploy(GROUP, "bench/payload:1.0")
    for reporter, publish in zip(fleet, _say(cloud, fleet, Kind.HELLO), strict=True):
        reporter.order = messages.read(Assignment, cloud.keys.open_envelope(publish))
        assert reporter.order.action == "install", reporter
    return fleet


def _say(cloud: Cloud, fleet: Sequence[Reporter], kind: Kind) -> list[bytes]:
    """Let everybody say hello, or a state, in large batches; return the orders that came back."""
    orders = {}
    for begin in range(0, len(fleet), 500):
        some = fleet[begin : begin + 500]
        said = [
            Delivered(kind, each.id, each.state() if kind is Kind.STATE else each.hello("n")) for each in some
        ]
        for publish in cloud.feed(*said):
            if publish.kind is Kind.DESIRED:
                orders[publish.device] = publish.payload
    return [orders[each.id] for each in fleet if each.id in orders]


def profile(devices: int, reports: int) -> None:
    """Say where the time of batches of 256 goes: python -m tests.bench.reports."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        bench = Bench(Plan(devices), Path(folder))
        batches = list(in_batches(bench.fleet, 256, reports))
        watch = cProfile.Profile()
        begin = time.process_time()
        for batch in batches:
            watch.runcall(bench.handle, batch)
        sys.stdout.write(
            f"{(time.process_time() - begin) / reports * 1e6:.0f} µs of CPU a report, profiled\n"
        )
        pstats.Stats(watch, stream=sys.stdout).sort_stats("tottime").print_stats(45)
        bench.close()


if __name__ == "__main__":
    profile(5_000, 8_192)
