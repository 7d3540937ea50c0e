"""`lastgood mqtt` as a user runs it: real processes, against a real broker that the tests start themselves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from inspector.cli import LEFT_OUT_TOLD_MAX
from inspector.core.address import Address
from protocol.errors import OperatorError
from tests.certificates import self_signed
from tests.forked import Forked
from tests.inspector.conversation import DEVICE, KEY, OTHER_KEY, conversation
from tests.processes import run_lastgood
from tests.waiting import until

ROOT: Final = Path(__file__).resolve().parents[2]
WAIT_S: Final = 90


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a mosquitto of our own, on loopback; skipped aloud where it is not installed."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed: run `apt-get install mosquitto`")
    port = free_port()
    config = tmp_path_factory.mktemp("mosquitto") / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    yield from serve([program, "-c", str(config)], port)


@pytest.fixture(scope="module")
def amqtt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an amqtt of our own: a broker that speaks 3.1.1 alone."""
    port = free_port()
    config = tmp_path_factory.mktemp("amqtt") / "amqtt.yaml"
    config.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    yield from serve([str(Path(sys.executable).with_name("amqtt")), "-c", str(config)], port)


class Running:
    """A `lastgood mqtt` process whose two streams go to files, so that they can be looked at while it runs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.out, self.err = folder / "out", folder / "err"
        for path in (self.out, self.err):
            path.write_bytes(b"")
        words = ("-m", "lastgood", "mqtt", *arguments)
        self.process = Forked(words, cwd=ROOT, env=os.environ, out=self.out, err=self.err)
        try:
            until(lambda: b"listening to" in self.err.read_bytes(), "the inspector to listen")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def lines(self) -> list[str]:
        """What it has printed."""
        return self.out.read_text().splitlines()

    def end(self) -> str:
        """Wait for its end, and return what it said on standard error."""
        assert self.process.wait(WAIT_S) == 0
        return self.err.read_text()


LASTGOOD: Final = [sys.executable, "-m", "lastgood", "mqtt"]


def test_tail_shows_a_conversation_and_ends_with_ctrl_c(mosquitto: int, tmp_path: Path) -> None:
    """Live, one line a message; Ctrl-C ends it with 0 and the numbers."""
    tail = Running(tmp_path, "tail", "--broker", url(mosquitto))
    assert "MQTT 3.1.1 ·" in tail.err.read_text()
    publish(mosquitto, extra=(b"\x1b[2J",))
    until(lambda: len(tail.lines()) == 8, "eight lines")
    tail.process.send_signal(signal.SIGINT)
    assert "8 messages, 1 refused" in tail.end()
    assert "▲ hello    seq 11" in tail.lines()[0]
    assert "install acme/app:2.0.0 · unverified" in tail.lines()[1]
    assert r"\x1b[2J" in tail.lines()[7]
    assert "\x1b" not in tail.out.read_text()


def test_a_broker_that_speaks_5_alone_is_read_too(tmp_path: Path) -> None:
    """The second try is with MQTT 5, and says so."""
    levels: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while levels[-1:] != [5]:
                peer, _ = server.accept()
                with peer:
                    first = peer.recv(4_096)
                    levels.append(first[4 + int.from_bytes(first[2:4])])
                    if levels[-1] != 5:
                        peer.sendall(b"\x20\x02\x00\x01")  # unacceptable protocol version
                        continue
                    peer.sendall(b"\x20\x03\x00\x00\x00")
                    asked = peer.recv(4_096)
                    count = asked.count(b"lg/v1")
                    peer.sendall(bytes((0x90, 3 + count)) + asked[2:4] + b"\x00" + b"\x01" * count)
                    while peer.recv(4_096):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        tail = Running(tmp_path, "tail", "--broker", url(server.getsockname()[1]))
        assert "MQTT 5 ·" in tail.err.read_text()
        tail.process.send_signal(signal.SIGINT)
        assert "0 messages" in tail.end()
        thread.join(WAIT_S)
    assert levels == [4, 3, 5], "paho itself falls back to 3.1 in between"


def test_the_embedded_broker_is_read_too(amqtt: int, tmp_path: Path) -> None:
    """It speaks 3.1.1 alone."""
    tail = Running(tmp_path, "tail", "--broker", url(amqtt), "--count", "7")
    assert "MQTT 3.1.1" in tail.err.read_text()
    publish(amqtt)
    assert "7 messages, 0 refused" in tail.end()


def test_filters_and_count(mosquitto: int, tmp_path: Path) -> None:
    """Only the kinds and devices asked for, and no more than asked for."""
    options = ("--device", "pi-*", "--kind", "ack", "--kind", "state", "--count", "2")
    tail = Running(tmp_path, "tail", "--broker", url(mosquitto), *options)
    publish(mosquitto)
    assert "2 messages" in tail.end()
    assert ["▼ ack" in tail.lines()[0], "▲ state" in tail.lines()[1]] == [True, True]


@pytest.mark.parametrize(("key", "said"), [(KEY, "verified"), (OTHER_KEY, "BAD SIGNATURE")])
def test_a_key_verifies_assignments(mosquitto: int, tmp_path: Path, key: object, said: str) -> None:
    """With --key the signature is checked, and the answer shown."""
    (tmp_path / "key.pem").write_text(KEY.public_pem if key is KEY else OTHER_KEY.public_pem)
    options = ("--key", str(tmp_path / "key.pem"), "--kind", "desired", "--count", "1")
    tail = Running(tmp_path, "tail", "--broker", url(mosquitto), *options)
    publish(mosquitto)
    tail.end()
    assert said in tail.lines()[0]
    assert "unverified" not in tail.lines()[0]


def test_a_recording_is_looked_at_later(mosquitto: int, tmp_path: Path) -> None:
    """`tail --json` writes what `seq --from` draws, as a diagram, as mermaid and as JSON again."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "inspect.json").write_text(
        json.dumps({"broker": url(mosquitto), "prefix": "lg/v1", "key": KEY.public_pem})
    )
    tail = Running(tmp_path, "tail", "--json", "--count", "7", "--data", str(data))
    publish(mosquitto)
    tail.end()
    kinds = [json.loads(line)["kind"] for line in tail.lines()]
    assert (
        json.loads(tail.lines()[1])["trust"] == "verified"
    )  # with the key that the cloud left beside its address
    assert kinds == ["hello", "desired", "ack", "progress", "state", "sync", "gone"]

    drawn = run("seq", DEVICE, "--from", str(tail.out))
    assert (drawn.returncode, "7 messages" in drawn.stderr) == (0, True)
    assert "│─── hello    seq 11" in drawn.stdout
    mermaid = run("seq", DEVICE, "--from", str(tail.out), "--mermaid").stdout.splitlines()
    assert (mermaid[0], len(mermaid)) == ("sequenceDiagram", 3 + 7)
    again = [
        json.loads(line) for line in run("seq", DEVICE, "--from", str(tail.out), "--json").stdout.splitlines()
    ]
    assert again[0]["after_ms"] is None
    assert all(line["after_ms"] >= 0 for line in again[1:])

    other = run("seq", "pi-99", "--from", str(tail.out))
    assert f"no message of pi-99; devices in it: {DEVICE}" in other.stderr


def test_seq_follows_a_device_live(mosquitto: int, tmp_path: Path) -> None:
    """Each message is drawn as it arrives, and `--count` ends it; so does `--for`, when nothing comes."""
    seq = Running(tmp_path, "seq", DEVICE, "--broker", url(mosquitto), "--count", "7")
    publish(mosquitto)
    assert "7 messages" in seq.end()
    assert "0 messages" in run("seq", DEVICE, "--broker", url(mosquitto), "--for", "0.5").stderr
    assert any("╌▶│" in line for line in seq.lines())


def test_a_recording_is_read_wherever_the_broker_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker in the environment is for the live commands: it is in nobody's way."""
    monkeypatch.setenv("LASTGOOD_BROKER", "mqtt://127.0.0.1:1")
    (tmp_path / "empty").touch()
    assert run("seq", "d", "--from", str(tmp_path / "empty")).returncode == 0


def test_a_certificate_of_an_authority_of_its_own(tmp_path: Path) -> None:
    """Refused with the way on; with --ca the broker is read."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed: run `apt-get install mosquitto`")
    certificate = self_signed(tmp_path)
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\n{'user root' if os.geteuid() == 0 else ''}\n"
        f"certfile {certificate}\nkeyfile {tmp_path / 'key.pem'}\n"
    )
    broker = f"mqtts://127.0.0.1:{port}"
    for _ in serve([program, "-c", str(config)], port):
        refused = run("tail", "--broker", broker, "--for", "0.5")
        assert refused.returncode == 1
        assert "not trusted here (self-signed certificate): name the PEM file" in refused.stderr
        read = run("tail", "--broker", broker, "--ca", str(certificate), "--for", "0.5")
        assert (read.returncode, "0 messages" in read.stderr) == (0, True), read.stderr


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    """`| head` closes the pipe: the end is quiet, without a traceback."""
    line = '{"time":"2026-01-01T00:00:00Z","topic":"t","kind":null,"device":null,"size":0,"payload":null,"errors":[]}'
    recording = tmp_path / "recording"
    recording.write_text(
        (line.replace("null", '"hello"', 1).replace("null", f'"{DEVICE}"', 1) + "\n") * 5_000
    )
    command = [*LASTGOOD, "seq", DEVICE, "--from", str(recording)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(WAIT_S) == 0


def test_a_file_of_another_kind_is_told_in_a_few_lines(tmp_path: Path) -> None:
    """The first lines that cannot be read are named, the others counted."""
    other = tmp_path / "other"
    other.write_text("no message\n" * 1_000)
    told = run("seq", "d", "--from", str(other)).stderr.splitlines()
    assert sum("is left out: " in line for line in told) == LEFT_OUT_TOLD_MAX
    assert any("1000 lines are left out in all" in line for line in told)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("tail", "--data", "/nowhere"), 1, "start the cloud with `lastgood cloud up`"),
        (
            ("tail", "--broker", "mqtt://127.0.0.1:1"),
            1,
            "No broker answers at mqtt://127.0.0.1:1 (connection refused)",
        ),
        (("tail", "--broker", "http://x"), 1, "write it as mqtt://host:port"),
        (("tail", "--kind", "song"), 2, "song"),
        (("tail", "--broker", "mqtt://h", "--prefix", "lg/#"), 1, "The topic prefix 'lg/#' is not usable"),
        (("tail", "--broker", "mqtt://h", "--device", "a/#"), 1, "'a/#' matches no device"),
        (("tail", "--broker", "mqtts://h", "--ca", __file__), 1, "holds no certificate in PEM form"),
        (("seq", "d", "--from", "x", "--prefix", "lg"), 2, "have nothing to act on"),
        (("seq", "a b", "--from", "x"), 1, "is not a device id"),
        (("seq", "d", "--from", "/nowhere"), 1, "cannot be read"),
        (("seq", "d", "--json", "--mermaid"), 2, "choose one"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: tuple[str, ...], code: int, said: str) -> None:
    """And the sentence says what to do; the exit codes are those of the module's docstring."""
    refused = run(*arguments)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mqtt://h", Address("h", 1883)),
        ("mqtts://h/", Address("h", 8883, tls=True)),
        ("mqtt://u:p%40ss@[::1]:99", Address("::1", 99, user="u", password="p@ss")),
    ],
)
def test_an_address_is_read_and_its_password_is_never_shown(text: str, address: Address) -> None:
    """Ports by default, percent-encoding, IPv6; neither `str` nor `repr` tells the password."""
    assert Address.of_url(text) == address
    assert "p@ss" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    "text", ["", "h:1883", "mqtt://", "mqtt://h:0", "mqtt://h:99999", "mqtt://h:x", "mqtt://h/x", "mqtt://["]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """With the form that is wanted."""
    with pytest.raises(OperatorError, match="write it as"):
        Address.of_url(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"broker":1}',
        b'{"broker":"mqtt://h","user":1}',
        b'{"broker":"mqtt://h","prefix":1}',
    ],
)
def test_a_damaged_inspect_file_is_refused(data: bytes) -> None:
    """The sentence names the file and the way on."""
    with pytest.raises(OperatorError, match=r"inspect\.json does not say where"):
        Address.of_inspect_file(data, "inspect.json")


def publish(port: int, extra: tuple[bytes, ...] = ()) -> None:
    """Publish the conversation, and what else is given as the device's state; returns when the broker has all."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        for each in conversation():
            client.publish(each.topic, each.payload, qos=1).wait_for_publish(WAIT_S)
        for payload in extra:
            client.publish(f"lg/v1/up/{DEVICE}/state", payload, qos=1).wait_for_publish(WAIT_S)
    finally:
        client.disconnect()
        client.loop_stop()


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the inspector to its end."""
    return run_lastgood("mqtt", *arguments)


def serve(command: list[str], port: int) -> Iterator[int]:
    """Run a broker until the tests are done."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as broker:
        try:
            until(lambda: answers(port), f"{command[0]} to listen")
            yield port
        finally:
            broker.terminate()


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def url(port: int) -> str:
    """The broker's address on loopback."""
    return f"mqtt://127.0.0.1:{port}"
