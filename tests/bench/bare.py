"""A conversation without a cloud: the same messages, of the same sizes and in the same order, over the same broker.

It is the floor of what crosses MQTT: raw connections in place of devices, and one raw connection, in a process of its
own, in place of the cloud. Nothing is parsed, signed, stored or downloaded. Each side says its next lines when the
other has said its own, for every device at once.

    python -m tests.bench.bare HOST PORT TOKEN    (the cloud's side: script on stdin, then a line that says go)
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from cloud_stub.adapters.broker import CLOUD, hash_password, start_broker
from protocol.topics import Kind, Topics
from tests.bench.processes import cpu_s
from tests.bench.wire import RawClient
from tests.mqtt_wire import string

ROOT: Final = Path(__file__).resolve().parents[2]
TOKEN: Final = "token-of-everybody"
DEADLINE_S: Final = 300.0
CONNECTING_MAX: Final = 100  # at once


@dataclass(frozen=True, slots=True)
class Line:
    """One message of a device's conversation; `up` is said by the device."""

    up: bool
    kind: str
    size_bytes: int

    @property
    def qos(self) -> int:
        """As the real one."""
        return 0 if self.kind == "progress" else 1


@dataclass(frozen=True, slots=True)
class Bare:
    """What the floor took."""

    seconds: float
    broker_cpu_s: float
    cloud_cpu_s: float
    fleet_cpu_s: float
    latencies_s: tuple[float, ...]  # from a device's line to the cloud's next one


def converse(script: Sequence[Line], devices: int, engine: str, folder: Path, rounds: int = 1) -> Bare:
    """Let so many devices have a conversation so many times, and return what it took."""
    names = [f"bare-{number:05}" for number in range(devices)]
    hashed = hash_password(TOKEN, b"salt-of-test")
    accounts = dict.fromkeys([CLOUD, *names], hashed)
    with ExitStack() as stack:
        broker = start_broker(engine, folder, accounts=accounts, say=lambda _: None)
        stack.callback(broker.stop)
        words = [sys.executable, "-m", "tests.bench.bare", broker.host, str(broker.service_port), TOKEN]
        cloud = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(cloud)  # closes its pipes, and waits
        stack.callback(cloud.kill)
        assert cloud.stdin is not None
        assert cloud.stdout is not None
        lines = [(line.up, line.kind, line.size_bytes) for line in script]
        print(json.dumps({"script": lines, "rounds": rounds, "names": names}), file=cloud.stdin, flush=True)
        assert cloud.stdout.readline() == "ready\n"
        pids = broker.pid or 0, cloud.pid, os.getpid()
        begun = [0.0] * len(pids)

        def go() -> None:
            begun[:] = map(cpu_s, pids)
            assert cloud.stdin is not None
            cloud.stdin.write("go\n")
            cloud.stdin.flush()

        fleet = _Fleet(list(script) * rounds, names)
        seconds = asyncio.run(fleet.run(broker.host, broker.port, go))
        broker_s, cloud_s, fleet_s = (cpu_s(pid) - before for pid, before in zip(pids, begun, strict=True))
        return Bare(seconds, broker_s, cloud_s, fleet_s, tuple(fleet.latencies_s))


class _Side:
    """One side of everybody's conversation: where each device stands, and what comes next."""

    def __init__(self, script: Sequence[Line], names: Sequence[str], up: bool) -> None:
        topics = Topics()
        self._script = script
        self._up = up
        self._place = dict.fromkeys(names, 0)
        self._heads = {
            (name, line.kind): string(topics.build(Kind(line.kind), name))
            for name in names
            for line in set(script)
        }
        self._payloads = {line.size_bytes: b"x" * line.size_bytes for line in script}
        self.done = 0

    def heard(self, name: str) -> None:
        """The other side said its next line."""
        self._place[name] += 1

    def speak(self, client: RawClient, name: str) -> bool:
        """Say everything up to the other's next line; return whether anything was said."""
        place = first = self._place[name]
        while place < len(self._script) and self._script[place].up is self._up:
            line = self._script[place]
            client.publish(self._heads[name, line.kind], self._payloads[line.size_bytes], line.qos)
            place += 1
        self._place[name] = place
        if place == len(self._script):
            self.done += 1
        return place > first


class _Fleet:
    """The devices' side."""

    def __init__(self, script: Sequence[Line], names: Sequence[str]) -> None:
        self._names = names
        self._side = _Side(script, names, up=True)
        self._asked_at: dict[str, float] = {}
        self._finished = asyncio.Event()
        self.latencies_s: list[float] = []

    async def run(self, host: str, port: int, go: object) -> float:
        """Connect everybody, say go, and return how many seconds it took until all was said."""
        topics = Topics()
        clients = [RawClient(name, self._heard) for name in self._names]
        places = asyncio.Semaphore(CONNECTING_MAX)

        async def connect(client: RawClient) -> None:
            async with places:
                filters = [topics.build(kind, client.name) for kind in (Kind.DESIRED, Kind.ACK)]
                await client.open(host, port, TOKEN, *filters)

        await asyncio.gather(*map(connect, clients))
        begin = perf_counter()
        assert callable(go)
        go()
        for client in clients:  # a script may begin with a device
            self._speak(client)
        async with asyncio.timeout(DEADLINE_S):
            await self._finished.wait()
        seconds = perf_counter() - begin
        for client in clients:
            client.close()
        return seconds

    def _heard(self, client: RawClient, _topic: bytes, _payload: bytes) -> None:
        asked_at = self._asked_at.pop(client.name, None)
        if asked_at is not None:
            self.latencies_s.append(perf_counter() - asked_at)
        self._side.heard(client.name)
        self._speak(client)

    def _speak(self, client: RawClient) -> None:
        if self._side.speak(client, client.name):
            self._asked_at[client.name] = perf_counter()
        if self._side.done == len(self._names):
            self._finished.set()


async def _cloud(host: str, port: int, token: str) -> None:
    """The cloud's side, until it is killed."""
    told = json.loads(sys.stdin.readline())
    script = [Line(*line) for line in told["script"]] * told["rounds"]
    side = _Side(script, told["names"], up=False)

    def heard(client: RawClient, topic: bytes, _payload: bytes) -> None:
        name = topic.split(b"/")[-2].decode()
        side.heard(name)
        side.speak(client, name)

    client = RawClient(CLOUD, heard)
    await client.open(host, port, token, *Topics().read_by_cloud())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    assert await asyncio.to_thread(sys.stdin.readline) == "go\n"
    for name in told["names"]:
        side.speak(client, name)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_cloud(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
