"""Who may do what: API tokens, the pages' sessions, and the role that every route declares.

It stores nothing on disk and knows no passwords: tokens come in as sha256 → role, sessions live in memory. It keeps the
rule that a route without a declared role does not start (DESIGN.md section 7): `check_roles` refuses the application.
"""

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount

from protocol.errors import LastgoodError, ServiceError

SESSION_MS: Final = 12 * 3_600_000  # a working day; then the operator signs in again
SESSIONS_MAX: Final = 1_000  # kept in memory; the oldest goes first
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf"
WITHOUT_ROLE: Final = frozenset(
    {"/api/v1/health", "/api/v1/openapi.json", "/login", "/static", "/repo/files/{sha256}"}
    | {"/repo/manifests/{provider}/{name}/{version}.json"}  # both under a signed, expiring query instead
)


class Role(IntEnum):
    """What a caller may do; each role may do all that the ones before it may."""

    VIEWER = 1  # look
    OPERATOR = 2  # import, deploy, move, cancel, retry
    ADMIN = 3  # hand out device tokens, withdraw, go on after a restore


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a name for the audit log, and a role; `csrf` belongs to a session of the pages."""

    who: str
    role: Role
    csrf: str = ""


class AccessRefused(LastgoodError):
    """The caller is unknown (401), or must not do this (403)."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Session:
    caller: Caller
    until_ms: int


class Access:
    """The callers that are known: tokens given at the start, and sessions made from them or from the set-up code."""

    def __init__(
        self,
        tokens: Mapping[str, Role],
        setup_code: str,
        random_token: Callable[[], str],
        now_ms: Callable[[], int],
    ) -> None:
        self._tokens = tokens
        self._setup_code_digest = digest_of(setup_code) if setup_code else ""
        self._random_token = random_token
        self._now_ms = now_ms
        self._sessions: dict[str, _Session] = {}

    def sign_in_by_code(self, code: str) -> str | None:
        """Return a new session for the set-up code, which works once; None when it is wrong or used."""
        if not self._setup_code_digest or not hmac.compare_digest(digest_of(code), self._setup_code_digest):
            return None
        self._setup_code_digest = ""
        return self._open("set-up code", Role.ADMIN)

    def sign_in_by_token(self, token: str) -> str | None:
        """Return a new session with the role of an API token; None when the token is unknown."""
        caller = self._by_token(token)
        return self._open(caller.who, caller.role) if caller else None

    def sign_out(self, request: Request) -> None:
        """End the session of a request."""
        self._sessions.pop(digest_of(request.cookies.get(cookie_name(request), "")), None)

    def caller_of(self, request: Request) -> tuple[Caller, bool]:
        """Return who asks, and whether by a session (whose changes need the CSRF token).

        Raises:
            AccessRefused: neither a known token nor a session that lasts.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            caller = self._by_token(token.strip()) if scheme.lower() == "bearer" else None
            if caller is None:
                raise AccessRefused(
                    401, "The API token is unknown; use the one that `lastgood cloud up` wrote."
                )
            return caller, False
        session = self._sessions.get(digest_of(request.cookies.get(cookie_name(request), "")))
        if session is None or session.until_ms <= self._now_ms():
            raise AccessRefused(401, "Sign in first, or send an API token as `Authorization: Bearer …`.")
        return session.caller, True

    def _by_token(self, token: str) -> Caller | None:
        # A dictionary look-up is fine here: what an attacker could time is the sha256 of his guess.
        digest = digest_of(token)
        role = self._tokens.get(digest)
        return Caller(f"{role.name.lower()} token {digest[:8]}", role) if role else None

    def _open(self, who: str, role: Role) -> str:
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        session = self._random_token()
        caller = Caller(who, role, self._random_token())
        self._sessions[digest_of(session)] = _Session(caller, self._now_ms() + SESSION_MS)
        return session


class _Requires:
    """The dependency behind `requires`; `check_roles` looks for it."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request) -> Caller:
        access: Access = request.app.state.access
        caller, by_session = access.caller_of(request)
        if by_session and request.method not in SAFE_METHODS:
            await _check_csrf(request, caller)
        if caller.role < self.role:
            raise AccessRefused(
                403, f"This needs the role {self.role.name.lower()}, and yours is {caller.role.name.lower()}."
            )
        return caller


def requires(role: Role) -> Any:
    """Declare the role a route needs; the route gets the `Caller`."""
    return Depends(_Requires(role))


Viewer = Annotated[Caller, requires(Role.VIEWER)]
Operator = Annotated[Caller, requires(Role.OPERATOR)]
Admin = Annotated[Caller, requires(Role.ADMIN)]
"""What a route asks for as a parameter: the caller, who has at least this role."""


def check_roles(routes: Iterable[BaseRoute]) -> None:
    """Refuse an application that has a route without a declared role.

    Raises:
        ServiceError: the first such route by its path.
    """
    for route in routes:
        if inner := getattr(route, "original_router", None):  # FastAPI resolves included routers later
            check_roles(inner.routes)
            continue
        path = getattr(route, "path", repr(route))
        declared = isinstance(route, APIRoute) and any(
            isinstance(dependency.call, _Requires) for dependency in route.dependant.dependencies
        )
        if not declared and not (path in WITHOUT_ROLE and isinstance(route, APIRoute | Mount)):
            raise ServiceError(f"The route {path} declares no role; give it `requires(Role.…)`.")


def cookie_name(request: Request) -> str:
    """Return the session cookie's name; cookies do not tell ports apart, so two clouds on a host need two names."""
    return f"lastgood_{request.url.port or 0}"


def digest_of(secret: str) -> str:
    """Return the sha256 of a secret, in hexadecimal."""
    return sha256(secret.encode()).hexdigest()


async def _check_csrf(request: Request, caller: Caller) -> None:
    check_origin(request)
    given = request.headers.get(CSRF_HEADER)
    if given is None and request.headers.get("content-type", "").startswith(
        "application/x-www-form-urlencoded"
    ):
        value = (await request.form()).get(CSRF_FIELD)
        given = value if isinstance(value, str) else None
    if not hmac.compare_digest((given or "").encode(), caller.csrf.encode()):
        raise AccessRefused(403, "The form is out of date; load the page again, and send it once more.")


def check_origin(request: Request) -> None:
    """Refuse a change that another site's page sends.

    Raises:
        AccessRefused: the Origin is missing or another host's.
    """
    origin = request.headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != request.headers.get("host", ""):
        raise AccessRefused(403, "The request comes from another site's page; use the pages of this cloud.")
