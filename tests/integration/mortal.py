"""Runs `lastgood` in a process that can be made to die at a chosen step: `mortal.py FOLDER WORDS…`.

It changes nothing of what the program does: Python itself announces renames, removals, links and started programs just
before they happen (audit events), and this file listens. What was announced is written to FOLDER/journal; when the step
that FOLDER/die names comes, the process is killed with SIGKILL before the step is done. A step is named by what is done
to which file while the agent's record says which state, and by how often that has been before: `rename record.json
ready 1`; names that differ from update to update (`A.seal`, a sha256) stand there by what they are (`SLOT.seal`,
`FILE`). A new content of FOLDER/die or FOLDER/journal removed starts the counting anew.
"""

import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

STEPS = {"os.rename": 1, "os.symlink": 1, "os.remove": 0, "shutil.rmtree": 0}  # where the path stands
NAMES = ((re.compile(r"^[0-9a-f]{64}"), "FILE"), (re.compile(r"^[AB](?=\.|$)"), "SLOT"))


class Mortal:
    """Hears what is about to be done, from any thread."""

    def __init__(self, folder: Path) -> None:
        self._die = folder / "die"
        self._journal = folder / "journal"
        self._state = "idle"
        self._seen: Counter[str] = Counter()
        self._wanted = ""
        self._lock = threading.RLock()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of a step; end here if it is the one."""
        if event in STEPS:
            path = str(arguments[STEPS[event]])
            with self._lock:
                if path.endswith("/record.json"):
                    self._state = _state_in(str(arguments[0]))
                self._step(f"{event.partition('.')[2]} {_name_of(path)}")
        elif event == "subprocess.Popen":
            with self._lock:
                self._step("start application")

    def _step(self, what: str) -> None:
        wanted = self._die.read_text() if self._die.exists() else ""
        if wanted != self._wanted or not self._journal.exists():
            self._wanted = wanted
            self._seen.clear()
        name = f"{what} {self._state}"
        self._seen[name] += 1
        step = f"{name} {self._seen[name]}"
        with self._journal.open("a") as journal:
            journal.write(step + "\n")
        if step == wanted:
            os.kill(os.getpid(), signal.SIGKILL)


def _name_of(path: str) -> str:
    name = Path(path).name.removesuffix(".new")
    for pattern, word in NAMES:
        name = pattern.sub(word, name)
    return name


def _state_in(path: str) -> str:
    return str(json.loads(Path(path).read_bytes())["workflow"]["state"])


if __name__ == "__main__":
    sys.addaudithook(Mortal(Path(sys.argv[1])))
    from lastgood import main

    main(sys.argv[2:])
