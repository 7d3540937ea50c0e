"""A fleet of virtual devices in one process: one thread, one asyncio loop, one connection for each device.

It is a library: the command line, the demo and the benchmarks start a fleet, add devices, look, and stop it. It decides
nothing about updates. Everything that touches a device runs on the fleet's own thread; what can be asked from outside
are values. It keeps the rule that a fleet which stops says goodbye: no last will is fired.
"""

import asyncio
import gc
import queue
import resource
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

from agent.core.device import Device
from agent.core.settings import Settings
from protocol.envelope import TrustedKeys
from protocol.errors import OperatorError, ServiceError
from protocol.join import Join, decode_join
from protocol.lifecycle import WorkflowState
from protocol.topics import Topics
from simulator.core.chance import SeededChance
from simulator.core.facts import DeviceSight
from simulator.core.fleet import Member
from simulator.core.invariants import InvariantBroken
from simulator.device import Model, VirtualDevice
from simulator.live.connection import Connection, Hub, Login, address_of, source_for, within
from simulator.live.fetch import Repository
from simulator.ports import Timer

START_S: Final = 60.0  # for the fleet's thread to come up
CLOSE_S: Final = 30.0  # for all devices to say goodbye
OTHER_FILES: Final = 200  # open files that are no device's connection
GC_THRESHOLD: Final = 50_000  # objects: the collector's default walks a fleet's heap far too often
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How a fleet behaves; the seed decides all that is drawn."""

    seed: int
    model: Model
    settings: Settings
    freeze: bool = False  # gc.freeze() after devices were added: for a process that does little else


@dataclass(frozen=True, slots=True)
class Changed:
    """A device changed what it runs, which slot is booted, or where it stands with its order."""

    at_s: float  # since the fleet was started
    device: str
    phase: WorkflowState
    running: str | None
    booted: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What crossed the fleet's connections since it started."""

    connects: int
    refusals: int
    messages_in: int
    messages_out: int
    payload_bytes: int  # of all these messages
    fetches: int
    bytes_fetched: int
    said: str  # why the newest refused connection was refused


@dataclass(slots=True)
class _Loaded:
    device: VirtualDevice
    connection: Connection


@dataclass(slots=True)
class _World:
    """What lives on the fleet's thread."""

    hub: Hub
    repository: Repository
    devices: dict[str, _Loaded] = field(default_factory=dict)


class LiveFleet:
    """Virtual devices on real MQTT. `start` before anything else, `stop` at the end; or use it in a `with`."""

    def __init__(self, options: FleetOptions) -> None:
        self._options = options
        self._world: _World | None = None
        self._thread: threading.Thread | None = None
        self._listeners: list[Callable[[Changed], None]] = []
        self._began = 0.0
        self._groups: dict[str, str] = {}  # by an operator's override
        self._broken: InvariantBroken | None = (
            None  # the first breach: the answer to all that is asked after it
        )

    def __enter__(self) -> "LiveFleet":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the fleet's thread and loop, without a device.

        Raises:
            ServiceError: the thread did not come up.
        """
        ready: queue.SimpleQueue[_World] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="fleet", daemon=True)
        self._thread.start()
        try:
            self._world = ready.get(timeout=START_S)
        except queue.Empty as error:
            raise ServiceError("The fleet's thread did not start.") from error
        self._began = time.monotonic()

    def add(self, fleet: Iterable[tuple[Member, str]]) -> None:
        """Add devices with their join texts; each connects when it arrives, counted from now.

        Raises:
            OperatorError: a join text is damaged, the broker's address is no good, or so many files may not be open.
        """
        world = self._the_world()
        joined = [(member, decode_join(text)) for member, text in fleet]
        total = len(world.devices) + len(joined)
        _check_open_files(total)
        logins = [_login(member, join, index, total) for index, (member, join) in enumerate(joined)]

        def add() -> None:
            for (member, join), login in zip(joined, logins, strict=True):
                self._load(world, member, join, login)
            if self._options.freeze:
                gc.freeze()

        self.call(add)

    def stop(self) -> int:
        """Let every device say goodbye, end the thread, and return how many could not do so in time."""
        world, self._world = self._world, None
        if world is None:
            return 0
        left = asyncio.run_coroutine_threadsafe(self._close(world), world.hub.loop).result(CLOSE_S + 5)
        world.hub.loop.call_soon_threadsafe(world.hub.loop.stop)
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        return left

    def listen(self, listener: Callable[[Changed], None]) -> None:
        """Hear of every change of a device, on the fleet's thread: a listener must be quick (put it into a queue)."""
        self._listeners.append(listener)

    def move(self, device: str, group: str | None) -> None:
        """Note that an operator has put a device into a group, so that `sights` tells its group rightly."""
        if group is None:
            self._groups.pop(device, None)
        else:
            self._groups[device] = group

    def sights(self) -> dict[str, DeviceSight]:
        """Return every device as it is."""
        return self.call(self._look)

    def running(self) -> dict[str, str | None]:
        """Return what every device runs, from its slots."""
        return {name: sight.running for name, sight in self.sights().items()}

    def figures(self) -> Figures:
        """Return what crossed the connections so far."""
        world = self._the_world()
        hub, repository = world.hub, world.repository
        return Figures(
            hub.connects,
            hub.refusals,
            hub.messages_in,
            hub.messages_out,
            hub.payload_bytes,
            repository.fetches,
            repository.bytes_fetched,
            hub.said,
        )

    def lose_power(self, device: str) -> None:
        """Cut a device's power: its connection breaks, and only its record and slots stay."""

        def lose() -> None:
            loaded = self._the_world().devices[device]
            loaded.device.lose_power()
            loaded.connection.cut()

        self.call(lose)

    def give_power(self, device: str) -> None:
        """Start a device again that has lost its power."""

        def give() -> None:
            loaded = self._the_world().devices[device]
            loaded.device.start()
            loaded.connection.open()

        self.call(give)

    def drop_connection(self, device: str) -> None:
        """Break a device's connection without a word; it comes back by itself."""
        self.call(lambda: self._the_world().devices[device].connection.drop())

    def call(self, work: Callable[[], T]) -> T:
        """Do something on the fleet's thread, and return its result.

        Raises:
            InvariantBroken: before it, a device broke a rule of its slots, or failed in some other way.
        """
        if self._broken is not None:
            raise self._broken
        done: Future[T] = Future()

        def act() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, whatever it is
                done.set_exception(error)

        self._the_world().hub.loop.call_soon_threadsafe(act)
        return done.result()

    # --- on the fleet's thread ---------------------------------------------------------------------------------

    def _run(self, ready: "queue.SimpleQueue[_World]") -> None:
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(self._failed)
        asyncio.set_event_loop(loop)
        hub = Hub(loop)
        hub.wheel.start(loop)
        ready.put(_World(hub, Repository(loop)))
        try:
            loop.run_forever()
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what a device's own code raised; the rest is the library's, and logged."""
        error = context.get("exception")
        if error is None or "handle" not in context:
            loop.default_exception_handler(context)
        elif self._broken is None and isinstance(error, InvariantBroken):
            self._broken = error
        elif self._broken is None:
            self._broken = InvariantBroken(f"a virtual device failed: {error!r}")
            self._broken.__cause__ = error

    def _load(self, world: _World, member: Member, join: Join, login: Login) -> None:
        if member.id in world.devices:
            raise OperatorError(f"The device {member.id} is in the fleet already.")
        options = self._options
        chance = SeededChance(options.seed, member.id)
        keys = _keys(join.keys_pem)

        def make_core() -> Device:
            return Device(
                member.id, keys, chance, options.settings, dict(member.properties), dict(member.tags)
            )

        connection = Connection(
            world.hub, login, SeededChance(options.seed, f"{member.id} net"), lambda: _spread(device)
        )
        device = VirtualDevice(
            member, make_core, chance, LoopClock(world.hub.loop), connection, world.repository, options.model
        )
        device.on_change = self._tell
        connection.on_up = device.connected
        connection.on_down = device.disconnected
        connection.on_message = device.delivered
        world.devices[member.id] = _Loaded(device, connection)

        def arrive() -> None:
            device.start()
            connection.open()

        world.hub.loop.call_later((member.arrives_ms or 0) / 1_000, arrive)

    def _tell(self, device: VirtualDevice) -> None:
        if self._listeners:
            at_s = time.monotonic() - self._began
            changed = Changed(at_s, device.id, device.phase, device.running, device.slots.booted)
            for listener in self._listeners:
                listener(changed)

    def _look(self) -> dict[str, DeviceSight]:
        return {
            name: DeviceSight(
                self._groups.get(name, loaded.device.member.group),
                loaded.device.running,
                loaded.connection.is_up,
                loaded.device.on_last_known_good,
                str(loaded.device.phase),
            )
            for name, loaded in self._the_world().devices.items()
        }

    async def _close(self, world: _World) -> int:
        left = await within(CLOSE_S, [loaded.connection.close() for loaded in world.devices.values()])
        world.hub.wheel.stop()
        world.repository.close()
        return left

    def _the_world(self) -> _World:
        if self._world is None:
            raise ServiceError("The fleet is not running.")
        return self._world


class LoopClock:
    """The port `Clock` on an asyncio loop."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        """Return the loop's time in milliseconds."""
        return int(self._loop.time() * 1_000)

    def call_later(self, delay_ms: int, action: Callable[[], None]) -> Timer:
        """Call `action` after so many milliseconds."""
        return self._loop.call_later(delay_ms / 1_000, action)


def _spread(device: VirtualDevice) -> int | None:
    return device.core.reconnect_spread_ms if device.core is not None else None


def _login(member: Member, join: Join, index: int, total: int) -> Login:
    if join.device != member.id:
        raise OperatorError(f"The join text is for {join.device}, and the device is {member.id}.")
    host, port = address_of(join.broker)
    return Login(host, port, member.id, join.token, _topics(join.prefix), source_for(host, index, total))


def _check_open_files(total: int) -> None:
    """Every connection is an open file; raise the soft limit, and refuse what the hard one does not allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = total + OTHER_FILES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise OperatorError(
            f"{total} devices need {wanted} open files, and this process may open {hard}: "
            "raise the limit (`ulimit -n`), or take fewer devices."
        )
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@lru_cache(maxsize=16)
def _keys(pems: Sequence[str]) -> TrustedKeys:
    return TrustedKeys(pems)


@lru_cache(maxsize=16)
def _topics(prefix: str) -> Topics:
    return Topics(prefix)
