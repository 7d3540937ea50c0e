"""The event streams, over a real socket."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from cloud_stub.api.access import Role
from cloud_stub.api.events import INTERVAL_S
from cloud_stub.cli.client import no_authorities
from cloud_stub.core.rows import AssignmentState
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.fakes import DirectService
from tests.cloud_stub.api.server import TOKENS, Served, served

AUTH = {"Authorization": f"Bearer {TOKENS[Role.VIEWER]}"}


def test_a_change_is_heard_and_at_most_four_a_second(service: DirectService) -> None:
    """The stream begins with the counter, tells of changes, and folds a burst into few events."""
    with served(service) as at, _stream(at, "events") as events:
        first = next(events)[1]["counter"]
        started = time.monotonic()
        samples.fleet(service, "north", 30, None)  # some sixty transactions
        seen = [next(events)]
        while seen[-1][1]["counter"] < service._counter:
            seen.append(next(events))
        took_s = time.monotonic() - started
        assert {kind for kind, _ in seen} == {"change"}
        assert seen[-1][1]["counter"] > first
        assert len(seen) <= took_s / INTERVAL_S + 2


def test_a_deployment_is_followed(service: DirectService) -> None:
    """Each event has the whole view; what does not change it is not sent."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    ids = samples.fleet(service, "north", 4, one)
    made = samples.deployed(service, "north", back=None)
    with served(service) as at, _stream(at, f"deployments/{made.id}/events") as events:
        kind, view = next(events)
        assert (kind, view["tally"]["succeeded"]) == ("deployment", 0)
        samples.fleet(service, "elsewhere", 1, None)
        samples.settle(service, made.id, ids, AssignmentState.SUCCEEDED)
        _, view = next(events)
        assert (view["tally"]["succeeded"], view["settled"]) == (4, True)


def test_open_streams_do_not_hold_the_server(service: DirectService) -> None:
    """With streams open the server still ends, for it ends them first: each comes to its own end, not cut off."""
    with served(service) as at:
        client = httpx.Client(headers=AUTH, timeout=90, verify=no_authorities())
        answers = [
            client.send(client.build_request("GET", f"{at.url}/api/v1/events"), stream=True) for _ in range(5)
        ]
        assert {answer.headers["content-type"].partition(";")[0] for answer in answers} == {
            "text/event-stream"
        }
    for answer in answers:
        assert b"counter" in answer.read()
        answer.close()
    client.close()


@contextmanager
def _stream(at: Served, path: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    with httpx.stream(
        "GET", f"{at.url}/api/v1/{path}", headers=AUTH, timeout=90, verify=no_authorities()
    ) as answer:
        assert answer.status_code == 200
        yield _events(answer)


def _events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))
