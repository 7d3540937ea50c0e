"""From the wire to the acknowledgement on mosquitto: a state is published, the cloud has it on its disk and says so.

Raw connections in place of devices, each under its own account with one report under way, so that as many are
outstanding as there are connections. The floor is the same two messages over the same broker, answered by a raw
connection that does nothing.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Final

from protocol import messages
from protocol.envelope import TrustedKeys
from protocol.join import decode_join
from protocol.messages import Assignment
from protocol.topics import Kind, Topics
from simulator.core.payload import make
from simulator.core.scenario import UpdatePart
from simulator.live.cloud import CloudApi, OwnCloud
from simulator.live.connection import address_of
from tests.bench.bare import Bare, Line, converse
from tests.bench.processes import HEARTBEAT_S, broker_of, cpu_s
from tests.bench.reporting import MODEL, Reporter
from tests.bench.table import Row, Section
from tests.bench.wire import RawClient
from tests.mqtt_wire import string

GROUP: Final = "bench"
UPDATE: Final = "bench/payload:1.0"
DEADLINE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: for each number of outstanding reports so many states in all."""

    outstanding: tuple[int, ...] = (1, 32, 256)
    states: int = 10_000
    engine: str = "mosquitto"


def measure(plan: Plan, folder: Path) -> Section:
    """Measure, and return the table's section."""
    rows: list[Row] = []
    for outstanding in plan.outstanding:
        rounds = max(2, plan.states // (20 if outstanding == 1 else 1) // outstanding)
        took = _acknowledged(plan.engine, outstanding, rounds, folder / f"cloud-{outstanding}")
        script = [Line(True, "state", took.up_bytes), Line(False, "ack", took.down_bytes)]
        bare = converse(script, outstanding, plan.engine, folder / f"floor-{outstanding}", rounds)
        rows += _rows(outstanding, rounds * outstanding, took, bare)
    return Section(
        f"wire to acknowledgement on {plan.engine}: a state published → durable → acknowledged",
        "the same two messages, of the same sizes, over the same broker, answered by a connection that keeps nothing",
        tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class Took:
    """What it took."""

    seconds: float
    latencies_s: Sequence[float]
    broker_cpu_s: float
    cloud_cpu_s: float
    up_bytes: int
    down_bytes: int


def _rows(outstanding: int, states: int, took: Took, bare: Bare) -> list[Row]:
    at = f"{outstanding} outstanding"
    mine, floor = _percentiles(took.latencies_s), _percentiles(bare.latencies_s)
    micro = 1e6 / states
    return [
        Row(
            f"reports a second, {at}",
            states / took.seconds,
            "/s",
            states / bare.seconds,
            less_is_better=False,
        ),
        Row(f"latency p50, {at}", mine[0], "ms", floor[0]),
        Row(f"latency p99, {at}", mine[1], "ms", floor[1]),
        Row(f"broker's CPU a report, {at}", took.broker_cpu_s * micro, "µs", bare.broker_cpu_s * micro),
        Row(f"cloud's CPU a report, {at}", took.cloud_cpu_s * micro, "µs", bare.cloud_cpu_s * micro),
    ]


def _percentiles(latencies_s: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(latencies_s, n=100, method="inclusive")
    return cuts[49] * 1e3, cuts[98] * 1e3


def _acknowledged(engine: str, outstanding: int, rounds: int, data: Path) -> Took:
    with ExitStack() as stack:
        own = OwnCloud(data, engine, HEARTBEAT_S)
        api = own.start()
        stack.callback(own.stop)
        stack.callback(api.close)
        part = UpdatePart(
            id=UPDATE, size_bytes=1_000, compatibility=[{"manufacturer": "bench", "model": MODEL}]
        )
        api.import_update(make(part, 1))
        fleet = [Reporter(f"bench-{number:05}", GROUP) for number in range(outstanding)]
        texts = api.add_devices([reporter.id for reporter in fleet])
        took = asyncio.run(_run(fleet, rounds, texts, api, data))
        told = api.deployment(_deployment_of(fleet))
        assert told["tally"]["working"] == outstanding, "every device is known to work on its order"
        return took


def _deployment_of(fleet: Sequence[Reporter]) -> str:
    """Return the deployment that the fleet works on."""
    order = fleet[0].order
    assert order is not None
    assert order.deployment is not None
    return order.deployment


async def _run(
    fleet: Sequence[Reporter], rounds: int, texts: dict[str, str], api: CloudApi, data: Path
) -> Took:
    topics = Topics()
    joins = {reporter.id: decode_join(texts[reporter.id]) for reporter in fleet}
    keys = TrustedKeys(joins[fleet[0].id].keys_pem)
    talks = [_Talk(reporter, rounds, keys) for reporter in fleet]
    for talk in talks:
        join = joins[talk.reporter.id]
        host, port = address_of(join.broker)
        filters = [topics.build(kind, join.device) for kind in (Kind.DESIRED, Kind.ACK)]
        await talk.client.open(host, port, join.token, *filters)
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(talk.introduce() for talk in talks))
        await asyncio.to_thread(api.deploy, {"group": GROUP, "updates": [UPDATE]})
        await asyncio.gather(*(talk.ordered.wait() for talk in talks))
        for talk in talks:
            talk.prepare()
        pid = int(json.loads((data / "client.json").read_text())["pid"])
        broker = broker_of(pid)
        cpu = cpu_s(broker), cpu_s(pid)
        begin = perf_counter()
        for talk in talks:
            talk.next()
        await asyncio.gather(*(talk.finished.wait() for talk in talks))
        seconds = perf_counter() - begin
    took = Took(
        seconds,
        [each for talk in talks for each in talk.latencies_s],
        cpu_s(broker) - cpu[0],
        cpu_s(pid) - cpu[1],
        max(talk.up_bytes for talk in talks),
        max(talk.down_bytes for talk in talks),
    )
    for talk in talks:
        talk.client.close()
    return took


class _Talk:
    """One device: its reports, one after the other, each after the acknowledgement of the one before."""

    def __init__(self, reporter: Reporter, rounds: int, keys: TrustedKeys) -> None:
        self.reporter = reporter
        self.client = RawClient(reporter.id, self._heard)
        self.ordered = asyncio.Event()
        self.finished = asyncio.Event()
        self.latencies_s: list[float] = []
        self.up_bytes = self.down_bytes = 0
        self._heads = {kind: string(Topics().build(kind, reporter.id)) for kind in (Kind.HELLO, Kind.STATE)}
        self._keys = keys
        self._rounds = rounds
        self._states: list[tuple[bytes, bytes]] = []
        self._awaited: bytes | None = None
        self._asked_at = 0.0
        self._held = asyncio.Event()
        self._introduced = asyncio.Event()

    async def introduce(self) -> None:
        """Say hello and the first state, and wait until the cloud has both."""
        self.client.publish(self._heads[Kind.HELLO], self.reporter.hello("nonce"), 1)
        await self._held.wait()  # by its first order
        self.client.publish(self._heads[Kind.STATE], self.reporter.state(), 1)
        await self._introduced.wait()
        self.client.publish(self._heads[Kind.HELLO], self.reporter.hello("nonce"), 1)

    def prepare(self) -> None:
        """Write all reports before the clock starts."""
        for _ in range(self._rounds):
            payload = self.reporter.state()
            self._states.append((payload, b'"sequence":%d}' % self.reporter.sequence))
        self._states.reverse()

    def next(self) -> None:
        """Publish the next report."""
        if not self._states:
            self.finished.set()
            return
        payload, self._awaited = self._states.pop()
        self.up_bytes = len(payload)
        self._asked_at = perf_counter()
        self.client.publish(self._heads[Kind.STATE], payload, 1)

    def _heard(self, _client: RawClient, topic: bytes, payload: bytes) -> None:
        if topic.endswith(b"desired"):
            self.reporter.order = order = messages.read(Assignment, self._keys.open_envelope(payload))
            (self.ordered if order.action == "install" else self._held).set()
        elif self._awaited is None:
            if b'"sequence":%d}' % self.reporter.sequence in payload and self.reporter.sequence:
                self._introduced.set()
        elif self._awaited in payload:
            self.latencies_s.append(perf_counter() - self._asked_at)
            self.down_bytes = len(payload)
            self.next()
