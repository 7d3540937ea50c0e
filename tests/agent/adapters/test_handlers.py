"""The handlers `file` and `script`, and the registry, on real folders and processes."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.adapters import commands
from agent.adapters.handlers import FileHandler, Handlers, ScriptHandler
from agent.ports import Stop, Stopped, WorkFailed
from protocol.outcomes import Reason
from tests.agent.adapters.updates import an_update
from tests.waiting import DEADLINE_S, until


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """An empty slot."""
    (tmp_path / "slot").mkdir()
    return tmp_path / "slot"


def script(slot: Path, text: str, stop: Stop = lambda: False, **properties: object) -> None:
    """Run a script of an update."""
    path = slot.parent / "fetched"
    path.write_text(text)
    ScriptHandler().install({"install.sh": path}, properties, slot, stop=stop)


def test_a_file_is_copied_to_its_place(slot: Path, tmp_path: Path) -> None:
    """`path` and `mode` are heeded; without them the file keeps its name."""
    source = tmp_path / "fetched"
    source.write_bytes(b"tool")
    FileHandler().install(
        {"tool": source}, {"path": "usr/bin/tool", "mode": "4755"}, slot, stop=lambda: False
    )
    FileHandler().install({"tool": source}, {}, slot, stop=lambda: False)
    assert (slot / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (slot / "tool").read_bytes() == b"tool"


@pytest.mark.parametrize(
    "properties",
    [
        {"path": "../x"},
        {"path": "/x"},
        {"path": 3},
        {"path": "l/x"},
        {"mode": "rwx"},
        {"mode": 755},
        {"path": "."},
    ],
)
def test_a_file_never_leaves_the_slot(slot: Path, tmp_path: Path, properties: Mapping[str, object]) -> None:
    """A place outside, behind a link, or none at all is refused by the update's fault."""
    source = tmp_path / "fetched"
    source.write_bytes(b"x")
    (slot / "l").symlink_to(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WorkFailed, match="Mend the manifest") as failed:
        FileHandler().install({"x": source}, properties, slot, stop=lambda: False)
    assert failed.value.reason is Reason.HANDLER_FAILED
    assert sorted(tmp_path.iterdir()) == before


def test_a_script_gets_the_slot_and_its_arguments(slot: Path) -> None:
    """The slot's folder comes first, and the script's own files lie beside it."""
    script(
        slot, '#!/bin/sh\necho "$2-$3 $LASTGOOD_SLOT" > "$1/made"; ls > "$1/beside"\n', arguments="a 'b c'"
    )
    assert (slot / "made").read_text() == f"a-b c {slot}\n"
    assert (slot / "beside").read_text() == "install.sh\n"
    assert [path.name for path in slot.parent.iterdir() if path.name.startswith("script-")] == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("#!/bin/sh\necho first; echo the reason >&2; exit 3\n", "ended with exit code 3: the reason."),
        ("#!/bin/sh\nkill -9 $$\n", "was ended by SIGKILL."),
        ("#!/nonexistent\n", "is its first line an interpreter?"),
        ("no interpreter\n", "interpreter"),
    ],
)
def test_a_script_that_fails_says_how(slot: Path, text: str, sentence: str) -> None:
    """Exit code or signal, and the last line that it wrote."""
    with pytest.raises(WorkFailed) as failed:
        script(slot, text)
    assert failed.value.reason is Reason.HANDLER_FAILED
    assert sentence in str(failed.value)


def test_a_script_that_hangs_is_ended_with_its_children(slot: Path) -> None:
    """Its time is limited, and nothing it started is left behind."""
    with pytest.raises(WorkFailed, match=r"did not end within 5 s"):
        script(slot, '#!/bin/sh\nsleep 600 & echo $! > "$1/pid"; wait\n', timeoutSeconds=5)
    until(lambda: not _lives(int((slot / "pid").read_text())), "the end of the script's child")


def test_a_script_can_be_stopped(slot: Path) -> None:
    """`stop` is heard while the script is silent."""
    stop = threading.Event()
    ended: list[str] = []

    def work() -> None:
        with pytest.raises(Stopped):
            script(slot, '#!/bin/sh\ntouch "$1/begun"; sleep 600\n', stop=stop.is_set)
        ended.append("stopped")

    thread = threading.Thread(target=work)
    thread.start()
    until((slot / "begun").exists, "the script")
    stop.set()
    thread.join(DEADLINE_S)
    assert ended == ["stopped"]


def test_output_is_bounded() -> None:
    """A command that writes for ever costs no memory, and its end is kept."""
    ended = commands.run(["/bin/sh", "-c", "yes | head -c 3000000; echo last"], timeout_s=200)
    assert ended.code == 0
    assert len(ended.output) <= commands.OUTPUT_BYTES_MAX
    assert ended.last_line == "last"


@pytest.mark.parametrize(
    "properties",
    [
        {"scriptFileName": "other"},
        {"arguments": 3},
        {"arguments": "'"},
        {"timeoutSeconds": 0},
        {"timeoutSeconds": 1e9},
    ],
)
def test_a_script_step_that_says_nonsense_is_refused(slot: Path, properties: dict[str, object]) -> None:
    """Each property is checked before anything runs."""
    with pytest.raises(WorkFailed, match="Mend the manifest"):
        script(slot, "#!/bin/sh\n", lambda: False, **properties)


def test_an_unknown_handler_is_unsupported_before_anything_is_written(slot: Path) -> None:
    """All handlers of all steps are looked up first."""
    steps = [{"handler": "file", "files": ["payload.txt"]}, {"handler": "contoso/flash:1", "files": []}]
    update = an_update(steps=steps)
    with pytest.raises(WorkFailed, match="'flash'") as failed:
        Handlers().install(update.read, slot.parent, slot, stop=lambda: False)
    assert failed.value.reason is Reason.UNSUPPORTED
    assert list(slot.iterdir()) == []


def test_a_handler_that_breaks_is_the_updates_fault(slot: Path) -> None:
    """Whatever a handler from elsewhere raises is told with its name, and never booked as the device's disk."""

    class Broken:
        def install(
            self, files: Mapping[str, Path], properties: Mapping[str, object], into: Path, *, stop: Stop
        ) -> None:
            raise RecursionError("too deep")

    update = an_update(steps=[{"handler": "x/broken:1", "files": ["payload.txt"]}])
    with pytest.raises(WorkFailed, match="'broken' broke on the update") as failed:
        Handlers({"broken": Broken()}).install(update.read, slot.parent, slot, stop=lambda: False)
    assert failed.value.reason is Reason.HANDLER_FAILED


def test_steps_run_in_order_with_their_files(slot: Path) -> None:
    """Each step gets its own files by name, from a folder where they are named by sha256."""
    seen: list[tuple[str, list[str]]] = []

    class Recorder:
        def install(
            self, files: Mapping[str, Path], properties: Mapping[str, object], into: Path, *, stop: Stop
        ) -> None:
            seen.append((str(properties["n"]), [f"{name}={path.name}" for name, path in files.items()]))

    update = an_update(
        files={"a": b"a", "b": b"b"},
        steps=[
            {"handler": "x/rec:1", "files": ["b"], "handlerProperties": {"n": 1}},
            {"handler": "rec", "files": ["a"], "handlerProperties": {"n": 2}},
        ],
    )
    Handlers({"rec": Recorder()}).install(update.read, slot.parent, slot, stop=lambda: False)
    files = update.read.files
    assert seen == [("1", [f"b={files['b'].sha256}"]), ("2", [f"a={files['a'].sha256}"])]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ProcessLookupError):
        return False
