"""Options that many commands share, and how times are written on the command line."""

import functools
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from cloud_stub.cli.client import Cloud, connected, find_address

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"([0-9]{1,12})(ms|s|min|m|h|d)")


def cloud_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where the cloud is; it gets the connection as `cloud`."""

    @click.option(
        "--url", envvar="LASTGOOD_URL", show_envvar=True, help="Address of the cloud. [from the data folder]"
    )
    @click.option(
        "--token", envvar="LASTGOOD_TOKEN", show_envvar=True, help="API token. [from the data folder]"
    )
    @click.option(
        "--data",
        envvar="LASTGOOD_DATA",
        show_envvar=True,
        type=click.Path(path_type=Path),
        default="lastgood-data",
        show_default=True,
        help="Data folder of `lastgood cloud up`.",
    )
    @functools.wraps(command)
    def with_cloud(url: str | None, token: str | None, data: Path, **options: Any) -> Any:
        with connected(find_address(url, token, data)) as cloud:
            return command(cloud=cloud, **options)

    return with_cloud


json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's own objects as JSON.")


class Seconds(click.FloatRange):
    """A number of seconds within bounds; `nan` is within none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text."""
        found: float = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return found


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A length of time such as `30s`, `10m`, `2h` or `1d`, as milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text."""
        return value if isinstance(value, int) else self._milliseconds(str(value), param, ctx)

    def _milliseconds(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _DURATION.fullmatch(text)
        if not found:
            self.fail(f"{text!r} is no length of time; write it as 30s, 10m, 2h or 1d.", param, ctx)
        return int(found[1]) * _UNITS_MS[found[2]]


def start_of(text: str | None, cloud: Cloud) -> int | None:
    """Return the start that `--at` means, in UTC milliseconds: an instant with a zone, or `+30m` on the cloud's clock.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    if text.startswith("+"):
        if not (found := _DURATION.fullmatch(text[1:])):
            raise click.UsageError(f"--at {text!r} is no length of time; write it as +30m or +2h.")
        return int(cloud.get("service")["now_ms"]) + int(found[1]) * _UNITS_MS[found[2]]
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.UsageError(
            f"--at {text!r} is no instant; write it as 2026-12-01T08:30+01:00, or as +30m."
        ) from error
    if instant.tzinfo is None:
        raise click.UsageError(f"--at {text!r} lacks its zone; write {text}Z for UTC, or {text}+01:00.")
    return int(instant.timestamp() * 1000)
