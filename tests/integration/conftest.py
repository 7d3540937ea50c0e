"""What the tests of whole processes share: a cloud of each engine, and agents that end with their test."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ENGINES, MOSQUITTO_MISSING, Agent, Cloud, has_mosquitto

MakeAgent = Callable[..., Agent]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine of the broker in turn."""
    choice: str = request.param
    if choice == "mosquitto" and not has_mosquitto():
        pytest.skip(MOSQUITTO_MISSING)
    return choice


@pytest.fixture(scope="module")
def cloud(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One cloud for all tests of a module, on each engine."""
    with Cloud(tmp_path_factory.mktemp(engine) / "cloud", engine) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def a_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One cloud for all tests of a module, on the engine that is always there."""
    with Cloud(tmp_path_factory.mktemp("embedded") / "cloud", "embedded") as cloud:
        yield cloud


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[MakeAgent]:
    """Starts agents, which end with the test."""
    with contextlib.ExitStack() as stack:

        def start(device: str, join: str, group: str, **more: Any) -> Agent:
            return stack.enter_context(Agent(device, tmp_path / device, join, group, **more))

        yield start
