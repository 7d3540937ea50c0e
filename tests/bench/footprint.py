"""What an idle agent costs a device: resident memory, and the time of its imports.

A real `lastgood agent run`, joined to a real cloud and connected, beside a bare process that holds one paho connection
to the same broker. Import times are the sums of `-X importtime` over everything that each of the two loads before it is
connected; it makes both a little slower. The best of several starts counts: noise only adds.
"""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from protocol.join import decode_join
from simulator.live.cloud import OwnCloud
from simulator.live.connection import address_of
from tests.bench.processes import HEARTBEAT_S, cpu_s, resident_mib
from tests.bench.table import Row, Section
from tests.waiting import DEADLINE_S, until

ROOT: Final = Path(__file__).resolve().parents[2]
BARE: Final = """
import sys
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
host, port, name, token = sys.argv[1:]
client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv311)
client.username_pw_set(name, token)
client.on_connect = lambda *_: print("connected to the broker", flush=True)
client.connect(host, int(port))
client.loop_forever()
"""


def measure(rounds: int, folder: Path, engine: str = "auto") -> Section:
    """Measure, and return the table's section."""
    with ExitStack() as stack:
        own = OwnCloud(folder / "cloud", engine, HEARTBEAT_S)
        api = own.start()
        stack.callback(own.stop)
        stack.callback(api.close)
        texts = api.add_devices(["real", "bare"])
        joined = decode_join(texts["bare"])
        host, port = address_of(joined.broker)
        agent = ["-m", "lastgood", "agent", "run", "--state", str(folder / "state"), "--join", texts["real"]]
        bare = ["-c", BARE, host, str(port), "bare", joined.token]
        mine, floor = [], []
        for number in range(rounds):
            mine.append(_look(agent, folder / f"agent-{number}.log"))
            floor.append(_look(bare, folder / f"bare-{number}.log"))
        assert api.devices().keys() == {"real", "bare"}
    pairs = list(zip(*mine, strict=True)), list(zip(*floor, strict=True))
    names = (("resident memory, idle", "MiB"), ("imports", "s"), ("CPU from start to connected", "s"))
    notes = ("aim: under 60 MB", "aim: under 0.4 s", "")
    rows = [
        Row(name, min(pairs[0][at]), unit, min(pairs[1][at]), note=notes[at])
        for at, (name, unit) in enumerate(names)
    ]
    return Section(
        "the idle agent: a real process, joined and connected",
        "a bare process with one paho connection to the same broker",
        tuple(rows),
    )


def _look(words: list[str], log: Path) -> tuple[float, float, float]:
    """Start a process twice: return its resident MiB and CPU seconds when connected, and its seconds of imports."""
    resident, cpu, _ = _started(words, log)
    _, _, imports = _started(["-X", "importtime", *words], log.with_suffix(".imports"))
    return resident, imports, cpu


def _started(words: list[str], log: Path) -> tuple[float, float, float]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            cwd=log.parent,
        )
        try:
            until(lambda: _is_connected(process, log), "the process to connect")
            found = resident_mib(process.pid), cpu_s(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)
    return *found, _imports_s(log)


def _is_connected(process: subprocess.Popen[bytes], log: Path) -> bool:
    said = log.read_text()
    assert process.poll() is None, f"it ended: {said[-500:]}"
    return "connected to the broker" in said


def _imports_s(log: Path) -> float:
    """Return the sum of the modules' own times; what is said while disconnecting is loaded by then, too."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("import time:")]
    own = [line.removeprefix("import time:").split("|")[0].strip() for line in lines]
    return sum(int(each) for each in own if each.isdigit()) / 1e6
