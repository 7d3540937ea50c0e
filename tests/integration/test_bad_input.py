"""Bad input, end to end: one clear sentence, the running slot untouched, and nothing lost.

What a person types goes through the real command line to a real cloud; what a device receives goes to a real agent that
runs a real application. The finer cases of each check stand beside the code that makes it.
"""

import io
import json
import os
import re
import subprocess
import tarfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from protocol.join import decode_join, encode_join
from tests.processes import Agent, Cloud, Update, archive, beacon, run_lastgood, update_of
from tests.waiting import until

FIRST = "1.0.0"
GROUP = "steady"
NUMBERS = count(1)  # every update of this file has a version of its own
MIB = 1_048_576
ACTION = re.compile(  # what a sentence tells a person to do
    r"(?i)\b(mend|see|free|make|give|take|import|run|start|name|choose"
    r"|write|use|put|copy|retry|raise|set|send|must be)\b"
)


@pytest.fixture(scope="module", autouse=True)
def first(a_cloud: Cloud) -> Update:
    """The version that every device here runs, and has to go on with."""
    return a_cloud.take(beacon(FIRST))


@pytest.fixture(scope="module")
def steady(a_cloud: Cloud, first: Update, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that runs the first version, before each test and after it."""
    folder = tmp_path_factory.mktemp("agent")
    with Agent(GROUP, folder, a_cloud.add(GROUP)[GROUP], GROUP) as agent:
        install_first(a_cloud, agent, first)
        yield agent


def install_first(cloud: Cloud, agent: Agent, first: Update) -> None:
    """Let a new agent commit the first version."""
    deployment = cloud.deploy(agent.group, first)
    until(lambda: cloud.settled(deployment), "the first version")
    assert agent.version() == FIRST


def new_version() -> str:
    """Return a version that nobody has used."""
    return f"2.0.{next(NUMBERS)}"


# --- what a person types ---------------------------------------------------------------------------------------


def manifest_of(update: Update, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the manifest of an update, with something changed."""
    fields = json.loads(update.manifest)
    change(fields)
    return json.dumps(fields).encode()


def without_hash(fields: dict[str, Any]) -> None:
    """Take the file's sha256 away."""
    fields["files"][0]["hashes"] = {}


def too_large(fields: dict[str, Any]) -> None:
    """Claim one byte more than the file has."""
    fields["files"][0]["sizeInBytes"] += 1


def another_hash(fields: dict[str, Any]) -> None:
    """Claim the sha256 of other bytes."""
    fields["files"][0]["hashes"]["sha256"] = b64encode(sha256(b"other").digest()).decode()


def same(fields: dict[str, Any]) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    ("change", "is_there", "said"),
    [
        (None, True, "manifest"),
        (without_hash, True, "sha256"),
        (same, False, "beacon-"),
        (too_large, True, "beacon-"),
        (another_hash, True, "beacon-"),
    ],
    ids=["not-json", "no-hash", "file-missing", "file-of-another-size", "file-with-other-bytes"],
)
def test_an_import_that_is_not_whole_is_refused(
    a_cloud: Cloud,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None] | None,
    is_there: bool,
    said: str,
) -> None:
    """One sentence names what is wrong; the cloud knows no more updates and stores no more files than before."""
    update = beacon(new_version())
    manifest = tmp_path / "import.json"
    manifest.write_bytes(b'{"manifestVersion": ' if change is None else manifest_of(update, change))
    if is_there:
        for name, content in update.files.items():
            (tmp_path / name).write_bytes(content)
    before = (a_cloud.get("/updates"), stored(a_cloud))
    done = run_lastgood("update", "import", str(manifest), "--data", str(a_cloud.data))
    assert said in refusal_of(done)
    assert (a_cloud.get("/updates"), stored(a_cloud)) == before


def test_bytes_that_the_command_line_does_not_check_are_refused_by_the_cloud(a_cloud: Cloud) -> None:
    """A file changed on its way to the cloud is stored under no name, and the update is not made."""
    update = beacon(new_version())
    before = (a_cloud.get("/updates"), stored(a_cloud))
    ((name, content),) = update.files.items()
    for spoilt in (content[:-1], content[:-1] + b"x", content + b"x"):
        answer = a_cloud.send(update.manifest, {name: spoilt})
        assert 400 <= answer.status_code < 500
        assert is_one_sentence(answer.json()["error"])
    assert (a_cloud.get("/updates"), stored(a_cloud)) == before
    a_cloud.take(update)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--failed-percent", "10", "--rollback-to", f"demo/beacon:{FIRST}"], "failed-count"),
        (["--failed-count", "5", "--rollback-to", f"demo/beacon:{FIRST}"], "failed-percent"),
        (["--failed-count", "5", "--failed-percent", "10"], "rollback-to"),
        (
            ["--failed-count", "5", "--failed-percent", "10", "--rollback-to", "demo/beacon:9.9.9"],
            "demo/beacon:9.9.9",
        ),
        (
            ["--failed-count", "0", "--failed-percent", "10", "--rollback-to", f"demo/beacon:{FIRST}"],
            "failed",
        ),
    ],
)
def test_a_policy_that_could_not_act_is_refused(
    a_cloud: Cloud, steady: Agent, words: list[str], said: str
) -> None:
    """A policy fails closed, when it is made: no deployment begins, and the device is told nothing."""
    update = a_cloud.take(beacon(new_version()))
    before = a_cloud.get("/deployments")
    done = run_lastgood("deploy", "create", GROUP, update.name, *words, "--yes", "--data", str(a_cloud.data))
    assert said in refusal_of(done)
    assert a_cloud.get("/deployments") == before
    assert steady.version() == FIRST


@pytest.mark.parametrize("device", ["../etc", "all", "a b", "_cloud", "x" * 65, "-x#"])
def test_a_wrong_device_id_is_refused(a_cloud: Cloud, device: str) -> None:
    """An id that could not be a topic, a file or an account is never made known."""
    before = ids(a_cloud)
    refusal_of(run_lastgood("device", "add", "--data", str(a_cloud.data), "--", device))
    assert ids(a_cloud) == before


def test_a_join_text_cut_short_is_refused(a_cloud: Cloud, tmp_path: Path) -> None:
    """A damaged `--join` starts no agent, and says where a whole one comes from."""
    join = a_cloud.add(name := f"cut-{next(NUMBERS)}")[name]
    done = run_lastgood("agent", "run", "--state", str(tmp_path / "state"), "--join", join[:-20])
    assert "lastgood device add" in refusal_of(done)
    assert not (tmp_path / "state" / "agent.toml").exists()


# --- what a device receives ------------------------------------------------------------------------------------


def test_a_token_that_is_not_the_devices_keeps_it_out_and_running(a_cloud: Cloud, steady: Agent) -> None:
    """The agent says why once, goes on running what it has, and is let in with its own token as before."""
    right = steady.join
    slots = steady.slots()
    steady.stop()
    steady.join = encode_join(decode_join(right).model_copy(update={"token": "not-the-devices-token"}))
    steady.start()
    try:
        said = "is the token this device's?"
        until(lambda: said in steady.log, "the refusal")
        until(lambda: steady.version() == FIRST, "the application")
        assert steady.slots() == slots
        assert steady.log.count(said) == 1
    finally:
        steady.stop()
        steady.join = right
        steady.start()
    until(lambda: a_cloud.get(f"/devices/{steady.device}")["online"], "the device")
    until(lambda: steady.version() == FIRST, "the application")
    assert steady.slots() == slots


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"x", lambda data: data + b"x"],
    ids=["cut-short", "changed", "longer"],
)
def test_a_payload_that_is_not_what_was_signed_is_not_installed(
    a_cloud: Cloud, steady: Agent, spoil: Callable[[bytes], bytes]
) -> None:
    """It fails as the server's fault, counts nowhere, and the whole payload installs on a retry."""
    update = a_cloud.take(beacon(new_version(), padding=os.urandom(10_000)))
    (content,) = update.files.values()
    place = next(path for path in (a_cloud.data / "files").rglob(update.sha256_of_file) if path.is_file())
    place.chmod(0o644)
    place.write_bytes(spoil(content))
    deployment = a_cloud.deploy(GROUP, update)
    row = failed(a_cloud, deployment, steady)
    assert (row["reason"], row["party"], row["counted"]) == ("verify_failed", "server", False), row
    until(  # the verdict is told first
        lambda: steady.slots().slots[steady.slots().spare].holds in {"bad", "invalid"},
        "the spare to be given up",
    )

    place.write_bytes(content)
    back_to_the_first(a_cloud, steady, retry(a_cloud, deployment, steady), update)


def link(name: str, target: str) -> bytes:
    """Return an archive of one link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        archive({"../outside": b"out"}),
        archive({"/lastgood-outside": b"out"}),
        link("beacon.py", "../../record.json"),
        archive({"beacon.py": b"x" * 2_000})[:1_500],
        b"no archive at all",
    ],
    ids=["parent", "absolute", "link", "cut-short", "no-archive"],
)
def test_an_archive_that_is_no_honest_one_is_refused(a_cloud: Cloud, steady: Agent, content: bytes) -> None:
    """The update's fault: it failed with one sentence, and nothing was written outside of the spare slot."""
    outside = set(steady.folder.rglob("outside*"))
    update = a_cloud.take(update_of(f"demo/beacon:{new_version()}", content))
    row = failed(a_cloud, a_cloud.deploy(GROUP, update), steady)
    assert (row["reason"], row["party"], row["counted"]) == ("handler_failed", "update", True), row
    assert set(steady.folder.rglob("outside*")) == outside
    assert not Path("/lastgood-outside").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system is mounted for this test: run it as root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m,mode=0755", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_update_and_nothing_else(
    a_cloud: Cloud, first: Update, small_disk: Path
) -> None:
    """Seen before the download, or in the middle of a step: `no_space`, the device's fault; with room it installs."""
    with Agent("small", small_disk, a_cloud.add("small")["small"], "small") as agent:
        install_first(a_cloud, agent, first)
        update = a_cloud.take(beacon(new_version(), padding=os.urandom(6 * MIB)))
        ballast = agent.folder / "ballast"
        ballast.write_bytes(bytes(16 * MIB))
        deployment = a_cloud.deploy(agent.group, update)
        row = failed(a_cloud, deployment, agent)
        assert (row["reason"], row["party"], row["counted"]) == ("no_space", "device", False), row
        assert agent.slots().slots[agent.slots().spare].holds == "empty"  # refused before its first byte
        ballast.unlink()
        until(lambda: retry(a_cloud, deployment, agent), "the retry")
        until(lambda: agent.version() == update.name.rpartition(":")[2], "the new version")

        large = io.BytesIO()  # small on the way, larger than the disk when it is unpacked
        with tarfile.open(fileobj=large, mode="w:gz") as tar:
            member = tarfile.TarInfo("padding")
            member.size = 64 * MIB
            tar.addfile(member, io.BytesIO(bytes(64 * MIB)))
        bomb = a_cloud.take(update_of(f"demo/beacon:{new_version()}", large.getvalue()))
        row = failed(a_cloud, a_cloud.deploy(agent.group, bomb), agent, runs=update)
        assert (row["reason"], row["party"], row["counted"]) == ("no_space", "device", False), row

        small = a_cloud.take(beacon(new_version()))  # half of the bomb does not stay in its way
        a_cloud.deploy(agent.group, small)
        until(lambda: agent.version() == small.name.rpartition(":")[2], "the version after the full disk")


# --- what all of them ask ----------------------------------------------------------------------------------------


def failed(cloud: Cloud, deployment: str, agent: Agent, runs: Update | None = None) -> dict[str, Any]:
    """Wait for a device's failure, and hold the device to what it ran before: slots, application, one sentence."""
    rows = until(lambda: cloud.settled(deployment), "the verdict")
    row: dict[str, Any] = rows[agent.device]
    name = runs.name if runs else f"demo/beacon:{FIRST}"
    assert row["state"] == "failed", row
    assert is_one_sentence(row["detail"]), row["detail"]
    slots = agent.slots()
    assert slots.booted == slots.last_known_good
    assert (slots.running.update, slots.running.holds) == (name, "good")
    assert agent.holds_what_it_runs()
    assert agent.version() == name.rpartition(":")[2]
    assert cloud.get(f"/devices/{agent.device}")["runs"] == name
    assert agent.log.count("connected to the broker") >= 1
    return row


def retry(cloud: Cloud, deployment: str, agent: Agent) -> str:
    """Give the device a new attempt, and return the deployment when it has succeeded."""
    answer = cloud.ask("POST", f"/deployments/{deployment}/retry", json={"devices": [agent.device]})
    # What was the server's fault is tried again by itself, too (R15), and that may have been sooner.
    assert answer.status_code in {200, 409}, answer.text

    def has_succeeded() -> bool:
        return bool(cloud.rows(deployment)[agent.device]["state"] == "succeeded")

    until(has_succeeded, "the retry's success")
    assert cloud.rows(deployment)[agent.device]["attempt"] >= 2
    return deployment


def back_to_the_first(cloud: Cloud, agent: Agent, deployment: str, update: Update) -> None:
    """Hold the device to the update, then bring it back for the next test."""
    assert cloud.tally(deployment)["succeeded"] == 1
    assert agent.version() == update.name.rpartition(":")[2]
    back = cloud.deploy(agent.group, beacon(FIRST), allow_downgrade=True)
    until(lambda: cloud.settled(back), "the way back")
    assert agent.version() == FIRST


def ids(cloud: Cloud) -> list[str]:
    """Return the devices that the cloud knows."""
    return [row["id"] for row in cloud.get("/devices")]


def stored(cloud: Cloud) -> set[Path]:
    """Return the files that the cloud stores."""
    return {path for path in (cloud.data / "files").rglob("*") if path.is_file()}


def refusal_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence with which a command refused."""
    assert done.returncode in {1, 2}, done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("Usage:", "Try ")) and line]
    assert len(lines) == 1, done.stderr
    sentence = re.sub(r"^(lastgood|Error): ", "", lines[0])
    assert is_one_sentence(sentence), sentence
    return sentence


def is_one_sentence(text: str) -> bool:
    """Whether a person can read it at once and knows what to do: one line with an end, an action, no traceback."""
    return (
        "\n" not in text
        and text[-1:] in {".", "`", ")"}
        and 10 < len(text) < 400
        and "Traceback" not in text
        and ACTION.search(text) is not None
    )
