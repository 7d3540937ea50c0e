"""The cloud's secrets on disk, made at the first start: the director key, the URL secret, service and operator tokens.

They are development keys: online, in the data folder, readable by its owner alone. `lastgood cloud keys harden` and
TUF's roles come later (DESIGN.md section 7). It signs nothing by itself.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_stub.adapters.durable import replace_file
from protocol.envelope import DirectorKey
from protocol.errors import ServiceError

URL_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the cloud must keep to itself, and the director's public half."""

    director: DirectorKey
    url_secret: bytes
    cloud_token: str  # the cloud's own account at the broker
    inspect_token: str  # the inspectors' account
    admin_token: str  # the operator's, for the API

    @property
    def roles(self) -> dict[str, str]:
        """The API's tokens as sha256 → role."""
        return {sha256(self.admin_token.encode()).hexdigest(): "admin"}


def load_or_make(folder: Path, random_bytes: Callable[[int], bytes], new_token: Callable[[], str]) -> Secrets:
    """Read the secrets of a data folder; make and keep what is missing.

    Raises:
        ServiceError: they are there and cannot be read, or cannot be written.
    """
    key_path, words_path = folder / "director.pem", folder / "secrets.json"
    if not words_path.exists():
        # The director's key first: without it, words that are there are a damaged folder, and no new one. A new key
        # would make every device refuse every order.
        if not key_path.exists():
            replace_file(key_path, _pem(Ed25519PrivateKey.from_private_bytes(random_bytes(32))))
        words = {name: new_token() for name in ("cloud", "inspect", "admin")}
        words["url"] = random_bytes(URL_SECRET_BYTES).hex()
        replace_file(words_path, json.dumps(words).encode())
    try:
        private = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        words = json.loads(words_path.read_bytes())
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("the director key is not an Ed25519 key")
        return Secrets(
            DirectorKey(private),
            bytes.fromhex(words["url"]),
            words["cloud"],
            words["inspect"],
            words["admin"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(
            f"The keys in {folder} cannot be read: {error}. Restore them from a backup."
        ) from error


def _pem(private: Ed25519PrivateKey) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
