"""The signed assignment as the authority for the manifest, over real HTTP."""

from collections.abc import Iterator

import pytest

from agent.adapters.download import HttpFetcher
from agent.adapters.trust import SignedAssignmentTrust
from agent.ports import WorkFailed
from protocol.messages import Repository
from protocol.outcomes import Reason
from tests.agent.adapters.files_server import Files, serving
from tests.agent.adapters.updates import an_update


@pytest.fixture
def files() -> Iterator[Files]:
    """A repository with one update."""
    with serving() as files:
        files.add(an_update())
        yield files


def manifest(files: Files, **changes: object) -> bytes:
    """Ask for the manifest of an order."""
    return SignedAssignmentTrust(HttpFetcher()).manifest_of(an_update().order(files.url, **changes))


def test_the_manifest_that_the_order_names_is_returned(files: Files) -> None:
    """Its bytes, exactly, from the path that the order names."""
    assert manifest(files) == an_update().manifest
    assert files.asked == [("/manifests/contoso/app/1.0.0.json", None)]


def test_another_manifest_under_that_path_is_refused(files: Files) -> None:
    """A repository that serves other bytes, of whatever length, is not believed."""
    path = "/manifests/contoso/app/1.0.0.json"
    for data in (
        an_update().manifest[:-1] + b" ",
        an_update().manifest + b" ",
        an_update().manifest[:-1],
        b"",
    ):
        files.held[path] = data
        with pytest.raises(WorkFailed) as failed:
            manifest(files)
        assert failed.value.reason is Reason.VERIFY_FAILED


@pytest.mark.parametrize(
    ("fault", "transient", "refresh"),
    [
        ("404", False, True),
        ("403", False, True),
        ("500", True, False),
        ("429", True, False),
        ("400", False, False),
    ],
)
def test_each_refusal_has_its_reason(files: Files, fault: str, transient: bool, refresh: bool) -> None:
    """The server's fault, with what may help."""
    files.faults = [fault]
    with pytest.raises(WorkFailed) as failed:
        manifest(files)
    got = (failed.value.reason, failed.value.transient, failed.value.refresh)
    assert got == (Reason.SERVER, transient, refresh)


def test_nobody_listens(files: Files) -> None:
    """The network's fault, and transient."""
    with serving() as gone:
        url = gone.url
    with pytest.raises(WorkFailed) as failed:
        manifest(files, repository=Repository(url=url))
    assert (failed.value.reason, failed.value.transient) == (Reason.NETWORK, True)


def test_an_order_without_a_target_leads_nowhere(files: Files) -> None:
    """A hold names no manifest."""
    with pytest.raises(WorkFailed, match="names no manifest"):
        manifest(files, action="hold", target=None)
