"""A systemd unit as the application, and as a check, with a `systemctl` of our own that says what systemd would."""

from pathlib import Path

import pytest

from agent.adapters.application import SystemdUnit
from agent.adapters.health import SystemdCheck
from agent.ports import WorkFailed
from protocol.outcomes import Reason


class Systemctl:
    """A program on PATH: it writes down how it is called, and answers as told."""

    def __init__(self, folder: Path) -> None:
        self.calls_file = folder / "calls"
        self._program = folder / "systemctl"
        self.says("")

    def says(self, text: str, code: int = 0) -> None:
        """Set what it prints, and how it ends."""
        self._program.write_text(
            f"#!/bin/sh\necho \"$@\" >> {self.calls_file}\nprintf '%b' '{text}'\nexit {code}\n"
        )
        self._program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """How it was called, in order."""
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    """Put it first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Systemctl(tmp_path)


def test_a_unit_is_restarted_and_stopped(systemctl: Systemctl, tmp_path: Path) -> None:
    """One restart for each start, and a unit that was stopped has not ended."""
    unit = SystemdUnit("app.service")
    unit.start(tmp_path)
    systemctl.says("ActiveState=active\\nNRestarts=0\\n")
    assert unit.ended() is None
    unit.stop()
    assert unit.ended() is None
    assert systemctl.calls == [
        "restart -- app.service",
        "show --property=ActiveState,NRestarts -- app.service",
        "stop -- app.service",
    ]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("ActiveState=failed\\nNRestarts=0\\n", "The unit app.service is failed."),
        ("ActiveState=inactive\\nNRestarts=0\\n", "The unit app.service is inactive."),
        ("ActiveState=active\\nNRestarts=2\\n", "systemd restarted it (NRestarts=2)"),
        ("ActiveState=activating\\nNRestarts=1\\n", "systemd restarted it (NRestarts=1)"),
    ],
)
def test_a_unit_that_ended_is_noticed(systemctl: Systemctl, tmp_path: Path, told: str, sentence: str) -> None:
    """Also when systemd has started it again by itself: else a trial had starts without end."""
    unit = SystemdUnit("app.service")
    unit.start(tmp_path)
    systemctl.says(told)
    assert sentence in str(unit.ended())


def test_a_unit_that_cannot_be_restarted_is_the_updates_fault(systemctl: Systemctl, tmp_path: Path) -> None:
    """With the last words of systemctl, or without one."""
    systemctl.says("Unit app.service not found.\\n", 5)
    with pytest.raises(WorkFailed, match=r"exit code 5: Unit app\.service not found") as failed:
        SystemdUnit("app.service").start(tmp_path)
    assert failed.value.reason is Reason.HANDLER_FAILED


def test_no_systemctl_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a device that has another init."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkFailed, match="systemctl cannot be run"):
        SystemdUnit("app.service").start(tmp_path)
    assert "systemctl cannot be run" in str(SystemdCheck("unit", "app.service").run())


def test_a_check_of_a_unit(systemctl: Systemctl) -> None:
    """It holds while the unit is active."""
    assert SystemdCheck("unit", "app.service").run() is None
    systemctl.says("failed\\n", 3)
    assert SystemdCheck("unit", "app.service").run() == "The unit app.service is failed."
