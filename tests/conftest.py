"""What every test process needs, however the tests were started."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A run in the background (`make check &`, some CI) begins with Ctrl-C ignored, and every process started from it would
# inherit that; the tests of a clean end on Ctrl-C need the ordinary disposition.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a person has set for the shell is not for the tests, nor for the processes that they start.
os.umask(0o022)
for name in list(os.environ):
    if name.startswith("LASTGOOD_") or name in {
        "FORCE_COLOR",
        "NO_COLOR",
        "COLUMNS",
        "TTY_COMPATIBLE",
        "TTY_INTERACTIVE",
    }:
        del os.environ[name]

# Tests assert behaviour, never wall time: a slow machine is no failure.
settings.register_profile("lastgood", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lastgood")


DESCRIPTORS_MAX = (
    512  # paho waits with `select`, which takes none from 1,024 on: tests that follow would fail
)


@pytest.fixture(autouse=True)
def _no_hoard_of_descriptors() -> Iterator[None]:
    """Name the test after which this process holds too many files open."""
    yield
    held = sum(1 for _ in Path("/proc/self/fd").iterdir())
    assert held <= DESCRIPTORS_MAX, f"{held} descriptors are open: who opens, closes"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: what begins last is waited for by all workers but one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what is imported and collected out of every garbage collection: it stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class Told:
    """Tells a failure at once, in a few lines: a run that is cut off has no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell it."""
        terminal = self._plugins.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else str(report.longrepr)
            terminal.write_line(f"\n{report.nodeid} failed ({report.when}): {why[:1_000]}")


def pytest_configure(config: pytest.Config) -> None:
    """Only where all reports come together, which is not in a worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Told(config))
