"""An agent in a process of its own, to be killed: the one of `test_runtime.py`, with an order waiting for it.

Started as `python -m tests.agent.agent_process STATE REPOSITORY_URL [RENAME]`. What the cloud would know of outcomes is
appended to STATE/../outcomes, one line each. With RENAME it is killed with SIGKILL just before so many renames: Python
announces each of them (an audit event), whichever thread asks for it.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from protocol.messages import State, read
from protocol.topics import Kind
from tests.agent.adapters.files_server import Files
from tests.agent.fake_link import FakeLink
from tests.agent.test_runtime import Agent, an_app


class Teller(FakeLink):
    """Writes down what the cloud is told, as soon as it is told."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def publish(self, kind: Kind, payload: bytes) -> None:
        """Write outcomes down, and answer."""
        if kind is Kind.STATE:
            with self._path.open("a") as file:
                for each in read(State, payload).outcomes:
                    file.write(f"{each.epoch} {each.result} {each.reason or ''}\n")
        if kind is Kind.HELLO:
            (self._path.parent / "hellos").touch()
        super().publish(kind, payload)


def die_at(rename: int) -> None:
    """Be killed just before so many renames from now: each durable step of record and slots is one."""
    left = count(rename, -1)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and not str(arguments[1]).endswith(".pyc") and next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def main(state: Path, url: str) -> None:
    """Work until SIGTERM."""
    link = Teller(state.parent / "outcomes")
    link.order = an_app("2.0.0").order(url, epoch=20, deployment="d-20", issued_ms=20)
    agent = Agent(state, Files(url=url), link)
    runtime = agent.runtime()
    signal.signal(signal.SIGTERM, lambda *_: runtime.stop())
    runtime.run(link)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        die_at(int(sys.argv[3]))
    main(Path(sys.argv[1]), sys.argv[2])
