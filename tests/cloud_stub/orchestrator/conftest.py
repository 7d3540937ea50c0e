"""Fixtures of the orchestrator's tests."""

import pytest

from tests.cloud_stub.orchestrator.cloud_bench import Cloud
from tests.cloud_stub.orchestrator.rule_bench import V1, V2, V3


@pytest.fixture
def cloud() -> Cloud:
    """Return a cloud with three versions imported, that has listened long enough to order by itself (R2)."""
    made = Cloud()
    for name in (V1, V2, V3):
        made.update(name)
    made.listen()
    return made
