"""What routes are given: the service and the streams' hub; the application keeps them, so that nothing is global."""

from typing import Annotated, Final

from fastapi import Depends, Request

from cloud_stub.api.events import Changes
from cloud_stub.api.service_port import Service

API_PREFIX: Final = "/api/v1"


def service_of(request: Request) -> Service:
    """Return the service that the application was made for."""
    service: Service = request.app.state.service
    return service


def changes_of(request: Request) -> Changes:
    """Return the hub of the event streams."""
    changes: Changes = request.app.state.changes
    return changes


ServiceDependency = Annotated[Service, Depends(service_of)]
ChangesDependency = Annotated[Changes, Depends(changes_of)]
