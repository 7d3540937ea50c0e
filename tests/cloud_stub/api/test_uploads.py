"""The import of updates: what is stored, what is refused and with which sentence, and how little memory it takes."""

import json
import tracemalloc
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_stub.adapters.files import open_files
from cloud_stub.api.uploads import Body, receive
from protocol.errors import OperatorError
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.conftest import Caller
from tests.cloud_stub.api.fakes import DirectService

API = "/api/v1"
BOUNDARY = "the-boundary-of-the-test"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def test_an_import_stores_files_and_shows_the_update(admin: Caller, service: DirectService) -> None:
    """The file is stored under its sha256, and the update has its identity from the manifest's bytes."""
    data = samples.manifest("1.0")
    answer = _send(admin, data, {"app.tar": samples.payload("1.0")})
    assert answer.status_code == 201
    assert answer.json()["sha256"] == sha256(data).hexdigest()
    stored = service.files.path(sha256(samples.payload("1.0")).hexdigest())
    assert stored is not None
    assert stored.read_bytes() == samples.payload("1.0")


def test_what_is_stored_already_need_not_be_sent(admin: Caller) -> None:
    """`missing` names what is to be sent; a second import of the same is the same update."""
    data = samples.manifest("1.0")
    missing = admin.post(f"{API}/updates/missing", content=data)
    assert [row["filename"] for row in missing.json()] == ["app.tar"]
    first = _send(admin, data, {"app.tar": samples.payload("1.0")})
    assert admin.post(f"{API}/updates/missing", content=data).json() == []
    again = _send(admin, data, {})
    assert (again.status_code, again.json()["sha256"]) == (201, first.json()["sha256"])


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        (b"{", {}, "The manifest cannot be read"),
        (samples.manifest("1.0", files=[{"filename": "a", "sizeInBytes": 1, "hashes": {}}]), {}, "lacks a sha256"),
        (samples.manifest("1.0"), {}, "The file 'app.tar' of the manifest is missing"),
        (samples.manifest("1.0"), {"app.tar": b"other"}, "'app.tar' is not what the manifest says"),
        (samples.manifest("1.0"), {"app.tar": samples.payload("1.0")[:-1]}, "it was cut short"),
        (samples.manifest("1.0"), {"app.tar": samples.payload("1.0") + b"x"}, "has more than the"),
        (samples.manifest("1.0"), {"app.tar": samples.payload("2.0")}, "it is another file, or was changed"),
        (samples.manifest("1.0"), {"other.tar": b"x"}, "'other.tar' is not in the manifest"),
    ],
)  # fmt: skip
def test_a_wrong_import_is_refused_by_name(
    admin: Caller, service: DirectService, data: bytes, files: dict[str, bytes], said: str
) -> None:
    """One sentence names the file or the field, and no update is made known."""
    answer = _send(admin, data, files)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert admin.get(f"{API}/updates").json() == []
    assert list((service.files._folder / "incoming").iterdir()) == []


def test_a_stored_file_has_the_size_that_the_manifest_says(admin: Caller) -> None:
    """Also when nothing has to be sent: a size that nobody compared would end every download on the devices."""
    payload = samples.payload("1.0")
    assert _send(admin, samples.manifest("1.0"), {"app.tar": payload}).status_code == 201
    other = json.loads(samples.manifest("1.0"))
    other["updateId"]["version"] = "2.0"
    other["files"][0]["sizeInBytes"] = 5
    answer = _send(admin, json.dumps(other).encode(), {})
    assert answer.status_code == 400
    assert "The manifest says 5 bytes of the file 'app.tar'" in answer.json()["error"]


def test_an_update_never_changes(admin: Caller) -> None:
    """Other content under the same name is a conflict, before any file is read."""
    assert _send(admin, samples.manifest("1.0"), {"app.tar": samples.payload("1.0")}).status_code == 201
    other = _send(admin, samples.manifest("1.0", description="Other"), {"app.tar": b"not even looked at"})
    assert other.status_code == 409
    assert "never changes" in other.json()["error"]


def test_an_import_that_another_one_overtook_is_a_conflict(admin: Caller, service: DirectService) -> None:
    """Two at once: the version is new to both when their manifests are read, and belongs to the one that ends first."""
    whole = _encoded(samples.manifest("1.0", description="Other"), samples.payload("1.0"))
    half = len(whole) // 2  # in the middle of the file

    async def body() -> AsyncIterator[bytes]:
        yield whole[:half]
        samples.imported(service, "1.0")
        yield whole[half:]

    answer = admin.post(f"{API}/updates", content=body(), headers={"Content-Type": TYPE})
    assert answer.status_code == 409
    assert "never changes" in answer.json()["error"]
    assert admin.get(f"{API}/updates").json()[0]["description"] == "Pump 1.0"


def test_the_order_of_parts_and_their_names_are_checked(admin: Caller) -> None:
    """The manifest comes first, and only files come behind it."""
    file = ("file", ("app.tar", samples.payload("1.0")))
    first = admin.post(f"{API}/updates", files=[file, ("manifest", ("m.json", samples.manifest("1.0")))])
    assert "first part" in first.json()["error"]
    other = admin.post(
        f"{API}/updates", files=[("manifest", ("m.json", samples.manifest("1.0"))), ("x", ("x", b""))]
    )
    assert "'x'" in other.json()["error"]
    plain = admin.post(f"{API}/updates", content=samples.manifest("1.0"))
    assert "multipart/form-data" in plain.json()["error"]


def test_a_body_that_ends_early_is_refused(tmp_path: Path) -> None:
    """However little is missing: nothing is known of the update, and no half file is left."""
    whole = _encoded(samples.manifest("1.0"), samples.payload("1.0"))
    for length in (0, 10, 200, len(whole) // 2, len(whole) - 3):
        files = open_files(tmp_path / str(length))
        with pytest.raises(OperatorError, match=r"cut short|not what the manifest says|first part"):
            receive(Body(_chunks(whole[:length], 64), TYPE), files, lambda manifest: None)
        assert files.path(sha256(samples.payload("1.0")).hexdigest()) is None


@given(st.integers(min_value=1, max_value=9_000))
@settings(max_examples=30)
def test_any_chunking_reads_the_same(size: int) -> None:
    """Where the network cuts a body decides nothing."""
    body = Body(_chunks(_encoded(b"the manifest", samples.payload("1.0")), size), TYPE)
    assert [(part.part_name, part.filename, part.read()) for part in body.parts()] == [
        ("manifest", "m.json", b"the manifest"),
        ("file", "app.tar", samples.payload("1.0")),
    ]


@given(st.binary(max_size=400))
@settings(max_examples=60)
def test_rubbish_is_refused_in_a_sentence(data: bytes) -> None:
    """Any bytes at all end in an OperatorError, never in another one."""
    with pytest.raises(OperatorError):
        list(Body(_chunks(data, 50), TYPE).parts())


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    """100 MB go through in a few: one chunk, and one piece of the file store."""
    size, chunk = 100_000_000, b"\0" * 65_536
    digest = sha256()
    for start in range(0, size, len(chunk)):
        digest.update(chunk[: size - start])
    data = samples.manifest(
        "1.0",
        files=[
            {
                "filename": "app.tar",
                "sizeInBytes": size,
                "hashes": {"sha256": b64encode(digest.digest()).decode()},
            }
        ],
    )
    head, tail = _encoded(data, b"@").split(b"@")

    def chunks() -> Iterator[bytes]:
        yield head
        for start in range(0, size, len(chunk)):
            yield chunk[: size - start]
        yield tail

    files = open_files(tmp_path)
    tracemalloc.start()
    try:
        receive(Body(chunks(), TYPE), files, lambda manifest: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert files.path(digest.hexdigest()) is not None
    assert peak < 8_000_000


def _send(admin: Caller, data: bytes, files: dict[str, bytes]) -> httpx.Response:
    parts = [("manifest", ("m.json", data)), *(("file", (name, content)) for name, content in files.items())]
    return admin.post(f"{API}/updates", files=parts)


def _encoded(manifest: bytes, payload: bytes) -> bytes:
    parts = [("manifest", ("m.json", manifest)), ("file", ("app.tar", payload))]
    request = httpx.Request("POST", "http://cloud", files=parts, headers={"Content-Type": TYPE})
    return request.read()


def _chunks(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
