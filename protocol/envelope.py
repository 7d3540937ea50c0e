"""DSSE envelopes with Ed25519 signatures: how an assignment is signed, and how it is opened.

It is not about what the payload says. It keeps the rule that a payload is verified before it is parsed (DESIGN.md
section 7): `open_envelope` returns bytes only when a trusted key has signed them.
"""

import json
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey  # type: ignore[attr-defined] # no __all__ there

from protocol.errors import MessageRefused, OperatorError, SignatureRefused
from protocol.strict_json import MESSAGE_BYTES_MAX, parse

ASSIGNMENT_TYPE: Final = "application/vnd.lastgood.assignment+json"
SIGNATURES_MAX: Final = 4  # a key and its successor, twice; more only costs time to refuse


class DirectorKey:
    """The online key that signs assignments; it can order published images, and sign none."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        public = private.public_key()
        self._signer = CryptoSigner(private, SSlibKey.from_crypto(public))
        # Not the library's `keyval`, which is bare hexadecimal for an Ed25519 key.
        self._public_pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode("ascii")

    def sign(self, payload: bytes) -> bytes:
        """Return the envelope of `payload`, as bytes for the wire."""
        envelope = Envelope(payload, ASSIGNMENT_TYPE, {})
        envelope.sign(self._signer)
        return json.dumps(envelope.to_dict(), separators=(",", ":")).encode("ascii")

    @property
    def public_pem(self) -> str:
        """The public half, as PEM text that a device keeps."""
        return self._public_pem


class TrustedKeys:
    """The public keys whose assignments a device obeys."""

    def __init__(self, pems: Sequence[str]) -> None:
        self._keys: list[Key] = [_public_key(pem) for pem in pems]

    def open_envelope(self, data: bytes) -> bytes:
        """Return the payload of a signed assignment.

        Raises:
            MessageRefused: the bytes are no envelope, or one of another payload type.
            SignatureRefused: no trusted key has signed it.
        """
        envelope = _envelope_of(data)
        try:
            envelope.verify(self._keys, 1)
        except (VerificationError, ValueError) as error:  # the second when there is no key at all
            raise SignatureRefused(
                "The assignment is not signed by the cloud's key; it was not obeyed."
            ) from error
        return bytes(envelope.payload)


def _envelope_of(data: bytes) -> Envelope:
    fields = parse(data, bytes_max=MESSAGE_BYTES_MAX)
    signatures = fields.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= SIGNATURES_MAX:
        raise MessageRefused("envelope", "It is not a signed envelope.")
    try:
        envelope = Envelope.from_dict(fields)
    except Exception as error:
        raise MessageRefused("envelope", "It is not a signed envelope.") from error
    if envelope.payload_type != ASSIGNMENT_TYPE:
        raise MessageRefused("envelope", f"The envelope holds {envelope.payload_type!r}, not an assignment.")
    return envelope


def _public_key(pem: str) -> SSlibKey:
    try:
        key = serialization.load_pem_public_key(pem.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OperatorError(
            "The cloud's public key is not PEM text; copy it anew from `lastgood device add`."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise OperatorError(
            "The cloud's public key is not an Ed25519 key; copy it anew from `lastgood device add`."
        )
    return SSlibKey.from_crypto(key)
