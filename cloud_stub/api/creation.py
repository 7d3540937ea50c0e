"""The pages that create a deployment: the form, its plan, and the one confirm.

They hold no rules. What is created is the plan that was shown: the confirm carries the plan's digest, and a plan that
has changed since is shown anew instead of being carried out.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from cloud_stub.api import looks, show
from cloud_stub.api.access import Caller, Operator
from cloud_stub.api.conflicts import Conflict
from cloud_stub.api.dependencies import ServiceDependency
from cloud_stub.api.forms import Fields, draft_of, fields_of
from cloud_stub.api.rendering import page
from cloud_stub.api.routes import deployments
from cloud_stub.api.service_port import Service
from protocol.errors import OperatorError

router = APIRouter(include_in_schema=False)
Pairs = list[tuple[str, str]]


async def _pairs_of(request: Request) -> Pairs:
    form = await request.form()
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


@router.get("/deployments/new")
def get_new(caller: Operator, request: Request, service: ServiceDependency) -> Response:
    """Show the form, filled with what the address says."""
    return _form(request, service, caller, fields_of(request.query_params.multi_items()))


@router.get("/deployments/plan")
def get_plan(caller: Operator, request: Request, service: ServiceDependency) -> Response:
    """Show what the deployment would do, with the one confirm."""
    return _plan(request, service, caller, fields_of(request.query_params.multi_items()))


@router.post("/deployments")
def post_create(
    caller: Operator,
    request: Request,
    service: ServiceDependency,
    pairs: Annotated[Pairs, Depends(_pairs_of)],
) -> Response:
    """Create the deployment that was shown; when its plan has changed since, show it anew."""
    fields = fields_of(pairs)
    try:
        row = deployments.create(service, draft_of(fields), dict(pairs).get("plan_digest"), caller.who)
    except Conflict as error:
        return _plan(request, service, caller, fields, str(error), 409)
    return RedirectResponse(f"/deployments/{row.id}", 303)


def _form(
    request: Request, service: Service, caller: Caller, fields: Fields, said: str = "", status: int = 200
) -> Response:
    with service.read() as reader:
        groups = looks.groups(reader)
        updates = [show.update_view(row) for row in reader.list_updates()]
    values = {"fields": fields, "groups": groups, "updates": updates, "said": said}
    return page(request, "new.html", caller, values, status)


def _plan(
    request: Request, service: Service, caller: Caller, fields: Fields, said: str = "", status: int = 200
) -> Response:
    try:
        draft = draft_of(fields)
        plan = show.plan_view(service.plan(draft.draft()))
    except OperatorError as error:
        return _form(request, service, caller, fields, str(error), 400)
    pairs = [(name, value) for name, values in fields.items() for value in values]
    values = {"plan": plan, "draft": draft, "pairs": pairs, "said": said}
    return page(request, "plan.html", caller, values, status)
