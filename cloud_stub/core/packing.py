"""The manifest of a packed folder, written as `protocol/manifest.py` reads it.

It packs nothing (`cli/packing.py` does) and bears no time, so that the same folder is the same update, to the byte.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Final

from protocol.errors import OperatorError
from protocol.identity import UpdateId
from protocol.manifest import read_manifest

ARCHIVE_HANDLER: Final = "lastgood/archive:1"


def archive_manifest(
    update: UpdateId,
    *,
    filename: str,
    size_bytes: int,
    sha256: str,
    compatibility: Sequence[Mapping[str, str]],
    description: str = "",
    release_counter: int = 0,
) -> bytes:
    """Return the manifest of an update that is one archive; `sha256` is the archive's, in hexadecimal.

    Raises:
        OperatorError: what it would say is not valid, such as no compatibility at all.
    """
    document = {
        "manifestVersion": "5.0",
        "updateId": {"provider": update.provider, "name": update.name, "version": str(update.version)},
        "description": description,
        "compatibility": [dict(wanted) for wanted in compatibility],
        "instructions": {"steps": [{"type": "inline", "handler": ARCHIVE_HANDLER, "files": [filename]}]},
        "files": [
            {
                "filename": filename,
                "sizeInBytes": size_bytes,
                "hashes": {"sha256": b64encode(bytes.fromhex(sha256)).decode("ascii")},
            }
        ],
        "releaseCounter": release_counter,
    }
    data = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    read_manifest(data)
    return data


def compatibility_of(texts: Sequence[str]) -> list[dict[str, str]]:
    """Read what devices an update fits: each text is one device class, such as `manufacturer=acme,model=pump`.

    Raises:
        OperatorError: a text is not of that form.
    """
    found = []
    for text in texts:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(name.strip() and sign and value.strip() for name, sign, value in pairs):
            raise OperatorError(f"{text!r} is no device class: write it as manufacturer=acme,model=pump.")
        found.append({name.strip(): value.strip() for name, _, value in pairs})
    return found
