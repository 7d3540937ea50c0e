"""Health checks against real servers and commands, and the watch that holds them over the soak."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.adapters.health import CommandCheck, HttpCheck, SystemdCheck, TcpCheck, Watch
from agent.ports import Stopped
from tests.agent.adapters.files_server import serving


def test_a_command_holds_by_its_exit_code(tmp_path: Path) -> None:
    """Zero holds; anything else, a time-out or a missing command is told in a sentence."""
    assert CommandCheck("c", ("true",)).run() is None
    assert "exit code 2: bad" in str(CommandCheck("c", ("/bin/sh", "-c", "echo bad; exit 2")).run())
    assert "did not end within 0.1 s" in str(CommandCheck("c", ("sleep", "600"), timeout_s=0.1).run())
    assert "cannot be run" in str(CommandCheck("c", (str(tmp_path / "none"),)).run())


def test_http_holds_by_its_status() -> None:
    """The wanted status holds; another one, nobody, or an answer that never ends does not."""
    with serving() as files:
        files.held["/health"] = b"x" * 100_000
        assert HttpCheck("h", f"{files.url}/health?x=1").run() is None
        assert HttpCheck("h", f"{files.url}/none", status=404).run() is None
        assert str(HttpCheck("h", f"{files.url}/none").run()).endswith("answered 404, not 200.")
        files.faults, files.cut_at = ["silent"], 10
        assert "did not answer" in str(HttpCheck("h", f"{files.url}/health", timeout_s=0.2).run())
        url = files.url
    assert "did not answer: Connection refused" in str(HttpCheck("h", url).run())


def test_an_answer_byte_by_byte_is_ended() -> None:
    """The time is for the whole answer, not for each byte of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def drip() -> None:
            peer, _ = listener.accept()
            with peer, suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not done.wait(0.05):
                    peer.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        port = listener.getsockname()[1]
        assert "the time was up" in str(HttpCheck("h", f"http://127.0.0.1:{port}/", timeout_s=0.3).run())
        done.set()
        thread.join()


def test_tcp_holds_by_a_connection() -> None:
    """A port that listens holds; one that does not is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert TcpCheck("t", "127.0.0.1", port).run() is None
    assert (
        TcpCheck("t", "127.0.0.1", port).run() == f"127.0.0.1:{port} takes no connection: Connection refused."
    )


def test_a_unit_without_systemd_does_not_hold() -> None:
    """Without systemctl, or with a unit that nobody knows, the check says so."""
    assert SystemdCheck("s", "lastgood-no-such-unit.service").run() is not None


@dataclass
class Scripted:
    """A check that says what it is told to, run by run, and then for ever the last of it."""

    says: list[str | None]
    name: str = "scripted"
    runs: int = field(default=0)

    def run(self) -> str | None:
        """Return the next of its answers."""
        self.runs += 1
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]


def watch(
    check: Scripted,
    until: Callable[[list[str]], bool],
    soak_s: float = 0.3,
    startup_s: float = 60,
    interval_s: float = 0.1,
) -> list[str]:
    """Run a watch until its events satisfy a condition, and return them."""
    events: list[str] = []
    with pytest.raises(Stopped):
        Watch([(check, interval_s)], soak_s, startup_s).run(
            stop=lambda: until(events), held=lambda: events.append("held"), failed=events.append
        )
    return events


def test_the_soak_is_held_once() -> None:
    """A check that holds for the whole soak is told once, and the watch goes on."""
    check = Scripted([None])
    assert watch(check, lambda events: bool(events) and check.runs > 8) == ["held"]


def test_an_application_may_take_a_while_to_come_up() -> None:
    """Failures before the first success are no failures, within the start-up limit."""
    assert watch(Scripted(["no", "no", None]), bool) == ["held"]


def test_a_failure_after_the_first_success_counts() -> None:
    """In the soak any failure is told, and so is one after the soak was held."""
    assert watch(Scripted([None, "gone", None]), bool) == ["Check scripted: gone"]
    check = Scripted([*[None] * 9, "gone", None])
    assert watch(check, lambda events: len(events) == 2) == ["held", "Check scripted: gone"]


def test_a_soak_ends_with_a_look() -> None:
    """Time that passed between two looks proves nothing: a check that no longer holds at the end is told first."""
    assert watch(Scripted([None, "gone"]), bool, interval_s=3_600) == ["Check scripted: gone"]


def test_an_application_that_never_comes_up_fails() -> None:
    """Past the start-up limit a check that never held is told."""
    assert watch(Scripted(["no"]), bool, startup_s=0.3) == ["Check scripted: no"]


def test_without_checks_the_soak_alone_counts() -> None:
    """An application that merely has to stay up."""
    events: list[str] = []
    with pytest.raises(Stopped):
        Watch([], 0.2).run(
            stop=lambda: bool(events), held=lambda: events.append("held"), failed=events.append
        )
    assert events == ["held"]
