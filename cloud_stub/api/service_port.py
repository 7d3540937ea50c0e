"""What the API and the pages want of the running service, as one small protocol.

It implements nothing (`cloud_stub/service.py` does). Every call may block until the database has it, so routes that
make one are plain functions, which run in a thread.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from cloud_stub.core.commands import Command, DeploymentDraft
from cloud_stub.core.plan import Plan
from cloud_stub.ports import Broker, Files, Reader


class Service(Protocol):
    """The update service behind the API."""

    @property
    def files(self) -> Files:
        """Where the bytes of updates lie."""

    @property
    def broker(self) -> Broker:
        """The broker that devices connect to."""

    def do(self, command: Command, who: str) -> Any:
        """Carry out a command; return, when it is durable, what it made.

        Raises:
            OperatorError: it cannot be carried out as it was asked for.
        """

    def plan(self, draft: DeploymentDraft) -> Plan:
        """Answer what a deployment would do.

        Raises:
            OperatorError: it could not be created.
        """

    def why(self, device: str) -> list[str]:
        """Return in sentences which rule a device waits on, the deciding one first.

        Raises:
            OperatorError: the device is unknown.
        """

    def read(self) -> AbstractContextManager[Reader]:
        """Open one consistent look at the rows."""

    def wait_change(self, after: int, timeout_s: float) -> int:
        """Wait until the change counter exceeds `after` or the time is over; return the counter."""

    def now_ms(self) -> int:
        """Return the cloud's time, in UTC milliseconds."""

    def repository_allows(self, query: Mapping[str, str]) -> bool:
        """Return whether the query of a repository address is signed and has not expired."""

    def join_line(self, device: str, token: str) -> str:
        """Return the one line to run on a device."""

    def new_token(self) -> tuple[str, str]:
        """Return a new device token and its hash."""
