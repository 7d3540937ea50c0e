"""A store in memory and one on disk: the same tests hold both."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_stub.adapters.store import SqlStore, open_store


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    """An empty store."""
    opened = open_store("sqlite://" if request.param == "memory" else tmp_path / "store.db")
    yield opened
    opened.close()
