"""Who may do what: roles, tokens, the set-up code, sessions, CSRF and origins."""

import re
from collections.abc import AsyncIterator

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from cloud_stub.api.access import SESSION_MS, SESSIONS_MAX, WITHOUT_ROLE, Access, Role, check_roles
from protocol.errors import ServiceError
from tests.cloud_stub.api import samples
from tests.cloud_stub.api.conftest import Caller, client_of
from tests.cloud_stub.api.fakes import DirectService
from tests.cloud_stub.api.server import SETUP_CODE, TOKENS

ORIGIN = {"Origin": "http://cloud:8080"}


def test_a_route_without_a_role_does_not_start() -> None:
    """One route that declares no role refuses the whole application, also inside an included router."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    router = APIRouter()
    router.add_api_route("/api/v1/secrets", lambda: "all of them")
    app.include_router(router)
    with pytest.raises(ServiceError, match="/api/v1/secrets declares no role"):
        check_roles(app.routes)


def test_only_the_named_routes_answer_without_a_token(app: FastAPI) -> None:
    """Every route but those that are named as free refuses a caller without a token."""
    nobody = client_of(app, None)
    asked = 0
    for route in _routes(app):
        if route.path in WITHOUT_ROLE:
            continue
        for method in route.methods or ():
            answer = nobody.request(method, re.sub(r"{\w+}", "1.0", route.path), json={})
            expected = 401 if route.path.startswith("/api/") else 303
            assert answer.status_code == expected, f"{method} {route.path}"
            asked += 1
    assert asked > 35


def test_the_repository_is_not_free(app: FastAPI) -> None:
    """The routes without a role that hold something are closed by their signed query instead."""
    nobody = client_of(app, None)
    assert nobody.get(f"/repo/files/{'0' * 64}").status_code == 403
    assert nobody.get("/repo/manifests/acme/pump/1.0.json").status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/api/v1/devices", Role.VIEWER),
        ("GET", "/api/v1/audit", Role.VIEWER),
        ("PUT", "/api/v1/devices/x/group", Role.OPERATOR),
        ("POST", "/api/v1/updates", Role.OPERATOR),
        ("POST", "/api/v1/deployments", Role.OPERATOR),
        ("POST", "/api/v1/deployments/d1/cancel", Role.OPERATOR),
        ("POST", "/api/v1/devices", Role.ADMIN),
        ("POST", "/api/v1/updates/acme/pump/1.0/withdraw", Role.ADMIN),
        ("POST", "/api/v1/restored/resume", Role.ADMIN),
    ],
)
def test_each_role_may_do_what_it_says(app: FastAPI, method: str, path: str, needs: Role) -> None:
    """A role below the declared one gets 403 with a sentence, the declared one and those above do not."""
    for role in Role:
        answer = client_of(app, role).request(method, path, json={})
        assert (answer.status_code == 403) == (role < needs)
        if role < needs:
            assert answer.json() == {
                "error": f"This needs the role {needs.name.lower()}, and yours is {role.name.lower()}."
            }


def test_an_unknown_token_is_refused(app: FastAPI) -> None:
    """A token that is not known, or another scheme, is 401, and says what to send."""
    for value in ("Bearer wrong", "Basic dXNlcjpwYXNz", "Bearer"):
        answer = client_of(app, None).get("/api/v1/devices", headers={"Authorization": value})
        assert answer.status_code == 401
        assert "The API token is unknown" in answer.json()["error"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_is_not_helped_by_a_session(app: FastAPI) -> None:
    """Who sends a token is judged by it alone."""
    page = _signed_in(app)
    assert page.get("/api/v1/devices", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_the_setup_code_works_once(app: FastAPI) -> None:
    """It opens a session as admin, whose cookie scripts and other sites do not get; a second use is refused."""
    page = client_of(app, None)
    assert page.get("/").headers["location"] == "/login"
    answer = page.get("/login", params={"code": SETUP_CODE})
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 200
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert page.get("/").status_code == 200
    again = client_of(app, None).get("/login", params={"code": SETUP_CODE})
    assert again.status_code == 403
    assert "set-cookie" not in again.headers


def test_a_wrong_code_does_not_use_up_the_right_one(app: FastAPI) -> None:
    """Guessing leaves the code as it is."""
    assert client_of(app, None).get("/login", params={"code": "guess"}).status_code == 403
    assert _signed_in(app).get("/").status_code == 200


def test_a_token_opens_a_session_of_its_role(app: FastAPI) -> None:
    """Signing in with a viewer's token shows pages, and does not let create."""
    page = client_of(app, None)
    assert page.post("/login", data={"token": "wrong"}, headers=ORIGIN).status_code == 403
    assert page.post("/login", data={"token": TOKENS[Role.VIEWER]}, headers=ORIGIN).status_code == 200
    assert page.get("/devices").status_code == 200
    assert page.get("/deployments/new").status_code == 403


def test_signing_in_from_another_site_is_refused(app: FastAPI) -> None:
    """Another site's form cannot sign a browser in."""
    answer = client_of(app, None).post(
        "/login", data={"token": TOKENS[Role.VIEWER]}, headers={"Origin": "http://evil"}
    )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "csrf", "status"),
    [
        (ORIGIN, True, 303),
        (ORIGIN, False, 403),
        ({"Origin": "http://evil"}, True, 403),
        ({"Origin": "null"}, True, 403),
        ({}, True, 403),
    ],
)
def test_a_form_needs_the_csrf_token_and_the_same_origin(
    app: FastAPI, service: DirectService, headers: dict[str, str], csrf: bool, status: int
) -> None:
    """A change by a session's cookie needs both; without either nothing is done."""
    samples.fleet(service, "north", 1, None)
    page = _signed_in(app)
    data = {"group": "south", "csrf": _csrf(page) if csrf else "another"}
    before = len(service.asked)
    assert page.post("/devices/north-001/group", data=data, headers=headers).status_code == status
    assert len(service.asked) == before + (status == 303)


def test_the_api_by_a_session_needs_the_csrf_header(app: FastAPI, service: DirectService) -> None:
    """The cookie alone changes nothing through the API either."""
    samples.fleet(service, "north", 1, None)
    page = _signed_in(app)
    path, change = "/api/v1/devices/north-001/group", {"group": "south"}
    assert page.put(path, json=change, headers=ORIGIN).status_code == 403
    allowed = {**ORIGIN, "X-CSRF-Token": _csrf(page)}
    assert page.put(path, json=change, headers=allowed).status_code == 200


def test_a_session_ends(app: FastAPI, service: DirectService) -> None:
    """By its age, and by signing out, after which the old cookie opens nothing."""
    page = _signed_in(app)
    service.ahead_ms = SESSION_MS + 1
    assert page.get("/").status_code == 303
    service.ahead_ms = 0
    cookies = dict(page.cookies)
    assert page.post("/logout", data={"csrf": _csrf(page)}, headers=ORIGIN).status_code == 303
    stale = client_of(app, None)
    stale.cookies.update(cookies)
    assert stale.get("/").status_code == 303


def test_sessions_are_bounded() -> None:
    """The oldest session goes when there are too many."""
    numbers = iter(range(10 * SESSIONS_MAX))
    access = Access({}, "", lambda: str(next(numbers)), lambda: 0)
    for _ in range(SESSIONS_MAX + 5):
        access._open("someone", Role.VIEWER)
    assert len(access._sessions) == SESSIONS_MAX


def test_every_answer_bears_the_headers(app: FastAPI) -> None:
    """Pages run scripts of ours alone, whatever a device has written into its properties."""
    for path in ("/login", "/api/v1/health", "/nothing", "/static/app.css"):
        headers = client_of(app, None).get(path).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_large_body_is_refused_before_it_is_read(app: FastAPI) -> None:
    """A request that is read whole has a limit, which also holds for callers without a token."""
    answer = client_of(app, None).post("/api/v1/devices", content=b" " * 3_000_000)
    assert answer.status_code == 413
    endless = client_of(app, None).post("/api/v1/devices", content=_endless())
    assert endless.status_code == 413


async def _endless() -> AsyncIterator[bytes]:
    yield b"{"


def _signed_in(app: FastAPI) -> Caller:
    page = client_of(app, None)
    page.get("/login", params={"code": SETUP_CODE})
    return page


def _csrf(page: Caller) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.get("/").text)
    assert found
    return found[1]


def _routes(app: FastAPI) -> list[APIRoute]:
    found = []
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        found += [one for one in (inner.routes if inner else [route]) if isinstance(one, APIRoute)]
    return found
