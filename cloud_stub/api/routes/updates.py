"""Routes of updates: import, list, show, withdraw. What is imported never changes again."""

from collections.abc import Iterator

from anyio import from_thread
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from cloud_stub.api import looks, show, views
from cloud_stub.api.access import Admin, Operator, Viewer
from cloud_stub.api.conflicts import conflicting
from cloud_stub.api.dependencies import API_PREFIX, ServiceDependency
from cloud_stub.api.requests import WithdrawRequest
from cloud_stub.api.service_port import Service
from cloud_stub.api.uploads import Body, receive
from cloud_stub.core.commands import ImportUpdate, WithdrawUpdate
from cloud_stub.core.imports import check_new
from cloud_stub.core.rows import UpdateRow
from protocol.errors import OperatorError
from protocol.identity import UpdateId
from protocol.manifest import Manifest, read_manifest

router = APIRouter(prefix=API_PREFIX, tags=["updates"])

_MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["manifest"],
                    "properties": {
                        "manifest": {"type": "string", "format": "binary", "description": "the first part"},
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                }
            }
        },
    }
}


@router.post("/updates", status_code=201, openapi_extra=_MULTIPART)
def import_update(caller: Operator, request: Request, service: ServiceDependency) -> views.UpdateDetail:
    """Import an update: its manifest, and those of its files that are not stored yet."""
    body = Body(_chunks(request), request.headers.get("content-type", ""))
    try:
        data = receive(body, service.files, lambda manifest: _check_new(service, manifest))
    except OperatorError:
        body.drain()
        raise
    row: UpdateRow = service.do(ImportUpdate(data), caller.who)
    return show.update_detail(row)


@router.post("/updates/missing")
def find_missing(caller: Operator, request: Request, service: ServiceDependency) -> list[views.FileView]:
    """Say which files of a manifest (the body) are not stored yet, so that only those need sending."""
    manifest = read_manifest(b"".join(_chunks(request)))
    _check_new(service, manifest)
    return [
        views.FileView(filename=name, size_bytes=file.sizeInBytes, sha256=file.sha256)
        for name, file in manifest.files.items()
        if service.files.path(file.sha256) is None
    ]


@router.get("/updates")
def list_updates(caller: Viewer, service: ServiceDependency) -> list[views.UpdateView]:
    """List all updates, the newest import first."""
    with service.read() as reader:
        return [show.update_view(row) for row in reader.list_updates()]


@router.get("/updates/{provider}/{name}/{version}")
def get_update(
    caller: Viewer, provider: str, name: str, version: str, service: ServiceDependency
) -> views.UpdateDetail:
    """Show one update with its files and steps."""
    with service.read() as reader:
        return show.update_detail(looks.update_row(reader, str(UpdateId.of(provider, name, version))))


@router.post("/updates/{provider}/{name}/{version}/withdraw")
def withdraw_update(
    caller: Admin,
    provider: str,
    name: str,
    version: str,
    request: WithdrawRequest,
    service: ServiceDependency,
) -> views.UpdateView:
    """Stop offering an update; devices that run it stay as they are."""
    return show.update_view(
        withdraw(service, str(UpdateId.of(provider, name, version)), request.why, caller.who)
    )


def withdraw(service: Service, update: str, why: str, who: str) -> UpdateRow:
    """Withdraw an update and return its row.

    Raises:
        NotFound: it is not imported.
        Conflict: a live policy names it.
    """
    with service.read() as reader:
        looks.update_row(reader, update)
    with conflicting():
        row: UpdateRow = service.do(WithdrawUpdate(update, why), who)
    return row


def _check_new(service: Service, manifest: Manifest) -> None:
    with service.read() as reader:
        check_new(manifest, reader.update(str(manifest.update)))


def _chunks(request: Request) -> Iterator[bytes]:
    """Pull the body into this thread, chunk by chunk: the client is never read ahead of the disk."""
    stream = request.stream().__aiter__()

    async def pull() -> bytes | None:
        try:
            async for chunk in stream:
                if chunk:
                    return chunk
        except ClientDisconnect:
            pass  # who reads the chunks misses the end, and says so
        return None

    while (chunk := from_thread.run(pull)) is not None:
        yield chunk
