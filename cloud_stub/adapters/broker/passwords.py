"""Device tokens and their hashes, in the one format that both brokers read.

A hash is mosquitto's `$7$iterations$salt$hash`: PBKDF2-SHA512, salt and hash in base64. It is not a place
for the passwords of people: it holds only for tokens made by `new_token`. The rule it keeps: a token is
never stored.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable

TOKEN_BYTES = 20
"""160 bits: nobody guesses them, not even offline with the hashes in hand."""

SALT_BYTES = 12
"""What mosquitto's own tool writes; its reader refused other lengths for years."""

ITERATIONS = 1
"""Stretching makes each guess dearer, which a password of a few dozen bits needs. For 160 random bits
2**160 cheap guesses are out of reach already, while a broker that reloads its accounts hashes every
connected device again, and a fleet that comes back after an outage does so at thousands of connects a
second."""

_HASH_BYTES = 64
_ITERATIONS_MAX = 100_000  # a hash from elsewhere must not stall the broker for seconds


def new_token(random: Callable[[int], bytes]) -> str:
    """Make a device's token of 160 bits from a source of random bytes such as `secrets.token_bytes`.

    Lower-case base32, so that it has no leading hyphen for a command line to trip over and can be read aloud.
    """
    return base64.b32encode(random(TOKEN_BYTES)).decode("ascii").lower()


def hash_password(token: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Hash a token for a broker's password file.

    Raises ValueError when the salt is not 12 bytes long or the iterations are out of range.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"the salt must have {SALT_BYTES} bytes, not {len(salt)}")
    if not 1 <= iterations <= _ITERATIONS_MAX:
        raise ValueError(f"iterations must be between 1 and {_ITERATIONS_MAX}, not {iterations}")
    digest = hashlib.pbkdf2_hmac("sha512", token.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def verify(token: str, stored: str) -> bool:
    """Whether a token belongs to a stored hash, in constant time; False for a hash that does not parse."""
    parsed = _parse(stored)
    if parsed is None:
        return False
    iterations, salt, digest = parsed
    return hmac.compare_digest(hashlib.pbkdf2_hmac("sha512", token.encode(), salt, iterations), digest)


def is_hash(stored: str) -> bool:
    """Whether a string is a hash that both brokers can read (and so cannot break out of a line of their
    file)."""
    return _parse(stored) is not None


def _parse(stored: str) -> tuple[int, bytes, bytes] | None:
    parts = stored.split("$")
    if (
        len(parts) != 5
        or parts[0] != ""
        or parts[1] != "7"
        or not (parts[2].isascii() and parts[2].isdigit())
    ):
        return None
    try:
        iterations = int(parts[2])
        salt, digest = base64.b64decode(parts[3], validate=True), base64.b64decode(parts[4], validate=True)
    except (binascii.Error, ValueError):
        return None
    if not 1 <= iterations <= _ITERATIONS_MAX or len(salt) != SALT_BYTES or len(digest) != _HASH_BYTES:
        return None
    return iterations, salt, digest
