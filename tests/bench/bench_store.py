"""How many reports a second the store makes durable, beside a bare loop that commits the same rows in the same batches.

It is no test: it asserts nothing and takes a minute. A report is one device row and one assignment row. The floor is
sqlite3 by itself (WAL, synchronous=FULL, the same schema with its indexes, rows as tuples in hand, one whole upsert a
row). Beside it stand the store given the same rows blind, and the store as the orchestrator uses it: read the rows of
the batch, make changed ones, put them. Rounds alternate between the three; the medians are shown.

    python tests/bench/bench_store.py [--profile]
"""

import cProfile
import pstats
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final

from cloud_stub.adapters.store import SqlStore, open_store
from cloud_stub.adapters.store.codec import ASSIGNMENT, DEVICE
from cloud_stub.core.rows import AssignmentRow, AssignmentState, DeploymentRow, DeviceRow, UpdateRef
from protocol.lifecycle import DeploymentState, WorkflowState

DEVICES: Final = 10_000
ROUNDS: Final = 5
REPORTS_OF_BATCH: Final = {1: 300, 32: 4_096, 256: 16_384, 1_000: 20_000}  # batch → reports in a round
PHASES: Final = (
    WorkflowState.DOWNLOADING,
    WorkflowState.INSTALLING,
    WorkflowState.READY,
    WorkflowState.SWITCHING,
    WorkflowState.RESTARTING,
    WorkflowState.CONFIRMING,
)

Report = tuple[DeviceRow, AssignmentRow]
Run = Callable[[Sequence[Sequence[Report]]], float]


def main() -> None:
    """Measure and print the table."""
    with TemporaryDirectory(prefix="bench-store-") as folder:
        fleet = _fleet()
        path = Path(folder) / "store.db"
        store = open_store(path)
        _fill(store, fleet)
        floor_path = Path(folder) / "floor.db"
        floor_store = open_store(floor_path)
        _fill(floor_store, fleet)
        floor_store.close()
        floor = _Floor(floor_path)
        runs: dict[str, Run] = {
            "bare loop": floor.run,
            "store, rows in hand": lambda batches: _in_hand(store, batches),
            "store, read-change-put": lambda batches: _read_change_put(store, batches),
        }
        if "--profile" in sys.argv:
            _profile(runs, fleet)
            return
        sys.stdout.write(
            f"{'reports/s, durable':26}" + "".join(f"{f'batch {size}':>22}" for size in REPORTS_OF_BATCH)
        )
        sys.stdout.write("\n")
        for name, cells in _measure(runs, fleet).items():
            sys.stdout.write(f"{name:26}" + "".join(f"{cell:>22}" for cell in cells) + "\n")


def _measure(runs: dict[str, Run], fleet: Sequence[Report]) -> dict[str, list[str]]:
    cells: dict[str, list[str]] = {name: [] for name in runs}
    step = 0
    for size, count in REPORTS_OF_BATCH.items():
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            step += 1
            batches = _batches(fleet, size, count, step)
            for name, run in runs.items():
                rates[name].append(count / run(batches))
        for name in runs:
            ratio = median(mine / bare for mine, bare in zip(rates[name], rates["bare loop"], strict=True))
            cells[name].append(f"{median(rates[name]):,.0f} ({ratio:.0%})")
    return cells


class _Floor:
    """The same rows into the same schema with nothing around them."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            "wal_autocheckpoint = 4000",
            "cache_size = -65536",
        ):
            self._connection.execute(f"PRAGMA {pragma}")  # the store's own settings
        self._device = _upsert_sql("devices", DEVICE.columns, ("id",))
        self._assignment = _upsert_sql("assignments", ASSIGNMENT.columns, ("deployment", "device"))

    def run(self, batches: Sequence[Sequence[Report]]) -> float:
        rows = [
            ([DEVICE.encode(device) for device, _ in batch], [ASSIGNMENT.encode(work) for _, work in batch])
            for batch in batches
        ]
        execute, execute_many = self._connection.execute, self._connection.executemany
        begin = perf_counter()
        for devices, work in rows:
            execute("BEGIN IMMEDIATE")
            execute_many(self._device, devices)
            execute_many(self._assignment, work)
            execute("COMMIT")
        return perf_counter() - begin


def _in_hand(store: SqlStore, batches: Sequence[Sequence[Report]]) -> float:
    begin = perf_counter()
    for batch in batches:
        with store.transaction() as unit:
            for device, work in batch:
                unit.put_device(device)
                unit.put_assignment(work)
    return perf_counter() - begin


def _read_change_put(store: SqlStore, batches: Sequence[Sequence[Report]]) -> float:
    begin = perf_counter()
    for batch in batches:
        with store.transaction() as unit:
            devices = unit.devices([device.id for device, _ in batch])
            assignments = unit.assignments([(work.deployment, work.device) for _, work in batch])
            for device, work in batch:
                with unit.savepoint():
                    unit.put_device(
                        replace(
                            devices[device.id],
                            sequence=device.sequence,
                            digest=device.digest,
                            work_state=device.work_state,
                            slots=device.slots,
                            last_seen_ms=device.last_seen_ms,
                            heard_ms=device.heard_ms,
                        )
                    )
                    unit.put_assignment(
                        replace(
                            assignments[work.deployment, work.device],
                            phase=work.phase,
                            bytes_done=work.bytes_done,
                            moved_ms=work.moved_ms,
                            updated_ms=work.updated_ms,
                        )
                    )
    return perf_counter() - begin


def _fleet() -> list[Report]:
    fleet = []
    for number in range(DEVICES):
        model = f"model-{number % 2}"
        device = DeviceRow(
            f"device-{number:06d}",
            1_700_000_000_000,
            password_hash="ab" * 32,
            group=f"group-{number % 3}",
            group_tag=f"group-{number % 3}",
            class_key=f"manufacturer=acme, model={model}",
            properties={"manufacturer": "acme", "model": model},
            tags={"group": f"group-{number % 3}", "site": f"site-{number % 50}"},
            instance=f"{number:032x}",
            running_update="acme/app:1.0",
            running_sha256="cd" * 32,
            booted="A",
            last_known_good="A",
            agent_version="0.1.0",
            connection=f"{number:016x}",
            online=True,
            epoch=1_700_000_000_000,
            published_epoch=1_700_000_000_000,
            order_action="install",
            order_deployment="d1",
            order_attempt=1,
            order_update="acme/app:2.0",
            order_sha256="ef" * 32,
        )
        work = AssignmentRow(
            "d1",
            device.id,
            AssignmentState.WORKING,
            str(device.class_key),
            "acme/app:2.0",
            "ef" * 32,
            bytes_total=10**6,
        )
        fleet.append((device, work))
    return fleet


def _batches(fleet: Sequence[Report], size: int, count: int, step: int) -> list[list[Report]]:
    reports = []
    for index in range(count):
        place = (index * 7_919 + step) % DEVICES  # devices report in no order
        device, work = fleet[place]
        number = step * 100 + index // DEVICES + 1
        now_ms = 1_700_000_000_000 + step * 60_000 + index
        phase = PHASES[number % len(PHASES)]
        slots: dict[str, dict[str, object]] = {
            "A": {"holds": "good", "update": "acme/app:1.0", "sha256": "cd" * 32},
            "B": {
                "holds": "writing",
                "update": "acme/app:2.0",
                "sha256": "ef" * 32,
                "starts_left": number % 3,
            },
        }
        device = replace(
            device,
            sequence=number,
            digest=f"{place * 1_000_003 + number:064x}",
            work_state=phase,
            slots=slots,
            last_seen_ms=now_ms,
            heard_ms=now_ms,
        )
        work = replace(work, phase=phase, bytes_done=number * 997, moved_ms=now_ms, updated_ms=now_ms)
        reports.append((device, work))
    return [reports[begin : begin + size] for begin in range(0, count, size)]


def _fill(store: SqlStore, fleet: Sequence[Report]) -> None:
    refs = (UpdateRef("acme/app:2.0", "ef" * 32),)
    with store.transaction() as unit:
        unit.put_deployment(
            DeploymentRow("d1", "group-0", DeploymentState.ACTIVE, refs, 1_700_000_000_000, "bench")
        )
        for device, work in fleet:
            unit.put_device(device)
            unit.put_assignment(work)


def _upsert_sql(table: str, columns: Sequence[str], key: Sequence[str]) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    marks = ", ".join("?" for _ in columns)
    changes = ", ".join(f'"{column}" = excluded."{column}"' for column in columns if column not in key)
    return f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"  # noqa: S608 - our own names


def _profile(runs: dict[str, Run], fleet: Sequence[Report]) -> None:
    for step, name in enumerate(("store, rows in hand", "store, read-change-put"), start=1):
        batches = _batches(fleet, 256, REPORTS_OF_BATCH[256], step)
        profile = cProfile.Profile()
        profile.runcall(runs[name], batches)
        sys.stdout.write(f"{name}, batch 256\n")
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
