"""Signed, expiring addresses of the repository: what is put behind `?`, and whether it holds.

It serves no bytes. An address opens the repository for one device until an instant; files are named by their sha256,
so that an address gives no choice of content (DESIGN.md section 7).
"""

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

SIGNATURE_CHARACTERS: Final = 32  # of the hexadecimal HMAC-SHA256: 128 bits, and short in a message


def signed_query(secret: bytes, device: str, until_ms: int) -> str:
    """Return the query that opens the repository for a device until an instant (UTC milliseconds)."""
    return f"d={device}&e={until_ms}&s={_signature(secret, device, str(until_ms))}"


def allows(secret: bytes, query: Mapping[str, str], now_ms: int) -> bool:
    """Return whether a query is one that `signed_query` made, and its instant lies ahead."""
    device, until, signature = query.get("d", ""), query.get("e", ""), query.get("s", "")
    if not until.isascii() or not until.isdigit() or len(until) > 16 or not signature.isascii():
        return False
    return hmac.compare_digest(signature, _signature(secret, device, until)) and now_ms < int(until)


def _signature(secret: bytes, device: str, until: str) -> str:
    return hmac.new(secret, f"{device}\n{until}".encode(), sha256).hexdigest()[:SIGNATURE_CHARACTERS]
