"""The web application: API, repository and pages around one service, wired here and nowhere else.

It holds no rules and opens no port (`cli/cloud.py` runs it). Every error becomes one sentence: the operator's 400, 404
or 409, the caller's 401 or 403, ours 503, a bug of ours 500.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_stub.api import creation, pages, rendering, repository, signin
from cloud_stub.api.access import Access, AccessRefused, Role, check_roles
from cloud_stub.api.conflicts import Conflict
from cloud_stub.api.dependencies import API_PREFIX
from cloud_stub.api.events import Changes
from cloud_stub.api.looks import NotFound
from cloud_stub.api.requests import sentence
from cloud_stub.api.routes import deployments, devices, general, updates
from cloud_stub.api.service_port import Service
from cloud_stub.core.imports import AlreadyImported
from protocol.errors import LastgoodError, OperatorError

BODY_BYTES_MAX = 2_097_152  # of a request that is read whole: a manifest, or 10,000 device ids
IMPORT_PATH = f"{API_PREFIX}/updates"
# Scripts and styles of ours alone; pages need no more, and what a device reports can run nothing.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# Not `no-referrer`: with it browsers send `Origin: null` with forms, which the CSRF check would refuse.
_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


def create_app(
    service: Service, *, tokens: Mapping[str, Role], setup_code: str, random_token: Callable[[], str]
) -> FastAPI:
    """Return the application.

    `tokens` maps the sha256 of API tokens (hexadecimal) to roles. `setup_code` signs in once, as admin; it and what
    `random_token` returns need at least 128 bits. Before the server waits for its connections, call
    `app.state.changes.stop()` in its loop, which ends the event streams.

    Raises:
        ServiceError: a route declares no role.
    """
    app = FastAPI(
        title="lastgood", version="1", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan
    )
    app.state.service = service
    app.state.changes = Changes(service)
    app.state.access = Access(tokens, setup_code, random_token, service.now_ms)
    app.state.templates = rendering.templates()
    for module in (general, devices, updates, deployments):
        app.include_router(module.router)
    for module in (
        repository,
        signin,
        creation,
        pages,
    ):  # `/deployments/new` before `/deployments/{deployment}`
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    app.add_exception_handler(LastgoodError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_form)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(UnicodeEncodeError, _refuse_half_a_letter)
    app.add_exception_handler(Exception, _own_up)
    app.add_middleware(_Guard)
    check_roles(app.routes)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app.state.changes.run)
        yield
        app.state.changes.stop()


def _refuse(request: Request, error: Exception) -> Response:
    match error:
        case AccessRefused():
            if error.status == 401 and not _is_api(request):
                return RedirectResponse("/login", 303)
            status = error.status
        case NotFound():
            status = 404
        case Conflict() | AlreadyImported():
            status = 409
        case OperatorError():
            status = 400
        case _:
            status = 503
    return _answer(request, status, str(error))


def _refuse_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, 400, sentence(error.errors()))


def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = "There is nothing at this address." if error.status_code == 404 else f"{error.detail}."
    return _answer(request, error.status_code, said, error.headers)


def _refuse_half_a_letter(request: Request, _error: Exception) -> Response:
    return _answer(
        request, 400, "The request holds half of a surrogate pair, which is no text; send whole letters."
    )


def _own_up(request: Request, _error: Exception) -> Response:
    """A bug of ours; the server logs it with its traceback."""
    return _answer(request, 500, "The cloud broke on this request; its log says where. Please report it.")


def _answer(request: Request, status: int, said: str, headers: Mapping[str, str] | None = None) -> Response:
    if _is_api(request):
        extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return JSONResponse({"error": said}, status, headers={**(headers or {}), **extra})
    return rendering.refusal(request, status, said)


def _is_api(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/repo/"))


class _Guard:
    """Adds the headers that every answer bears, and refuses large bodies before they are read into memory.

    A plain ASGI wrapper, since streams must not be buffered. An import is the one body without a limit: it is read
    piece by piece, and only after the caller is known.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "http" and _is_too_large(scope):
            said = f"The request has more than {BODY_BYTES_MAX} bytes, or does not say how many; send less at a time."
            await JSONResponse({"error": said}, 413)(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def _is_too_large(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    # With a transfer encoding the length that is told beside it is not the one that is read.
    told = "transfer-encoding" not in headers and length.isdigit() and int(length) <= BODY_BYTES_MAX
    return scope["path"] != IMPORT_PATH and not told
