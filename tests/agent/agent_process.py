"""An agent in a process of its own, to be killed: the one of `test_runtime.py`, with an order waiting for it.

Started as `python -m tests.agent.agent_process STATE REPOSITORY_URL`. What the cloud would know of outcomes is
appended to STATE/../outcomes, one line each; its process id is in STATE/../agent.pid.
"""

import os
import signal
import sys
from pathlib import Path

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


def main(state: Path, url: str) -> None:
    """Work until SIGTERM."""
    (state.parent / "agent.pid").write_text(str(os.getpid()))
    link = Teller(state.parent / "outcomes")
    link.order = an_app("2.0.0").order(url, epoch=20, deployment="d-20", issued_ms=20)
    agent = Agent(state, Files(url=url), link)
    runtime = agent.runtime()
    signal.signal(signal.SIGTERM, lambda *_: runtime.stop())
    runtime.run(link)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
