"""The API: devices, groups, updates, deployments, and how it refuses."""

from typing import Any

import pytest
from fastapi import FastAPI

from cloud_stub.core.rows import AssignmentState, DeviceRow
from protocol.outcomes import Party, Reason
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.conftest import Caller, client_of
from tests.cloud_stub.api.fakes import DirectService

API = "/api/v1"
POLICY: dict[str, Any] = {"failed_percent": 10, "failed_count": 5, "rollback_to": [samples.ONE]}


def test_health_needs_no_token_and_tells_the_truth(app: FastAPI, service: DirectService) -> None:
    """It is 200 while the broker runs, and 503 when it does not."""
    assert client_of(app, None).get(f"{API}/health").json() == {"ok": True, "broker_alive": True}
    service.broker.stop()
    assert client_of(app, None).get(f"{API}/health").status_code == 503


def test_there_is_an_openapi_document_and_no_docs_page(app: FastAPI) -> None:
    """The description is served here; the page that would load scripts from elsewhere is off."""
    nobody = client_of(app, None)
    assert "/api/v1/deployments/plan" in nobody.get(f"{API}/openapi.json").json()["paths"]
    assert nobody.get("/docs").status_code == 404


def test_a_new_device_gets_its_token_once(admin: Caller, service: DirectService) -> None:
    """The answer has the token and the line to run; no view has either, and the store has the hash alone."""
    answer = admin.post(f"{API}/devices", json={"ids": ["pump-1", "pump-2", "pump-1"]})
    assert answer.status_code == 201
    assert [row["device"] for row in answer.json()] == ["pump-1", "pump-2"]
    token = answer.json()[0]["token"]
    assert token in answer.json()[0]["join"]
    with service.read() as reader:
        row = reader.device("pump-1")
    assert row is not None
    assert row.password_hash == f"hash of {token}"
    for path in ("devices", "devices/pump-1", "audit"):
        text = admin.get(f"{API}/{path}").text
        assert "hash of" not in text
        assert f'"{token}"' not in text


def test_a_known_device_keeps_its_token(admin: Caller, service: DirectService) -> None:
    """Adding it again is a conflict, and changes nothing; `renew` makes a new one."""
    admin.post(f"{API}/devices", json={"ids": ["pump-1"]})
    again = admin.post(f"{API}/devices", json={"ids": ["pump-0", "pump-1"]})
    assert again.status_code == 409
    assert "--renew" in again.json()["error"]
    with service.read() as reader:
        assert reader.device("pump-0") is None
    assert admin.post(f"{API}/devices", json={"ids": ["pump-1"], "renew": True}).status_code == 201


@pytest.mark.parametrize("device", ["all", "a/b", "", "-x", "ü", "x" * 65])
def test_a_wrong_device_id_is_refused(admin: Caller, device: str) -> None:
    """One sentence says which characters an id has."""
    answer = admin.post(f"{API}/devices", json={"ids": [device]})
    assert answer.status_code == 400
    assert "is not a device id" in answer.json()["error"]


def test_devices_are_listed_by_group_and_by_page(admin: Caller, service: DirectService) -> None:
    """A page begins behind the last id of the one before."""
    samples.fleet(service, "north", 5, None)
    samples.fleet(service, "south", 2, None)
    first = admin.get(f"{API}/devices", params={"group": "north", "limit": 3}).json()
    rest = admin.get(f"{API}/devices", params={"group": "north", "limit": 3, "after": first[-1]["id"]}).json()
    assert [row["id"] for row in first + rest] == [f"north-{number:03}" for number in range(1, 6)]
    assert {row["group_from"] for row in first} == {"override"}


def test_a_device_shows_slots_history_and_why(admin: Caller, service: DirectService) -> None:
    """Both slots with their marks, its assignments, and a first sentence of `why` that names the deployment."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    samples.fleet(service, "north", 1, one)
    made = samples.deployed(service, "north", back=None)
    row = admin.get(f"{API}/devices/north-001").json()
    assert [
        (slot["name"], slot["holds"], slot["booted"], slot["last_known_good"]) for slot in row["slots"]
    ] == [
        ("A", "good", True, True),
        ("B", "empty", False, False),
    ]
    assert [(a["deployment"], a["update"], a["state"]) for a in row["assignments"]] == [
        (made.id, samples.TWO, "pending")
    ]
    assert made.id in admin.get(f"{API}/devices/north-001/why").json()["why"][0]


@pytest.mark.parametrize(
    "path",
    ["devices/no", "devices/no/why", "groups/no", "updates/a/b/1", "deployments/d9", "deployments/d9/devices",
     "deployments/d9/events", "nothing"],
)  # fmt: skip
def test_what_is_not_there_is_404(admin: Caller, path: str) -> None:
    """With one sentence."""
    answer = admin.get(f"{API}/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"].endswith(".")


def test_a_device_moves_and_goes_back_to_its_tag(admin: Caller, service: DirectService) -> None:
    """The override wins until it is taken away."""
    samples.fleet(service, "north", 1, None)
    assert admin.put(f"{API}/devices/north-001/group", json={"group": "south"}).json()["group"] == "south"
    back = admin.put(f"{API}/devices/north-001/group", json={"group": None}).json()
    assert (back["group"], back["group_from"]) == ("$default", "default")
    assert admin.put(f"{API}/devices/north-001/group", json={"group": "no/group"}).status_code == 400
    assert admin.put(f"{API}/devices/no/group", json={"group": "south"}).status_code == 404


def test_a_group_shows_what_it_runs(admin: Caller, service: DirectService) -> None:
    """Members, classes and the active deployment; a group that only has a deployment is there too."""
    one = samples.imported(service, "1.0")
    samples.fleet(service, "north", 4, one)
    samples.deployed(service, "south", samples.ONE, back=None)
    north = admin.get(f"{API}/groups/north").json()
    assert [(run["update"], run["count"]) for run in north["runs"]] == [(samples.ONE, 4)]
    assert north["classes"][0]["members"] == 4
    assert admin.get(f"{API}/groups/south").json()["offers"] == [samples.ONE]


def test_the_plan_is_what_is_created(admin: Caller, service: DirectService) -> None:
    """The plan has the arithmetic; a changed plan is a conflict; the same one is created."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    samples.fleet(service, "north", 20, one)
    draft = {"group": "north", "updates": [samples.TWO], "policy": POLICY}
    plan = admin.post(f"{API}/deployments/plan", json=draft).json()
    assert (plan["to_update"], plan["failures_needed"]) == (20, 5)
    stale = admin.post(f"{API}/deployments", json={"draft": draft, "plan_digest": "another"})
    assert stale.status_code == 409
    assert "plan" in stale.json()["error"]
    made = admin.post(f"{API}/deployments", json={"draft": draft, "plan_digest": plan["digest"]})
    assert made.status_code == 201
    assert made.json()["policy"]["sentence"] == "0 of 20 failed (0.0 %); goes back at 5."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": {"failed_percent": 10, "rollback_to": ["a/b:1"]}}, "The policy lacks failed_count"),
        ({"policy": {"failed_percent": 10, "failed_count": 5}}, "The policy lacks rollback_to"),
        ({"policy": {**POLICY, "failed_percent": "ten"}}, "policy.failed_percent is not valid"),
        ({"policy": {**POLICY, "failed_percent": 0}}, "failed_percent is 0; it must be from 1 to 100"),
        ({"policy": {**POLICY, "wait": 3}}, "policy.wait that nothing reads"),
        ({"policy": {**POLICY, "rollback_to": ["acme/pump:9"]}}, "acme/pump:9 is not imported"),
        ({"policy": {**POLICY, "rollback_to": ["acme/pump:2.0"]}}, "the update itself"),
        ({"updates": []}, "updates is not valid"),
        ({"updates": ["acme/pump:9"]}, "acme/pump:9 is not imported"),
        ({"group": "no/group"}, "cannot name a group"),
        ({"retries": 99}, "retries is 99"),
        ({"start_at_ms": -1}, "start_at_ms is not valid"),
        ({"start_at_ms": 2**53 - 1}, "start_at_ms is not valid"),
        ({"wave": 1}, "a field wave that nothing reads"),
    ],
)
def test_a_draft_that_cannot_be_is_refused_in_one_sentence(
    admin: Caller, service: DirectService, changes: dict[str, Any], said: str
) -> None:
    """Both by the plan and at the creation, and nothing is created."""
    samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    draft = {"group": "north", "updates": [samples.TWO], "policy": POLICY, **changes}
    for path, body in (("deployments/plan", draft), ("deployments", {"draft": draft})):
        answer = admin.post(f"{API}/{path}", json=body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert admin.get(f"{API}/deployments").json() == []


def test_what_is_no_json_is_refused_in_one_sentence(admin: Caller) -> None:
    """Also a list where an object belongs."""
    for content in (b"{", b"[]", b"\xff"):
        answer = admin.post(f"{API}/deployments/plan", content=content)
        assert answer.status_code == 400
        assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("deployments/plan", rb'{"group": "north", "updates": ["\ud800"]}'),
        ("deployments/plan", rb'{"group": "\ud800", "updates": ["a/b:1"]}'),
        ("devices", rb'{"ids": ["\ud800"]}'),
        ("updates/acme/app/1.0.0/withdraw", rb'{"why": "\ud800"}'),
        ("deployments/plan", rb'{"\ud800": 1}'),
    ],
)
def test_half_a_letter_is_refused(admin: Caller, path: str, body: bytes) -> None:
    """JSON can write what no text holds; it is refused as the caller's mistake, in one sentence."""
    answer = admin.post(f"{API}/{path}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 404}, answer.text
    assert answer.json()["error"]


def test_a_deployment_shows_numbers_and_whose_fault(admin: Caller, service: DirectService) -> None:
    """Failures of the update count in the sentence; those of the network are shown, and do not."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    ids = samples.fleet(service, "north", 120, one)
    made = samples.deployed(service, "north")
    failed = AssignmentState.FAILED
    samples.settle(service, made.id, ids[:4], failed, reason=Reason.HEALTH_FAILED, party=Party.UPDATE)
    samples.settle(service, made.id, ids[4:6], failed, reason=Reason.NETWORK, party=Party.NETWORK)
    row = admin.get(f"{API}/deployments/{made.id}").json()
    assert row["policy"]["sentence"] == "4 of 120 failed (3.3 %); goes back at 12."
    assert [(found["reason"], found["count"], found["counted"]) for found in row["failures"]] == [
        ("health_failed", 4, 4),
        ("network", 2, 0),
    ]
    assert row["failures"][1]["fault"] == "the network's: not counted"
    listed = admin.get(f"{API}/deployments/{made.id}/devices", params={"state": "failed", "limit": 4}).json()
    assert [found["device"] for found in listed] == ids[:4]


def test_a_deployment_is_settled_when_every_member_has_a_verdict(
    admin: Caller, service: DirectService
) -> None:
    """And no earlier, also when a member's order is still to be written."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    ids = samples.fleet(service, "north", 3, one)
    made = samples.deployed(service, "north")
    samples.settle(service, made.id, ids, AssignmentState.SUCCEEDED)
    row = admin.get(f"{API}/deployments/{made.id}").json()
    assert (row["settled"], row["headline"]) == (True, "Settled: 3 devices run it.")
    samples.settle(service, made.id, ids[:1], AssignmentState.WORKING)
    assert admin.get(f"{API}/deployments/{made.id}").json()["settled"] is False
    samples.settle(service, made.id, ids[:1], AssignmentState.SUCCEEDED)
    with service.rows() as unit:
        unit.put_device(DeviceRow("newcomer", 0, group="north", group_override="north"))
    row = admin.get(f"{API}/deployments/{made.id}").json()
    assert (row["settled"], row["headline"]) == (False, "3 devices run it, 1 not begun.")


def test_cancel_and_retry(admin: Caller, service: DirectService) -> None:
    """Retry gives failed devices a new attempt; cancel is final, and a second one is a conflict."""
    one = samples.imported(service, "1.0")
    samples.imported(service, "2.0")
    ids = samples.fleet(service, "north", 4, one)
    made = samples.deployed(service, "north", back=None)
    samples.settle(
        service, made.id, ids[:2], AssignmentState.FAILED, reason=Reason.NETWORK, party=Party.NETWORK
    )
    path = f"{API}/deployments/{made.id}"
    assert admin.post(f"{path}/retry", json={"devices": [ids[3]]}).status_code == 409
    assert admin.post(f"{path}/retry", json={"devices": [ids[0]]}).json() == {"retried": 1}
    assert admin.post(f"{path}/retry").json() == {"retried": 1}
    assert admin.post(f"{path}/cancel").json()["state"] == "canceled"
    assert admin.post(f"{path}/cancel").status_code == 409
    assert admin.post(f"{path}/retry").status_code == 409


def test_a_withdrawn_update_says_why(admin: Caller, service: DirectService) -> None:
    """It is listed as withdrawn; a second time is a conflict; deploying it asks for the explicit word."""
    samples.imported(service, "1.0")
    path = f"{API}/updates/acme/pump/1.0/withdraw"
    assert admin.post(path, json={}).status_code == 400
    assert admin.post(path, json={"why": "it eats batteries"}).json()["withdrawn_why"] == "it eats batteries"
    assert admin.post(path, json={"why": "again"}).status_code == 409
    refused = admin.post(f"{API}/deployments/plan", json={"group": "north", "updates": [samples.ONE]})
    assert "it eats batteries" in refused.json()["error"]


def test_the_audit_log_names_who(admin: Caller, service: DirectService) -> None:
    """Every change bears the name of the token that made it."""
    admin.post(f"{API}/devices", json={"ids": ["pump-1"]})
    row = admin.get(f"{API}/audit", params={"about": "pump-1"}).json()[0]
    assert row["who"].startswith("admin token ")


def test_the_overview_raises_a_broker_that_is_down(admin: Caller, service: DirectService) -> None:
    """An alert says so in a sentence."""
    service.broker.stop()
    alerts = admin.get(f"{API}/overview").json()["alerts"]
    assert alerts[0]["kind"] == "broker"


def test_the_overview_raises_a_restored_store(admin: Caller, service: DirectService) -> None:
    """R2: an old backup is named, with the command that goes on, which works once."""
    assert admin.post(f"{API}/restored/resume").status_code == 409
    with service.rows() as unit:
        unit.put_note("restored", "1")
    assert "lastgood deploy resume" in admin.get(f"{API}/overview").json()["alerts"][0]["sentence"]
    assert admin.post(f"{API}/restored/resume").json() == {"resumed": 0}
