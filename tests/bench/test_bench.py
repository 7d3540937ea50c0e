"""The benchmarks themselves, with tiny numbers: they run, they assert what they measure, and their table is whole."""

import shutil
import socket
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import acknowledged, footprint, reports, rollout
from tests.bench.bare import Line, converse
from tests.bench.processes import bytes_to
from tests.bench.table import Row, Section, cells, markdown, show

MOSQUITTO_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def rows_of(section: Section) -> dict[str, Row]:
    """Return the rows by name; each figure and each floor is a number above zero, CPU of a moment excepted."""
    found = {row.name: row for row in section.rows}
    for name, row in found.items():
        for figure in (row.value, row.floor):
            assert figure >= 0, name
            assert figure > 0 or "CPU" in name, name
    return found


def descriptors() -> int:
    """Return how many files this process holds open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["embedded", "mosquitto"])
def test_a_rollout_is_measured_beside_its_conversation(engine: str, tmp_path: Path) -> None:
    """Every device commits, and the floor plays the conversation that a rehearsal heard."""
    if engine == "mosquitto" and shutil.which("mosquitto", path=MOSQUITTO_PATH) is None:
        pytest.skip("mosquitto is not installed: run `apt-get install mosquitto`")
    rows = rows_of(rollout.measure(rollout.Plan(engine, 8, 10_000, 4, floors=1), tmp_path))
    assert rows["HTTP bytes a device"].value >= 10_000 / 4
    traffic = rows["MQTT bytes a device"]
    assert traffic.value > traffic.floor > 1_000


def test_reports_are_durable_in_three_databases(tmp_path: Path) -> None:
    """The orchestrator, the bare loop and the store alone commit the same rows."""
    plan = reports.Plan(devices=40, rounds=1, reports=64, batches=(1, 16))
    bench = reports.Bench(plan, tmp_path)
    bench.round(16, 32)
    rows = {
        name: [sorted(bench.contents(name, table)) for table in ("devices", "assignments")]
        for name in ("cloud", "floor", "store")
    }
    bench.close()
    assert rows["floor"] == rows["cloud"]
    assert rows["store"] == rows["cloud"]


def test_a_table_of_reports_has_a_row_for_each_batch(tmp_path: Path) -> None:
    """Each size of batch has its rate and that of the store."""
    plan = reports.Plan(devices=40, rounds=1, reports=64, batches=(1, 16))
    assert len(rows_of(reports.measure(plan, tmp_path))) == 4


def test_a_report_is_acknowledged(tmp_path: Path) -> None:
    """Every state that is published is acknowledged with its own sequence number."""
    section = acknowledged.measure(acknowledged.Plan((4,), states=24, engine="embedded"), tmp_path)
    assert rows_of(section)["latency p50, 4 outstanding"].ratio is not None


def test_the_idle_agent_is_weighed(tmp_path: Path) -> None:
    """A real agent connects, and weighs more than nothing."""
    rows = rows_of(footprint.measure(1, tmp_path, engine="embedded"))
    assert rows["imports"].value > 0.01
    assert rows["resident memory, idle"].value > 10


def test_a_conversation_is_played_to_its_end(tmp_path: Path) -> None:
    """Each device hears an answer to each of its lines, in every round."""
    script = [
        Line(False, "desired", 20),
        Line(True, "state", 30),
        Line(True, "progress", 10),
        Line(False, "ack", 5),
    ]
    bare = converse(script, 3, "embedded", tmp_path, rounds=5)
    assert len(bare.latencies_s) == 3 * 5


def test_counting_bytes_holds_no_descriptor(tmp_path: Path) -> None:
    """What is no socket is not copied; what is one is counted, and its copy closed: nobody else would."""
    with (tmp_path / "open").open("w"), socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as near, server.accept()[0] as far:
            far.sendall(b"x" * 100)
            assert len(near.recv(100, socket.MSG_WAITALL)) == 100
            held = descriptors()
            assert bytes_to(port) == {near.getsockname()[1]: 100 + 1}, (
                "what begins a connection counts as one"
            )
            assert descriptors() == held


def test_a_ratio_says_how_far_the_floor_is() -> None:
    """Twice the cost and half the rate are both 2.00."""
    cost, rate = Row("cost", 4, "s", 2), Row("rate", 50, "/s", 100, less_is_better=False)
    assert [cells(row)[3] for row in (cost, rate)] == ["2.00", "2.00"]
    assert cells(Row("beside nothing", 0.1234, "s", 0))[1:4] == ("0.12 s", "0 s", "")


def test_the_table_is_shown_in_both_forms() -> None:
    """Terminal and Markdown say the same."""
    section = Section("title", "what the floor is", (Row("figure", 12_345, "B", 1_000, note="note"),))
    console = Console(width=120, record=True, quiet=True)
    show([section], console)
    assert "| figure | 12,345 B | 1,000 B | 12.35 | note |" in markdown([section])
