"""Real processes for tests: a cloud, agents with an application each, and the updates they are given.

It holds no rules and makes no assertion about them: it starts, kills and ends processes by their ids, asks the cloud's
API, and reads a device's disk. Everything listens on loopback, and whatever was started is ended, also after a failure.
"""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx

from agent.adapters.application import ProcessApplication, ProcessSettings
from agent.adapters.directory_slots import DirectorySlots
from agent.adapters.records import RecordFile
from agent.core.model import Record, SlotTable
from cloud_stub.cli.client import get_here, no_authorities
from tests.forked import Forked
from tests.waiting import until

ROOT: Final = Path(__file__).resolve().parents[1]
BEACON: Final = ROOT / "configs" / "demo" / "beacon1"
BEACON_THAT_CRASHES: Final = ROOT / "configs" / "demo" / "beacon2"
PROPERTIES: Final = {"manufacturer": "acme", "model": "pi4"}
ANSWER_S: Final = 60.0  # for one answer of the API
STOP_S: Final = 60.0  # for a process to end by itself
ENGINES: Final = ("embedded", "mosquitto")
MOSQUITTO_MISSING: Final = "mosquitto is not installed: run `apt-get install mosquitto`"


def has_mosquitto() -> bool:
    """Whether the tests of mosquitto can run."""
    return shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin") is not None


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Update:
    """An update as it is imported."""

    name: str
    manifest: bytes
    files: Mapping[str, bytes]

    @property
    def sha256_of_file(self) -> str:
        """The sha256 of its only file."""
        (content,) = self.files.values()
        return sha256(content).hexdigest()


def update_of(name: str, content: bytes, *, handler: str = "archive", **more: Any) -> Update:
    """Return an update of one file; `more` replaces fields of its manifest."""
    provider, _, rest = name.partition("/")
    product, _, version = rest.partition(":")
    file = f"{product}-{version}.tar"
    manifest = {
        "manifestVersion": "5.0",
        "updateId": {"provider": provider, "name": product, "version": version},
        "compatibility": [{"model": PROPERTIES["model"]}],
        "instructions": {"steps": [{"handler": f"lastgood/{handler}:1", "files": [file]}]},
        "files": [
            {
                "filename": file,
                "sizeInBytes": len(content),
                "hashes": {"sha256": base64.b64encode(sha256(content).digest()).decode()},
            }
        ],
        **more,
    }
    return Update(name, json.dumps(manifest).encode(), {file: content})


def beacon(version: str, *, folder: Path = BEACON, padding: bytes = b"") -> Update:
    """Return the demo's small web application as an update of this version, with some more bytes if wanted."""
    settings = {**json.loads((folder / "settings.json").read_text()), "version": version}
    files = {"beacon.py": (folder / "beacon.py").read_bytes(), "settings.json": json.dumps(settings).encode()}
    return update_of(f"demo/beacon:{version}", archive(files | ({"padding": padding} if padding else {})))


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def run_lastgood(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = Forked(("-m", "lastgood", *words), cwd=ROOT, env=environment(), out=out, err=err)
        try:
            code = process.wait(280)
        finally:
            process.kill()  # one that hangs does not outlive its test
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def environment() -> dict[str, str]:
    """Return what every process of ours is started with."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Cloud:
    """One cloud on one data folder; it can be killed and started again. Use it in a `with`."""

    def __init__(self, data: Path, engine: str = "embedded", *, heartbeat_s: float = 10) -> None:
        self.data = data
        self.engine = engine
        self.http: httpx.Client | None = None
        self.process: Forked | None = None
        self._heartbeat_s = heartbeat_s

    def __enter__(self) -> "Cloud":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything that it has said, over all its lives."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def broker_pids(self) -> list[int]:
        """The processes of its broker, as its data folder names them."""
        record = json.loads((self.data / "broker" / "broker.json").read_text())
        return [int(pid) for pid in record["pids"]]

    def kill_broker(self) -> None:
        """End the broker as a crash would; the process that keeps it on a leash is left alone."""
        for pid in self.broker_pids:
            if b"leash.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                until(lambda: not is_there(pid), "the broker to end")  # noqa: B023 - waited for at once

    def start(self) -> None:
        """Start it, and wait until it answers."""
        first = not (self.data / "ports.json").exists()
        self.data.mkdir(exist_ok=True)
        (self.data / "client.json").unlink(missing_ok=True)
        words = ["cloud", "up", "--data", str(self.data), "--broker", self.engine]
        words += ["--heartbeat", str(self._heartbeat_s), *(["--port", "0"] if first else [])]
        self.process = _spawn(self._log, words)
        until(self._is_up, "the cloud to answer")

    def kill(self) -> None:
        """End it as a crash would, with SIGKILL."""
        process = self._running()
        process.kill()
        process.wait(STOP_S)
        self._hang_up()

    def stop(self) -> None:
        """End it in order, and see its broker go."""
        process, self.process = self.process, None
        self._hang_up()
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
        with contextlib.suppress(FileNotFoundError):  # it ended before it had a broker
            until(lambda: not any(map(is_there, self.broker_pids)), "the broker to end with its cloud")

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask the API, and return its answer, whatever it is."""
        assert self.http is not None, "the cloud is not running"
        return self.http.request(method, f"/api/v1{path}", **more)

    def get(self, path: str, **more: Any) -> Any:
        """Return what the API shows."""
        answer = self.ask("GET", path, params=more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add(self, *devices: str) -> dict[str, str]:
        """Add devices, and return their join texts."""
        answer = self.ask("POST", "/devices", json={"ids": devices})
        assert answer.status_code == 201, answer.text
        return {row["device"]: row["join"].split()[-1] for row in answer.json()}

    def send(self, manifest: bytes, files: Mapping[str, bytes]) -> httpx.Response:
        """Send an import, and return the answer."""
        parts = [("manifest", ("manifest.json", manifest)), *(("file", item) for item in files.items())]
        return self.ask("POST", "/updates", files=parts)

    def take(self, update: Update) -> Update:
        """Import an update that is well."""
        answer = self.send(update.manifest, update.files)
        assert answer.status_code == 201, answer.text
        return update

    def deploy(self, group: str, update: Update, **more: Any) -> str:
        """Create a deployment, and return its id."""
        draft = {"group": group, "updates": [update.name], **more}
        answer = self.ask("POST", "/deployments", json={"draft": draft})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def rows(self, deployment: str) -> dict[str, Any]:
        """Return how each device does in a deployment."""
        return {row["device"]: row for row in self.get(f"/deployments/{deployment}/devices")}

    def online(self) -> int:
        """Return how many devices are online."""
        return sum(group["online"] for group in self.get("/groups"))

    def tally(self, deployment: str) -> dict[str, int]:
        """Return a deployment's counts."""
        return dict(self.get(f"/deployments/{deployment}")["tally"])

    def settled(self, deployment: str) -> dict[str, Any]:
        """Return the rows of a deployment once each has a verdict; nothing before."""
        rows = self.rows(deployment)
        return rows if {row["state"] for row in rows.values()} <= {"succeeded", "failed"} else {}

    @property
    def _log(self) -> Path:
        return self.data.with_name(f"{self.data.name}.log")

    def _running(self) -> Forked:
        assert self.process is not None, "the cloud is not running"
        return self.process

    def _is_up(self) -> bool:
        assert self._running().poll() is None, f"the cloud ended: {self.log[-2_000:]}"
        try:
            client = json.loads((self.data / "client.json").read_text())
            self.http = httpx.Client(
                base_url=client["url"],
                headers={"Authorization": f"Bearer {client['token']}"},
                timeout=ANSWER_S,
                trust_env=False,
                verify=no_authorities(),
            )
            return self.ask("GET", "/health").status_code == 200
        except (FileNotFoundError, httpx.HTTPError):
            self._hang_up()
            return False

    def _hang_up(self) -> None:
        client, self.http = self.http, None
        if client is not None:
            client.close()


@dataclass
class Agent:
    """One real agent with slots on the disk and an application on a port of its own. Use it in a `with`."""

    device: str
    folder: Path
    join: str
    group: str
    soak_s: float = 0.3
    trial_starts: int = 3
    command: Sequence[str] = ("-m", "lastgood")  # how Python is asked to be the agent
    port: int = field(default_factory=free_port)
    process: Forked | None = None

    def __enter__(self) -> "Agent":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def state(self) -> Path:
        """The agent's state folder."""
        return self.folder / "state"

    @property
    def log(self) -> str:
        """Everything that it has said, over all its lives."""
        return (self.folder / "agent.log").read_text()

    def start(self) -> None:
        """Start it; what it does is to be waited for."""
        assert self.process is None, "the agent runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "agent.toml"
        config.write_text(_agent_toml(self))
        words = ("agent", "run", "--config", str(config), "--join", self.join)
        self.process = _spawn(self.folder / "agent.log", words, self.command)

    def kill(self) -> None:
        """End it as a power cut ends a process; its application goes on."""
        process = self._running()
        process.kill()
        self.died()

    def died(self) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        code = self._running().wait(STOP_S)
        self.process = None
        return code

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it in order, and the application that a killed one has left."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)
        left = ProcessSettings(
            (), self.state, self.state / "no.log", self.state / "application.json", {}, stop_s=2
        )
        ProcessApplication(left).stop()

    def version(self) -> str:
        """Return what the running application says it is; nothing when it does not answer."""
        try:
            answer = get_here(f"http://127.0.0.1:{self.port}/health", 20)
        except httpx.HTTPError:
            return ""
        return answer.text.strip() if answer.status_code == 200 else ""

    def slots(self) -> SlotTable:
        """Return the slots as they lie on the disk."""
        return DirectorySlots(self.state / "slots").probe()

    def holds_what_it_runs(self) -> bool:
        """Return whether the last known good slot is byte for byte what was sealed."""
        return DirectorySlots(self.state / "slots").rehash(self.slots().last_known_good)

    def record(self) -> Record | None:
        """Return the agent's record as it lies on the disk."""
        return RecordFile(self.state / "record.json").load()

    def _running(self) -> Forked:
        assert self.process is not None, "the agent is not running"
        return self.process


def is_there(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _spawn(log: Path, words: Sequence[str], command: Sequence[str] = ("-m", "lastgood")) -> Forked:
    return Forked([*command, *words], cwd=log.parent, env=environment(), out=log, err=log)


def _agent_toml(agent: Agent) -> str:
    properties = "\n".join(f"{key} = {json.dumps(value)}" for key, value in PROPERTIES.items())
    command = json.dumps([sys.executable, "{slot}/beacon.py", "--port", str(agent.port)])
    return f"""state = "state"
soak_s = {agent.soak_s}
trial_starts = {agent.trial_starts}
startup_s = 120

[properties]
{properties}

[tags]
group = {json.dumps(agent.group)}

[application]
kind = "process"
command = {command}

[[checks]]
kind = "http"
name = "beacon"
url = "http://127.0.0.1:{agent.port}/health"
interval_s = 0.5
timeout_s = 60
"""
