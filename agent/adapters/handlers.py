"""The handlers of steps: `file`, `archive`, `script`, and those that come in by entry point.

They write into the folder they are given, and nowhere else; which slot that is, they do not know. A handler that a
device has not is refused with `unsupported` before anything is written.
"""

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from agent.adapters import commands
from agent.adapters.archive import ArchiveHandler
from agent.adapters.durable import disk_failure, write_all
from agent.adapters.inside import Inside, Outside, parts_of
from agent.ports import CHUNK_BYTES, Handler, Stop, Stopped, WorkFailed
from protocol.errors import LastgoodError
from protocol.manifest import Manifest
from protocol.outcomes import Reason

ENTRY_POINTS: Final = "lastgood.handlers"
SCRIPT_TIMEOUT_S: Final = 600.0  # a script that hangs must not hang the device
SCRIPT_TIMEOUT_MAX_S: Final = 7_200.0  # what an update may ask for


class FileHandler:
    """Copies the step's files into the slot: `path` names a single one's place, `mode` (octal) its rights."""

    def install(
        self, files: Mapping[str, Path], properties: Mapping[str, object], into: Path, *, stop: Stop
    ) -> None:
        """Copy each file, under its name, or under `path` when the step has one file.

        Raises:
            WorkFailed: `handler_failed`, `no_space` or `disk`.
            Stopped: `stop` said so.
        """
        place, mode = properties.get("path"), _mode(properties.get("mode", "644"))
        if place is not None and (not isinstance(place, str) or len(files) != 1):
            raise _wrong("'path' names the place of exactly one file")
        for name, source in files.items():
            try:
                with (
                    Inside(into) as inside,
                    open(source, "rb", buffering=0) as reader,
                    open(inside.create(parts_of(place or name), mode), "wb", buffering=0) as writer,
                ):
                    while piece := reader.read(CHUNK_BYTES):
                        if stop():
                            raise Stopped
                        write_all(writer.fileno(), piece)
            except Outside as error:
                raise _wrong(f"the place of {name!r} was refused: {error}") from error
            except OSError as error:
                raise disk_failure(error, f"copying {name!r}") from error


class ScriptHandler:
    """Runs a script of the update with the slot's folder as its first argument.

    `scriptFileName` names it when the step has several files, `arguments` (a list, or one text that is split as a shell
    does) follow the folder, `timeoutSeconds` limits it. The other files lie beside it under their names. The script
    has the agent's rights: that it writes into the slot alone is the author's word, not something we can enforce.
    """

    def install(
        self, files: Mapping[str, Path], properties: Mapping[str, object], into: Path, *, stop: Stop
    ) -> None:
        """Run the script to its end.

        Raises:
            WorkFailed: `handler_failed` with exit code and last line, `no_space` or `disk`.
            Stopped: `stop` said so.
        """
        name = _script_name(files, properties)
        arguments = _arguments(properties.get("arguments", []))
        timeout_s = _timeout_s(properties.get("timeoutSeconds", SCRIPT_TIMEOUT_S))
        any_file = next(iter(files.values()))
        try:
            work = Path(tempfile.mkdtemp(prefix="script-", dir=any_file.parent))
        except OSError as error:
            raise disk_failure(error, f"preparing the script {name!r}") from error
        try:
            for each, source in files.items():
                shutil.copyfile(source, work / each)
            os.chmod(work / name, 0o700)
            ended = commands.run(
                [str(work / name), str(into), *arguments],
                timeout_s=timeout_s,
                stop=stop,
                folder=work,
                variables={"LASTGOOD_SLOT": str(into)},
            )
        except (FileNotFoundError, PermissionError) as error:
            raise _wrong(
                f"the script {name!r} cannot be run ({error.strerror}): is its first line an interpreter?"
            ) from error
        except OSError as error:
            if error.errno == 8:  # ENOEXEC
                raise _wrong(
                    f"the script {name!r} cannot be run: its first line names no interpreter"
                ) from error
            raise disk_failure(error, f"running the script {name!r}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if sentence := ended.sentence(f"The script {name!r}", timeout_s):
            raise WorkFailed(Reason.HANDLER_FAILED, sentence)


BUILT_IN: Final[Mapping[str, Callable[[], Handler]]] = {
    "archive": ArchiveHandler,
    "file": FileHandler,
    "script": ScriptHandler,
}


class Handlers:
    """All handlers of this device, by the name that a manifest's step uses."""

    def __init__(self, extra: Mapping[str, Handler] | None = None) -> None:
        self._extra = dict(extra or {})

    @property
    def names(self) -> frozenset[str]:
        """What this device has, so that an update which needs another is refused before a slot is touched."""
        return frozenset({*self._extra, *BUILT_IN, *entry_points(group=ENTRY_POINTS).names})

    def of(self, name: str) -> Handler:
        """Return the handler.

        Raises:
            WorkFailed: `unsupported`; this device has none of that name.
        """
        if name in self._extra:
            return self._extra[name]
        if name in BUILT_IN:
            return BUILT_IN[name]()
        for point in entry_points(group=ENTRY_POINTS, name=name):
            try:
                handler: Handler = point.load()()
            except (ImportError, AttributeError, TypeError) as error:
                raise WorkFailed(
                    Reason.UNSUPPORTED, f"The handler {name!r} is installed, and cannot be loaded: {error}."
                ) from error
            return handler
        raise WorkFailed(
            Reason.UNSUPPORTED,
            f"The update asks for the handler {name!r}, which this device has not; "
            f"it has {', '.join(sorted(self.names))}.",
        )

    def install(self, manifest: Manifest, folder: Path, into: Path, *, stop: Stop) -> None:
        """Carry out all steps in order; `folder` holds the files, each named by its sha256.

        Raises:
            WorkFailed: a step failed, and the sentence says which.
            Stopped: `stop` said so.
        """
        chosen = [(step, self.of(step.handler_name)) for step in manifest.steps]
        for step, handler in chosen:
            if stop():
                raise Stopped
            files = {name: folder / manifest.files[name].sha256 for name in step.files}
            try:
                handler.install(files, step.handlerProperties, into, stop=stop)
            except (LastgoodError, Stopped):
                raise
            except OSError as error:
                raise disk_failure(error, f"the handler {step.handler_name!r}") from error
            except (
                Exception
            ) as error:  # a handler from elsewhere, or a parser on a hostile file: the update's fault
                raise WorkFailed(
                    Reason.HANDLER_FAILED,
                    f"The handler {step.handler_name!r} broke on the update ({type(error).__name__}: {error}). "
                    "Mend the update or the handler.",
                ) from error


def _script_name(files: Mapping[str, Path], properties: Mapping[str, object]) -> str:
    name = properties.get("scriptFileName", next(iter(files)) if len(files) == 1 else None)
    if not isinstance(name, str) or name not in files:
        raise _wrong("'scriptFileName' has to name the one of the step's files that is run")
    return name


def _arguments(value: object) -> list[str]:
    try:
        if isinstance(value, str):
            return shlex.split(value)
    except ValueError as error:
        raise _wrong(f"'arguments' cannot be split: {error}") from error
    if isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value):
        return value
    raise _wrong("'arguments' is neither a text nor a list of texts")


def _timeout_s(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= SCRIPT_TIMEOUT_MAX_S:
        raise _wrong(f"'timeoutSeconds' is not a number above 0 and up to {SCRIPT_TIMEOUT_MAX_S:g}")
    return float(value)


def _mode(value: object) -> int:
    try:
        if isinstance(value, str):
            return int(value, 8) & 0o777 | 0o400
    except ValueError:
        pass
    raise _wrong("'mode' is not an octal number in quotes, such as \"755\"")


def _wrong(why: str) -> WorkFailed:
    return WorkFailed(
        Reason.HANDLER_FAILED, f"A step of the update cannot be carried out: {why}. Mend the manifest."
    )
