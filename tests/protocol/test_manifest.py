"""Manifests: Azure Device Update's field names, a sha256 for each file, and no contradiction."""

import base64
import copy
import hashlib
import json
from typing import Any

import pytest

from protocol.errors import OperatorError
from protocol.manifest import FILE_BYTES_MAX, MANIFEST_BYTES_MAX, fits, read_manifest

SHA = hashlib.sha256(b"payload").digest()


def document() -> dict[str, Any]:
    """A manifest as Azure's tools write one, with fields that lastgood has no use for."""
    return {
        "$schema": "https://json.schemastore.org/azure-deviceupdate-import-manifest-5.0.json",
        "manifestVersion": "5.0",
        "updateId": {"provider": "Contoso", "name": "Toaster", "version": "1.0"},
        "compatibility": [{"manufacturer": "Contoso", "model": "Toaster"}, {"model": "Oven"}],
        "instructions": {
            "steps": [
                {
                    "handler": "lastgood/archive:1",
                    "files": ["app.tar"],
                    "handlerProperties": {"installedCriteria": "1.0"},
                }
            ]
        },
        "files": [
            {
                "filename": "app.tar",
                "sizeInBytes": 7,
                "hashes": {"sha256": base64.b64encode(SHA).decode()},
                "relatedFiles": [],
                "downloadHandler": {"id": "microsoft/delta:1"},
            }
        ],
        "createdDateTime": "2026-11-24T00:00:00.000Z",
    }


def encode(fields: dict[str, Any]) -> bytes:
    """The bytes of a manifest."""
    return json.dumps(fields).encode()


def test_a_manifest_of_azure_reads_as_it_is() -> None:
    """Its identity is the sha256 of its bytes; hashes come out in hexadecimal."""
    data = encode(document())
    manifest = read_manifest(data)
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    assert manifest.size_bytes == len(data)
    assert str(manifest.update) == "Contoso/Toaster:1.0"
    assert manifest.files["app.tar"].sha256 == SHA.hex()
    assert manifest.bytes_total == 7
    assert manifest.steps[0].handler_name == "archive"
    assert manifest.release_counter == 0


def test_the_identity_is_of_the_bytes_and_not_of_the_name() -> None:
    """One space more is another update (RULES.md, target identity)."""
    assert read_manifest(encode(document())).sha256 != read_manifest(encode(document()) + b" ").sha256


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        ("archive", "archive"),
        ("lastgood/archive:1", "archive"),
        ("microsoft/script:1", "script"),
        ("a/b/c:1:2", "c"),
    ],
)
def test_a_handlers_name_is_without_provider_and_version(handler: str, name: str) -> None:
    """So that Azure's handler names find ours."""
    fields = document()
    fields["instructions"]["steps"][0]["handler"] = handler
    assert read_manifest(encode(fields)).steps[0].handler_name == name


@pytest.mark.parametrize(
    ("properties", "answer"),
    [
        ({"manufacturer": "Contoso", "model": "Toaster", "colour": "red"}, True),
        ({"model": "Oven"}, True),
        ({"manufacturer": "Contoso"}, False),
        ({"manufacturer": "contoso", "model": "Toaster"}, False),
        ({}, False),
    ],
)
def test_a_device_fits_when_one_set_is_wholly_its_own(properties: dict[str, str], answer: bool) -> None:
    """Within a set all must hold, between sets one is enough."""
    assert read_manifest(encode(document())).fits(properties) is answer


def test_no_set_fits_nobody() -> None:
    """An empty list of sets names no device: fail closed."""
    assert not fits([], {"model": "Oven"})


STEP = ("instructions", "steps", 0)
FILE = ("files", 0)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("manifestVersion",), "3.0", "manifestVersion"),
        (("updateId",), None, "updateId"),
        (("updateId", "provider"), "../x", "provider"),
        (("updateId", "name"), "a/b", "name"),
        (("updateId", "version"), "one", "version"),
        (("compatibility",), [], "compatibility"),
        (("compatibility",), [{}], "compatibility"),
        (("compatibility",), [{"a": 1}], "compatibility"),
        (("instructions",), {}, "instructions"),
        (("instructions", "steps"), [], "steps"),
        ((*STEP, "handler"), "", "handler"),
        ((*STEP, "handler"), "a b", "handler"),
        ((*STEP, "type"), "reference", "reference"),
        ((*STEP, "type"), "other", "type"),
        ((*STEP, "files"), [], "no step uses the file 'app.tar'"),
        ((*STEP, "files"), ["app.tar", "other.tar"], "'other.tar', which is not among the files"),
        ((*FILE, "hashes"), {}, "lacks a sha256"),
        ((*FILE, "hashes"), {"md5": "x"}, "lacks a sha256"),
        ((*FILE, "hashes"), {"sha256": ""}, "not 32 bytes"),
        ((*FILE, "hashes"), {"sha256": SHA.hex()}, "not 32 bytes"),
        ((*FILE, "hashes"), {"sha256": "é" * 44}, "not 32 bytes"),
        ((*FILE, "hashes"), {"sha256": base64.b64encode(SHA[:31]).decode()}, "not 32 bytes"),
        ((*FILE, "sizeInBytes"), -1, "sizeInBytes"),
        ((*FILE, "sizeInBytes"), FILE_BYTES_MAX + 1, "sizeInBytes"),
        ((*FILE, "sizeInBytes"), "7", "sizeInBytes"),
        ((*FILE, "sizeInBytes"), 7.0, "sizeInBytes"),
        ((*FILE, "filename"), "../app.tar", "filename"),
        ((*FILE, "filename"), "a/b", "filename"),
        ((*FILE, "filename"), "..", "name of its own"),
        ((*FILE, "filename"), "", "filename"),
        ((*FILE, "filename"), "a\nb", "filename"),
        ((*FILE, "filename"), "-rf", "filename"),
        (("releaseCounter",), -1, "releaseCounter"),
        (("releaseCounter",), True, "releaseCounter"),
        (("description",), "x" * 513, "description"),
    ],
)
def test_a_manifest_that_is_not_whole_is_refused(path: tuple[str | int, ...], value: Any, said: str) -> None:
    """Each fault by itself is refused at import, with a sentence that names the field."""
    fields = copy.deepcopy(document())
    place: Any = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(OperatorError) as refused:
        read_manifest(encode(fields))
    assert said in str(refused.value)


def test_two_files_of_one_name_are_refused() -> None:
    """A step could not say which it means."""
    fields = document()
    fields["files"] *= 2
    with pytest.raises(OperatorError, match="two files bear the same name"):
        read_manifest(encode(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"{",
        b'{"a":1,"a":1}',
        b"{" + b" " * MANIFEST_BYTES_MAX + b"}",
        b'{"instructions":{"steps":[1]}}',
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    """Whatever is imported, the answer is a sentence and never a traceback."""
    with pytest.raises(OperatorError, match=r"^The manifest "):
        read_manifest(data)
