"""The repository of manifests and files that devices download from, under signed, expiring addresses.

It is not for operators, and knows no roles: an address is valid when its query is signed by this cloud (DESIGN.md
section 7). Files are named by their sha256, which is also their ETag, so a download resumes exactly or begins anew.
"""

import re
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import FileResponse, Response

from cloud_stub.api.access import AccessRefused
from cloud_stub.api.dependencies import ServiceDependency, service_of
from cloud_stub.api.looks import NotFound
from protocol.identity import SHA256_HEX_PATTERN, UpdateId

_CHUNK_BYTES: Final = 262_144  # one read from disk: each is a change of thread, so that small ones cost CPU
_CACHE: Final = "private, max-age=31536000, immutable"  # the name is the content's hash
_RANGE: Final = re.compile(r"bytes=\s*(\d+-\d*|-\d+)(\s*,\s*(\d+-\d*|-\d+))*\s*")


async def _signed(request: Request) -> None:
    if not service_of(request).repository_allows(dict(request.query_params)):
        raise AccessRefused(403, "The address is not signed by this cloud or has expired; ask for a new one.")


router = APIRouter(prefix="/repo", dependencies=[Depends(_signed)], include_in_schema=False)


class _Chunked(FileResponse):
    chunk_size = _CHUNK_BYTES


@router.api_route("/files/{sha256}", methods=["GET", "HEAD"])
def get_file(request: Request, sha256: str, service: ServiceDependency) -> Response:
    """Serve a file of an update, whole or in ranges."""
    path = service.files.path(sha256) if re.fullmatch(SHA256_HEX_PATTERN[1:-1], sha256) else None
    if path is None:
        raise NotFound("The repository has no such file.")
    headers = {"ETag": f'"{sha256}"', "Cache-Control": _CACHE}
    if _is_known(request, sha256):
        return Response(status_code=304, headers=headers)
    _forget_unreadable_range(request)
    return _Chunked(path, media_type="application/octet-stream", headers=headers)


@router.api_route("/manifests/{provider}/{name}/{version}.json", methods=["GET", "HEAD"])
def get_manifest(
    request: Request, provider: str, name: str, version: str, service: ServiceDependency
) -> Response:
    """Serve the manifest of an update, in the very bytes whose sha256 is its identity."""
    with service.read() as reader:
        row = reader.update(str(UpdateId.of(provider, name, version)))
    if row is None:
        raise NotFound("The repository has no such manifest.")
    headers = {"ETag": f'"{row.sha256}"', "Cache-Control": "private, no-cache"}
    if _is_known(request, row.sha256):
        return Response(status_code=304, headers=headers)
    return Response(row.manifest, media_type="application/json", headers=headers)


def _is_known(request: Request, sha256: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return f'"{sha256}"' in known or "*" in known


def _forget_unreadable_range(request: Request) -> None:
    """Serve the whole file for a range in another unit or grammar, as RFC 9110 (14.2) asks; Starlette answers 400."""
    given = request.headers.get("range")
    if given is not None and not _RANGE.fullmatch(given):
        request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
