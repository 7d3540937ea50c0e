"""One deployment to a live fleet, from its creation to every device committed: the whole service, end to end.

The devices' own work (install, restart, soak) is modelled as a millisecond each, so that the service is what takes
time. Before it, a handful of devices rehearse the same with a tap on the broker; what they said, message for message
and byte for byte in size, is the script of the floor.
"""

import json
import os
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any, Final
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.core.settings import Settings
from protocol.lifecycle import WorkflowState
from protocol.topics import RULES, Direction, Topics
from simulator.core.fleet import Member
from simulator.core.payload import make
from simulator.core.scenario import UpdatePart
from simulator.device import Model
from simulator.live.cloud import CloudApi, OwnCloud
from simulator.live.fleet import Changed, FleetOptions, LiveFleet
from tests.bench.bare import Bare, Line, converse
from tests.bench.processes import HEARTBEAT_S, broker_of, bytes_to, cpu_s
from tests.bench.table import Row, Section
from tests.waiting import until

UPDATE: Final = "bench/payload:1.0"
COMPATIBLE: Final = {"model": "virtual"}
REHEARSING: Final = 5
DEADLINE_S: Final = 300.0
QUICK: Final = Model(1, 0, 1, 0, 1, {})


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the rollout is."""

    engine: str
    devices: int = 1_000
    payload_bytes: int = 1_000_000
    fetch_every: int = 10  # one device in so many downloads for itself, the others share a download
    floors: int = 3  # rounds of the floor; the best one is the floor


@dataclass(frozen=True, slots=True)
class Took:
    """What the rollout took."""

    seconds: float
    cpu_s: dict[str, float]
    messages: int
    mqtt_bytes: int
    payload_bytes: int  # of these messages, without MQTT's own
    fetched_bytes: int


def measure(plan: Plan, folder: Path) -> Section:
    """Roll out, roll the floor, and return the table's section."""
    took, script = _roll_out(plan, folder)
    floors = [
        converse(script, plan.devices, plan.engine, folder / f"floor-{number}")
        for number in range(plan.floors)
    ]
    bare = min(floors, key=lambda floor: floor.seconds)
    return _section(plan, took, bare, script)


def _section(plan: Plan, took: Took, bare: Bare, script: Sequence[Line]) -> Section:
    devices = plan.devices
    kinds = Counter(line.kind for line in script)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    more = (
        f"floor: the payloads of these very messages, {took.messages / devices:.1f} a device "
        f"(a rehearsal had {len(script)}: {said})"
    )
    fetched = "each" if plan.fetch_every == 1 else f"1 in {plan.fetch_every}"
    return Section(
        f"{devices} devices on {plan.engine}: a deployment of {plan.payload_bytes / 1e6:g} MB, create to all committed",
        f"the same {len(script)} messages a device, of the same sizes, raw over the same broker; no cloud, no download",
        (
            Row(
                "devices a second", devices / took.seconds, "/s", devices / bare.seconds, less_is_better=False
            ),
            Row("create to all committed", took.seconds, "s", bare.seconds),
            Row("broker's CPU", took.cpu_s["broker"], "s", bare.broker_cpu_s),
            Row("cloud's CPU", took.cpu_s["cloud"], "s", bare.cloud_cpu_s),
            Row(
                "fleet's CPU",
                took.cpu_s["fleet"],
                "s",
                bare.fleet_cpu_s,
                note=f"agents' cores, and {fetched} downloads for itself",
            ),
            Row(
                "MQTT bytes a device", took.mqtt_bytes / devices, "B", took.payload_bytes / devices, note=more
            ),
            Row(
                "HTTP bytes a device",
                took.fetched_bytes / devices,
                "B",
                plan.payload_bytes / plan.fetch_every,
                note=f"{fetched} downloads; floor: so much of the payload",
            ),
        ),
    )


def _roll_out(plan: Plan, folder: Path) -> tuple[Took, list[Line]]:
    with ExitStack() as stack:
        own = OwnCloud(folder / "cloud", plan.engine, HEARTBEAT_S)
        api = own.start()
        stack.callback(own.stop)
        stack.callback(api.close)
        part = UpdatePart(id=UPDATE, size_bytes=plan.payload_bytes, compatibility=[COMPATIBLE])
        api.import_update(make(part, 1))
        fleet = stack.enter_context(LiveFleet(FleetOptions(1, QUICK, Settings(), freeze=True)))
        _join(api, fleet, "rehearsal", REHEARSING, 1)
        with Tap(folder / "cloud") as tap:
            _deploy(api, fleet, "rehearsal", REHEARSING)
            script = tap.conversation("rehearsal-")
        _join(api, fleet, "bench", plan.devices, plan.fetch_every)
        took = _measured(plan, api, fleet, folder / "cloud")
        runs = [running for name, running in fleet.running().items() if name.startswith("bench-")]
        assert runs == [UPDATE] * plan.devices, "every device runs the update"
        return took, script


def _measured(plan: Plan, api: CloudApi, fleet: LiveFleet, data: Path) -> Took:
    cloud = int(json.loads((data / "client.json").read_text())["pid"])
    pids = {"broker": broker_of(cloud), "cloud": cloud, "fleet": os.getpid()}
    port = urlsplit(json.loads((data / "inspect.json").read_text())["broker"]).port or 0
    ports = {json.loads((data / "ports.json").read_text())["broker"], port}
    figures, cpu = fleet.figures(), {name: cpu_s(pid) for name, pid in pids.items()}
    carried = {port: bytes_to(port) for port in ports}
    begin = time.perf_counter()
    _deploy(api, fleet, "bench", plan.devices)
    seconds = time.perf_counter() - begin
    after = fleet.figures()
    assert after.connects == figures.connects, "no device lost its connection"
    return Took(
        seconds,
        {name: cpu_s(pid) - cpu[name] for name, pid in pids.items()},
        after.messages_in + after.messages_out - figures.messages_in - figures.messages_out,
        sum(sum(bytes_to(port).values()) - sum(carried[port].values()) for port in ports),
        after.payload_bytes - figures.payload_bytes,
        after.bytes_fetched - figures.bytes_fetched,
    )


def _join(api: CloudApi, fleet: LiveFleet, group: str, count: int, fetch_every: int) -> None:
    """Add devices, and wait until the cloud has heard of each of them and nobody says anything more."""
    members = [
        Member(f"{group}-{n:05}", group, group, COMPATIBLE, {"group": group}, 2 * n, n % fetch_every == 0)
        for n in range(count)
    ]
    texts = api.add_devices([member.id for member in members])
    fleet.add((member, texts[member.id]) for member in members)
    until(
        lambda: sum(where == group for where, _ in api.devices().values()) == count,
        f"{count} devices in {group}",
        DEADLINE_S,
    )
    seen = [-1]

    def quiet() -> bool:
        figures = fleet.figures()
        seen.append(figures.messages_in + figures.messages_out)
        return len(seen) > 30 and seen[-1] == seen[-30]

    until(quiet, "the fleet to have said all", DEADLINE_S)


def _deploy(api: CloudApi, fleet: LiveFleet, group: str, count: int) -> None:
    """Create a deployment, and wait until every device has succeeded; the counts must add up.

    The cloud is asked only when all devices say that they have it: asking costs the cloud, too.
    """
    waiting = {name for name, sight in fleet.sights().items() if sight.group == group}
    all_run = threading.Event()

    def changed(seen: Changed) -> None:
        if seen.running == UPDATE and seen.phase is WorkflowState.IDLE:
            waiting.discard(seen.device)
            if not waiting:
                all_run.set()

    fleet.listen(changed)
    deployment = api.deploy({"group": group, "updates": [UPDATE]})
    assert all_run.wait(DEADLINE_S), f"{len(waiting)} devices do not run the update: {sorted(waiting)[:5]}"
    view: dict[str, Any] = {}

    def all_committed() -> bool:
        view.update(api.deployment(deployment))
        return bool(view["tally"]["succeeded"] == count)

    until(all_committed, f"{count} devices committed", DEADLINE_S)
    others = {key: value for key, value in view["tally"].items() if key != "succeeded" and value}
    assert not others.keys() & {"failed", "pending", "working", "counted"}, others


class Tap:
    """Listens to all that devices and cloud say, under the inspector's account."""

    def __init__(self, data: Path) -> None:
        words = json.loads((data / "inspect.json").read_text())
        self._topics = Topics(words["prefix"])
        self._heard: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        address = urlsplit(words["broker"])
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=words["user"], protocol=paho.MQTTv311
        )
        self._client.username_pw_set(words["user"], words["password"])
        self._client.on_connect = lambda client, *_: client.subscribe(f"{words['prefix']}/#", 1)
        self._client.on_subscribe = lambda *_: ready.put(None)
        self._client.on_message = lambda _client, _data, said: self._heard.put(
            (said.topic, len(said.payload))
        )
        self._client.connect(address.hostname or "", address.port or 0)
        self._client.loop_start()
        ready.get(timeout=DEADLINE_S)

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def conversation(self, prefix: str) -> list[Line]:
        """Return what a typical device and the cloud have said to each other, up to the cloud's last word."""
        found: defaultdict[str, list[Line]] = defaultdict(list)
        while not self._heard.empty():
            name, size_bytes = self._heard.get()
            topic = self._topics.parse(name)
            if topic.device.startswith(prefix):
                line = Line(RULES[topic.kind].direction is Direction.UP, str(topic.kind), size_bytes)
                found[topic.device].append(line)
        middle = median_low(map(len, found.values()))
        script = next(lines for lines in found.values() if len(lines) == middle)
        while script[-1].up:
            script.pop()
        return script
