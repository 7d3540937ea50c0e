"""A served cloud, and the command line run against it as an operator would."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lastgood
from cloud_stub.api.access import Role
from tests.cloud_stub.api.fakes import DirectService
from tests.cloud_stub.api.server import TOKENS, served


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[DirectService]:
    """Open a service."""
    made = DirectService(tmp_path / "cloud")
    yield made
    made.close()


@pytest.fixture
def data(service: DirectService, tmp_path: Path) -> Iterator[Path]:
    """Serve it, and leave the client's file in a data folder, as `lastgood cloud up` does."""
    with served(service) as at:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "client.json").write_text(json.dumps({"url": at.url, "token": TOKENS[Role.ADMIN]}))
        yield folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process."""
    for name in ("LASTGOOD_URL", "LASTGOOD_TOKEN", "LASTGOOD_DATA"):
        monkeypatch.delenv(name, raising=False)

    def run_it(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = lastgood.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run_it


@pytest.fixture
def ask(run: Run, data: Path) -> Run:
    """Run a command with the data folder of the served cloud."""

    def ask_it(*arguments: str | Path) -> Ran:
        return run(*arguments, "--data", data)

    return ask_it
