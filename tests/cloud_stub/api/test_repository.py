"""The repository for devices: signed addresses, ranges, and names that are the content's hash."""

from hashlib import sha256

import pytest
from fastapi import FastAPI

from tests.cloud_stub.api import samples
from tests.cloud_stub.api.conftest import Caller, client_of
from tests.cloud_stub.api.fakes import DirectService

PAYLOAD = samples.payload("1.0")
DIGEST = sha256(PAYLOAD).hexdigest()


@pytest.fixture
def device(app: FastAPI, service: DirectService) -> Caller:
    """Return a caller without a token, as devices are, with an update imported."""
    samples.imported(service, "1.0")
    return client_of(app, None)


def test_the_manifest_comes_as_it_was_imported(device: Caller, service: DirectService) -> None:
    """To the byte, since its sha256 is the update's identity."""
    answer = device.get(f"/repo/manifests/acme/pump/1.0.json?{service.query()}")
    assert answer.content == samples.manifest("1.0")
    assert answer.headers["ETag"] == f'"{sha256(answer.content).hexdigest()}"'


@pytest.mark.parametrize("path", [f"files/{DIGEST}", "manifests/acme/pump/1.0.json"])
def test_an_address_is_signed_and_expires(device: Caller, service: DirectService, path: str) -> None:
    """Without a query, with a changed one, or past its instant: 403, for what exists and what does not alike."""
    good = service.query()
    assert device.get(f"/repo/{path}?{good}").status_code == 200
    for query in (
        "",
        good.replace("d=tester", "d=other"),
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        "e=x&s=ü",
    ):
        assert device.get(f"/repo/{path}?{query}").status_code == 403
        assert device.get(f"/repo/{path.replace('1.0', '9.9')[:-1]}n?{query}").status_code == 403
    service.ahead_ms = 61_000
    assert "expired" in device.get(f"/repo/{path}?{good}").json()["error"]


@pytest.mark.parametrize("name", [DIGEST.upper(), "0" * 64, "../../cloud.db", "..%2f..%2fcloud.db", "x"])
def test_only_stored_hashes_are_names(device: Caller, service: DirectService, name: str) -> None:
    """Whatever else is asked for, there is nothing."""
    assert device.get(f"/repo/files/{name}?{service.query()}").status_code == 404


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-", 206, PAYLOAD, f"bytes 0-{len(PAYLOAD) - 1}/{len(PAYLOAD)}"),
        ("bytes=10-19", 206, PAYLOAD[10:20], f"bytes 10-19/{len(PAYLOAD)}"),
        ("bytes=7000-", 206, PAYLOAD[7000:], f"bytes 7000-{len(PAYLOAD) - 1}/{len(PAYLOAD)}"),
        ("bytes=-5", 206, PAYLOAD[-5:], f"bytes {len(PAYLOAD) - 5}-{len(PAYLOAD) - 1}/{len(PAYLOAD)}"),
        ("bytes=0-99999999", 206, PAYLOAD, f"bytes 0-{len(PAYLOAD) - 1}/{len(PAYLOAD)}"),
        (f"bytes={len(PAYLOAD)}-", 416, None, f"bytes */{len(PAYLOAD)}"),
        ("bytes=99999999-", 416, None, f"bytes */{len(PAYLOAD)}"),
        ("lines=1-2", 200, PAYLOAD, None),
        ("bytes=one-two", 200, PAYLOAD, None),
        ("rubbish", 200, PAYLOAD, None),
    ],
)
def test_ranges(
    device: Caller,
    service: DirectService,
    asked: str,
    status: int,
    content: bytes | None,
    content_range: str | None,
) -> None:
    """A download resumes at any byte; past the end is 416 with the size; what cannot be read is no range at all."""
    answer = device.get(f"/repo/files/{DIGEST}?{service.query()}", headers={"Range": asked})
    assert answer.status_code == status
    assert content is None or answer.content == content
    assert answer.headers.get("Content-Range") == content_range
    if status == 206:
        assert answer.headers["ETag"] == f'"{DIGEST}"'
        assert answer.headers["Content-Length"] == str(len(answer.content))


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (f'"{DIGEST}"', 206),
        ('"another"', 200),
        (f'W/"{DIGEST}"', 200),
        ("Tue, 24 Nov 2026 00:00:00 GMT", 200),
    ],
)
def test_a_resume_agrees_with_the_etag_or_begins_anew(
    device: Caller, service: DirectService, condition: str, status: int
) -> None:
    """If-Range with the file's own ETag continues; with anything else the whole file comes."""
    headers = {"Range": "bytes=100-", "If-Range": condition}
    answer = device.get(f"/repo/files/{DIGEST}?{service.query()}", headers=headers)
    assert (answer.status_code, answer.content) == (status, PAYLOAD[100:] if status == 206 else PAYLOAD)


def test_what_is_known_is_not_sent_again(device: Caller, service: DirectService) -> None:
    """If-None-Match with the ETag gives 304 without a body; HEAD gives the size without a body."""
    path = f"/repo/files/{DIGEST}?{service.query()}"
    known = device.get(path, headers={"If-None-Match": f'"other", "{DIGEST}"'})
    assert (known.status_code, known.content) == (304, b"")
    head = device.request("HEAD", path)
    assert (head.headers["Content-Length"], head.content) == (str(len(PAYLOAD)), b"")
    assert head.headers["Accept-Ranges"] == "bytes"
