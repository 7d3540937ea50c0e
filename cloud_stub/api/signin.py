"""The pages that open and end a session: by the one-time set-up code, by an API token, and sign-out.

They hold no tokens (`access.py` does). After the code the answer is a page and no redirect: a redirect that began at
another site's link would come without the new cookie, which is SameSite=Strict.
"""

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from cloud_stub.api.access import SESSION_MS, Access, Viewer, check_origin, cookie_name
from cloud_stub.api.rendering import page

router = APIRouter(include_in_schema=False)


@router.get("/login")
def get_login(request: Request, code: str = "") -> Response:
    """Sign in by the set-up code, or show the form."""
    if not code:
        return page(request, "login.html", None, {"said": ""})
    session = _access(request).sign_in_by_code(code)
    if session is None:
        said = "The code was used already or is wrong. Sign in with an API token, or restart the cloud for a new code."
        return page(request, "login.html", None, {"said": said}, 403)
    return _signed_in(request, session)


@router.post("/login")
def post_login(request: Request, token: str = Form("")) -> Response:
    """Sign in by an API token."""
    check_origin(request)
    session = _access(request).sign_in_by_token(token.strip())
    if session is None:
        return page(request, "login.html", None, {"said": "The API token is unknown."}, 403)
    return _signed_in(request, session)


@router.post("/logout")
def post_logout(caller: Viewer, request: Request) -> Response:
    """End the session."""
    _access(request).sign_out(request)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(cookie_name(request))
    return answer


def _signed_in(request: Request, session: str) -> Response:
    answer = page(request, "signed_in.html", None, {})
    answer.set_cookie(
        cookie_name(request),
        session,
        max_age=SESSION_MS // 1000,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access
