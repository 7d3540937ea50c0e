"""Choosing, starting and ending brokers: real processes, real kills."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_stub.adapters.broker import CLOUD, BrokerError, start, start_broker
from cloud_stub.adapters.broker.mosquitto import find_mosquitto
from cloud_stub.adapters.broker.process import BrokerProcess
from cloud_stub.adapters.broker.start import free_port
from cloud_stub.ports import Broker
from tests.cloud_stub.adapters.broker.conftest import (
    MOSQUITTO_MISSING,
    TOKENS,
    Bench,
    accounts,
    answer,
    has_mosquitto,
)
from tests.processes import is_there
from tests.waiting import until

AS_PORT: Callable[..., Broker] = start_broker  # mypy holds what it returns to the port
ENGINES = ["embedded", "mosquitto"]
ROOT = Path(__file__).resolve().parents[4]
STARTER = """
import sys
from pathlib import Path
from cloud_stub.adapters.broker import start_broker
choice, folder, port, survive = sys.argv[1:]
broker = start_broker(choice, Path(folder), accounts={}, port=int(port), say=print, survive=survive == "survive")
print(broker.pid, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def started_elsewhere(choice: str, folder: Path, port: int, survive: str = "") -> Iterator[int]:
    """A broker's process id, whose parent is another process, which gets SIGKILL at the end of the block."""
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, choice, str(folder), str(port), survive],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        try:
            assert parent.stdout is not None
            yield int(parent.stdout.readline())
        finally:
            parent.kill()


@pytest.mark.parametrize("choice", ENGINES)
def test_broker_dies_with_its_parent(choice: str, tmp_path: Path) -> None:
    """After SIGKILL of whoever started it, no process of the broker is left and the port is free."""
    port = free_port()
    with started_elsewhere(choice, tmp_path, port) as pid:
        recorded = json.loads((tmp_path / "broker.json").read_text())["pids"]
        assert pid in recorded
    until(lambda: all(not is_there(one) for one in recorded), "the broker's end")
    broker = start_broker(choice, tmp_path, accounts=accounts(), port=port, say=print)
    assert broker.port == port
    broker.stop()


@pytest.mark.parametrize("choice", ENGINES)
def test_stale_broker_is_replaced(choice: str, tmp_path: Path) -> None:
    """A broker that outlived its parent is ended by the next start in the same folder, which gets the same
    ports."""
    port = free_port()
    with started_elsewhere(choice, tmp_path, port, "survive") as pid:
        service_port = json.loads((tmp_path / "broker.json").read_text())["service_port"]
    assert is_there(pid)
    said: list[str] = []
    broker = start_broker(choice, tmp_path, accounts=accounts(), port=port, say=said.append)
    try:
        assert not is_there(pid)
        assert len(said) == 1
        assert "of an earlier run" in said[0]
        assert broker.pid != pid
        assert (broker.port, broker.service_port) == (port, service_port)
        assert answer(broker, "dev-1", TOKENS["dev-1"]) == (0, 0)
    finally:
        broker.stop()


def test_process_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A process id in the record that now belongs to another command is not ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        record = {"pids": [other.pid], "config": str(tmp_path / "embedded.json"), "service_port": 1}
        (tmp_path / "broker.json").write_text(json.dumps(record))
        start_broker("embedded", tmp_path, accounts={}, say=print).stop()
        assert other.poll() is None
        other.kill()


def test_mosquitto_dies_with_its_leash(tmp_path: Path) -> None:
    """The process between the cloud and mosquitto cannot leave mosquitto behind either."""
    if not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    broker = start_broker("mosquitto", tmp_path, accounts={}, say=print)
    pids = json.loads((tmp_path / "broker.json").read_text())["pids"]
    assert broker.pid is not None
    assert broker.alive()
    for pid in pids:
        if pid != broker.pid:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not is_there(broker.pid or 0) and not broker.alive(), "mosquitto's end")
    broker.stop()


@pytest.mark.parametrize("choice", ENGINES)
def test_killed_broker_is_not_alive_and_starts_again(choice: str, tmp_path: Path) -> None:
    """`alive` tells of a broker that was killed; accounts are then kept for the next start, and refused to
    be promised."""
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    broker = start_broker(choice, tmp_path, accounts=accounts(), say=print)
    assert isinstance(broker, BrokerProcess)
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    until(lambda: not broker.alive(), "the end of a killed broker")
    with pytest.raises(BrokerError, match="not running"):
        broker.set_accounts(accounts())
    broker.stop()
    again = start_broker(choice, tmp_path, accounts=accounts(), port=broker.port, say=print)
    assert again.alive()
    again.stop()


def fake_mosquitto(folder: Path, body: str) -> str:
    """A program that gives mosquitto's version, and then does as told."""
    path = folder / "mosquitto"
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = "-h" ]; then echo "mosquitto version 2.0.99"; exit 3; fi\n{body}\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'Error: the moon is full' >&2; exit 1", "the moon is full"),
        ("exec sleep 60", "did not come up within 3 s"),
        ("exit 0", "ended at once"),
    ],
)
def test_mosquitto_that_does_not_come_up_falls_back(tmp_path: Path, body: str, reason: str) -> None:
    """With "auto" the reason is said and amqtt serves; with "mosquitto" it is the error."""
    said: list[str] = []
    broken = fake_mosquitto(tmp_path, body)
    broker = start_broker("auto", tmp_path / "b", accounts=accounts(), say=said.append, mosquitto=broken)
    try:
        assert broker.engine == "amqtt 0.12.1 (embedded)"
        assert len(said) == 1
        assert reason in said[0]
        assert answer(broker, "dev-1", TOKENS["dev-1"]) == (0, 0)
    finally:
        broker.stop()
    if body.startswith("echo"):
        with pytest.raises(BrokerError, match=reason):
            start_broker("mosquitto", tmp_path / "b", accounts={}, say=print, mosquitto=broken)


def test_mosquitto_that_does_not_tell_its_version_falls_back(tmp_path: Path) -> None:
    """It is asked for that before it is started, and given no more time."""
    said: list[str] = []
    mute = tmp_path / "mosquitto"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    mute.chmod(0o755)
    broker = start_broker("auto", tmp_path / "b", accounts={}, say=said.append, mosquitto=str(mute))
    broker.stop()
    assert broker.engine.startswith("amqtt ")
    assert "did not tell its version within 3 s" in said[0]


@pytest.mark.parametrize("binary", ["/nonexistent/mosquitto", "/bin/true", "/etc/passwd"])
def test_no_usable_mosquitto_names_the_install_line(tmp_path: Path, binary: str) -> None:
    """Asked for by name and missing: an error that says how to get it."""
    with pytest.raises(BrokerError, match="apt-get install mosquitto"):
        start_broker("mosquitto", tmp_path, accounts={}, say=print, mosquitto=binary)


def test_old_mosquitto_is_refused(tmp_path: Path) -> None:
    """A mosquitto that does not know our hashes is not started."""
    old = fake_mosquitto(tmp_path, "")
    Path(old).write_text(Path(old).read_text().replace("2.0.99", "1.6.12"))
    with pytest.raises(BrokerError, match="is older than"):
        start_broker("mosquitto", tmp_path / "b", accounts={}, say=print, mosquitto=old)


def test_auto_takes_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mosquitto installed "auto" runs it, and says nothing."""
    if not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    monkeypatch.setattr(start, "MOSQUITTO_START_S", 60.0)  # how fast this machine is, is not what is tested
    said: list[str] = []
    broker = start_broker("auto", tmp_path, accounts={}, say=said.append)
    broker.stop()
    assert broker.engine.startswith("mosquitto 2.")
    assert said == []


@pytest.mark.parametrize("choice", ENGINES)
def test_port_that_is_taken(choice: str, tmp_path: Path) -> None:
    """A port given and taken is an error that says so, and leaves no process."""
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BrokerError, match="in use; end what listens there"):
            start_broker(choice, tmp_path, accounts={}, port=taken.getsockname()[1], say=print)
    record = tmp_path / "broker.json"
    assert not record.exists() or json.loads(record.read_text())["pids"] == []


@pytest.mark.parametrize("choice", ENGINES)
def test_files_are_private(choice: str, tmp_path: Path) -> None:
    """Hashes and configuration are for their owner's eyes, and no token is in any file."""
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    folder = tmp_path / "broker"
    start_broker(choice, folder, accounts=accounts(), say=print).stop()
    assert folder.stat().st_mode & 0o077 == 0
    written = [path for path in folder.iterdir() if path.suffix in (".passwd", ".acl", ".conf", ".json")]
    assert len(written) >= 3
    for path in written:
        assert path.stat().st_mode & 0o077 == 0
        assert TOKENS["dev-1"] not in path.read_text()


@pytest.mark.parametrize("choice", ENGINES)
def test_prefix_is_the_operators(choice: str, tmp_path: Path) -> None:
    """With another prefix the access list moves with it."""
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    bench = Bench(start_broker(choice, tmp_path, accounts=accounts(), prefix="acme/eu/lg", say=print))
    try:
        cloud, device = bench.join(CLOUD, "acme/eu/lg/#"), bench.join("dev-1", "acme/eu/lg/down/dev-1/#")
        device.publish("lg/v1/up/dev-1/hello", b"old")
        device.publish("acme/eu/lg/up/dev-1/hello", b"new")
        assert cloud.receive().payload == b"new"
    finally:
        bench.close()
        bench.broker.stop()


def test_bad_accounts_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """A name or a hash that no file could hold is refused, at start and later, and changes nothing."""
    with pytest.raises(BrokerError, match="not usable"):
        start_broker("embedded", tmp_path, accounts={"all": "x"}, say=print)
    broker = start_broker("embedded", tmp_path, accounts=accounts(), say=print)
    try:
        for bad in ({"dev-9": "plain text"}, {"a:b": accounts()["dev-1"]}):
            with pytest.raises(BrokerError):
                broker.set_accounts(bad)
        assert answer(broker, "dev-1", TOKENS["dev-1"]) == (0, 0)
    finally:
        broker.stop()


def test_external_broker(tmp_path: Path) -> None:
    """A given address starts nothing; what its administrator needs is written down."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        broker = start_broker(f"mqtt://127.0.0.1:{port}", tmp_path, accounts=accounts(), say=print)
        assert (broker.engine, broker.host, broker.port, broker.service_port) == (
            "external",
            "127.0.0.1",
            port,
            port,
        )
        assert broker.pid is None
        assert broker.alive()
        broker.set_accounts({"dev-1": accounts()["dev-1"]})
        assert (tmp_path / "external.passwd").read_text().startswith("dev-1:$7$")
        assert "pattern write lg/v1/up/%u/hello" in (tmp_path / "external.acl").read_text()
    assert not broker.alive()
    broker.stop()


@pytest.mark.parametrize(
    "choice",
    [
        "rabbitmq",
        "",
        "mqtts://h:1",
        "http://h",
        "mqtt://",
        "mqtt://h:x",
        "mqtt://h:70000",
        "mqtt://u:p@h",
        "mqtt://h/p",
    ],
)
def test_unusable_choice(choice: str, tmp_path: Path) -> None:
    """Whatever is no broker is refused in one sentence."""
    with pytest.raises(BrokerError):
        start_broker(choice, tmp_path, accounts={}, say=print)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A folder below a file is an error in one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="folder"):
        start_broker("embedded", tmp_path / "file" / "broker", accounts={}, say=print)


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense"])
def test_embedded_process_refuses_a_bad_configuration(text: str, tmp_path: Path) -> None:
    """One line on standard error, and exit code 1."""
    path = tmp_path / "embedded.json"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "cloud_stub.adapters.broker.embedded", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_mosquitto_is_looked_for_on_path_and_where_debian_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PATH's own comes first; the PATH of most users lacks /usr/sbin, where the package's is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    elsewhere = [Path(folder, "mosquitto") for folder in ("/usr/sbin", "/usr/local/sbin")]
    assert find_mosquitto(None) == next((path for path in elsewhere if os.access(path, os.X_OK)), None)
    mine = tmp_path / "mosquitto"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    assert find_mosquitto(None) == mine


@pytest.mark.mosquitto
def test_mosquitto_runs_as_the_current_user(tmp_path: Path) -> None:
    """Started by root it would become a user of its own, who cannot read the cloud's folder."""
    if not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    broker = start_broker("mosquitto", tmp_path, accounts={}, say=print)
    try:
        pids = json.loads((tmp_path / "broker.json").read_text())["pids"]
        users = {
            line.split()[2]  # the effective one
            for pid in pids
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("Uid:")
        }
        assert users == {str(os.geteuid())}
    finally:
        broker.stop()
