"""DSSE envelopes: what a trusted key signed comes out, and nothing else does."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from protocol.envelope import ASSIGNMENT_TYPE, SIGNATURES_MAX, DirectorKey, TrustedKeys
from protocol.errors import MessageRefused, OperatorError, PeerError, SignatureRefused

KEY = DirectorKey(Ed25519PrivateKey.from_private_bytes(b"1" * 32))
OTHER = DirectorKey(Ed25519PrivateKey.from_private_bytes(b"2" * 32))
TRUSTED = TrustedKeys([KEY.public_pem])
SIGNED = KEY.sign(b'{"epoch":1}')


@given(st.binary(max_size=500))
def test_what_was_signed_comes_out(payload: bytes) -> None:
    """Any bytes, unchanged."""
    assert TRUSTED.open_envelope(KEY.sign(payload)) == payload


def test_the_public_key_is_pem_that_a_device_can_read() -> None:
    """`public_pem` goes into a device's configuration, and comes back as a key."""
    assert KEY.public_pem.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert TrustedKeys([KEY.public_pem]).open_envelope(SIGNED) == b'{"epoch":1}'


def test_a_successor_key_opens_what_either_signed() -> None:
    """While a key is rotated a device trusts both."""
    both = TrustedKeys([KEY.public_pem, OTHER.public_pem])
    assert both.open_envelope(SIGNED) == both.open_envelope(OTHER.sign(b'{"epoch":1}'))


@pytest.mark.parametrize("keys", [TrustedKeys([OTHER.public_pem]), TrustedKeys([])])
def test_another_key_or_none_opens_nothing(keys: TrustedKeys) -> None:
    """A device without a key obeys nobody."""
    with pytest.raises(SignatureRefused):
        keys.open_envelope(SIGNED)


def test_another_keys_signature_under_our_key_id_is_refused() -> None:
    """The key id is a hint, and proves nothing."""
    fields, theirs = json.loads(SIGNED), json.loads(OTHER.sign(b'{"epoch":1}'))
    fields["signatures"][0]["sig"] = theirs["signatures"][0]["sig"]
    with pytest.raises(SignatureRefused):
        TRUSTED.open_envelope(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"payload": base64.b64encode(b'{"epoch":2}').decode()},
        {"signatures": [{"keyid": json.loads(SIGNED)["signatures"][0]["keyid"], "sig": ""}]},
        {"signatures": [{"keyid": "", "sig": json.loads(SIGNED)["signatures"][0]["sig"]}]},
    ],
)
def test_a_changed_envelope_is_refused(change: dict[str, Any]) -> None:
    """Another payload, an empty signature, or one that no key answers for."""
    with pytest.raises(SignatureRefused):
        TRUSTED.open_envelope(json.dumps({**json.loads(SIGNED), **change}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"payload": None},
        {"payload": 1},
        {"payload": "é"},
        {"payload": "a"},
        {"payloadType": None},
        {"payloadType": "application/json"},
        {"payloadType": [ASSIGNMENT_TYPE]},
        {"signatures": None},
        {"signatures": {}},
        {"signatures": []},
        {"signatures": [None]},
        {"signatures": [{}]},
        {"signatures": [{"keyid": [], "sig": "AA=="}]},
        {"signatures": [{"keyid": "a", "sig": 1}]},
        {"signatures": json.loads(SIGNED)["signatures"] * 2},
        {"signatures": [{"keyid": str(n), "sig": "AA=="} for n in range(SIGNATURES_MAX + 1)]},
    ],
)
def test_what_is_no_envelope_of_an_assignment_is_refused(change: dict[str, Any]) -> None:
    """Hostile fields are refused by name, and raise nothing of the library's."""
    with pytest.raises(MessageRefused) as refused:
        TRUSTED.open_envelope(json.dumps({**json.loads(SIGNED), **change}).encode())
    assert refused.value.reason == "envelope"


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_one_changed_byte_never_brings_out_another_payload(place: int, change: int) -> None:
    """Whichever byte is changed: refused, or the payload is what was signed (a byte that says nothing)."""
    data = SIGNED[:place] + bytes([SIGNED[place] ^ change]) + SIGNED[place + 1 :]
    with suppress(PeerError):
        assert TRUSTED.open_envelope(data) == b'{"epoch":1}'


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    """Noise is refused, and never raises anything else."""
    with pytest.raises(PeerError):
        TRUSTED.open_envelope(data)


def test_a_key_of_another_kind_is_refused_when_it_is_configured() -> None:
    """Text that is no key, a private key's place mistaken, and a key of another algorithm."""
    curve = generate_private_key(SECP256R1()).public_key()
    pem = curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for text in ("", "é", "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n", pem):
        with pytest.raises(OperatorError, match="public key is not"):
            TrustedKeys([text])
