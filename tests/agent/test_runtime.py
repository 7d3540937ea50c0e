"""The runtime with the real core, real slots, a real HTTP server and real processes; only the cloud is a fake."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.adapters.application import ProcessApplication, ProcessSettings
from agent.adapters.chance import SystemChance
from agent.adapters.directory_slots import DirectorySlots
from agent.adapters.download import HttpFetcher
from agent.adapters.handlers import Handlers
from agent.adapters.health import CommandCheck, Watch
from agent.adapters.records import RecordFile
from agent.adapters.trust import SignedAssignmentTrust
from agent.adapters.worker import Ports
from agent.core.device import Device
from agent.core.model import Effect, Event, Publish, Record, Save, SaveFailed, SlotTable, Ticked, Workflow
from agent.core.settings import Settings
from agent.runtime import Runtime
from protocol.errors import DeviceError
from protocol.lifecycle import WorkflowState
from protocol.topics import Kind
from tests.agent.adapters.disks import file_size_limit
from tests.agent.adapters.files_server import Files, serving
from tests.agent.adapters.updates import Update, a_member, a_tar, an_update
from tests.agent.builders import KEYS
from tests.agent.fake_link import FakeLink
from tests.waiting import until

GOOD = '#!/bin/sh\necho $$ > "$LASTGOOD_DATA/pid"; cat "$LASTGOOD_SLOT/version" > "$LASTGOOD_DATA/up"; exec sleep 600\n'
CRASHES = "#!/bin/sh\necho broken on purpose >&2; exit 7\n"
SICK = '#!/bin/sh\necho $$ > "$LASTGOOD_DATA/pid"; rm -f "$LASTGOOD_DATA/up"; exec sleep 600\n'


def an_app(version: str, program: str = GOOD) -> Update:
    """Build an update whose payload is an archive with a program."""
    packed = a_tar(
        [(a_member("serve", mode=0o755), program.encode()), (a_member("version"), version.encode())]
    )
    return an_update(version, {"app.tar": packed}, [{"handler": "lastgood/archive:1", "files": ["app.tar"]}])


@dataclass
class Agent:
    """One device: a state folder, a repository, a cloud, and the runtime that is at work."""

    state: Path
    files: Files
    link: FakeLink = field(default_factory=FakeLink)
    lines: list[str] = field(default_factory=list)
    startup_s: float = 60.0

    def runtime(self) -> Runtime:
        """Wire everything as `cli.py` does, with short times."""
        handlers = Handlers()
        settings = Settings(heartbeat_ms=1_000, needs_cloud=True, handlers=handlers.names)
        device = Device("pi-1", KEYS, SystemChance(), settings, {"model": "toaster"}, {"group": "lab"})
        data = self.state / "data"
        application = ProcessSettings(
            ("{slot}/serve",), data, self.state / "log", self.state / "pid", {}, stop_s=2
        )
        fetcher = HttpFetcher()
        booted = self.state / "slots" / "current" / "version"
        check = CommandCheck("up", ("cmp", "-s", str(data / "up"), str(booted)), 60)
        ports = Ports(
            slots=self.slots,
            fetcher=fetcher,
            trust=SignedAssignmentTrust(fetcher),
            handlers=handlers,
            application=ProcessApplication(application),
            watch=Watch([(check, 0.1)], soak_s=0.3, startup_s=self.startup_s),
            downloads=self.state / "downloads",
        )
        runtime = Runtime(device, RecordFile(self.state / "record.json"), ports, self.lines.append)
        self.link.inbox = runtime.post
        return runtime

    @property
    def slots(self) -> DirectorySlots:
        """The slots, looked at from outside."""
        return DirectorySlots(self.state / "slots")

    @property
    def table(self) -> SlotTable:
        """What the slots hold now."""
        return self.slots.probe()

    @property
    def pid(self) -> int:
        """The process id that the application told."""
        return int(until(lambda: (self.state / "data" / "pid").read_text().strip(), "a process id"))

    def order(self, epoch: int, update: Update, **changes: Any) -> None:
        """Serve an update and order it."""
        self.files.add(update)
        self.link.give(
            update.order(self.files.url, epoch=epoch, deployment=f"d-{epoch}", issued_ms=epoch, **changes)
        )

    def outcome(self, epoch: int) -> tuple[str, Any]:
        """Wait for the outcome of an epoch, as the cloud has it."""
        found = until(
            lambda: [each for each in self.link.outcomes() if each[0] == epoch],
            f"the outcome of {epoch}: {self.lines}",
        )
        return found[0][1:]


@contextmanager
def at_work(agent: Agent) -> Iterator[Runtime]:
    """Run the agent in a thread, and stop it as a signal would."""
    runtime = agent.runtime()
    problems: list[BaseException] = []

    def run() -> None:
        try:
            runtime.run(agent.link)
        except BaseException as error:  # noqa: BLE001 - the test reports it
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield runtime
    finally:
        runtime.stop()
        thread.join(90)
        assert not thread.is_alive()
        assert problems == []


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """A new device and its repository."""
    with serving() as files:
        (tmp_path / "state").mkdir()
        yield Agent(tmp_path / "state", files)


def lives(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_first_update_a_bad_one_and_the_way_back(agent: Agent) -> None:
    """An empty device gets its first version; one that crashes goes back by itself; the next good one is taken."""
    with at_work(agent):
        agent.order(10, an_app("1.0.0"))
        assert agent.outcome(10) == ("succeeded", None)
        table = agent.table
        assert (table.booted, table.last_known_good, table.running.update) == ("B", "B", "contoso/app:1.0.0")
        first = agent.pid
        agent.order(11, an_app("2.0.0", CRASHES))
        assert agent.outcome(11) == ("failed", "starts_exhausted")
        table = agent.table
        assert (table.booted, table.running.update, table.slots["A"].holds) == (
            "B",
            "contoso/app:1.0.0",
            "bad",
        )
        until(lambda: agent.pid != first and lives(agent.pid), "version 1 again")
        agent.order(12, an_app("3.0.0"))
        assert agent.outcome(12) == ("succeeded", None)
        assert (agent.table.booted, (agent.state / "data" / "up").read_text()) == ("A", "3.0.0")
        running = agent.pid
    assert not lives(running), "a clean end ends the application"
    assert agent.link.calls == ["start", "close"]
    assert agent.link.spreads[-1] == 1_500
    assert any("downloading contoso/app:1.0.0" in line for line in agent.lines)


def test_a_failed_health_check_reverts(agent: Agent) -> None:
    """An application that runs, and is not well, is left for the last known good."""
    with at_work(agent):
        agent.order(10, an_app("1.0.0"))
        assert agent.outcome(10) == ("succeeded", None)
    agent.startup_s = 0.5
    with at_work(agent):
        agent.order(11, an_app("2.0.0", SICK))
        assert agent.outcome(11) == ("failed", "health_failed")
        assert (agent.table.booted, agent.table.slots["A"].holds) == ("B", "bad")
        until(lambda: (agent.state / "data" / "up").exists(), "version 1")


def test_an_application_of_a_good_slot_is_started_again(agent: Agent) -> None:
    """It ends by itself: started anew, uncounted; and after a restart of the agent it runs, too."""
    with at_work(agent):
        agent.order(10, an_app("1.0.0"))
        assert agent.outcome(10) == ("succeeded", None)
        first = agent.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: agent.pid != first and lives(agent.pid), "the next one")
        assert any("was ended by SIGKILL" in line for line in agent.lines)
        second = agent.pid
    with at_work(agent):
        until(lambda: agent.pid != second and lives(agent.pid), "the one after the restart")
        assert agent.table.running.holds == "good"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("changed", "verify_failed"),
        ("archive", "handler_failed"),
        ("handler", "unsupported"),
        ("missing", "server"),
    ],
)
def test_bad_input_leaves_the_running_slot_untouched(agent: Agent, wrong: str, reason: str) -> None:
    """Changed bytes, a wicked archive, an unknown handler, a missing file: refused, and version 1 runs on."""
    with at_work(agent):
        agent.order(10, an_app("1.0.0"))
        assert agent.outcome(10) == ("succeeded", None)
        running = agent.pid
        update = an_app("2.0.0")
        if wrong == "archive":
            packed = a_tar([(a_member("big"), bytes(9_000)), (a_member("../../B/serve"), b"owned")])
            update = an_update("2.0.0", {"app.tar": packed}, [{"handler": "archive", "files": ["app.tar"]}])
        elif wrong == "handler":
            update = an_update("2.0.0", {"a": b"a"}, [{"handler": "contoso/flash:1", "files": ["a"]}])
        agent.files.add(update)
        path = f"/files/{next(iter(update.read.files.values())).sha256}"
        order = update.order(agent.files.url, epoch=11, deployment="d-11", issued_ms=11)
        if wrong == "changed":
            agent.files.held[path] = bytes(len(agent.files.held[path]))
        elif wrong == "missing":
            del agent.files.held[path]
        agent.link.give(order)
        if wrong == "missing":  # new addresses are asked for, and do not help
            until(
                lambda: any(hello.wants_addresses for hello in agent.link.hellos),
                "the wish for new addresses",
            )
            agent.link.give(order.model_copy(update={"issued_ms": 12}))
        assert agent.outcome(11) == ("failed", reason)
        assert (agent.table.booted, agent.table.last_known_good, agent.pid) == ("B", "B", running)
        assert lives(running)
        assert agent.slots.rehash("B")
        assert not list((agent.state / "slots" / "A").iterdir()), "half an update does not stay on the disk"
        if wrong == "handler":
            assert agent.table.slots["A"].holds == "empty", "refused before the spare is touched"


def test_a_full_disk_leaves_the_running_slot_untouched(agent: Agent) -> None:
    """The disk takes no more while downloading: `no_space`, version 1 runs on, and with space it goes well."""
    with at_work(agent):
        agent.order(10, an_app("1.0.0"))
        assert agent.outcome(10) == ("succeeded", None)
        running = agent.pid
        big = an_app("2.0.0", GOOD + "#" * 300_000)
        with file_size_limit(100_000):
            agent.order(11, big)
            assert agent.outcome(11) == ("failed", "no_space")
        assert (agent.table.booted, agent.pid) == ("B", running)
        assert lives(running)
        assert agent.slots.rehash("B")
        agent.order(12, big)
        assert agent.outcome(12) == ("succeeded", None)


def test_a_cancel_stops_a_download(agent: Agent) -> None:
    """A hold that names the attempt ends it while the server is silent, and the verdict is `abandoned`."""
    with at_work(agent):
        update = an_app("1.0.0")
        agent.files.faults, agent.files.cut_at = ["", "silent"], 100
        agent.order(10, update)
        until(lambda: agent.files.fetched, "the download")
        hold = update.order(
            agent.files.url, epoch=11, issued_ms=11, deployment="d-10", action="hold", target=None
        )
        agent.link.give(hold)
        assert agent.outcome(10) == ("abandoned", None)
        agent.files.silent.set()
        until(lambda: agent.table.slots["B"].holds == "invalid", "the slot's end")


def test_a_new_order_is_taken_after_a_lost_connection(agent: Agent) -> None:
    """The next hello brings what was ordered meanwhile."""
    with at_work(agent):
        until(lambda: agent.link.states, "the first state")
        update = an_app("1.0.0")
        agent.files.add(update)
        agent.link.order = update.order(agent.files.url, epoch=10, deployment="d-10")
        agent.link.drop()
        assert agent.outcome(10) == ("succeeded", None)
    assert "disconnected from the broker" in agent.lines


def test_an_unreadable_record_is_no_end(agent: Agent) -> None:
    """The agent says so, and goes on as a device without a record."""
    with at_work(agent):
        agent.order(10, an_app("1.0.0"))
        assert agent.outcome(10) == ("succeeded", None)
    (agent.state / "record.json").write_bytes(b"{ rubbish")
    agent.link.order = None
    agent.link.states.clear()
    with at_work(agent):
        until(lambda: agent.link.states, "a state")
        assert agent.link.states[-1].running is not None
    assert any("record" in line and "cannot be read" in line for line in agent.lines)


class Scripted:
    """A core that says what it is told to: the loop's own rules are looked at, and no other."""

    def __init__(self, effects: list[Effect]) -> None:
        self.effects = effects
        self.seen: list[Event] = []
        self.record = Record(instance="i")
        self.workflow = Workflow(state=WorkflowState.IDLE)
        self.reconnect_spread_ms: int | None = None

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Remember the event."""
        self.seen.append(event)
        return self.effects if len(self.seen) == 1 else []

    def due(self) -> int | None:
        """Never."""
        return None


class Disk:
    """The port `Records` that may refuse."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.saved: list[Record] = []

    def load(self) -> Record | None:
        """Nothing yet."""
        return None

    def save(self, record: Record) -> None:
        """Keep it, or refuse."""
        if self.refuses:
            raise DeviceError("The disk refused.")
        self.saved.append(record)


@pytest.mark.parametrize("refuses", [False, True])
def test_R1_nothing_behind_a_record_that_was_not_written_is_done(agent: Agent, refuses: bool) -> None:
    """Record first, then act: what stands behind a refused Save is dropped, and the core hears of it next."""
    core = Scripted([Save(Record(instance="i")), Publish(Kind.PROGRESS, b"x")])
    disk = Disk(refuses)
    wired = agent.runtime()
    runtime = Runtime(core, disk, wired._ports)
    runtime._link = agent.link
    runtime.handle(Ticked())
    assert agent.link.progressed == ([] if refuses else [b"x"])
    assert len(disk.saved) == (0 if refuses else 1)
    assert core.seen[1:] == ([SaveFailed("The disk refused.")] if refuses else [])
