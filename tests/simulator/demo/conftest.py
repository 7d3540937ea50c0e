"""Where the demos of these tests are played."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def spool() -> Iterator[Path]:
    """Where the demo makes its folder: a short path, for a socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ends-", dir="/tmp") as folder:
        yield Path(folder)
