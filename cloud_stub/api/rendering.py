"""How a page is made from a template: the environment, what every page is given, and the page of a refusal.

It reads no rows. Everything a template shows is escaped, since much of it was written by devices.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from cloud_stub.api import shown
from cloud_stub.api.access import Access, AccessRefused, Caller, Role
from cloud_stub.api.dependencies import service_of


def templates() -> Environment:
    """Return the templates, with the filters that they use."""
    loader = PackageLoader("cloud_stub.api")
    loaded = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    loaded.filters.update(shown.FILTERS)
    loaded.globals.update(shown.GLOBALS)
    return loaded


def page(
    request: Request, template: str, caller: Caller | None, values: Mapping[str, Any], status: int = 200
) -> Response:
    """Return a page; `caller` is who looks, or None before signing in."""
    environment: Environment = request.app.state.templates
    text = environment.get_template(template).render(
        visitor=caller,
        may_operate=caller is not None and caller.role >= Role.OPERATOR,
        may_administer=caller is not None and caller.role >= Role.ADMIN,
        path=request.url.path,
        now_ms=service_of(request).now_ms(),
        **values,
    )
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


def refusal(request: Request, status: int, said: str) -> Response:
    """Return a page that says in one sentence why something was refused."""
    access: Access = request.app.state.access
    try:
        caller, _ = access.caller_of(request)
    except AccessRefused:
        caller = None
    return page(request, "refusal.html", caller, {"said": said, "status": status}, status)
